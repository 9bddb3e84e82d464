"""Sockets that systemd opened before us (sd_listen_fds(3)): a restart refuses nobody.

While the daemon is away the kernel keeps who comes waiting in the socket's queue, and the next daemon gets the same
socket. Its name in the `.socket` unit (`FileDescriptorName=`) is the endpoint's key: audio, verdicts, control, http or
pcm.
"""

import os
import socket
from collections.abc import Callable, Mapping
from typing import Final, Self

from streamdet.addresses import SECURE
from streamdet.config import Endpoints
from streamdet.errors import ConfigError

# Where the descriptors begin: after stdin, stdout and stderr (SD_LISTEN_FDS_START).
FIRST_FD: Final = 3
# Far above what a unit with five endpoints hands over; a number beyond it is somebody else's variable.
DESCRIPTORS_MAX: Final = 64
# Of that number, with room for zeros in front: Python makes no number of more than 4,300 digits.
DIGITS_MAX: Final = 9
NAMES: Final = ("audio", "verdicts", "control", "http", "pcm")
# One connection after another says which endpoint it is of: raw PCM may listen at several addresses, the rest at one.
SEVERAL: Final = frozenset({"pcm"})
VARIABLES: Final = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PIDFDID")


class Inherited:
    """Listening sockets by the endpoint that they are of. Whoever listens there takes them out."""

    def __init__(self, sockets: Mapping[str, list[socket.socket]] | None = None) -> None:
        """Hold sockets that listen; none is the daemon that binds its own."""
        self._sockets: Final = dict(sockets or {})

    @classmethod
    def of_environment(cls) -> Self:
        """Take what systemd handed over, once: the variables are gone afterwards, so no child takes it for its own.

        Raises:
            ConfigError: a name that is no endpoint's, two sockets for an endpoint that has one, or no listening socket.
        """
        given = {name: os.environ.pop(name, "") for name in VARIABLES}
        if given["LISTEN_PID"] != str(os.getpid()):
            return cls()  # nothing, or meant for the process that started us
        count = given["LISTEN_FDS"]
        if not count.isdecimal() or len(count) > DIGITS_MAX or int(count) > DESCRIPTORS_MAX:
            raise ConfigError.of("LISTEN_FDS", count, f"a number of at most {DESCRIPTORS_MAX}")
        return cls(_by_name([_listening(FIRST_FD + at) for at in range(int(count))], given["LISTEN_FDNAMES"]))

    def endpoints(self, endpoints: Endpoints) -> Endpoints:
        """Return where the daemon listens: for what was handed over its own addresses, for the rest the config's.

        Raises:
            ConfigError: the config switches an endpoint off that systemd listens for: who connects would wait for ever.
        """
        found: dict[str, object] = {}
        for name, sockets in self._sockets.items():
            if not getattr(endpoints, name):
                raise ConfigError.of(
                    f"endpoints.{name}", "", "an address: systemd listens for it, until its socket unit does not"
                )
            secure = _secure(name, getattr(endpoints, name))
            addresses = tuple(secure(address_of(name, sock)) for sock in sockets)
            found[name] = addresses if name in SEVERAL else addresses[0]
        return endpoints.model_copy(update=found)

    def take(self, name: str) -> list[socket.socket]:
        """Hand out an endpoint's sockets, in the order of `endpoints`; none where it binds its own. Works once."""
        return self._sockets.pop(name, [])

    def take_one(self, name: str) -> socket.socket | None:
        """Hand out the socket of an endpoint that has one address; None where it binds its own."""
        return next(iter(self.take(name)), None)

    def close(self) -> None:
        """Let go of what nobody took."""
        for sockets in self._sockets.values():
            for sock in sockets:
                sock.close()
        self._sockets.clear()


def address_of(name: str, sock: socket.socket) -> str:
    """Return where a socket listens, as the endpoint `name` writes it."""
    where = sock.getsockname()
    if sock.family == socket.AF_UNIX:
        path = where.decode() if isinstance(where, bytes) else where
        # Linux's abstract namespace: a name without a file, which begins with a zero byte.
        path = "@" + path[1:] if path.startswith("\0") else path
        return f"ipc://{path}" if name in ("audio", "verdicts", "control") else f"unix:{path}"
    host, port = where[:2]
    at = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return at if name == "http" else f"tcp://{at}"


def _secure(name: str, configured: str | tuple[str, ...]) -> Callable[[str], str]:
    """Return what makes an address speak TLS where all of the config's do so that are not unix sockets."""
    scheme = SECURE.get(f"endpoints.{name}")
    tcp = [each for each in (configured if isinstance(configured, tuple) else (configured,)) if "unix:" not in each]
    if scheme is None or not tcp or not all(each.startswith(f"{scheme}://") for each in tcp):
        return lambda address: address
    return lambda address: address if "unix:" in address else f"{scheme}://{address.removeprefix('tcp://')}"


def _by_name(sockets: list[socket.socket], names: str) -> dict[str, list[socket.socket]]:
    split = names.split(":") if names else []
    if len(split) != len(sockets):
        raise ConfigError.of("LISTEN_FDNAMES", names, f"{len(sockets)} names, as FileDescriptorName= gives them")
    found: dict[str, list[socket.socket]] = {}
    for name, sock in zip(split, sockets, strict=True):
        if name not in NAMES:
            raise ConfigError.of("LISTEN_FDNAMES", name, f"one of {', '.join(NAMES)}, as FileDescriptorName= gives it")
        if name in found and name not in SEVERAL:
            raise ConfigError.of("LISTEN_FDNAMES", names, f"one socket for {name}")
        found.setdefault(name, []).append(sock)
    return found


def _listening(descriptor: int) -> socket.socket:
    """Adopt a descriptor: our children do not get it, and nothing that we do with it waits."""
    try:
        sock = socket.socket(fileno=descriptor)  # family and type are the kernel's to say
        listens = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) and sock.type == socket.SOCK_STREAM
    except OSError as error:
        raise ConfigError.of("LISTEN_FDS", descriptor, f"the descriptor of a socket ({error.strerror})") from None
    if not listens:
        sock.detach()
        raise ConfigError.of("LISTEN_FDS", descriptor, "a stream socket that listens (ListenStream=, Accept=no)")
    sock.set_inheritable(False)
    sock.setblocking(False)
    return sock
