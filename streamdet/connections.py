"""Who is connected to a ZeroMQ socket, so that connections can be counted and cut off.

The library hides connections. Its monitor tells of each by the descriptor that it holds, and a message tells by which
descriptor it came. By the time we look the descriptor may be another's: nothing is shut down that is not the same
socket as it was, connected to the very address that we listen at.
"""

import contextlib
import os
import resource
import socket
import struct
from collections.abc import Callable
from typing import Final

import zmq

# Of each event the first part: what happened, and the descriptor.
_EVENT: Final = struct.Struct("=HI")
EVENTS: Final = zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED
# Descriptors that are not connections of one ZeroMQ socket: model, logs, HTTP, pipes of libraries...
RESERVED: Final = 128
# ...and sockets that may have as many as this one: three of ZeroMQ, raw PCM and HTTP.
SHARERS: Final = 5

# Readers, each of whom may have publish.SEND_HWM messages wait. So many who take nothing hold 50 MB.
READERS: Final = 100
# Who asks control needs a place for as long as the answer takes; so many who do not read hold 150 MB at the worst.
ASKERS: Final = 32
# For a moment: ZeroMQ's connections until one too many is shut down, and files that are read and closed. Fewer where
# there are few: somebody should be served.
BRIEF: Final = 16


class Peer:
    """One connection."""

    __slots__ = ("cut", "inode", "topics", "users")

    def __init__(self, inode: int) -> None:
        self.inode: Final = inode
        self.topics: Final[set[bytes]] = set()
        """What it has subscribed to."""
        self.users: Final[set[str]] = set()
        """Keys that messages of this descriptor came with; two where it has just changed hands."""
        self.cut = False


class Connections:
    """The connections of one bound socket."""

    def __init__(
        self,
        monitored: "zmq.Socket[bytes]",
        limit: int,
        came: Callable[[], None],
        left: Callable[[Peer], None],
        refused: Callable[[], None],
    ) -> None:
        """Watch a socket that is not bound yet.

        Args:
            monitored: the socket.
            limit: most connections; one more is shut down.
            came: called for each that began.
            left: called for each of those that ended.
            refused: called for each that was one too many, instead.
        """
        self._limit: Final = limit
        self._came: Final = came
        self._left: Final = left
        self._refused: Final = refused
        self._peers: Final[dict[int, Peer]] = {}
        self._monitored: Final = monitored
        self._port_or_path: int | str | None = None
        where = f"inproc://connections-{id(self):x}"
        monitored.monitor(where, EVENTS)
        self._monitor: Final[zmq.Socket[bytes]] = monitored.context.socket(zmq.PAIR)
        # The library's own thread waits where events find no room.
        self._monitor.setsockopt(zmq.RCVHWM, 0)
        self._monitor.setsockopt(zmq.LINGER, 0)
        self._monitor.connect(where)

    def __len__(self) -> int:
        """How many there are."""
        return len(self._peers)

    @property
    def fileno(self) -> int:
        """Readable when there may be something to `look` at, once somebody has looked."""
        return int(self._monitor.FD)

    def bound(self, endpoint: str) -> None:
        """Learn where the socket listens: only what is connected to there is ever shut down."""
        self._port_or_path = endpoint.removeprefix("ipc://") if endpoint.startswith("ipc:") else _port(endpoint)

    def close(self) -> None:
        """Stop watching."""
        self.look()
        self._monitored.monitor(None, 0)
        self._monitor.close()

    def look(self) -> None:
        """Take what the library has told since the last look."""
        while True:
            try:
                event, fd = _EVENT.unpack(self._monitor.recv(zmq.NOBLOCK))
                self._monitor.recv()
            except zmq.Again:
                return
            if event == zmq.EVENT_ACCEPTED:
                self._accepted(fd)
            elif (peer := self._peers.pop(fd, None)) is not None:
                self._left(peer)

    def peer(self, fd: int) -> Peer | None:
        """Return the connection that a message came by; None if it has gone since."""
        self.look()
        return self._peers.get(fd)

    def cut(self, fd: int) -> None:
        """Shut a connection down: nothing more is read from it or written to it."""
        peer = self._peers.get(fd)
        if peer is not None and not peer.cut:
            peer.cut = True
            self._shut(fd, peer.inode)

    def cut_all(self, unwanted: Callable[[str], bool]) -> list[str]:
        """Cut whoever came with a key that is not wanted any more; return such a key of each."""
        self.look()
        found = [(fd, next(filter(unwanted, peer.users), None)) for fd, peer in self._peers.items() if not peer.cut]
        keys = []
        for fd, key in found:
            if key is not None:
                self.cut(fd)
                keys.append(key)
        return keys

    def _accepted(self, fd: int) -> None:
        if len(self._peers) >= self._limit:
            self._sweep()
        inode = _inode(fd)
        if inode is None:
            return  # gone already
        if len(self._peers) >= self._limit:
            self._refused()
            self._shut(fd, inode)
        else:
            self._peers[fd] = Peer(inode)
            self._came()

    def _sweep(self) -> None:
        """Forget what ended without the monitor's telling."""
        for fd, peer in list(self._peers.items()):
            if _inode(fd) != peer.inode:
                del self._peers[fd]
                self._left(peer)

    def _shut(self, fd: int, inode: int) -> None:
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(fd)) as ours:
            if os.fstat(ours.fileno()).st_ino == inode and self._is_at_our_address(ours):
                ours.shutdown(socket.SHUT_RDWR)

    def _is_at_our_address(self, ours: socket.socket) -> bool:
        where = ours.getsockname()
        if isinstance(where, tuple):
            return bool(where[1] == self._port_or_path)
        path = where.decode() if isinstance(where, bytes) else str(where)
        return path.replace("\0", "@", 1) == self._port_or_path


def most(limit: int) -> int:
    """Return how many connections a socket may have: `limit`, or fewer where the process may not open that many files.

    At the end of its descriptors the library's thread tries to accept over and over, and serves nobody.
    """
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return limit if soft == resource.RLIM_INFINITY else places(limit, soft)


def places(limit: int, soft: int) -> int:
    """Return how many connections a socket may have where the process may open `soft` files."""
    return max(1, min(limit, (soft - RESERVED) // SHARERS))


def kept_free(limit: int, soft: int) -> int:
    """Return how many of `soft` descriptors others leave to ZeroMQ: as many as its three sockets may have places."""
    senders = places(limit, soft)
    return senders + min(senders, READERS) + min(senders, ASKERS) + min(BRIEF, soft // 16)


def _inode(fd: int) -> int | None:
    try:
        return os.fstat(fd).st_ino
    except OSError:
        return None


def _port(endpoint: str) -> int | None:
    port = endpoint.rpartition(":")[2]
    return int(port) if port.isdecimal() else None
