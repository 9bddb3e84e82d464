"""Stream ids as the daemon knows them: as their senders say them, or pseudonyms of those.

A pseudonym is made where a stream's id comes in, so nothing behind that has the original: no verdict, event, log line,
status or topic. It is an HMAC, so the same call has the same one everywhere, and nobody without the key can find the
number behind one by trying all numbers, as with a plain hash.
"""

import functools
import hashlib
import hmac
from collections.abc import Callable
from pathlib import Path
from typing import Final

from streamdet.errors import ConfigError
from streamdet.keys import check_private, credential

Named = Callable[[str], str]
"""From the id that a sender gives to the one that the daemon uses."""

CREDENTIAL: Final = "stream.key"
# As much as the hash itself can use; below that, numbers could be found by trying keys.
KEY_MIN_BYTES: Final = 32
# Of 32: two of a billion calls share one with a chance of 2^-69.
KEPT_BYTES: Final = 16
PREFIX: Final = "h-"
# A frame names its stream, fifty times a second, and an HMAC takes as long as the rest of its reading. Those of this
# many ids are remembered; originals stay in memory as long.
REMEMBERED: Final = 4096


def named(path: Path | None) -> Named:
    """Return what makes pseudonyms with the key in a file, or systemd's credential; as senders say them without one.

    Raises:
        MissingError: there is no such file.
        ConfigError: others may read it, it cannot be read, or it is too short.
    """
    if path is not None:
        check_private(path)
    elif (path := credential(CREDENTIAL)) is None:
        return str
    return functools.lru_cache(REMEMBERED)(functools.partial(pseudonym, _key(path)))


def pseudonym(key: bytes, stream: str) -> str:
    """Return the pseudonym of a stream id: `h-` and the first 32 hex digits of its HMAC-SHA256."""
    return PREFIX + hmac.digest(key, stream.encode(), hashlib.sha256)[:KEPT_BYTES].hex()


def _key(path: Path) -> bytes:
    try:
        key = path.read_bytes().strip()
    except OSError as error:
        raise ConfigError.of("streams.hash_key", str(path), f"a readable file ({error.strerror})") from None
    if len(key) < KEY_MIN_BYTES:
        raise ConfigError(f"streams.hash_key {path}: {len(key)} bytes, expected {KEY_MIN_BYTES} or more")
    return key
