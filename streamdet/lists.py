"""What a person types after an option: one word of several, or several with commas between."""

from collections.abc import Sequence
from typing import Final, TypeVar

from streamdet.errors import UsageError

Word = TypeVar("Word", bound=str)

# Above what any option means, batches and threads among them: a slip of the finger.
MOST: Final = 4096


def one_of(option: str, word: str, known: Sequence[Word]) -> Word:
    """Return the word, if it is known.

    Raises:
        UsageError: it is not.
    """
    found = next((each for each in known if each == word), None)
    if found is None:
        raise UsageError.of(option, word, f"one of {', '.join(known)}")
    return found


def some_of(option: str, text: str, known: Sequence[Word]) -> list[Word]:
    """Read `a,b`, in the order in which they stand.

    Raises:
        UsageError: a word is not known, or comes twice.
    """
    return [one_of(option, word, known) for word in _different(option, text)]


def numbers(option: str, text: str, least: int, most: int = MOST) -> list[int]:
    """Read `1,2` in whole numbers, in the order in which they stand.

    Raises:
        UsageError: one is no number or out of range, or comes twice.
    """
    words = _different(option, text)
    if not all(word.isascii() and word.isdecimal() and least <= int(word) <= most for word in words):
        raise UsageError.of(option, text, f"whole numbers from {least} to {most}, with commas between")
    return [int(word) for word in words]


def _different(option: str, text: str) -> list[str]:
    words = [word.strip() for word in text.split(",")]
    if len(set(words)) < len(words):
        raise UsageError.of(option, text, "each only once")
    return words
