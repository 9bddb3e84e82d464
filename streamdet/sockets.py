"""What every ZeroMQ socket of the daemon shares: limits, binding, and reading from within the event loop."""

import asyncio
import ipaddress
import socket
from collections.abc import Callable
from typing import Final, Self
from urllib.parse import urlsplit

import zmq

from streamdet.config import Endpoints
from streamdet.errors import ConfigError, UnreachableError

# A peer that opens a TCP connection and never speaks ZeroMQ is let go after this long.
HANDSHAKE_MS: Final = 2000
# A peer whose cable was pulled is noticed in this time (s); TCP alone would take hours. The kernel asks: ZeroMQ's own
# heartbeats abort the process (libzmq 4.3.5, "Assertion failed: !_io_error") when one is due for a peer that left while
# more waited from it than the high-water mark takes, a sender that outruns us and hangs up.
KEEPALIVE_S: Final = 5
KEEPALIVE_PROBES: Final = 2
UNANSWERED_MS: Final = 15_000
# The library drops a connection that sends more. The daemon's own limits are far below and better explained.
MESSAGE_MAX_BYTES: Final = 1 << 20
# Long enough for the last verdicts to leave, short enough for a subscriber that hangs.
LINGER_MS: Final = 1000
# Messages taken in one turn: a flood must not keep the loop from verdicts and other sockets. About 1.5 ms of frames.
TURN: Final = 256
# A plain int: pyzmq's own is an enum, which costs more to pass than the call it is passed to.
_NOBLOCK: Final = int(zmq.NOBLOCK)


def notice_silence(socket: "zmq.Socket[bytes]") -> None:
    """Let the kernel find out that a socket's peers have gone without a word."""
    socket.setsockopt(zmq.TCP_KEEPALIVE, 1)
    socket.setsockopt(zmq.TCP_KEEPALIVE_IDLE, KEEPALIVE_S)
    socket.setsockopt(zmq.TCP_KEEPALIVE_INTVL, KEEPALIVE_S)
    socket.setsockopt(zmq.TCP_KEEPALIVE_CNT, KEEPALIVE_PROBES)
    socket.setsockopt(zmq.TCP_MAXRT, UNANSWERED_MS)


class ZmqSocket:
    """A bound socket whose messages are handed to `take`, some at a time, by the event loop.

    Reading from the socket's file descriptor costs a half to a third of `zmq.asyncio`, which makes a future for every
    message. With an empty address the socket is not bound: nobody can reach it, and what it sends is dropped.
    """

    def __init__(
        self, kind: int, field: str, address: str, take: Callable[[list[bytes]], None], **options: int
    ) -> None:
        """Bind on entering; `field` names the address in errors, `options` are ZeroMQ's, in lower case."""
        self._kind: Final = kind
        self._field: Final = field
        self._take: Final = take
        self._options: Final = options
        self._listeners: list[socket.socket] = []
        self._again = False
        self.address = address
        """Once bound, with the port that `:0` became."""

    def on(self, listeners: list[socket.socket]) -> Self:
        """Use sockets that listen already; the library closes them, and binds none of its own."""
        self._listeners = listeners
        return self

    async def __aenter__(self) -> Self:
        """Bind and begin to read.

        Raises:
            UnreachableError: the address is taken.
            ConfigError: it is not an address.
        """
        self._socket: zmq.Socket[bytes] = zmq.Context.instance().socket(self._kind)
        self._socket.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
        notice_silence(self._socket)
        self._socket.setsockopt(zmq.MAXMSGSIZE, MESSAGE_MAX_BYTES)
        self._socket.setsockopt(zmq.LINGER, LINGER_MS)
        for name, value in self._options.items():
            self._socket.setsockopt(getattr(zmq, name.upper()), value)
        try:
            for listener in self._listeners:
                self._socket.setsockopt(zmq.USE_FD, listener.detach())
            if self.address:
                self._socket.bind(self.address)
        except zmq.ZMQError as error:
            self._socket.close()
            raise _bind_error(self._field, self.address, error.errno, str(error)) from None
        self.address = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._socket.FD, self._read)
        return self

    async def __aexit__(self, *error: object) -> None:
        """Stop reading; what was sent leaves within LINGER_MS."""
        self._loop.remove_reader(self._socket.FD)
        self._socket.close()

    def send(self, parts: list[bytes]) -> None:
        """Send without waiting: a peer that does not keep up loses messages, nobody else does."""
        try:
            self._socket.send_multipart(parts, zmq.NOBLOCK)
        except zmq.ZMQError as error:
            if error.errno not in (zmq.EAGAIN, zmq.EHOSTUNREACH):
                raise
        # Sending eats the edge by which the descriptor tells of messages, so look for some here.
        if not self._again and int(self._socket.EVENTS) & zmq.POLLIN:
            self._go_on()

    def _go_on(self) -> None:
        self._again = True
        self._loop.call_soon(self._read)

    def _read(self) -> None:
        self._again = False
        if self._socket.closed:
            return
        try:
            for _ in range(TURN):
                self._take(self._receive())
        except zmq.Again:
            return
        finally:
            self._turn_over()
        self._go_on()

    def _receive(self) -> list[bytes]:
        """Take one message.

        A frame knows whether another follows; a socket must be asked, at half a microsecond a part, as `recv_multipart`
        does. Without copying no memory is saved, since parts are short: this is about the question alone.
        """
        part = self._socket.recv(_NOBLOCK, copy=False)
        parts = [part.bytes]
        while part.more:
            part = self._socket.recv(_NOBLOCK, copy=False)
            parts.append(part.bytes)
        return parts

    def _turn_over(self) -> None:
        """Do once what need not be done for each of the messages that a turn has handed to `take`."""


def host_and_port(field: str, address: str) -> tuple[str, int]:
    """Split `tcp://host:port` or `host:port`; a bare IPv6 host stands in brackets.

    Raises:
        ConfigError: it is neither.
    """
    parts = urlsplit(address if "//" in address else f"//{address}")
    try:
        port = parts.port
    except ValueError:
        port = None
    if parts.scheme not in ("", "tcp") or not parts.hostname or port is None or parts.path:
        raise ConfigError.of(field, address, "host:port or tcp://host:port")
    return parts.hostname, port


def check_endpoints(endpoints: Endpoints) -> None:
    """Refuse addresses that others can reach, since nothing here asks who they are.

    Raises:
        ConfigError: one is not loopback and `endpoints.insecure` is not set.
    """
    single = {name: getattr(endpoints, name) for name in ("audio", "verdicts", "control", "http")}
    everything = [*single.items(), *(("pcm", address) for address in endpoints.pcm)]
    for name, address in everything:
        local = not address or address.startswith(("ipc:", "unix:", "inproc:"))
        if not local and not endpoints.insecure and not _is_loopback(host_and_port(f"endpoints.{name}", address)[0]):
            expected = "a loopback address: nothing authenticates its peers (endpoints.insecure = true allows it)"
            raise ConfigError.of(f"endpoints.{name}", address, expected)


def taken(field: str, address: str, error: OSError) -> Exception:
    """Return what to raise when an address cannot be bound."""
    return _bind_error(field, address, error.errno, error.strerror or str(error))


def _bind_error(field: str, address: str, number: int | None, why: str) -> Exception:
    if number == zmq.EADDRINUSE:
        return UnreachableError.of(field, address, "a free address: another process listens there")
    return ConfigError.of(field, address, f"an address to listen on ({why})")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
