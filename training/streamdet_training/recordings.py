"""Recordings to learn from and to measure on: the first channel, checked, and kept decoded on disk where asked to."""

import hashlib
import os
import struct
import tempfile
import zlib
from functools import lru_cache
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from streamdet.audio import Samples, read_recording
from streamdet.errors import DataError, UsageError

# A telephone's rate is the lowest that carries speech, 192 kHz the highest that recorders have: beyond, a header lies.
RATE_MIN_HZ: Final = 8000
RATE_MAX_HZ: Final = 192_000
# Dither moves silence by one step of 16 bits; nobody speaks below two.
SILENT_PEAK: Final = 2 / 32768
# Clips that a process keeps in memory without a cache: 4096 of 5 s at 16 kHz are 0.7 GB, and a small corpus fits whole.
KEPT_CLIPS: Final = 4096

Kept = NDArray[np.float16]
"""Half precision: 66 dB below each sample, under any codec's noise."""

_MAGIC: Final = b"streamdet audio1"
_HEAD: Final = struct.Struct("<16sIIQ")  # magic, rate (Hz), CRC-32 of the samples, their count


def read(path: Path) -> tuple[Samples, int]:
    """Read a recording's first channel.

    Returns:
        float32 `(T,)`, clipped to [-1, 1] as the daemon clips, and the rate in Hz.

    Raises:
        MissingError: there is no such file.
        DataError: it is empty, no audio, at a rate out of range, or holds samples that are no numbers.
    """
    samples, rate_hz = read_recording(path)
    if not RATE_MIN_HZ <= rate_hz <= RATE_MAX_HZ:
        raise DataError.of(f"rate of {path}", rate_hz, f"{RATE_MIN_HZ} to {RATE_MAX_HZ} Hz")
    first = samples[:, 0]
    if (wrong := np.flatnonzero(~np.isfinite(first))).size:
        raise DataError.of(f"sample {wrong[0]} of {path}", float(first[wrong[0]]), "a finite number")
    return np.clip(first, -1, 1), rate_hz


def is_silent(samples: NDArray[np.floating]) -> bool:
    """Is there nothing but dither?"""
    return bool(np.abs(samples).max() < SILENT_PEAK)


class Recordings:
    """Reads recordings again and again: from a cache on disk, which processes share, or else from its memory.

    A cache is a folder with one file for each recording. Its name is made of the recording's path, size and time of
    change, so a recording that changes is decoded anew. Files are written under another name and then renamed: another
    process sees all of one or nothing. One that does not hold what it should is decoded anew as well.
    """

    def __init__(self, cache: Path | None = None) -> None:
        """Keep decoded audio in the folder `cache`, or in memory alone."""
        self._cache = cache
        self._checked: set[Path] = set()
        self._remembered = lru_cache(KEPT_CLIPS)(_decoded)

    def __reduce__(self) -> tuple[type["Recordings"], tuple[Path | None]]:
        """A worker that is not forked starts with nothing in memory."""
        return Recordings, (self._cache,)

    def read(self, path: Path) -> tuple[Kept, int]:
        """Return `(T,)` and the rate in Hz; errors are those of the module's `read`."""
        if self._cache is None:
            return self._remembered(path)
        if not path.is_file():
            return _decoded(path)  # which says so
        place = self._place(path)
        kept = self._mapped(place)
        if kept is None:
            kept = _decoded(path)
            self._keep(place, *kept)
        return kept

    def _place(self, path: Path) -> Path:
        assert self._cache is not None
        state = path.stat()
        name = hashlib.sha256(f"{path.absolute()}\0{state.st_size}\0{state.st_mtime_ns}".encode()).hexdigest()[:40]
        return self._cache / name[:2] / name[2:]  # no folder gets too large for a file system

    def _mapped(self, place: Path) -> tuple[Kept, int] | None:
        """Map a file into memory; None where there is none, or a damaged one."""
        try:
            with place.open("rb") as file:
                magic, rate_hz, crc, count = _HEAD.unpack(file.read(_HEAD.size))
            if magic != _MAGIC or place.stat().st_size != _HEAD.size + 2 * count:
                return None
            samples: Kept = np.memmap(place, np.float16, "r", _HEAD.size, (count,))
        except (OSError, ValueError, struct.error):
            return None
        if place not in self._checked:  # once a process: it reads the whole file
            if zlib.crc32(samples.data) != crc:
                return None
            self._checked.add(place)
        return samples, rate_hz

    def _keep(self, place: Path, samples: Kept, rate_hz: int) -> None:
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=place.parent, delete=False) as file:
                file.write(_HEAD.pack(_MAGIC, rate_hz, zlib.crc32(samples.data), samples.size))
                file.write(samples.tobytes())
            os.replace(file.name, place)  # noqa: PTH105 # a name and a path
        except OSError as error:
            raise UsageError.of("data.cache", str(self._cache), f"a folder to write in ({error.strerror})") from None


def _decoded(path: Path) -> tuple[Kept, int]:
    samples, rate_hz = read(path)
    return samples.astype(np.float16), rate_hz
