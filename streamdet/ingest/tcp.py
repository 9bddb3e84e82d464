"""Raw PCM over TCP and unix sockets: one connection is one stream. The lossless way in.

When scoring falls behind, nothing is skipped: this side stops reading, the kernel's buffers fill, and the sender waits.
"""

import asyncio
import contextlib
import itertools
import logging
import socket
import time
from pathlib import Path
from typing import Final, Literal, Self

from streamdet.engine import Engine
from streamdet.errors import ConfigError, OverloadError, ProtocolError, UnreachableError
from streamdet.logs import fields
from streamdet.metrics import Metrics
from streamdet.records import AudioFormat, Frame
from streamdet.sockets import host_and_port, taken
from streamdet.wire.pcm import Opening, PcmParser

log = logging.getLogger(__name__)

# Read at once: two seconds of 8 kHz s16le. Larger reads only hold more before the engine can say stop.
READ_BYTES: Final = 32 << 10
# Connections that may wait for the loop to take them. After a restart all calls come back at once, and one that finds
# no place tries again only after a second.
BACKLOG: Final = 4096


class PcmListener:
    """Listens while entered."""

    def __init__(self, address: str, form: AudioFormat, engine: Engine, metrics: Metrics) -> None:
        """Listen at `tcp://host:port` or `unix:/path` for streams of `form`."""
        self.address = address
        """Once listening, with the port that `:0` became."""
        self._form: Final = form
        self._engine: Final = engine
        self._metrics: Final = metrics
        self._connections: Final[set[asyncio.Task[None]]] = set()
        self._numbers: Final = itertools.count(1)

    async def __aenter__(self) -> Self:
        """Begin to listen.

        Raises:
            UnreachableError: the address is taken.
            ConfigError: it is not an address.
        """
        try:
            await self._listen()
        except OSError as error:
            raise taken("endpoints.pcm", self.address, error) from None
        return self

    async def __aexit__(self, *error: object) -> None:
        """Let go of all connections; their streams stay open for the drain to end."""
        self._server.close()
        for connection in self._connections:
            connection.cancel()
        if self._connections:
            await asyncio.wait(self._connections)
        if self.address.startswith("unix:"):
            _remove(_path(self.address))

    async def _listen(self) -> None:
        if self.address.startswith("unix:"):
            path = _path(self.address)
            _check_path(path)
            self._server = await asyncio.start_unix_server(self._connected, path, backlog=BACKLOG)
            # As open as loopback TCP, whatever the umask; the folder's mode is the place to keep somebody out.
            _open_to_all(path)
        else:
            host, port = host_and_port("endpoints.pcm", self.address)
            self._server = await asyncio.start_server(self._connected, host, port, backlog=BACKLOG)
            host, port = self._server.sockets[0].getsockname()[:2]
            self.address = f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Begin a connection's task, which is cancelled, and its writer closed, even if it never gets to run."""
        task = asyncio.create_task(self._serve(reader, writer))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)
        task.add_done_callback(lambda _: writer.close())

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = _Connection(self._engine, self._metrics, self._form, self._peer(writer))
        try:
            await connection.serve(reader)
        except (ProtocolError, OverloadError) as error:
            self._metrics.refused("pcm")
            log.warning("refused", extra=fields(stream=connection.stream, reason=error))
            writer.write(f"ERROR {error}\n".encode())  # somebody with nc should not have to look into our log

    def _peer(self, writer: asyncio.StreamWriter) -> str:
        """Name a stream whose sender did not: by its address, or by a number where there is none."""
        peer = writer.get_extra_info("peername")
        if isinstance(peer, tuple):
            return f"pcm-{peer[0]}:{peer[1]}"
        return f"pcm-unix-{next(self._numbers)}"


class _Connection:
    """One stream on its way in."""

    def __init__(self, engine: Engine, metrics: Metrics, form: AudioFormat, peer: str) -> None:
        self.stream = peer
        self._engine = engine
        self._metrics = metrics
        self._parser = PcmParser(form)
        self._room = asyncio.Event()
        self._opened: str | None = None
        self._form = form

    async def serve(self, reader: asyncio.StreamReader) -> None:
        """Read to the end."""
        try:
            while data := await reader.read(READ_BYTES):
                self._metrics.received("pcm", len(data))
                self._parser.feed(data)
                await self._pass_on(ended=False)
                if self._opened is not None and not self._is_open():
                    return  # somebody closed it through the control socket
            if self._parser.begun:  # a probe that connects and leaves is no call
                await self._pass_on(ended=True)
            self._parser.finish()
        except ProtocolError as error:
            self._engine.error(self.stream, str(error), time.monotonic())
            self._close("end")
            raise
        except OSError:
            self._close("disconnect")
        else:
            self._close("end")

    async def _pass_on(self, *, ended: bool) -> None:
        """Hand all whole samples to the engine, a hop at a time, waiting for room before each."""
        opening = self._parser.opening(ended=ended)
        if opening is None:
            return
        if self._opened is None:
            self._open(opening)
        while self._is_open() and (payload := self._parser.samples(self._engine.hop_bytes(self._form))):
            self._room.clear()
            if not self._engine.feed(Frame(self.stream, self._form, payload), time.monotonic(), lossless=True):
                await self._room.wait()

    def _open(self, opening: Opening) -> None:
        stream = opening.stream or self.stream
        self._opened = self._engine.open(stream, opening.format, time.monotonic(), resume=self._room.set)
        self.stream, self._form = stream, opening.format

    def _is_open(self) -> bool:
        return self._engine.is_open(self.stream, self._opened)

    def _close(self, reason: Literal["end", "disconnect"]) -> None:
        if self._opened is not None and self._is_open():
            self._engine.close(self.stream, reason, time.monotonic())


def _path(address: str) -> Path:
    return Path(address.removeprefix("unix:").removeprefix("//"))


def _open_to_all(path: Path) -> None:
    path.chmod(0o666)


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)


def _check_path(path: Path) -> None:
    """Refuse what is no socket, and one that answers; asyncio itself removes a stale one before it binds."""
    if path.exists() and not path.is_socket():
        raise ConfigError.of("endpoints.pcm", f"unix:{path}", "a path that is free or a socket")
    with socket.socket(socket.AF_UNIX) as probe, contextlib.suppress(OSError):
        probe.connect(str(path))
        raise UnreachableError.of("endpoints.pcm", f"unix:{path}", "a free address: another process listens there")
