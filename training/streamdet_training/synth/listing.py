"""The manifest of what has been made, in the project's own form; it is whole at every moment."""

import csv
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import msgspec
import soundfile

from streamdet.audio import Samples
from streamdet.errors import DataError

MANIFEST: Final = "manifest.csv"


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One recording, as a line of a manifest has it."""

    path: str
    """Relative to the manifest's folder."""
    label: str
    speaker: str
    system: str
    source_repo: str
    rate_hz: int
    duration_s: float
    split: str
    note: str = ""
    """Words between semicolons: `chan=` what the original has been through, `of=` the original."""


def read(folder: Path) -> dict[str, Row]:
    """Rows of the manifest in `folder` whose files are still there, by path; none where there is no manifest.

    Raises:
        DataError: it is no manifest that `streamdet synth` wrote.
    """
    path = folder / MANIFEST
    if not path.is_file():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        try:
            lines = csv.DictReader(file)
            rows = [msgspec.convert(row, Row, strict=False) for row in lines]
        except (msgspec.ValidationError, UnicodeDecodeError) as error:
            raise DataError.of(str(path), str(error), "a manifest that `streamdet synth` wrote") from None
    if list(lines.fieldnames or ()) != list(Row.__struct_fields__):
        # Somebody's own manifest, with columns that would be lost.
        raise DataError.of(f"{path} columns", lines.fieldnames, "those of a manifest that `streamdet synth` wrote")
    if (other := next((row for row in rows if row.label != "spoof"), None)) is not None:
        raise DataError.of(f"{path} label", other.label, "spoof, as in a manifest that `streamdet synth` wrote")
    return {row.path: row for row in rows if (folder / row.path).is_file()}


def write(folder: Path, rows: Iterable[Row]) -> Path:
    """Write the manifest, sorted by path: a reader sees the old one or the new one, never half of it."""
    path = folder / MANIFEST
    temporary = path.with_suffix(".csv.part")
    with temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, Row.__struct_fields__, lineterminator="\n")
        writer.writeheader()
        writer.writerows(msgspec.to_builtins(row) for row in sorted(rows, key=lambda row: row.path))
    return temporary.replace(path)


def save(path: Path, samples: Samples, rate_hz: int) -> None:
    """Write `(T,)` as 16-bit FLAC: under another name first, so that a file with this name is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        soundfile.write(temporary, samples, rate_hz, format="FLAC", subtype="PCM_16")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
