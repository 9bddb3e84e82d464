"""Clips and their labels: manifest CSV and ASVspoof 2019 LA protocols."""

import csv
from collections.abc import Callable, Iterator
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

# ASVspoof names its splits after files of its own.
_ASVSPOOF_2019: Final[dict[Split, tuple[str, str]]] = {
    "train": ("ASVspoof2019.LA.cm.train.trn.txt", "ASVspoof2019_LA_train"),
    "dev": ("ASVspoof2019.LA.cm.dev.trl.txt", "ASVspoof2019_LA_dev"),
    "test": ("ASVspoof2019.LA.cm.eval.trl.txt", "ASVspoof2019_LA_eval"),
}


class Clip(msgspec.Struct, frozen=True, kw_only=True):
    """One labelled recording."""

    path: Path
    label: Label
    speaker: str = "-"
    system: str = "-"
    """What made a spoof."""
    source: str = "-"
    """Where the recording is from."""
    channel: str = "-"
    """What it has been through, if the corpus says so."""
    split: str = "-"
    duration_s: float | None = None


def read_manifest(path: Path, split: str | None = None) -> list[Clip]:
    """Read a manifest CSV with the columns `path` (relative to its folder) and `label`.

    Further columns are used where there are any: speaker, system, source_repo, split, duration_s, and in `note` the
    word after `chan=`.

    Raises:
        MissingError: no such manifest, or a row names a file that is not there.
        DataError: a column or the split is missing, or a label is unknown.
    """
    if not path.is_file():
        raise MissingError.of("manifest", str(path), "a CSV file")
    clips = [clip for clip in _rows(path) if split is None or clip.split == split]
    if not clips:
        raise DataError.of(f"{path} split", split, "a split that has rows")
    return clips


def read_asvspoof2019_la(root: Path, split: Split) -> list[Clip]:
    """Read a protocol of ASVspoof 2019 LA: lines of `SPEAKER FILE - ATTACK LABEL`.

    Args:
        root: the corpus's folder, with `ASVspoof2019_LA_cm_protocols` in it.
        split: `test` is what the corpus calls eval.

    Raises:
        MissingError: no such protocol, or it names a file that is not there.
        DataError: a line has other columns, or an unknown label.
    """
    protocol_name, folder = _ASVSPOOF_2019[split]
    protocol = root / "ASVspoof2019_LA_cm_protocols" / protocol_name
    if not protocol.is_file():
        raise MissingError.of("protocol", str(protocol), "a file of ASVspoof 2019 LA")
    clips = []
    for number, line in enumerate(protocol.read_text("utf-8").splitlines(), 1):
        where = f"{protocol}:{number}"
        columns = line.split()
        if len(columns) != 5:
            raise DataError.of(f"{where} columns", len(columns), "5: speaker, file, -, attack, label")
        speaker, name, _, attack, word = columns
        audio = _existing(root / folder / "flac" / f"{name}.flac", where)
        clips.append(Clip(path=audio, label=label(word, where), speaker=speaker, system=attack, split=split))
    return clips


def label(word: str, where: str) -> Label:
    """Translate a corpus's word for a class; raises DataError for one that is not known."""
    if (known := LABELS.get(word.strip().lower())) is None:
        raise DataError.of(f"{where} label", word, f"one of {', '.join(LABELS)}")
    return known


def _rows(path: Path) -> Iterator[Clip]:
    with path.open(newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file)
        missing = {"path", "label"} - set(rows.fieldnames or ())
        if missing:
            raise DataError.of(f"{path} columns", rows.fieldnames, f"{', '.join(sorted(missing))} among them")
        for row in rows:
            where = f"{path}:{rows.line_num}"
            yield Clip(
                path=_existing(path.parent / (row["path"] or ""), where),
                label=label(row["label"] or "", where),
                speaker=row.get("speaker") or "-",
                system=row.get("system") or "-",
                source=row.get("source_repo") or "-",
                channel=_channel(row.get("note") or ""),
                split=row.get("split") or "-",
                duration_s=_seconds(row.get("duration_s"), where),
            )


def _existing(path: Path, where: str) -> Path:
    if not path.is_file():
        raise MissingError(f"{where} path: {shown(str(path))}, expected a file that exists")
    return path


def _channel(note: str) -> str:
    return next((word.removeprefix("chan=") for word in note.split(";") if word.startswith("chan=")), "-")


def _seconds(text: str | None, where: str) -> float | None:
    try:
        return float(text) if text else None
    except ValueError:
        raise DataError.of(f"{where} duration_s", text, "seconds") from None


FORMATS: Final[dict[str, Callable[[Path, Split], list[Clip]]]] = {
    "csv": read_manifest,
    "asvspoof2019_la": read_asvspoof2019_la,
}
