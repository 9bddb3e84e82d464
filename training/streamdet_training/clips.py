"""A clip, and the words that corpora have for the two classes."""

from pathlib import Path
from typing import Final, Literal

import msgspec

from streamdet.errors import DataError, MissingError, shown

Label = Literal["bonafide", "spoof"]
Split = Literal["train", "dev", "test"]

# Every word that public corpora use for the two classes; a word that is not here is refused, not guessed.
LABELS: Final[dict[str, Label]] = {
    "bonafide": "bonafide",
    "bona-fide": "bonafide",
    "bona_fide": "bonafide",
    "genuine": "bonafide",
    "real": "bonafide",
    "1": "bonafide",
    "spoof": "spoof",
    "fake": "spoof",
    "0": "spoof",
}

UNKNOWN: Final = "-"


class Clip(msgspec.Struct, frozen=True, kw_only=True):
    """One labelled recording."""

    path: Path
    label: Label
    speaker: str = UNKNOWN
    system: str = UNKNOWN
    """What made a spoof."""
    source: str = UNKNOWN
    """Where the recording is from."""
    channel: str = UNKNOWN
    """What it has been through, if the corpus says so."""
    split: str = UNKNOWN
    duration_s: float | None = None


def label(word: str, where: str) -> Label:
    """Translate a corpus's word for a class; raises DataError for one that is not known."""
    if (known := LABELS.get(word.strip().lower())) is None:
        raise DataError.of(f"{where} label", word, f"one of {', '.join(LABELS)}")
    return known


def existing(path: Path, where: str) -> Path:
    """Return the path of a recording; raises MissingError, with the row that names it, where there is none."""
    if not path.is_file():
        raise MissingError(f"{where} path: {shown(str(path))}, expected a file that exists")
    return path
