"""`streamdet tail`: watch a daemon's verdicts."""

import sys
import time
from collections.abc import Iterator
from typing import Annotated

import msgspec
import typer
import zmq
from rich.console import Console
from rich.live import Live

from streamdet.cli.board import Board, line
from streamdet.cli.options import AsJson, ConfigFile, IdentityFile, Settings, read_config, read_identity
from streamdet.errors import ProtocolError, UnreachableError
from streamdet.guard import present
from streamdet.keys import Identity
from streamdet.records import Heartbeat, Verdict
from streamdet.sockets import notice_silence
from streamdet.wire import verdicts
from streamdet.wire.verdicts import Record

# Long enough for a terminal to keep up, short enough to look live.
REDRAW_S = 0.25

Address = Annotated[str | None, typer.Option("--address", help="Verdicts address; without one, the config's.")]
Streams = Annotated[list[str] | None, typer.Argument(help="Only streams whose ids begin like this.")]


def tail(
    streams: Streams = None,
    config: ConfigFile = None,
    set_: Settings = None,
    address: Address = None,
    json: AsJson = False,
    identity: IdentityFile = None,
) -> None:
    """Watch verdicts: a live table on a terminal, lines when piped; goes on when the daemon comes back."""
    where = address or read_config(config, set_).endpoints.verdicts
    with subscribed(where, streams or [""], read_identity(identity)) as socket:
        if json:
            for record in _new(records(socket)):
                if record is not None and not isinstance(record, Heartbeat):
                    _print(msgspec.json.encode(record).decode())
        elif sys.stdout.isatty():
            watch(records(socket), Board())
        else:
            for record in _new(records(socket)):
                if record is not None and not isinstance(record, Heartbeat):
                    _print(line(record))


def subscribed(address: str, streams: list[str], identity: Identity | None = None) -> "zmq.Socket[bytes]":
    """Subscribe to verdicts and events of streams by the beginning of their ids, and to heartbeats.

    Raises:
        UnreachableError: it is not a ZeroMQ address.
        ConfigError: the identity does not name a daemon.
    """
    socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.SUB)
    present(socket, identity)
    notice_silence(socket)  # then libzmq connects anew by itself
    socket.setsockopt(zmq.RECONNECT_IVL_MAX, 2000)
    socket.setsockopt(zmq.LINGER, 0)
    try:
        socket.connect(address)
    except zmq.ZMQError as error:
        socket.close()
        raise UnreachableError.of("verdicts", address, f"a ZeroMQ address ({error})") from None
    for prefix in streams:
        socket.subscribe(f"v.{prefix}")
        socket.subscribe(f"e.{prefix}")
    socket.subscribe(verdicts.HEARTBEAT_TOPIC)
    return socket


def records(socket: "zmq.Socket[bytes]") -> Iterator[Record | None]:
    """Yield every message as it comes, and None each time that none came for a moment."""
    while True:
        if not socket.poll(int(REDRAW_S * 1000)):
            yield None
            continue
        try:
            yield verdicts.parse(socket.recv_multipart())
        except ProtocolError as error:
            typer.echo(f"streamdet: {error}", err=True)


def watch(found: Iterator[Record | None], board: Board, *, screen: bool = True) -> None:
    """Show the live table as long as messages (or Nones) come; `screen` takes the whole terminal."""
    console = Console()
    drawn_s = 0.0
    with Live(console=console, auto_refresh=False, screen=screen) as live:
        for record in found:
            now_s = time.monotonic()
            if record is not None:
                board.update(record, now_s)
            if now_s - drawn_s >= REDRAW_S:
                live.update(board.render(now_s, console.height), refresh=True)
                drawn_s = now_s
        live.update(board.render(time.monotonic(), console.height), refresh=True)


def _new(found: Iterator[Record | None]) -> Iterator[Record | None]:
    """Drop repeats that are meant for somebody else."""
    newest: dict[tuple[str, int], tuple[str, int]] = {}
    for record in found:
        if isinstance(record, Verdict):
            opened, seq = newest.get((record.stream, record.channel), ("", -1))
            if record.opened == opened and record.seq <= seq:
                continue
            newest[record.stream, record.channel] = record.opened, record.seq
        yield record


def _print(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()  # whoever reads the pipe wants it now
