"""CURVE and ZAP: who may connect to a ZeroMQ socket, and goes on to be heard.

CURVE proves that a peer has the secret half of its key; by itself it lets any key in. The library asks a ZAP handler
(an inproc address of its context) with the domain of the socket, and the domain decides which role is needed. The
handler is twenty lines over our own socket class, rather than pyzmq's: that one brings a second way of reading sockets
from the loop, and would admit by folders of certificates or a callback that does not know the domain.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Final, Self

import zmq
from zmq.utils import z85

from streamdet.errors import ConfigError
from streamdet.keys import Clients, Identity, Role
from streamdet.logs import fields
from streamdet.sockets import ZmqSocket

log = logging.getLogger(__name__)

DOMAINS: Final[dict[str, Role]] = {"audio": "send", "verdicts": "read", "control": "control"}
"""ZAP domain -> the role that it asks for."""

ZAP_ADDRESS: Final = "inproc://zeromq.zap.01"
# Version, request, domain, address, routing id, mechanism, then credentials: of CURVE the key.
ZAP_PARTS: Final = 7
ADMITTED: Final = (b"200", b"OK")
# "Temporary": a client whose key is allowed later gets in by itself, where after 400 its socket would never try again.
# It tries anew when the handshake's time is over, every two seconds.
DENIED: Final = (b"300", b"not allowed")


class Guard:
    """Asks whoever connects for a key, while entered."""

    def __init__(self, clients: Clients, key: Identity, denied: Callable[[], None] = lambda: None) -> None:
        """Admit whom `clients` allows to a server with this `key`; `denied` hears of each who is not."""
        self._clients: Final = clients
        self._key: Final = key
        self._denied: Final = denied
        self.context: Final[zmq.Context[zmq.Socket[bytes]]] = zmq.Context()
        """Of the sockets that it guards; each context has its own ZAP handler."""
        self._zap = ZmqSocket(zmq.REP, "zap", ZAP_ADDRESS, self._answer, context=self.context)

    async def __aenter__(self) -> Self:
        """Begin to answer the library's questions."""
        await self._zap.__aenter__()
        return self

    async def __aexit__(self, *error: object) -> None:
        """Stop; what guarded sockets still had to send has left or is given up within LINGER_MS."""
        await self._zap.__aexit__(*error)
        await asyncio.to_thread(self.context.term)

    def protect(self, socket: "zmq.Socket[bytes]", domain: str) -> None:
        """Make a socket ask for keys; before it is bound."""
        socket.setsockopt(zmq.CURVE_SERVER, 1)
        socket.setsockopt(zmq.CURVE_SECRETKEY, self._key.secret.encode())
        socket.setsockopt_string(zmq.ZAP_DOMAIN, domain)
        # Without it, any key is let in where nobody answers for the domain.
        socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)

    def client(self, domain: str, key: str) -> str | None:
        """Return the name of the client with this key, if it may still do what the domain is for."""
        return self._clients.may(DOMAINS[domain], curve=key)

    def name(self, key: str) -> str | None:
        """Return whose key this is, or was: for the log alone."""
        return self._clients.name(key)

    def _answer(self, parts: list[bytes]) -> None:
        version, request, domain, *_ = parts
        key = self._key_of(parts)
        admitted = key is not None and self.client(domain.decode(), key) is not None
        if not admitted:
            self._denied()
            peer = parts[3].decode("ascii", "replace")
            log.warning("denied", extra=fields(endpoint=domain.decode(), key=key, peer=peer))
        user = key.encode() if admitted and key is not None else b""
        self._zap.send([version, request, *(ADMITTED if admitted else DENIED), user, b""])

    @staticmethod
    def _key_of(parts: list[bytes]) -> str | None:
        """The public key that a handshake has proved; None where it was another mechanism's."""
        if len(parts) != ZAP_PARTS or parts[5] != b"CURVE" or parts[2].decode("latin-1") not in DOMAINS:
            return None
        return z85.encode(parts[6]).decode()


def present(socket: "zmq.Socket[bytes]", identity: Identity | None) -> None:
    """Let a client's socket say who it is, and talk to the daemon of its identity alone; before it connects.

    Raises:
        ConfigError: the identity does not name a daemon.
    """
    if identity is None:
        return
    if identity.server is None:
        raise ConfigError.of("identity's server", None, 'the daemon\'s public key: server = "..." in its file')
    socket.setsockopt(zmq.CURVE_SERVERKEY, identity.server.encode())
    socket.setsockopt(zmq.CURVE_PUBLICKEY, identity.public.encode())
    socket.setsockopt(zmq.CURVE_SECRETKEY, identity.secret.encode())
