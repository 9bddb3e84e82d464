"""`streamdet run`: the daemon, in the foreground."""

import signal

import typer

from streamdet.cli.options import BundlePath, ConfigFile, Settings, read_config
from streamdet.config import Config


def run(config: ConfigFile = None, set_: Settings = None, bundle: BundlePath = None) -> None:
    """Run the daemon in the foreground; SIGTERM drains it, SIGHUP reads config and bundle again."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # one that comes too early for a reload must not end the process
    from streamdet import foreground  # onnxruntime takes half a second to import, --help should not

    def read() -> Config:
        return read_config(config, set_, bundle)

    raise typer.Exit(foreground.run(read(), read))
