"""Whose fault it is decides what happens next, so the class of an error says whose fault it is.

    StreamdetError          70  ours, unless a subclass says otherwise
    ├── UsageError          64  the command line
    ├── DataError           65  a recording, a manifest or a score file
    │   └── ProtocolError   65  a peer broke the wire contract: that message is dropped, nobody else notices
    │       └── DeniedError     a peer may not do what it wants
    ├── MissingError        66  an input that is not there
    ├── UnreachableError    69  nobody answers at an address
    ├── DeviceError         71  the device, or what runs on it: start anew
    ├── OverloadError       75  try again later
    └── RefusedError        78  the daemon will not start like this
        ├── ConfigError         a config file, variable or flag
        └── BundleError         a model bundle

The numbers are the process's exit codes (sysexits.h).
"""

from typing import ClassVar, Self


class StreamdetError(Exception):
    """Base of every error this package raises on purpose; `str(error)` is one line for a person."""

    exit_code: ClassVar[int] = 70

    def __str__(self) -> str:
        """Give the line, whatever a peer or a file put into it; `printable` says how."""
        return printable(super().__str__())

    @classmethod
    def of(cls, field: str, value: object, expected: str) -> Self:
        """Build the standard message: the field, the value that was found, what was expected."""
        return cls(f"{field}: {shown(value)}, expected {expected}")


class UsageError(StreamdetError):
    """The command line asks for something that does not exist or does not fit together."""

    exit_code = 64


class DataError(StreamdetError):
    """A file's content is not what it should be."""

    exit_code = 65


class ProtocolError(DataError):
    """A peer broke the wire contract."""


class DeniedError(ProtocolError):
    """A peer may not do what it wants; it is not told more."""


class MissingError(StreamdetError):
    """An input file or an optional package is not there."""

    exit_code = 66


class UnreachableError(StreamdetError):
    """Nobody answers at an address."""

    exit_code = 69


class DeviceError(StreamdetError):
    """The device or the scoring on it is broken; a new process may well work."""

    exit_code = 71


class OverloadError(StreamdetError):
    """A limit is reached; the same request may succeed later."""

    exit_code = 75


class RefusedError(StreamdetError):
    """The daemon will not start like this; starting it again changes nothing."""

    exit_code = 78


class ConfigError(RefusedError):
    """A config file, an environment variable or a flag is wrong."""


class BundleError(RefusedError):
    """A bundle is missing, damaged, or not what its manifest says."""


def from_extra(name: str) -> str:
    """Return what is expected where a package of an extra is not there."""
    return f"an installed package: pip install '.[{name}]' in the checkout"


# Long enough to recognise a value, short enough for one log line.
SHOWN_CHARS = 80
# Above any message of ours, with a path and every key of a section in it; what is longer repeats what it was given.
# A field's value in the log has as many.
LINE_CHARS = 1000


def shown(value: object) -> str:
    """Return `value` as it appears in messages: its repr, from the middle cut to `SHOWN_CHARS`."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # thousands of digits or of brackets, which Python does not write
        text = f"a {type(value).__name__} too large to show"
    return _cut(text, SHOWN_CHARS)


def printable(text: str, most: int = LINE_CHARS, allowed: str = "") -> str:
    """Return `text` escaped where it is not printable, and from the middle cut to `most` characters.

    Messages quote names and keys as others wrote them. With a newline, the colour code of a terminal or a letter that
    turns the writing direction, a peer could write lines of its own into our log.

    Args:
        text: whatever it is.
        most: characters, after escaping too.
        allowed: letters that stay although they are not printable.
    """
    text = _cut(text, most)  # first, since escaping makes it up to ten times as long
    if not text.isprintable():
        text = "".join(sign if sign.isprintable() or sign in allowed else ascii(sign)[1:-1] for sign in text)
    return _cut(text, most)


def _cut(text: str, most: int) -> str:
    """Both ends stay: a long path is known by its file name, a blob by how it begins."""
    half = most // 2
    return text if len(text) <= most else f"{text[: half - 1]}…{text[-half:]}"
