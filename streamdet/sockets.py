"""What every ZeroMQ socket of the daemon shares: limits, binding, and reading from within the event loop."""

import asyncio
import logging
import socket
from collections.abc import Callable
from typing import Final, Protocol, Self, cast

import zmq

from streamdet.addresses import taken
from streamdet.config import Limits
from streamdet.connections import Connections, Peer, most
from streamdet.logs import fields
from streamdet.metrics import Cut, Endpoint, Metrics

log = logging.getLogger(__name__)

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
# Plain ints: pyzmq's own are enums, which cost more to pass than the call they are passed to.
_NOBLOCK: Final = int(zmq.NOBLOCK)
_SRCFD: Final = int(zmq.SRCFD)


def notice_silence(socket: "zmq.Socket[bytes]") -> None:
    """Let the kernel find out that a socket's peers have gone without a word."""
    socket.setsockopt(zmq.TCP_KEEPALIVE, 1)
    socket.setsockopt(zmq.TCP_KEEPALIVE_IDLE, KEEPALIVE_S)
    socket.setsockopt(zmq.TCP_KEEPALIVE_INTVL, KEEPALIVE_S)
    socket.setsockopt(zmq.TCP_KEEPALIVE_CNT, KEEPALIVE_PROBES)
    socket.setsockopt(zmq.TCP_MAXRT, UNANSWERED_MS)


class Gate(Protocol):
    """Who may connect, and goes on to be heard: `guard.Guard`, seen from here."""

    @property
    def context(self) -> "zmq.Context[zmq.Socket[bytes]]":
        """Of the sockets that it guards."""

    def protect(self, socket: "zmq.Socket[bytes]", domain: str) -> None:
        """Make a socket ask for keys."""

    def client(self, domain: str, key: str) -> str | None:
        """Return the name of the client with this key, if it may still do what the domain is for."""

    def name(self, key: str) -> str | None:
        """Return whose key this is, or was: for the log alone."""


class ZmqSocket:
    """A bound socket whose messages are handed to `take`, some at a time, by the event loop.

    Reading from the socket's file descriptor costs a half to a third of `zmq.asyncio`, which makes a future for every
    message. With an empty address the socket is not bound: nobody can reach it, and what it sends is dropped.
    """

    def __init__(
        self,
        kind: int,
        field: str,
        address: str,
        take: Callable[[list[bytes]], None],
        *,
        context: "zmq.Context[zmq.Socket[bytes]] | None" = None,
        **options: int,
    ) -> None:
        """Bind on entering; `field` names the address in errors, `options` are ZeroMQ's, in lower case."""
        self._kind: Final = kind
        self._field: Final = field
        self._take: Final = take
        self._options: Final = options
        self._listeners: list[socket.socket] = []
        self._context = context
        self._gate: Gate | None = None
        self._domain: Final = cast("Endpoint", field.rpartition(".")[2])
        """Of ZAP: endpoints.audio -> audio."""
        self._limit = Limits().connections
        self._counting: Metrics | None = None
        self._again = False
        self.client: str | None = None
        """Whose message is in hand, where the socket asks for keys..."""
        self.key: str | None = None
        """...and with which it came."""
        self.address = address
        """Once bound, with the port that `:0` became."""

    def on(self, listeners: list[socket.socket]) -> Self:
        """Use sockets that listen already; the library closes them, and binds none of its own."""
        self._listeners = listeners
        return self

    def limited(self, limits: Limits, metrics: Metrics, gate: Gate | None = None) -> Self:
        """Keep within `limits`, count in `metrics`, and ask for keys where there is a `gate`; before entering."""
        self._limit = limits.connections
        self._counting = metrics
        self._gate = gate
        if gate is not None:
            self._context = gate.context
        return self

    async def __aenter__(self) -> Self:
        """Bind and begin to read.

        Raises:
            UnreachableError: the address is taken.
            ConfigError: it is not an address.
        """
        self._socket: zmq.Socket[bytes] = (self._context or zmq.Context.instance()).socket(self._kind)
        self._socket.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
        notice_silence(self._socket)
        self._socket.setsockopt(zmq.MAXMSGSIZE, MESSAGE_MAX_BYTES)
        self._socket.setsockopt(zmq.LINGER, LINGER_MS)
        for name, value in self._options.items():
            self._socket.setsockopt(getattr(zmq, name.upper()), value)
        if self._gate is not None:
            self._gate.protect(self._socket, self._domain)
        self._connections = Connections(self._socket, most(self._limit), self._came, self._left, self._one_too_many)
        try:
            for listener in self._listeners:
                self._socket.setsockopt(zmq.USE_FD, listener.detach())
            if self.address:
                self._socket.bind(self.address)
        except zmq.ZMQError as error:
            self._connections.close()
            self._socket.close()
            raise taken(self._field, self.address, OSError(error.errno, str(error))) from None
        self.address = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)
        self._connections.bound(self.address)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._socket.FD, self._read)
        self._loop.add_reader(self._connections.fileno, self._connections.look)
        self._connections.look()  # the descriptor tells of nothing until somebody has looked once
        return self

    async def __aexit__(self, *error: object) -> None:
        """Stop reading; what was sent leaves within LINGER_MS."""
        self._loop.remove_reader(self._connections.fileno)
        self._loop.remove_reader(self._socket.FD)
        self._connections.close()
        self._socket.close()

    def recheck(self) -> None:
        """Cut off whoever has lost the right to be connected; to be called when the clients have changed."""
        gate, domain = self._gate, self._domain
        if gate is not None:
            for key in self._connections.cut_all(lambda key: gate.client(domain, key) is None):
                self._cut_off("revoked", key)

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
                self._take_one()
        except zmq.Again:
            return
        except Exception:
            self._go_on()  # the descriptor told of these messages once and will not again
            raise
        finally:
            self._turn_over()
        self._go_on()

    def _take_one(self) -> None:
        """Take one message, if whoever sent it may speak."""
        parts = self._receive()
        if self._gate is None or self._may_speak(self._gate):
            self._take(parts)

    def _receive(self) -> list[bytes]:
        """Take one message.

        A frame knows whether another follows; a socket must be asked, at half a microsecond a part, as `recv_multipart`
        does. Without copying no memory is saved, since parts are short: this is about the question alone.
        """
        self._first = part = self._socket.recv(_NOBLOCK, copy=False)
        parts: list[bytes] = []
        while part.more:
            parts.append(part.bytes)
            part = self._socket.recv(_NOBLOCK, copy=False)
        parts.append(self._last_part(part))
        return parts

    def _last_part(self, part: zmq.Frame) -> bytes:
        return part.bytes

    def _turn_over(self) -> None:
        """Do once what need not be done for each of the messages that a turn has handed to `take`."""

    def _may_speak(self, gate: Gate) -> bool:
        """Whether the message in hand came with a key that is still allowed; who has lost that right is cut off.

        The library asks once, when a peer connects. Asking again with each message costs a third of a microsecond, and
        a key that is revoked in the middle of a call is not heard again.
        """
        try:
            self.key = str(self._first.get("User-Id"))
        except zmq.ZMQError:
            return False  # nobody's: the library tells of the subscriptions that ended with their connection
        self.client = gate.client(self._domain, self.key)
        if self.client is None:
            self._cut("revoked")
        return self.client is not None

    def _peer(self) -> Peer | None:
        """The connection by which the message in hand came; None if it has gone."""
        try:
            return self._connections.peer(self._first.get(_SRCFD))
        except zmq.ZMQError:
            return None  # the library's own: a subscription that ended with its connection

    def _cut(self, why: Cut) -> None:
        """Shut down the connection by which the message in hand came."""
        peer = self._peer()
        if peer is not None and not peer.cut:
            self._connections.cut(self._first.get(_SRCFD))
            self._cut_off(why, self.key)

    def _one_too_many(self) -> None:
        self._cut_off("connections", None)  # it has yet to say who it is

    def _cut_off(self, why: Cut, key: str | None) -> None:
        if self._counting is not None:
            self._counting.cut_off(self._domain, why)
        # The name may have been taken out of the clients file, which may be why.
        client = self._gate.name(key) if self._gate is not None and key is not None else None
        log.warning("cut off", extra=fields(endpoint=self._domain, reason=why, client=client, key=key))

    def _came(self) -> None:
        """Hear that a connection began."""
        if self._counting is not None:
            self._counting.opened(self._domain)

    def _left(self, _: Peer) -> None:
        """Hear that a connection ended."""
        if self._counting is not None:
            self._counting.closed(self._domain)
