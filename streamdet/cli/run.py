"""`streamdet run`: the daemon, in the foreground."""

import typer

from streamdet.cli.options import BundlePath, ConfigFile, Settings, read_config


def run(config: ConfigFile = None, set_: Settings = None, bundle: BundlePath = None) -> None:
    """Run the daemon in the foreground; SIGTERM drains it."""
    from streamdet import daemon  # onnxruntime takes half a second to import, --help should not

    raise typer.Exit(daemon.run(read_config(config, set_, bundle)))
