"""Connections, taken off a listening socket within the loop: the same for TCP and unix, raw PCM and HTTP.

Of asyncio's own acceptor we would get a log line for every try while descriptors have run out, thousands a second; of
uvloop's, callers whose connections are accepted and closed at once. Here they wait in the kernel's queue.
"""

import asyncio
import errno
import logging
import math
import os
import resource
import socket
import ssl
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Final, Literal, Self

from streamdet.activation import address_of
from streamdet.addresses import SECURE, host_and_port, taken
from streamdet.config import Limits
from streamdet.connections import kept_free
from streamdet.doors import Door, Doorway
from streamdet.ear import Ear
from streamdet.errors import ConfigError, UnreachableError
from streamdet.logs import fields
from streamdet.metrics import Metrics
from streamdet.tls import GOODBYE_S

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
# Nobody is pushed out before this (s): the loop has had time to read what a caller said at once.
SPARED_S: Final = 0.5
# Deadlines are looked at this often (s): one that was far away may have come nearer.
LOOK_S: Final = 1.0
# A look that comes later than this (s) comes after a stop: SIGSTOP, a machine that slept, a disk that hung.
LATE_S: Final = 0.5
# What the systemd unit allows too: each endpoint's connections many times over.
FILES_MAX: Final = 65_536

Cut = Literal["slow", "limit", "auth"]
"""Why a connection was cut off: it was late, its place was wanted, it is not allowed any more."""


def open_more_files() -> None:
    """Raise the soft limit of open files to the hard one: many systems have 1024, a few short of a thousand calls."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES_MAX if hard == resource.RLIM_INFINITY else min(hard, FILES_MAX)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


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
    """A connection that was accepted, and has a place until it ends.

    It begins as somebody who has yet to say what they want, and has until its deadline for that.
    """

    def __init__(
        self,
        sock: socket.socket,
        peer: str,
        begun: "dict[Arrival, None]",
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._sock: socket.socket | None = sock
        self._begun: Final = begun
        self._tls: Final = tls
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._due_s = 0.0
        self.peer: Final = peer
        """`host:port`; empty on a unix socket."""
        self.since_s = 0.0
        """When it came, or last began to wait for somebody to say what they want (s on the loop's clock)."""
        self.deadline_s = math.inf
        """May be moved with every read: it is only looked at when it seems to have come."""
        self.excused: Callable[[], bool] = lambda: False
        """Whether its silence is no fault of its own just now..."""
        self.excused_s = 0.0
        """...and how long it has from the end of that (s), or up to LOOK_S more."""
        self._was_excused = False
        self.cut_for: Cut | None = None
        """Why it was cut off, where it was."""

    def begin(self, task: "asyncio.Task[None]", seconds: float) -> None:
        """Be served by `task`, which is cancelled if nobody says in time what they want."""
        self._task = task
        self.wait(seconds)

    def wait(self, seconds: float) -> None:
        """Wait for somebody to say what they want, for the first time or once more."""
        self.since_s = asyncio.get_running_loop().time()
        self.deadline_s = self.since_s + seconds
        self._begun.pop(self, None)
        self._begun[self] = None
        self._look()

    def admit(self, deadline_s: float) -> None:
        """They have said it: nobody pushes them out to make room."""
        self._begun.pop(self, None)
        self.deadline_s = deadline_s

    def cut(self, why: Cut) -> None:
        """Cut it off: its task is cancelled."""
        if self._task is not None and self.cut_for is None:
            self.cut_for = why
            self._task.cancel()

    def _look(self) -> None:
        """Cut it off if it is late, else look again soon.

        Time in which we ourselves were stopped is not the peer's: what it said meanwhile has yet to be read.
        """
        loop = asyncio.get_running_loop()
        now_s = loop.time()
        if self._timer is not None:
            self._timer.cancel()
            if (stopped_s := now_s - self._due_s) > LATE_S:
                self.deadline_s = max(self.deadline_s + stopped_s, now_s + LATE_S)
        if (excused := self.excused()) or self._was_excused:
            self.deadline_s = max(self.deadline_s, now_s + self.excused_s)
        self._was_excused = excused
        if now_s >= self.deadline_s:
            self.cut("slow")
            return
        self._due_s = min(self.deadline_s, now_s + LOOK_S)
        self._timer = loop.call_at(self._due_s, self._look)

    async def connect(self, protocol: asyncio.Protocol | asyncio.BufferedProtocol) -> asyncio.Transport:
        """Let `protocol` have it; closing it is the transport's from now on.

        Raises:
            OSError: it has gone already, or does not speak TLS where it should.
        """
        assert self._sock is not None, "a connection is served once"
        sock, self._sock = self._sock, None
        loop = asyncio.get_running_loop()
        if self._tls is None:
            transport, _ = await loop.connect_accepted_socket(lambda: protocol, sock)
        else:
            transport, _ = await loop.connect_accepted_socket(
                lambda: protocol, sock, ssl=self._tls, ssl_shutdown_timeout=GOODBYE_S
            )
        return transport

    async def ear(self, most_bytes: int) -> tuple[Ear, asyncio.Transport]:
        """Read at most `most_bytes` of it at once, and write it.

        Raises:
            OSError: it has gone already, or does not speak TLS where it should.
        """
        ear = Ear(most_bytes, half_open=self._tls is None)
        return ear, await self.connect(ear)

    def close(self) -> None:
        """Hang up, unless somebody has it, and give its place back."""
        self._begun.pop(self, None)
        if self._timer is not None:
            self._timer.cancel()
        if self._sock is not None:
            self._sock.close()


class Acceptor:
    """Listens while entered, and runs a task for each connection, as many as there are places."""

    def __init__(
        self,
        endpoint: Doorway,
        door: Door,
        serve: Callable[[Arrival], Coroutine[Any, Any, None]],
        limits: Limits,
        metrics: Metrics,
    ) -> None:
        """Listen at a door.

        Args:
            endpoint: whose this is: its name in the config and in metrics.
            door: where to listen, and whether in TLS.
            serve: what to do with a connection; it is closed afterwards. Cancelled when the connection is cut off,
                which `Arrival.cut_for` tells, and when all is over.
            limits: how many connections, and how long each has to say what it wants.
            metrics: where connections are counted.
        """
        self.address = door.address
        """Once listening, with the port that `:0` became."""
        self._endpoint: Final = endpoint
        self._serve: Final = serve
        self._limits: Final = limits
        self._metrics: Final = metrics
        self._door: Final = door
        self._tasks: Final[set[asyncio.Task[None]]] = set()
        self._begun: Final[dict[Arrival, None]] = {}
        """Who has yet to say what they want, in the order in which they came."""
        self._wait_s = FIRST_WAIT_S
        self._shortage: Final = Trouble("connections wait", endpoint=endpoint)
        self._crowd: Final = Trouble("all places are taken", endpoint=endpoint, places=limits.connections)

    async def __aenter__(self) -> Self:
        """Begin to listen.

        Raises:
            UnreachableError: the address is taken.
            ConfigError: it is not an address.
        """
        self._loop = asyncio.get_running_loop()
        self._listener = self._door.listener or _bound(f"endpoints.{self._endpoint}", self._door.address)
        self._listener.setblocking(False)
        self.address = address_of(self._endpoint, self._listener)
        if self._door.certificate is not None:
            self.address = f"{SECURE[f'endpoints.{self._endpoint}']}://{self.address.removeprefix('tcp://')}"
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
        if self.address.startswith("unix:") and self._door.listener is None:
            _path(self.address).unlink(missing_ok=True)

    def _accept(self) -> None:
        for number in range(TURN):
            if len(self._tasks) >= self._limits.connections:
                if number == 0:  # or perhaps nobody waits any more, which the next turn will tell
                    self._make_room()
                return
            try:
                self._check_descriptors()
                sock, where = self._listener.accept()
            except (BlockingIOError, InterruptedError):
                return
            except ConnectionAbortedError:
                continue  # hung up before its turn
            except OSError as error:
                self._fall_short(error)
                return
            self._wait_s = FIRST_WAIT_S
            sock.setblocking(False)
            self._begin(sock, f"{where[0]}:{where[1]}" if isinstance(where, tuple) else "")

    def _check_descriptors(self) -> None:
        """Leave some descriptors to ZeroMQ: without any, its library's thread tries to accept over and over.

        The next connection gets the lowest number that is free: all below it are taken. Costs 2 us.

        Raises:
            OSError: there is none to spare, as where there is none at all.
        """
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft == resource.RLIM_INFINITY:
            return
        number = os.dup(self._listener.fileno())
        os.close(number)
        if number >= soft - kept_free(self._limits.connections, soft):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    def _begin(self, sock: socket.socket, peer: str) -> None:
        """Begin a connection's task; its socket is closed with it, even if it never gets to run."""
        certificate = self._door.certificate
        arrival = Arrival(sock, peer, self._begun, None if certificate is None else certificate.context)
        task = asyncio.create_task(self._run(arrival))
        self._tasks.add(task)
        self._metrics.opened(self._endpoint)
        task.add_done_callback(lambda task: self._ended(task, arrival))
        arrival.begin(task, self._limits.handshake_s)

    async def _run(self, arrival: Arrival) -> None:
        try:
            await self._serve(arrival)
        except OSError as error:
            if isinstance(error, ssl.SSLError):
                self._metrics.refused(self._endpoint, "protocol")
            log.debug("connection lost", extra=fields(endpoint=self._endpoint, peer=arrival.peer, reason=error))

    def _ended(self, task: "asyncio.Task[None]", arrival: Arrival) -> None:
        self._tasks.discard(task)
        arrival.close()
        self._metrics.closed(self._endpoint)
        if arrival.cut_for is not None:
            self._metrics.refused(self._endpoint, arrival.cut_for)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("connection failed", extra=fields(endpoint=self._endpoint, peer=arrival.peer), exc_info=error)
        self._go_on()

    def _make_room(self) -> None:
        """Push out who has had the longest to say what they want, so that those who do say it are served.

        Who has just come is spared: many good callers may come at once. Where all others have been admitted, callers
        wait in the kernel's queue until one of those ends, or has been idle for too long.
        """
        self._crowd.happened("callers wait, or take the place of who says nothing")
        self._loop.remove_reader(self._listener)
        oldest = next(iter(self._begun), None)
        if oldest is None:
            self._loop.call_later(LONGEST_WAIT_S, self._go_on)  # or as soon as a place is given back
        elif (spared_s := oldest.since_s + SPARED_S - self._loop.time()) > 0:
            self._loop.call_later(spared_s, self._go_on)
        else:
            oldest.cut("limit")

    def _fall_short(self, error: OSError) -> None:
        """Leave callers in the kernel's queue for a while: no descriptor, no memory, or the network is in trouble."""
        self._metrics.fell_short(self._endpoint)
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
    if _answers(path):
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


def _answers(path: Path) -> bool:
    """Whether somebody listens at a path; where callers wait in a full queue, this one would for ever."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        return probe.connect_ex(str(path)) in (0, errno.EAGAIN)


def _path(address: str) -> Path:
    return Path(address.removeprefix("unix:").removeprefix("//"))
