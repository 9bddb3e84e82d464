"""What to learn from and to measure on: any number of manifests and corpora, read into one list of clips."""

from collections.abc import Mapping, Sequence
from os.path import abspath
from pathlib import Path
from typing import Final, Literal, get_args

from streamdet.errors import DataError, MissingError, UsageError
from streamdet_training.clips import UNKNOWN, Clip, Label, Split, existing, label
from streamdet_training.corpora import READERS, Reader
from streamdet_training.rows import table

__all__ = ["FORMATS", "Clip", "Format", "Label", "Split", "load", "read_manifest"]

# The names of FORMATS, where types want to know them.
Format = Literal[
    "csv",
    "asvspoof2019_la",
    "asvspoof2021_la",
    "asvspoof2021_la_progress",
    "asvspoof2021_la_hidden",
    "asvspoof2021_df",
    "asvspoof2021_df_progress",
    "asvspoof2021_df_hidden",
    "asvspoof5",
    "in_the_wild",
    "mlaad",
    "wavefake",
    "folders",
]

BOTH: Final[tuple[Label, ...]] = ("bonafide", "spoof")


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
        DataError: a column is missing, a row is too long or too short, or a label is unknown.
    """
    if not path.is_file():
        raise MissingError.of("manifest", str(path), "a CSV file")
    rows = list(table(path, ("path", "label")))
    if split is None:
        return [_clip(path, where, row) for where, row in rows]
    return [_clip(path, where, row) for where, row in rows if _known(_split(row), where) == split]


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


def _clip(manifest: Path, where: str, row: Mapping[str, str]) -> Clip:
    return Clip(
        path=existing(manifest.parent / row["path"], where),
        label=label(row["label"], where),
        speaker=row.get("speaker") or UNKNOWN,
        system=row.get("system") or UNKNOWN,
        source=row.get("source_repo") or UNKNOWN,
        channel=_channel(row.get("note") or ""),
        split=_split(row),
        duration_s=_seconds(row.get("duration_s"), where),
    )


def _split(row: Mapping[str, str]) -> str:
    return (row.get("split") or UNKNOWN).strip().lower()


def _known(split: str, where: str) -> str:
    """Refuse a misspelt split, which would drop its clip without a word."""
    if split not in {UNKNOWN, *get_args(Split)}:
        raise DataError.of(f"{where} split", split, f"one of {', '.join(get_args(Split))}, or nothing")
    return split


def _channel(note: str) -> str:
    return next((word.removeprefix("chan=") for word in note.split(";") if word.startswith("chan=")), UNKNOWN)


def _seconds(text: str | None, where: str) -> float | None:
    try:
        return float(text) if text else None
    except ValueError:
        raise DataError.of(f"{where} duration_s", text, "seconds") from None


FORMATS: Final[dict[str, Reader]] = {"csv": read_manifest, **READERS}
