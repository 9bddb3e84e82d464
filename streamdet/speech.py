"""How many seconds of a window are speech: the gate in front of the model.

What it is: an activity detector on three plain facts about a voice. Speech is louder than a floor; it comes and goes,
so its loud frames stand out from the quietest ones of the same window; and it is not a pure tone. A frame counts when
its level is above `FLOOR_DBFS` and `RISE_DB` above the quiet level of its own window, and less than `TONE_SHARE` of its
energy lies in the three strongest spectral peaks.

What it is not: a voice detector. It turns away silence, comfort noise, steady noise, dial and ring tones. Music with a
beat passes, as does a bark or a door. docs/benchmarks.md has the measured figures.
"""

from functools import cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from streamdet.audio import Samples

FRAME_S: Final = 0.032  # two or three pitch periods of a low voice: enough to tell a peak from its harmonics
HOP_S: Final = 0.016
FLOOR_DBFS: Final = -55.0  # far below telephone speech (-15 to -35), above the idle noise of G.711 (-66 and less)
RISE_DB: Final = 9.0  # steady noise stays within about 5 dB of its own quiet level at this frame length
QUIET_PERCENTILE: Final = 10.0  # a 4 s window of fluent speech is at rest for more than a tenth of it
TONE_SHARE: Final = 0.92  # two sines (dial tone, DTMF) hold 99 %, vowels 30 to 80 %
PEAK_BINS: Final = 2  # a Hann window spreads a sine over its bin and two to either side
BAND_HZ: Final = (150.0, 3800.0)  # what a telephone carries
HANGOVER_FRAMES: Final = 6  # 0.1 s: stops and pauses inside a word are speech too
# Above 128 KiB the C library gives an array's pages back to the kernel and faults each in anew: 0.3 of the 0.4 ms that
# the spectra of a window took in one piece.
BLOCK_BYTES: Final = 65536


def speech_s(samples: Samples, rate_hz: int) -> float:
    """Seconds of speech in `(T,)` at `rate_hz`, between 0 and T / rate_hz."""
    return seconds(activity(samples, rate_hz), samples.size / rate_hz)


def seconds(active: NDArray[np.bool_], length_s: float) -> float:
    """Seconds of speech behind the activity of `length_s` seconds of audio."""
    return float(min(active.sum() * HOP_S, length_s))


def starts(frames: int, rate_hz: int) -> NDArray[np.int64]:
    """Index of the first sample of each of so many frames of the gate, `(frames,)`."""
    return np.arange(frames) * round(HOP_S * rate_hz)


def activity(samples: Samples, rate_hz: int) -> NDArray[np.bool_]:
    """Which of the gate's frames of `(T,)` at `rate_hz` are speech, `(frames,)`; frame i begins at `starts(...)[i]`."""
    frames = _framed(samples, rate_hz)
    active = np.zeros(frames.shape[0], np.bool_)
    # No frame's mean square is above its largest square: silence costs no spectra.
    if active.size == 0 or max(samples.max(), -samples.min()) <= 10 ** (FLOOR_DBFS / 20):
        return active
    power = _spectra(frames, rate_hz)
    level_db = 10 * np.log10(power.sum(axis=1) + 1e-12)
    # Digital silence between words must not lower the bar to nothing.
    loud = np.flatnonzero(level_db > max(FLOOR_DBFS, _quiet(level_db) + RISE_DB))
    active[loud[_peak_share(power[loud]) < TONE_SHARE]] = True
    held: NDArray[np.bool_] = (
        np.convolve(active, np.ones(HANGOVER_FRAMES))[HANGOVER_FRAMES // 2 - 1 :][: active.size] > 0
    )
    return held


def _framed(samples: Samples, rate_hz: int) -> Samples:
    """Overlapping frames, `(frames, size)`, without copying."""
    size, step = round(FRAME_S * rate_hz), round(HOP_S * rate_hz)
    if samples.size < size:
        return np.empty((0, size), np.float32)
    return np.lib.stride_tricks.sliding_window_view(samples, size)[::step]


def _spectra(frames: Samples, rate_hz: int) -> NDArray[np.float32]:
    """Power spectra of the telephone band, `(frames, bins)`, scaled so that a row's sum is the mean square."""
    count, size = frames.shape
    low, high = (round(edge * size / rate_hz) for edge in BAND_HZ)
    shape, rows = _shape(size), max(1, BLOCK_BYTES // (8 * (size // 2 + 1)))
    power = np.empty((count, high + 1 - low), np.float32)
    for at in range(0, count, rows):
        spectrum = np.fft.rfft(frames[at : at + rows] * shape)[:, low : high + 1]
        np.add(np.square(spectrum.real), np.square(spectrum.imag), out=power[at : at + rows])
    return power


@cache
def _shape(size: int) -> NDArray[np.float32]:
    """A Hann window that scales a frame's power spectrum to its mean square."""
    shape = np.hanning(size).astype(np.float32)
    scaled: NDArray[np.float32] = shape * np.float32(np.sqrt(2 / (size * np.square(shape).sum())))
    return scaled


def _quiet(level_db: NDArray[np.float32]) -> float:
    """What `np.percentile` finds at `QUIET_PERCENTILE`, in a tenth of its time."""
    at = QUIET_PERCENTILE / 100 * (level_db.size - 1)
    below, above = int(at), min(int(at) + 1, level_db.size - 1)
    ordered = np.partition(level_db, (below, above))
    return float(ordered[below] + (at - below) * (ordered[above] - ordered[below]))


def _peak_share(power: NDArray[np.float32]) -> NDArray[np.float32]:
    """Share of each frame's energy in its three strongest peaks, `(frames,)`."""
    count, bins = power.shape
    rest = np.zeros((count, bins + 2 * PEAK_BINS), np.float32)  # a peak at the edge reaches beyond it
    rest[:, PEAK_BINS:-PEAK_BINS] = power
    flat, begins = rest.reshape(-1), np.arange(count) * rest.shape[1]
    reach = np.arange(-PEAK_BINS, PEAK_BINS + 1)
    for _ in range(3):
        flat[(begins + rest.argmax(axis=1))[:, None] + reach] = 0
    share: NDArray[np.float32] = 1 - rest.sum(axis=1) / (power.sum(axis=1) + 1e-12)
    return share
