"""Who may do what: the file of clients, the server's key, and a client's identity.

The clients file holds no secret: public CURVE keys, and SHA-256 of tokens. It is looked at again whenever it changes.

    [recorder]
    roles = ["send"]
    curve = "<public key, 40 characters of Z85>"
    token_sha256 = "<64 hex digits>"

Secrets lie in files of mode 0600, the server's and a client's alike, or are handed over by systemd.
"""

import fcntl
import hashlib
import hmac
import os
import re
import stat
import struct
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self, get_args

import msgspec
import zmq
from pydantic import Field, field_validator
from zmq.utils import z85

from streamdet.config import Section, parse_toml, read_toml, validated
from streamdet.errors import ConfigError, MissingError, UsageError

Role = Literal["send", "read", "control"]
ROLES: Final[tuple[Role, ...]] = get_args(Role)
"""May send audio, may read verdicts (and pages over HTTP), may control."""

# Names appear in logs and as keys of the file: what TOML takes without quotes.
NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
SHA256: Final = re.compile(r"[0-9a-f]{64}")
# A token is as hard to guess as a key: its plain hash needs no salt and no slow function.
TOKEN_BYTES: Final = 32
# Read by its owner alone, from its first byte.
SECRET_MODE: Final = 0o600
SERVER_KEY_CREDENTIAL: Final = "server.key"


class Client(Section):
    """What the clients file says of one client."""

    roles: Annotated[tuple[Role, ...], Field(min_length=1)]
    """send (audio), read (verdicts, pages), control."""
    curve: str | None = None
    """Its public CURVE key."""
    token_sha256: str | None = None
    """SHA-256 of its token."""

    @field_validator("curve")
    @classmethod
    def _is_key(cls, value: str | None) -> str | None:
        if value is not None and not is_key(value):
            raise ValueError("40 characters of Z85")
        return value


class Clients:
    """The clients file as it is now."""

    def __init__(self, path: Path) -> None:
        """Read it.

        Raises:
            MissingError: it is not there.
            ConfigError: it is not what it should be.
        """
        self.path: Final = path
        self._seen: object = None
        self._all: dict[str, Client] = {}
        self._names: Final[dict[str, str]] = {}
        self.refresh()

    def __iter__(self) -> Iterator[tuple[str, Client]]:
        """Every client with its name, in the order of the file."""
        return iter(self._all.items())

    def refresh(self) -> bool:
        """Read the file again if it has changed since the last look; True if it had.

        What was known before goes on where this raises, and the same file raises once.

        Raises:
            MissingError: it is no longer there.
            ConfigError: it is not what it should be.
        """
        now = stamp(self.path)
        if now == self._seen:
            return False
        self._seen = now
        self._all = read_clients(self.path)
        self._by_curve = {client.curve: name for name, client in self._all.items() if client.curve}
        self._names.update(self._by_curve)
        return True

    def name(self, curve: str) -> str | None:
        """Return whose key this is, or was before it was taken out of the file: for the log alone."""
        return self._names.get(curve)

    def may(self, role: Role, *, curve: str | None = None, token: str | None = None) -> str | None:
        """Return the name of the client that may act as `role`, by its key or its token; None if there is none.

        The key is public and whoever comes with it has proved to have its other half, so it is looked up. A token is
        the secret itself: every hash is compared, each in constant time.
        """
        name = None
        if curve is not None:
            name = self._by_curve.get(curve)
        elif token is not None:
            given = token_sha256(token)
            for each, client in self._all.items():
                if hmac.compare_digest(given, client.token_sha256 or ""):
                    name = each
        return name if name is not None and role in self._all[name].roles else None


class Identity(msgspec.Struct, frozen=True):
    """A key pair, and of a client whom it talks to; the server's key is one without the rest."""

    public: str
    secret: str
    server: str | None = None
    """The daemon's public key: whoever else answers is not talked to."""
    token: str | None = None
    """For HTTP and raw PCM."""

    def __repr__(self) -> str:
        """Show nothing that is secret."""
        return f"Identity(public={self.public!r})"

    @classmethod
    def new(cls, *, server: str | None = None, token: str | None = None) -> Self:
        """Make a key pair."""
        public, secret = (part.decode() for part in zmq.curve_keypair())
        return cls(public, secret, server, token)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read an identity, or the server's key.

        Raises:
            MissingError: there is no such file.
            ConfigError: others may read it, or it is not what it should be.
        """
        check_private(path)
        return cls._read(path)

    @classmethod
    def _read(cls, path: Path) -> Self:
        tree = read_toml(path)
        try:
            identity = msgspec.convert(tree, cls)
        except msgspec.ValidationError:
            raise ConfigError.of("key file", str(path), "public and secret, made by streamdet keys new") from None
        keys = (identity.public, identity.secret, identity.server or identity.public)
        if not all(map(is_key, keys)) or zmq.curve_public(identity.secret.encode()).decode() != identity.public:
            raise ConfigError.of("key file", str(path), "a pair of public and secret, made by streamdet keys new")
        return identity

    def write(self, path: Path) -> None:
        """Write it where nothing is yet.

        Raises:
            UsageError: something is there.
        """
        fields = {name: value for name, value in msgspec.structs.asdict(self).items() if value is not None}
        write_private(path, "".join(f'{name} = "{value}"\n' for name, value in fields.items()))


def server_key(path: Path | None) -> Identity:
    """Read the server's key from `security.server_key`, else from systemd's credential `server.key`.

    Raises:
        MissingError: there is no such file.
        ConfigError: neither is given, others may read the file, or it is not what it should be.
    """
    if path is not None:
        return Identity.read(path)
    if (handed := credential(SERVER_KEY_CREDENTIAL)) is not None:
        # systemd made this file for us alone; the access list by which it did shows as mode 0440.
        return Identity._read(handed)
    raise ConfigError.of("security.server_key", None, "a file made by streamdet keys new --server")


def credential(name: str) -> Path | None:
    """Return the path of one of systemd's credentials (`LoadCredential=`); None if it was not handed over."""
    folder = os.environ.get("CREDENTIALS_DIRECTORY")
    path = Path(folder, name) if folder else None
    return path if path is not None and path.is_file() else None


def client(roles: Sequence[str], curve: str | None, token_hash: str | None) -> Client:
    """Make a client of what somebody typed.

    Raises:
        UsageError: a role, the key or the hash is none, or there is neither of the latter.
    """
    try:
        return _client({"roles": roles, "curve": curve, "token_sha256": token_hash})
    except ConfigError as error:
        raise UsageError(str(error)) from None


# -- the clients file ----------------------------------------------------------------------------------------------


def read_clients(path: Path) -> dict[str, Client]:
    """Read a clients file.

    Raises:
        MissingError: there is no such file.
        ConfigError: it is not what it should be, or everybody may change it.
    """
    tree = read_toml(path)
    mode = path.stat().st_mode & 0o777
    if mode & stat.S_IWOTH:
        # Whoever can write here gives themselves every role.
        raise ConfigError(f"clients file {path}: mode {mode:04o}, expected one that others may not write: chmod o-w")
    return _clients(tree, path)


def allow(path: Path, name: str, client: Client) -> None:
    """Add a client to the file, which need not be there yet, without a moment at which it is half written.

    Raises:
        UsageError: the name is taken, or is no name.
        ConfigError: the file is not what it should be, before or after.
    """
    if not NAME.fullmatch(name):
        raise UsageError.of("name", name, "1 to 64 letters, digits, _ and -")
    with _edited(path) as lines:
        if name in _clients_of(lines, path):
            raise UsageError.of("name", name, f"a name that is free in {path}; revoke it first")
        lines += ["\n"] if lines and lines[-1].strip() else []
        roles = ", ".join(f'"{role}"' for role in client.roles)
        lines += [f"[{name}]\n", f"roles = [{roles}]\n"]
        lines += [f'curve = "{client.curve}"\n'] if client.curve else []
        lines += [f'token_sha256 = "{client.token_sha256}"\n'] if client.token_sha256 else []


def revoke(path: Path, name: str) -> None:
    """Take a client out of the file; comments elsewhere stay.

    Raises:
        MissingError: there is no such file.
        UsageError: there is no such client.
        ConfigError: the file is not what it should be, before or after.
    """
    if not path.exists():
        raise MissingError.of("clients file", str(path), "a file that exists")
    with _edited(path) as lines:
        known = _clients_of(lines, path)
        if name not in known:
            raise UsageError.of("name", name, f"one of {', '.join(known) or '(nobody)'}")
        lines[:] = _without(lines, name)
        if _clients_of(lines, path) != {each: client for each, client in known.items() if each != name}:
            raise ConfigError.of("clients file", str(path), f"tables like [{name}]; take this one out by hand")


def _without(lines: list[str], name: str) -> list[str]:
    kept, inside = [], False
    for line in lines:
        if header := re.match(r"\s*\[\s*([^\]]*?)\s*\]", line):
            inside = header[1].strip("\"'") == name
        if not inside:
            kept.append(line)
    return kept


def _clients(tree: Mapping[str, Any], path: Path) -> dict[str, Client]:
    found = {}
    for name, table in tree.items():
        if not NAME.fullmatch(name) or not isinstance(table, dict):
            raise ConfigError(f"clients file {path}: {name!r}, expected a table [name] of letters, digits, _ and -")
        try:
            found[name] = _client(table)
        except ConfigError as error:
            raise ConfigError(f"clients file {path}: [{name}] {error}") from None
    for field in ("curve", "token_sha256"):
        _check_own(found, field, path)
    return found


def _client(table: Mapping[str, Any]) -> Client:
    if not SHA256.fullmatch(str(table.get("token_sha256") or "0" * 64)):
        # Perhaps the token itself, which belongs in no log.
        raise ConfigError("token_sha256: (not shown), expected 64 hex digits")
    made = validated(Client, table)
    if made.curve is None and made.token_sha256 is None:
        raise ConfigError("curve: not set, expected one of curve, token_sha256")
    return made


def _check_own(found: Mapping[str, Client], field: str, path: Path) -> None:
    """Refuse what two clients share: it would not tell who came."""
    owners: dict[str, str] = {}
    for name, client in found.items():
        value = getattr(client, field)
        if value is not None and owners.setdefault(value, name) != name:
            raise ConfigError(f"clients file {path}: [{name}] {field} is that of [{owners[value]}], expected its own")


def _clients_of(lines: list[str], path: Path) -> dict[str, Client]:
    return _clients(parse_toml("".join(lines).encode("utf-8", "surrogateescape"), f"clients file {path}"), path)


@contextmanager
def _edited(path: Path) -> Iterator[list[str]]:
    """Hand out the lines of a file and put what became of them in its place, one editor at a time."""
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        lines = path.read_text("utf-8", "surrogateescape").splitlines(keepends=True) if path.exists() else []
        yield lines
        _clients_of(lines, path)
        _replace(path, "".join(lines))
        os.fsync(folder)
    finally:
        os.close(folder)


def _replace(path: Path, text: str) -> None:
    """Put `text` in a file's place, with its mode and owner; a new one may be read by all, for it holds no secret."""
    known = path.stat() if path.exists() else None
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        try:
            file.write(text)
            file.flush()
            os.fchmod(file.fileno(), 0o644 if known is None else known.st_mode & 0o777)
            if known is not None and (known.st_uid, known.st_gid) != (os.geteuid(), os.getegid()):
                os.fchown(file.fileno(), known.st_uid, known.st_gid)
            os.fsync(file.fileno())
            Path(file.name).replace(path)
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise


def stamp(path: Path) -> object:
    """Return what differs once a file was changed, replaced or taken away; for `==` alone."""
    try:
        found = path.stat()
    except OSError as error:
        return error.errno
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


# -- secrets in files ----------------------------------------------------------------------------------------------


def check_private(path: Path) -> None:
    """Refuse a file with a secret that others may read.

    Raises:
        MissingError: there is no such file.
        ConfigError: its group or everybody may read or write it.
    """
    try:
        mode = path.stat().st_mode & 0o777
    except FileNotFoundError:
        raise MissingError.of("key file", str(path), "a file that exists") from None
    if mode & 0o077:
        raise ConfigError(f"key file {path}: mode {mode:04o}, expected {SECRET_MODE:04o}: chmod 600 {path}")


def write_private(path: Path, text: str) -> None:
    """Write a secret where nothing is yet, readable by its owner alone from its first byte.

    Raises:
        UsageError: something is there, even a link that leads nowhere.
    """
    try:
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, SECRET_MODE)
    except FileExistsError:
        raise UsageError.of("key file", str(path), "a path at which nothing is yet") from None
    with os.fdopen(file, "w") as opened:
        opened.write(text)
        opened.flush()
        os.fsync(opened.fileno())


def is_key(text: str) -> bool:
    """Whether this is a CURVE key in Z85."""
    try:
        return len(z85.decode(text)) == 32
    except (ValueError, KeyError, struct.error):
        return False


def token_sha256(token: str) -> str:
    """Return what the clients file keeps of a token."""
    return hashlib.sha256(token.encode(errors="replace")).hexdigest()
