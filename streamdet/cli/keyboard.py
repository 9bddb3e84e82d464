"""Single key presses from a terminal, and the names of those that are no letter."""

import contextlib
import os
import sys
import termios
import tty
from collections.abc import Iterator
from typing import Final

# What terminals send; all that does not stand here and is not printable is nobody's key.
NAMES: Final = {
    b"\x1b[A": "up",
    b"\x1bOA": "up",
    b"\x1b[B": "down",
    b"\x1bOB": "down",
    b"\x1b[5~": "page up",
    b"\x1b[6~": "page down",
    b"\x1b[H": "home",
    b"\x1bOH": "home",
    b"\x1b[1~": "home",
    b"\x1b": "escape",
    b"\r": "enter",
    b"\n": "enter",
    b"\x7f": "backspace",
    b"\x08": "backspace",
}
# More than a person types between two looks, even one who pastes.
READ_BYTES: Final = 1024


@contextlib.contextmanager
def pressed() -> Iterator[int | None]:
    """Give the descriptor to read keys from, one by one and unseen; None where nobody is at the keyboard."""
    if not sys.stdin.isatty():
        yield None
        return
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    try:
        tty.setcbreak(descriptor)  # Ctrl-C and Ctrl-Z keep their meaning
        yield descriptor
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def read(descriptor: int) -> list[str]:
    """Take the keys that were pressed: printable ones as they are, others by their names."""
    return list(keys(os.read(descriptor, READ_BYTES)))


def keys(data: bytes) -> Iterator[str]:
    """Tell the keys of what a terminal sent."""
    while data:
        size = _sequence(data)
        one, data = data[:size], data[size:]
        if name := NAMES.get(one):
            yield name
        else:
            yield from (sign for sign in one.decode("utf-8", "ignore")[:1] if sign.isprintable())


def _sequence(data: bytes) -> int:
    """How many bytes the first key has: an escape sequence ends with a letter or a tilde."""
    if data[:2] in (b"\x1b[", b"\x1bO"):
        return next((at + 1 for at in range(2, len(data)) if 0x40 <= data[at] <= 0x7E), len(data))
    first = data[0]
    return 1 if first < 0xC0 else 2 if first < 0xE0 else 3 if first < 0xF0 else 4
