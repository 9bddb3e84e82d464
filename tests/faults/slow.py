"""Connections that say as little as they can, as slowly as they can, and come back when they are cut off."""

import contextlib
import selectors
import socket
import threading
import time
from typing import Final, Self

# Between two bytes of a connection.
DRIP_S: Final = 0.5


def connect(address: str, timeout_s: float = 30.0) -> socket.socket:
    """Connect to `tcp://host:port`, `host:port` or `unix:/path`."""
    if address.startswith("unix:"):
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(timeout_s)
        sock.connect(address.removeprefix("unix:"))
        return sock
    host, _, port = address.removeprefix("tcp://").rpartition(":")
    return socket.create_connection((host, int(port)), timeout_s)


class Slow:
    """While entered, so many connections at once, from a thread of its own."""

    def __init__(self, address: str, count: int, first: bytes, drip: bytes) -> None:
        """Say `first`, then `drip` again and again, a byte at a time."""
        self.cut = 0
        """How often a connection was cut off, and came again."""
        self._address: Final = address
        self._count: Final = count
        self._first: Final = first
        self._drip: Final = drip
        self._done: Final = threading.Event()
        self._open: Final[dict[socket.socket, int]] = {}
        """Connection -> bytes of `drip` said."""
        self._thread: Final = threading.Thread(target=self._run, name="slow", daemon=True)

    def __enter__(self) -> Self:
        self._selector = selectors.DefaultSelector()
        for _ in range(self._count):
            self._call()
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._thread.join()
        for sock in self._open:
            sock.close()
        self._selector.close()

    def _call(self) -> None:
        sock = connect(self._address)
        sock.setblocking(False)
        sock.send(self._first)
        self._open[sock] = 0
        self._selector.register(sock, selectors.EVENT_READ)

    def _run(self) -> None:
        drip_s = time.monotonic()
        while not self._done.is_set():
            for key, _ in self._selector.select(0.05):
                self._hear(key.fileobj)  # type: ignore[arg-type]
            if time.monotonic() > drip_s and self._drip:
                drip_s += DRIP_S
                for sock, said in list(self._open.items()):
                    with contextlib.suppress(OSError):
                        self._open[sock] += sock.send(self._drip[said % len(self._drip) :][:1])

    def _hear(self, sock: socket.socket) -> None:
        """Come again where the other side has hung up."""
        try:
            if sock.recv(4096):
                return
        except BlockingIOError:
            return
        except OSError:
            pass
        self._selector.unregister(sock)
        del self._open[sock]
        sock.close()
        self.cut += 1
        self._call()
