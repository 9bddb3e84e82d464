"""`streamdet control`: pause, resume or close a call, or reload config and bundle."""

from typing import Annotated, Final

import typer

from streamdet.cli.options import ConfigFile, IdentityFile, Settings, read_config, read_identity
from streamdet.cli.status import PATIENCE_MS, Address, ask
from streamdet.errors import UsageError

OPERATIONS: Final = ("pause", "resume", "close", "reload")
# It is about the daemon, not about a call.
ALONE: Final = "reload"
# It takes as long as a start: seconds, and some minutes where TensorRT builds engines.
RELOAD_MS: Final = 600_000

Operation = Annotated[str, typer.Argument(help="pause, resume or close, each of calls; or reload, of the daemon.")]
Streams = Annotated[list[str] | None, typer.Argument(help="Ids of the calls.")]


def control(
    operation: Operation,
    streams: Streams = None,
    config: ConfigFile = None,
    set_: Settings = None,
    address: Address = None,
    identity: IdentityFile = None,
) -> None:
    """Pause a call while card numbers are read out, resume it, close it; or reload config and bundle."""
    if operation not in OPERATIONS:
        raise UsageError.of("OPERATION", operation, f"one of {', '.join(OPERATIONS)}")
    if (operation == ALONE) == bool(streams):
        expected = f"no call: {ALONE} is of the daemon" if streams else f"the call to {operation}"
        raise UsageError.of("STREAMS", " ".join(streams or []), expected)
    who = read_identity(identity)
    where = address or read_config(config, set_).endpoints.control
    for request in [{"op": operation, "stream": stream} for stream in streams or []] or [{"op": operation}]:
        answer = ask(where, request, who, RELOAD_MS if operation == ALONE else PATIENCE_MS)
        typer.echo(f"{operation} {request.get('stream') or answer.get('model', '')}".rstrip() + ": done", err=True)
