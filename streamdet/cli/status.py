"""`streamdet status`: how a daemon is and every open track, asked over the control socket."""

from typing import Annotated, Any

import msgspec
import typer
import zmq
from rich.console import Console
from rich.table import Table
from rich.text import Text

from streamdet.cli.options import AsJson, ConfigFile, IdentityFile, Settings, read_config, read_identity
from streamdet.cli.summary import flat, summary
from streamdet.errors import ProtocolError, RefusedError, UnreachableError
from streamdet.guard import present
from streamdet.keys import Identity

# A daemon answers from its loop in milliseconds; one that does not in this time is gone or stuck.
PATIENCE_MS = 2000

Address = Annotated[str | None, typer.Option("--address", help="Control address; without one, the config's.")]


def status(
    config: ConfigFile = None,
    set_: Settings = None,
    address: Address = None,
    json: AsJson = False,
    identity: IdentityFile = None,
) -> None:
    """Say how a running daemon is, and list its open tracks."""
    where = address or read_config(config, set_).endpoints.control
    answer = ask(where, {"op": "status"}, read_identity(identity))
    if json:
        for one in flat(answer):
            typer.echo(msgspec.json.encode(one).decode())
        return
    console = Console()
    for line in summary(answer):
        console.print(line, soft_wrap=True)
    if answer["tracks"]:
        console.print(Text(), _table(answer["tracks"]))


def ask(
    address: str, request: dict[str, Any], identity: Identity | None = None, patience_ms: int = PATIENCE_MS
) -> dict[str, Any]:
    """Ask the daemon one thing, and wait for the answer for `patience_ms`.

    Raises:
        UnreachableError: no answer.
        ConfigError: the identity does not name a daemon.
        ProtocolError: it refused.
        RefusedError: it refused a reload.
    """
    with asking(address, identity) as socket:
        socket.send(msgspec.json.encode(request))
        if not socket.poll(patience_ms):
            raise UnreachableError.of(
                "control", address, "a daemon that answers; does it run, and may your --identity control?"
            )
        answer: dict[str, Any] = msgspec.json.decode(socket.recv())
    if not answer.get("ok"):
        refused = RefusedError if request.get("op") == "reload" else ProtocolError
        raise refused(f"the daemon refused: {answer.get('error')}")
    return answer


def asking(address: str, identity: Identity | None = None) -> "zmq.Socket[bytes]":
    """Connect to a daemon's control socket, for requests that need not wait for each other's answers.

    Raises:
        UnreachableError: it is not a ZeroMQ address.
        ConfigError: the identity does not name a daemon.
    """
    socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
    socket.setsockopt(zmq.LINGER, 0)
    # Requests that nobody takes: what is asked again in a second need not wait for a daemon that is gone.
    socket.setsockopt(zmq.SNDHWM, 2)
    present(socket, identity)
    try:
        socket.connect(address)
    except zmq.ZMQError as error:
        socket.close()
        raise UnreachableError.of("control", address, f"a ZeroMQ address ({error})") from None
    return socket


def _table(tracks: list[dict[str, Any]]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("stream", "ch"):
        table.add_column(column)
    table.add_column("state")
    for column in ("P(spoof)", "seconds", "speech", "windows", "skipped", "lag ms"):
        table.add_column(column, justify="right")
    for track in tracks:
        p_spoof, lag_ms = track["p_spoof"], track["lag_ms"]
        table.add_row(
            Text(track["stream"]),  # a str would be read as markup
            str(track["channel"]),
            track["state"] + (" (paused)" if track["paused"] else ""),
            "–" if p_spoof is None else f"{p_spoof:.3f}",
            f"{track['seconds']:.1f}",
            f"{track['total_speech_s']:.1f}",
            str(track["windows"]),
            str(track["skipped"]),
            "–" if lag_ms is None else f"{lag_ms:.0f}",
        )
    return table
