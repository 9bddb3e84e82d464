"""Recordings as benches play them: one after the other, or as calls of their own."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from streamdet.audio import Samples, read_recording, resample
from streamdet.errors import DataError

Recordings = Mapping[str, tuple[Samples, int]]
"""Name -> mono samples `(T,)` and their rate (Hz)."""


def strung(paths: Iterable[Path], rate_hz: int) -> Samples:
    """First channels, one after the other, as `(T,)` at `rate_hz`.

    Raises:
        MissingError: one is not there.
        DataError: there is none, or one is not audio.
    """
    parts = []
    for path in paths:
        samples, from_hz = read_recording(path)
        parts.append(resample(samples[:, 0], from_hz, rate_hz))
    if not parts:
        raise DataError.of("recordings", 0, "at least one")
    return np.concatenate(parts)
