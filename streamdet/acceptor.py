"""Connections, taken off a listening socket within the loop: the same for TCP and unix, raw PCM and HTTP.

Of asyncio's own acceptor we would get a log line for every try while descriptors have run out, thousands a second; of
uvloop's, callers whose connections are accepted and closed at once. Here they wait in the kernel's queue.
"""

import asyncio
import contextlib
import errno
import logging
import socket
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Final, Self

from streamdet.activation import address_of
from streamdet.errors import ConfigError, UnreachableError
from streamdet.logs import fields
from streamdet.sockets import host_and_port, taken

log = logging.getLogger(__name__)

# Connections that may wait for the loop to take them. After a restart all calls come back at once, and one that finds
# no place tries again only after a second. A socket from systemd keeps the Backlog= of its unit.
BACKLOG: Final = 4096
# Taken in one turn: a flood of connections must not keep the loop from its calls. About 2 ms.
TURN: Final = 64
# Between tries while there is no descriptor or memory for a connection, doubled each time, as NATS does: the first gap
# is too short for a caller to notice, the last costs nothing.
FIRST_WAIT_S: Final = 0.01
LONGEST_WAIT_S: Final = 1.0
# What happens again within this time is the same trouble, and has been told.
QUIET_S: Final = 10.0


class Trouble:
    """Something that happens over and over: told when it begins, and with its count when it is over."""

    def __init__(self, what: str, **known: object) -> None:
        """`what` is its line, `known` its fields."""
        self._what: Final = what
        self._known: Final = known
        self._count = 0
        self._began_s = self._last_s = 0.0

    def happened(self, why: object) -> None:
        """Count it."""
        loop = asyncio.get_running_loop()
        self._count += 1
        self._last_s = loop.time()
        if self._count == 1:
            self._began_s = self._last_s
            log.warning(self._what, extra=fields(**self._known, reason=str(why)))
            loop.call_later(QUIET_S, self._look)

    def _look(self) -> None:
        """See whether it is over."""
        loop = asyncio.get_running_loop()
        if (quiet_s := loop.time() - self._last_s) < QUIET_S:
            loop.call_later(QUIET_S - quiet_s, self._look)
            return
        seconds = round(self._last_s - self._began_s, 1)
        log.info(f"{self._what}: over", extra=fields(**self._known, times=self._count, seconds=seconds))
        self._count = 0


class Arrival:
    """A connection that was accepted."""

    def __init__(self, sock: socket.socket, peer: str) -> None:
        self._sock: socket.socket | None = sock
        self.peer: Final = peer
        """`host:port`; empty on a unix socket."""

    async def connect(self, protocol: asyncio.Protocol) -> asyncio.Transport:
        """Let `protocol` have it; closing it is the transport's from now on.

        Raises:
            OSError: it has gone already.
        """
        assert self._sock is not None, "a connection is served once"
        sock, self._sock = self._sock, None
        transport, _ = await asyncio.get_running_loop().connect_accepted_socket(lambda: protocol, sock)
        return transport

    async def streams(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Read and write it.

        Raises:
            OSError: it has gone already.
        """
        reader = asyncio.StreamReader()
        protocol = asyncio.StreamReaderProtocol(reader)
        transport = await self.connect(protocol)
        return reader, asyncio.StreamWriter(transport, protocol, reader, asyncio.get_running_loop())

    def close(self) -> None:
        """Hang up, unless somebody has it."""
        if self._sock is not None:
            self._sock.close()


class Acceptor:
    """Listens while entered, and runs a task for each connection."""

    def __init__(
        self,
        field: str,
        address: str,
        serve: Callable[[Arrival], Coroutine[Any, Any, None]],
        listener: socket.socket | None = None,
    ) -> None:
        """Listen at `tcp://host:port`, `host:port` or `unix:/path`.

        Args:
            field: names the address in errors.
            address: where to listen.
            serve: what to do with a connection; it is closed afterwards.
            listener: a socket that listens there already and outlives us; without one, we bind.
        """
        self.address = address
        """Once listening, with the port that `:0` became."""
        self._field: Final = field
        self._serve: Final = serve
        self._inherited: Final = listener
        self._tasks: Final[set[asyncio.Task[None]]] = set()
        self._wait_s = FIRST_WAIT_S
        self._shortage: Final = Trouble("connections wait", endpoint=field)

    async def __aenter__(self) -> Self:
        """Begin to listen.

        Raises:
            UnreachableError: the address is taken.
            ConfigError: it is not an address.
        """
        self._loop = asyncio.get_running_loop()
        self._listener = self._inherited or _bound(self._field, self.address)
        self._listener.setblocking(False)
        self.address = address_of(self._field.rpartition(".")[2], self._listener)
        self._loop.add_reader(self._listener, self._accept)
        return self

    def stop(self) -> None:
        """Take no more connections; who comes from now on is refused, or waits in systemd's socket."""
        self._loop.remove_reader(self._listener)
        self._listener.close()

    async def __aexit__(self, *error: object) -> None:
        """Let go of the socket and of all connections."""
        if self._listener.fileno() >= 0:
            self.stop()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        if self.address.startswith("unix:") and self._inherited is None:
            _path(self.address).unlink(missing_ok=True)

    def _accept(self) -> None:
        for _ in range(TURN):
            try:
                sock, where = self._listener.accept()
            except (BlockingIOError, InterruptedError):
                return
            except ConnectionAbortedError:
                continue  # hung up before its turn
            except OSError as error:
                self._wait(error)
                return
            self._wait_s = FIRST_WAIT_S
            sock.setblocking(False)
            peer = f"{where[0]}:{where[1]}" if isinstance(where, tuple) else ""
            self._begin(Arrival(sock, peer))

    def _begin(self, arrival: Arrival) -> None:
        """Begin a connection's task; its socket is closed with it, even if it never gets to run."""
        task = asyncio.create_task(self._serve(arrival))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda _: arrival.close())

    def _wait(self, error: OSError) -> None:
        """Leave callers in the kernel's queue for a while: no descriptor, no memory, or the network is in trouble."""
        self._shortage.happened(f"{error.strerror} ({errno.errorcode.get(error.errno or 0, error.errno)})")
        self._loop.remove_reader(self._listener)
        self._loop.call_later(self._wait_s, self._go_on)
        self._wait_s = min(2 * self._wait_s, LONGEST_WAIT_S)

    def _go_on(self) -> None:
        if self._listener.fileno() >= 0:
            self._loop.add_reader(self._listener, self._accept)


def _bound(field: str, address: str) -> socket.socket:
    try:
        return _bound_unix(field, _path(address)) if address.startswith("unix:") else _bound_tcp(field, address)
    except OSError as error:
        raise taken(field, address, error) from None


def _bound_tcp(field: str, address: str) -> socket.socket:
    host, port = host_and_port(field, address)
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, *_, where = min(found, key=lambda each: each[0] != socket.AF_INET)  # localhost is 127.0.0.1 before ::1
    return socket.create_server((str(where[0]), port), family=family, backlog=BACKLOG)


def _bound_unix(field: str, path: Path) -> socket.socket:
    """Bind where nothing is or a stale socket, and refuse what is no socket, and one that answers."""
    if path.exists() and not path.is_socket():
        raise ConfigError.of(field, f"unix:{path}", "a path that is free or a socket")
    with socket.socket(socket.AF_UNIX) as probe, contextlib.suppress(OSError):
        probe.connect(str(path))
        raise UnreachableError.of(field, f"unix:{path}", "a free address: another process listens there")
    path.unlink(missing_ok=True)
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.bind(str(path))
        # As open as loopback TCP, whatever the umask; the folder's mode is the place to keep somebody out.
        path.chmod(0o666)
        sock.listen(BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock


def _path(address: str) -> Path:
    return Path(address.removeprefix("unix:").removeprefix("//"))
