"""TLS for raw PCM and HTTP: the certificate that the daemon shows, as its files are now.

Something else renews a certificate every few weeks or days, so its files are looked at again; connections that are open
keep what they began with.
"""

import ssl
from pathlib import Path
from typing import Final, Self

from streamdet.config import Security
from streamdet.errors import ConfigError, MissingError
from streamdet.keys import check_private, credential, stamp

CERT_CREDENTIAL: Final = "tls.cert"
KEY_CREDENTIAL: Final = "tls.key"
# Older versions have known weaknesses, and every client of the last ten years speaks this one.
OLDEST: Final = ssl.TLSVersion.TLSv1_2
# How long a peer may take to say goodbye (s): a cable that was pulled says nothing.
GOODBYE_S: Final = 1.0


class Certificate:
    """A certificate and its key."""

    def __init__(self, cert: Path, key: Path, *, private: bool = True) -> None:
        """Read them.

        Args:
            cert: the chain (PEM), ours first.
            key: its key (PEM).
            private: whether the key's mode must keep others out; systemd's credentials have modes of their own.

        Raises:
            MissingError: one is not there.
            ConfigError: others may read the key, or they are not a certificate and its key.
        """
        self._cert: Final = cert
        self._key: Final = key
        self._private: Final = private
        self._seen: object = None
        self.refresh()

    @classmethod
    def of(cls, security: Security) -> Self | None:
        """Take what the config names, else systemd's credentials; None where there is neither.

        Raises:
            MissingError: a file is not there.
            ConfigError: one without the other, others may read the key, or they are no certificate and its key.
        """
        if security.tls_cert is not None and security.tls_key is not None:
            return cls(security.tls_cert, security.tls_key)
        for name, given, other in (("tls_key", None, security.tls_cert), ("tls_cert", None, security.tls_key)):
            if other is not None:
                raise ConfigError.of(f"security.{name}", given, f"a file, for there is {other}")
        cert, key = credential(CERT_CREDENTIAL), credential(KEY_CREDENTIAL)
        return cls(cert, key, private=False) if cert is not None and key is not None else None

    @property
    def context(self) -> ssl.SSLContext:
        """For the connections from now on."""
        return self._context

    def refresh(self) -> bool:
        """Read the files again if they have changed since the last look; True if they had.

        What was read before goes on where this raises, and the same files raise once.

        Raises:
            MissingError: one is not there.
            ConfigError: others may read the key, or they are not a certificate and its key.
        """
        now = (stamp(self._cert), stamp(self._key))
        if now == self._seen:
            return False
        self._seen = now
        self._context = self._read()
        return True

    def _read(self) -> ssl.SSLContext:
        for name, path in (("certificate", self._cert), ("key", self._key)):
            if not path.is_file():
                raise MissingError.of(f"TLS {name}", str(path), "a file that exists")
        if self._private:
            check_private(self._key)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = OLDEST
        try:
            # Without a password of ours OpenSSL would ask the terminal for one, and the daemon wait for it.
            context.load_cert_chain(self._cert, self._key, password=lambda: "")
        except (ssl.SSLError, OSError, ValueError) as error:
            why = getattr(error, "reason", None) or getattr(error, "strerror", None) or "unreadable"
            raise ConfigError.of(
                "TLS certificate", str(self._cert), f"a PEM chain that fits {self._key} ({why})"
            ) from None
        return context


def client_context(authorities: Path | None) -> ssl.SSLContext:
    """Trust `authorities` (PEM), or whom the system trusts, and ask for the name that was dialled.

    Raises:
        MissingError: there is no such file.
        ConfigError: it holds no certificates.
    """
    try:
        context = ssl.create_default_context(cafile=authorities)
    except FileNotFoundError:
        raise MissingError.of("--ca", str(authorities), "a file that exists") from None
    except (ssl.SSLError, OSError):
        raise ConfigError.of("--ca", str(authorities), "a file of certificates (PEM)") from None
    context.minimum_version = OLDEST
    return context
