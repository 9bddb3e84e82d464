"""Where endpoints are: addresses, who can reach them, and whether they ask for keys."""

import errno
import ipaddress
from typing import Final
from urllib.parse import urlsplit

from streamdet.config import Config, Security
from streamdet.errors import ConfigError, UnreachableError

# The scheme of an address that speaks TLS, wherever it is.
SECURE: Final = {"endpoints.pcm": "tls", "endpoints.http": "https"}


def host_and_port(field: str, address: str) -> tuple[str, int]:
    """Split `tcp://host:port` or `host:port`, where TLS is spoken also `tls://` or `https://`.

    A bare IPv6 host stands in brackets.

    Raises:
        ConfigError: it is neither.
    """
    try:
        parts = urlsplit(address if "//" in address else f"//{address}")
        host, port = parts.hostname, parts.port
    except ValueError:  # a bracket that is not closed, letters that only look like others, a port that is no number
        host, port = None, None
    # urlsplit drops line breaks and tabs; what it finds beside host and port nobody would look at.
    alone = address.isprintable() and host and not (parts.path or parts.query or parts.fragment or "@" in parts.netloc)
    secure = SECURE.get(field, "")
    if host is None or port is None or not alone or parts.scheme not in ("", "tcp", secure):
        expected = f"host:port or tcp://host:port{secure and f', or {secure}://host:port'}"
        raise ConfigError.of(field, address, expected)
    return host, port


def check_endpoints(config: Config) -> None:
    """Refuse addresses that others can reach while nothing asks who they are.

    Raises:
        ConfigError: one is not local, asks for no keys, and `endpoints.insecure` is not set.
    """
    endpoints, security = config.endpoints, config.security
    if security.everywhere and security.clients is None:
        raise ConfigError.of("security.clients", None, "a file of clients: security.everywhere asks for keys")
    single = {name: getattr(endpoints, name) for name in ("audio", "verdicts", "control", "http")}
    everything = [*single.items(), *(("pcm", address) for address in endpoints.pcm)]
    for name, address in everything:
        field = f"endpoints.{name}"
        if is_local(field, address) or endpoints.insecure:
            continue
        if not asks_for_keys(security, field, address):
            expected = "a loopback address, or security.clients (endpoints.insecure = true allows it without)"
            raise ConfigError.of(field, address, expected)


def asks_for_keys(security: Security, field: str, address: str) -> bool:
    """Whether an endpoint is for those alone whom the clients file names."""
    return security.clients is not None and (security.everywhere or not is_local(field, address))


def is_local(field: str, address: str) -> bool:
    """Whether an address cannot be reached from another machine; an empty one is not reached at all.

    Raises:
        ConfigError: it is not an address.
    """
    within = not address or address.startswith(("ipc:", "unix:", "inproc:"))
    return within or _is_loopback(host_and_port(field, address)[0])


def taken(field: str, address: str, error: OSError) -> Exception:
    """Return what to raise when an address cannot be bound."""
    if error.errno == errno.EADDRINUSE:
        return UnreachableError.of(field, address, "a free address: another process listens there")
    return ConfigError.of(field, address, f"an address to listen on ({error.strerror or error})")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
