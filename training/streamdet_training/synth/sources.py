"""The bona fide clips that material is made from: of a manifest, of a folder, or files by name."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import numpy as np

from streamdet.audio import Samples, read_recording
from streamdet.errors import DataError, MissingError
from streamdet_training import data
from streamdet_training.clips import UNKNOWN, Clip, Split
from streamdet_training.synth import systems

SUFFIXES: Final = frozenset((".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff", ".aif", ".au", ".w64", ".rf64"))
RATES_HZ: Final = (8000, 48000)  # what the daemon takes


def find(sources: Sequence[str | Path], split: Split, *, out: Path | None = None) -> list[Clip]:
    """List bona fide clips.

    Args:
        sources: manifests (`.csv`, or `FORMAT:PATH`), of which the bona fide rows of `split` count; folders: every
            recording below, of `bonafide/` alone where there is one, a subfolder's name is its speaker; recordings.
        split: of manifests the split that is read; of other recordings the split that they are said to be of.
        out: where material goes; what was made there is not bona fide, whatever folder that is in.

    Raises:
        MissingError: something is not there.
        DataError: there is not one bona fide clip.
    """
    found = [clip for source in sources for clip in _of(str(source), split)]
    clips = [clip for clip in found if out is None or not _made_in(out.resolve(), clip.path.resolve())]
    if not clips:
        raise DataError.of("bona fide clips", 0, f"at least one in {', '.join(map(str, sources))}")
    return list({clip.path: clip for clip in clips}.values())


def _of(source: str, split: Split) -> Iterator[Clip]:
    path = Path(source)
    if path.is_dir():
        root = path / "bonafide" if (path / "bonafide").is_dir() else path
        for file in sorted(root.rglob("*")):
            if file.suffix.lower() in SUFFIXES and not file.name.startswith("."):
                inside = file.relative_to(root).parts
                yield Clip(path=file, label="bonafide", speaker=inside[0] if len(inside) > 1 else UNKNOWN, split=split)
    elif path.suffix.lower() == ".csv" or source.partition(":")[0] in data.FORMATS:
        known = data.load("csv", [source], split, classes=("bonafide",))
        yield from (clip for clip in known if clip.label == "bonafide")
    elif path.is_file():
        yield Clip(path=path, label="bonafide", split=split)
    else:
        raise MissingError.of("recordings", source, "a manifest CSV, a folder or a recording")


def _made_in(out: Path, path: Path) -> bool:
    """Is `path` one of the files that `streamdet synth` puts into `out`?"""
    if not path.is_relative_to(out):
        return False
    folder = path.relative_to(out).parts[0]
    return folder in (*systems.PLAIN, *systems.TRAINED) or folder.startswith("tts-")


def read(path: Path) -> tuple[Samples, int]:
    """Read the first channel `(T,)` and the rate of a clip, as training does.

    Raises:
        MissingError, DataError: it is not there, not audio, at a rate that no call has, or not finite.
    """
    audio, rate_hz = read_recording(path)
    if not RATES_HZ[0] <= rate_hz <= RATES_HZ[1]:
        raise DataError.of("rate", rate_hz, f"{RATES_HZ[0]} to {RATES_HZ[1]} Hz")
    samples = audio[:, 0]
    if not np.isfinite(samples).all():
        raise DataError.of("samples", "NaN or infinity", "finite numbers")
    return np.ascontiguousarray(samples), rate_hz
