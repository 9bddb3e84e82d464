"""What `bench calls` and `bench overload` have in common: options, a daemon, and a caller at it."""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import msgspec
import typer

from streamdet.errors import UsageError
from streamdet.lists import one_of

if TYPE_CHECKING:
    from streamdet.bench.load import Load
    from streamdet.bundle import Bundle

Attach = Annotated[bool, typer.Option("--attach", help="Use the daemon that runs at the config's addresses.")]
Pid = Annotated[int | None, typer.Option(min=1, help="With --attach: its process, to see CPU and memory.")]
Recordings = Annotated[
    list[Path] | None, typer.Option("--recording", help="What is said in the calls; may be repeated.")
]
Way = Annotated[str, typer.Option("--over", help="zeromq, tcp or unix (raw PCM, lossless).")]
HalfDuplex = Annotated[bool, typer.Option("--half-duplex", help="Every call is silent half of the time.")]
Sockets = Annotated[int, typer.Option(min=1, max=4000, help="ZeroMQ connections at the most; calls share them.")]


class Ask(msgspec.Struct, frozen=True):
    """The options as they came."""

    config: Path | None
    set_: list[str] | None
    bundle: Path | None
    attach: bool
    pid: int | None
    recordings: list[Path] | None
    over: str
    frame_ms: int
    half_duplex: bool
    sockets: int


@contextlib.contextmanager
def at_a_daemon(ask: Ask) -> Iterator["tuple[Load, Bundle]"]:
    """Start a daemon, or find one, and a caller without calls.

    Raises:
        UsageError: the options do not fit together.
    """
    from streamdet import bundle as bundles
    from streamdet.bench import load as loads
    from streamdet.bench import served
    from streamdet.cli.options import read_config

    ways: tuple[served.Over, ...] = get_args(served.Over)
    over = one_of("--over", ask.over, ways)
    if ask.pid is not None and not ask.attach:
        raise UsageError.of("--pid", ask.pid, "together with --attach")
    settings = read_config(ask.config, ask.set_, ask.bundle)
    found = bundles.chosen(settings.bundle)
    recordings = ask.recordings or bundles.starter_recordings()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="streamdet-bench-")))
        if ask.attach:
            daemon = served.attached(over, settings.endpoints, ask.pid)
        else:
            given = dict(setting.split("=", 1) for setting in ask.set_ or [])
            if ask.bundle is not None:
                given["bundle.path"] = str(ask.bundle)
            daemon = stack.enter_context(served.served(over, given, ask.config))
        load = loads.load(
            daemon,
            recordings,
            over=over,
            hop_s=found.manifest.audio.hop_s,
            frame_ms=ask.frame_ms,
            folder=folder,
            half_duplex=ask.half_duplex,
            sockets=ask.sockets,
        )
        yield stack.enter_context(load), found
