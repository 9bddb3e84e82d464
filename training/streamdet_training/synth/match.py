"""Takes away what would tell a vocoded clip apart without listening to the voice: length, level, silence at the ends.

A model that is shown spoof clips which are all a little quieter, or that begin with digital silence, learns that.
"""

from typing import Final

import numpy as np
from scipy.ndimage import uniform_filter1d

from streamdet.audio import Samples
from streamdet.errors import DataError

CONTOUR_S: Final = 0.05  # twice: slower than pitch and frames, whose artefacts are to stay; faster than words
LOUDER: Final = 10.0  # a vocoder that lost more than 20 dB of a sound has lost it
FRAME_S: Final = 0.02
BELOW_PEAK_DB: Final = 32.0  # what is softer than this below the loud frames, at an end, is not speech
ABOVE_FLOOR_DB: Final = 6.0
MARGIN_S: Final = 0.05  # soft onsets
FADE_S: Final = 0.02


def match(made: Samples, original: Samples, rate_hz: int) -> Samples:
    """Give `made` the length of `original`, its slow contour of level, and its own sound before and after the speech.

    Raises:
        DataError: there is no speech, or nothing was made.
    """
    made = made[: original.size].astype(np.float64)
    made = np.pad(made, (0, original.size - made.size))
    if not np.isfinite(made).all() or not made.any():
        raise DataError.of("vocoder output", "nothing" if np.isfinite(made).all() else "NaN", "sound")
    first, last = speech_span(original, rate_hz)
    made *= np.sqrt(np.square(original, dtype=np.float64).sum() / np.square(made).sum())
    gain = np.sqrt((_power(original, rate_hz) + 1e-12) / (_power(made, rate_hz) + 1e-12))
    levelled = made * np.minimum(gain, LOUDER)
    time = np.arange(original.size)
    fade = FADE_S * rate_hz
    share = np.clip(np.minimum((time - first) / fade, (last - time) / fade) + 1, 0, 1)
    mixed = share * levelled + (1 - share) * original
    # Phases that line up make peaks that the original has not; clipping them would be heard.
    quiet: Samples = (mixed / max(1.0, np.abs(mixed).max() / 0.999)).astype(np.float32)
    return quiet


def speech_span(samples: Samples, rate_hz: int) -> tuple[int, int]:
    """First and last sample of what is louder than the pauses, with a margin.

    Raises:
        DataError: it is silent.
    """
    size = round(FRAME_S * rate_hz)
    frames = samples[: samples.size // size * size].reshape(-1, size).astype(np.float64)
    level_db = 10 * np.log10(np.square(frames).mean(axis=1) + 1e-12)
    loud = np.percentile(level_db, 95) if level_db.size else -120.0
    if loud < -80:
        raise DataError.of("level of the loudest frames", f"{loud:.0f} dBFS", "speech, above -80 dBFS")
    bar = max(loud - BELOW_PEAK_DB, min(np.percentile(level_db, 5) + ABOVE_FLOOR_DB, loud - ABOVE_FLOOR_DB))
    spoken = np.flatnonzero(level_db >= bar)
    margin = round(MARGIN_S * rate_hz)
    return max(0, spoken[0] * size - margin), min(samples.size, (spoken[-1] + 1) * size + margin)


def _power(samples: np.ndarray, rate_hz: int) -> np.ndarray:
    """Mean square around each sample, under a triangle of twice `CONTOUR_S`."""
    size = round(CONTOUR_S * rate_hz)
    once = uniform_filter1d(np.square(samples, dtype=np.float64), size, mode="nearest")
    power: np.ndarray = np.maximum(uniform_filter1d(once, size, mode="nearest"), 0)
    return power
