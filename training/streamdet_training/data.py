"""What to learn from and to measure on: any number of manifests and corpora, read into one list of clips."""

import csv
from collections.abc import Callable, Iterator, Sequence
from os.path import abspath
from pathlib import Path
from typing import Final

from streamdet.errors import DataError, MissingError, UsageError
from streamdet_training.clips import UNKNOWN, Clip, Label, Split, existing, label

__all__ = ["FORMATS", "Clip", "Label", "Split", "load", "read_asvspoof2019_la", "read_manifest"]

BOTH: Final[tuple[Label, ...]] = ("bonafide", "spoof")

# ASVspoof names its splits after files of its own.
_ASVSPOOF_2019: Final[dict[Split, tuple[str, str]]] = {
    "train": ("ASVspoof2019.LA.cm.train.trn.txt", "ASVspoof2019_LA_train"),
    "dev": ("ASVspoof2019.LA.cm.dev.trl.txt", "ASVspoof2019_LA_dev"),
    "test": ("ASVspoof2019.LA.cm.eval.trl.txt", "ASVspoof2019_LA_eval"),
}


def load(form: str, paths: Sequence[str | Path], split: Split | None, *, classes: Sequence[Label] = BOTH) -> list[Clip]:
    """Read one split of several manifests and corpora, one after the other.

    Args:
        form: what a plain path is: a name of `FORMATS`.
        paths: manifests and corpora; `FORMAT:PATH` says of one path what it is.
        split: train, dev or test; None reads every row. One of the paths may lack it, all of them may not.
        classes: the labels that must be there.

    Raises:
        UsageError: a format that is not known.
        MissingError: a manifest, a protocol or a recording is not there.
        DataError: a row is wrong, a recording is named twice, or a class has no clip.
    """
    clips = [clip for path in paths for clip in _read(form, path, split)]
    named = split or "all"
    if not clips:
        raise DataError.of("split", named, f"a split that has rows in {', '.join(map(str, paths)) or 'some manifest'}")
    for wanted in classes:
        if not any(clip.label == wanted for clip in clips):
            raise DataError.of(f"{wanted} clips of split {named}", 0, f"both classes among {len(clips)} clips")
    seen: set[str] = set()
    for clip in clips:
        if (place := abspath(clip.path)) in seen:  # noqa: PTH100 # resolve() asks the disk, for every clip of a corpus
            raise DataError.of(f"recording of split {named}", str(clip.path), "each recording in one row")
        seen.add(place)
    return clips


def read_manifest(path: Path, split: str | None = None) -> list[Clip]:
    """Read a manifest CSV with the columns `path` (relative to its folder) and `label`.

    Further columns are used where there are any: speaker, system, source_repo, split, duration_s, and in `note` the
    word after `chan=`.

    Raises:
        MissingError: no such manifest, or a row names a file that is not there.
        DataError: a column is missing, or a label is unknown.
    """
    if not path.is_file():
        raise MissingError.of("manifest", str(path), "a CSV file")
    return [clip for clip in _rows(path) if split is None or clip.split == split]


def read_asvspoof2019_la(root: Path, split: Split | None = None) -> list[Clip]:
    """Read protocols of ASVspoof 2019 LA: lines of `SPEAKER FILE - ATTACK LABEL`.

    Args:
        root: the corpus's folder, with `ASVspoof2019_LA_cm_protocols` in it.
        split: `test` is what the corpus calls eval; None reads all three.

    Raises:
        MissingError: no such protocol, or it names a file that is not there.
        DataError: a line has other columns, or an unknown label.
    """
    if split is None:
        return [clip for each in _ASVSPOOF_2019 for clip in read_asvspoof2019_la(root, each)]
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
        audio = existing(root / folder / "flac" / f"{name}.flac", where)
        clips.append(Clip(path=audio, label=label(word, where), speaker=speaker, system=attack, split=split))
    return clips


def _read(form: str, given: str | Path, split: Split | None) -> list[Clip]:
    """Read one path, by the format in front of it or else by `form`."""
    if form not in FORMATS:
        raise UsageError.of("format", form, f"one of {', '.join(FORMATS)}")
    name, colon, rest = str(given).partition(":")
    if colon and name in FORMATS:
        return FORMATS[name](Path(rest).expanduser(), split)  # a shell leaves the ~ of FORMAT:~/PATH alone
    if colon and not Path(given).exists():
        raise MissingError.of("data", str(given), f"a path that exists, or after one of {', '.join(FORMATS)}")
    return FORMATS[form](Path(given), split)


def _rows(path: Path) -> Iterator[Clip]:
    with path.open(newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file)
        missing = {"path", "label"} - set(rows.fieldnames or ())
        if missing:
            raise DataError.of(f"{path} columns", rows.fieldnames, f"{', '.join(sorted(missing))} among them")
        for row in rows:
            where = f"{path}:{rows.line_num}"
            yield Clip(
                path=existing(path.parent / (row["path"] or ""), where),
                label=label(row["label"] or "", where),
                speaker=row.get("speaker") or UNKNOWN,
                system=row.get("system") or UNKNOWN,
                source=row.get("source_repo") or UNKNOWN,
                channel=_channel(row.get("note") or ""),
                split=row.get("split") or UNKNOWN,
                duration_s=_seconds(row.get("duration_s"), where),
            )


def _channel(note: str) -> str:
    return next((word.removeprefix("chan=") for word in note.split(";") if word.startswith("chan=")), UNKNOWN)


def _seconds(text: str | None, where: str) -> float | None:
    try:
        return float(text) if text else None
    except ValueError:
        raise DataError.of(f"{where} duration_s", text, "seconds") from None


FORMATS: Final[dict[str, Callable[[Path, Split | None], list[Clip]]]] = {
    "csv": read_manifest,
    "asvspoof2019_la": read_asvspoof2019_la,
}
