"""Where raw PCM and HTTP come in: an address, and who may.

An address that leaves this machine asks for a token, and speaks TLS where there is a certificate; others do so with
`security.everywhere`. A unix socket never speaks TLS: nobody listens in on it.
"""

import logging
import socket
from typing import Final, Literal

import msgspec

from streamdet.addresses import SECURE, asks_for_keys, is_local
from streamdet.config import Security
from streamdet.errors import ConfigError, StreamdetError
from streamdet.keys import Clients, Role
from streamdet.logs import fields
from streamdet.tls import Certificate
from streamdet.tokens import Tokens

log = logging.getLogger(__name__)

Doorway = Literal["pcm", "http"]
ROLES: Final[dict[Doorway, Role]] = {"pcm": "send", "http": "read"}


class Door(msgspec.Struct, frozen=True):
    """One address at which to listen."""

    address: str
    """`tcp://host:port`, `host:port` or `unix:/path`."""
    listener: socket.socket | None = None
    """A socket that listens there already."""
    certificate: Certificate | None = None
    """Where it speaks TLS."""
    tokens: Tokens | None = None
    """Where it asks for one."""


class Doors:
    """How each address is kept, by the config."""

    def __init__(self, security: Security, clients: Clients | None) -> None:
        """Read the certificate, where there is one.

        Raises:
            MissingError: a file is not there.
            ConfigError: the certificate is not what it should be.
        """
        self.certificate: Final = Certificate.of(security)
        self._security: Final = security
        self._clients: Final = clients

    def door(self, name: Doorway, address: str, listener: socket.socket | None = None) -> Door:
        """Say how an address is kept.

        Raises:
            ConfigError: it shall speak TLS, and there is no certificate.
        """
        field = f"endpoints.{name}"
        secure = address.startswith(f"{SECURE[field]}://")
        if secure and self.certificate is None:
            raise ConfigError.of(field, address, "security.tls_cert and security.tls_key")
        asks = asks_for_keys(self._security, field, address)
        speaks = self.certificate if secure or (asks and not address.startswith("unix:")) else None
        if asks and speaks is None and not is_local(field, address):
            log.warning("tokens travel in the clear: no certificate", extra=fields(endpoint=name, address=address))
        tokens = Tokens(self._clients, ROLES[name]) if asks and self._clients is not None else None
        return Door(address.removeprefix(f"{SECURE[field]}://"), listener, speaks, tokens)

    def refresh(self) -> None:
        """Look at the certificate's files again; a change that is none is told, and what was there before goes on."""
        if self.certificate is None:
            return
        try:
            if self.certificate.refresh():
                log.info("TLS certificate read")
        except StreamdetError as error:
            log.error("TLS certificate not read; the one before goes on", extra=fields(reason=error))
