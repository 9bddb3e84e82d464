"""How many seconds of a window are speech: the gate in front of the model.

What it is: an activity detector on plain facts about a voice. Speech is louder than a floor; it comes and goes, so its
loud frames stand out from the quietest ones of the same window; it is not a pure tone; it does not hold its high
harmonics where they are; and it keeps no beat. A frame counts when its level is above `FLOOR_DBFS` and `RISE_DB` above
the quiet level of its own window, less than `TONE_SHARE` of its energy lies in the three strongest spectral peaks, and
no key tone is beside it. A window that is music has none.

Music sounds on where talk pauses: its loud and its quiet frames are within `MUSIC_RANGE_DB`. That alone is as true of a
voice on a noisy line, so one of two more facts is asked for. Instruments hold a pitch: above `STEADY_HZ` their partials
stay in one bin from frame to frame, where those of a voice, moved by a few per cent, are gone from it. And a beat: the
onsets of all bands repeat after a fixed time, as those of talk do not. Both are sums over the whole window, so faint
music behind a voice does not outweigh it.

What it is not: a voice detector. It turns away silence, comfort noise, steady noise, dial and ring tones, key tones and
most music. A slow melody without high partials passes, as does a bark or a door. docs/benchmarks.md has the measured
figures.
"""

from functools import cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from streamdet.audio import Samples

FRAME_S: Final = 0.032  # two or three pitch periods of a low voice: enough to tell a peak from its harmonics
HOP_S: Final = FRAME_S  # twice as many frames hear within 0.1 s the same, for twice the time
FLOOR_DBFS: Final = -55.0  # far below telephone speech (-15 to -35), above the idle noise of G.711 (-66 and less)
RISE_DB: Final = 9.0  # steady noise stays within about 5 dB of its own quiet level at this frame length
TONE_SHARE: Final = 0.92  # two sines (dial tone, DTMF) hold 99 %, vowels 30 to 80 %
PEAK_BINS: Final = 2  # a Hann window spreads a sine over its bin and two to either side
BAND_HZ: Final = (150.0, 3800.0)  # what a telephone carries
LEAD_FRAMES: Final = 1
HANG_FRAMES: Final = 2  # with the lead 0.1 s: stops and pauses inside a word are speech too
# The frames in which a key tone begins and ends look like anything. A pure tone this high is no voice.
KEY_SHARE: Final = 0.96
KEY_HZ: Final = 600.0
# Music is looked for from here on: less is a note or two, and a beat is heard by its repetition.
MUSIC_FROM_S: Final = 3.5
STEADY_HZ: Final = 1150.0  # a voice's third or tenth harmonic; below, its partials may well stay in a bin for 0.1 s
STEADY_FRAMES: Final = 3
# Of 2,400 windows of recorded speech on quiet lines and 800 on noisy ones none is at once within the range and beyond
# one of these.
MUSIC_RANGE_DB: Final = 30.0
STEADY_SHARE: Final = 0.5
BEAT_SHARE: Final = 0.4
BEAT_S: Final = (0.19, 1.18)  # 50 to 310 beats a minute
BEAT_BINS: Final = 14  # in one of eight bands
BEAT_FLOOR: Final = 1e-7  # -70 dBFS a band: what is below, the codec's own noise, has no onsets
# Above 128 KiB the C library gives an array's pages back to the kernel and faults each in anew: 0.3 of the 0.4 ms that
# the spectra of a window took in one piece.
BLOCK_BYTES: Final = 65536

Power = NDArray[np.float32]
"""Power spectra, `(frames, bins)`, of the band from `BAND_HZ[0]` on; a bin is 1 / FRAME_S wide."""


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
    size = round(FRAME_S * rate_hz)
    frames = samples[: samples.size // size * size].reshape(-1, size)
    # No frame's mean square is above its largest square: silence costs no spectra.
    if frames.size == 0 or max(samples.max(), -samples.min()) <= 10 ** (FLOOR_DBFS / 20):
        return np.zeros(frames.shape[0], np.bool_)
    power = _spectra(frames, rate_hz)
    level_db = 10 * np.log10(power.sum(axis=1) + 1e-12)
    ranked_db, tenth = np.sort(level_db), level_db.size // 10  # fluent speech is at rest for more than that of 4 s
    quiet_db, high_db = float(ranked_db[tenth]), float(ranked_db[-1 - tenth])
    # Digital silence between words must not lower the bar to nothing.
    active = _voiced(power, level_db > max(FLOOR_DBFS, quiet_db + RISE_DB))
    long = samples.size >= MUSIC_FROM_S * rate_hz
    if long and high_db - quiet_db < MUSIC_RANGE_DB and active.any() and is_music(power):
        active[:] = False
    return active


def is_music(power: Power) -> bool:
    """Whether pitches are held or a beat is kept, as no voice does."""
    return steady_share(power) > STEADY_SHARE or beat_share(power) > BEAT_SHARE


def steady_share(power: Power) -> float:
    """Share of the amplitude above `STEADY_HZ` that is in tones which stay in one bin for `STEADY_FRAMES` or longer.

    Of amplitude rather than energy, so that one loud note does not decide for a window; summed over the window, so that
    what sounds in a voice's pauses does not outweigh the voice.
    """
    low, reach = _bin(STEADY_HZ), PEAK_BINS + 1  # three bins away a sine is over
    middle = power[:, low:-reach]
    below, above = power[:, low - 1 : -reach - 1], power[:, low + 1 : 1 - reach]
    beside = power[:, low - reach : -2 * reach] + power[:, low + reach :]
    peak = (middle > below) & (middle >= above) & (middle > beside)
    lasting = peak[:-2] & peak[1:-1] & peak[2:]  # of STEADY_FRAMES
    steady = np.zeros_like(peak)
    for late in range(STEADY_FRAMES):
        steady[late : late + lasting.shape[0]] |= lasting
    held = ((below + middle + above) * steady).sum(axis=1)
    return float(np.sqrt(held).sum() / (np.sqrt(middle.sum(axis=1)).sum() + 1e-9))


def beat_share(power: Power) -> float:
    """Highest autocorrelation of the bands' onsets at the times of `BEAT_S`, 1 for a perfect machine."""
    bands = power.shape[1] // BEAT_BINS
    level = np.log(np.add.reduceat(power[:, : bands * BEAT_BINS], np.arange(bands) * BEAT_BINS, axis=1) + BEAT_FLOOR)
    onsets = np.maximum(level[1:] - level[:-1], 0)
    onsets -= onsets.mean(axis=0)
    count, (shortest, longest) = onsets.shape[0], (round(each / HOP_S) for each in BEAT_S)
    # Wiener and Khinchin: the autocorrelation is the transform of the power spectrum; padded, so nothing wraps around.
    padded = 1 << (count + longest).bit_length()
    spectrum = np.fft.rfft(onsets, padded, axis=0)
    alike = np.fft.irfft((np.square(spectrum.real) + np.square(spectrum.imag)).sum(axis=1), padded)
    lags = np.arange(shortest, longest + 1)
    return float((alike[lags] * (count / (count - lags))).max() / (alike[0] + 1e-9))


def _voiced(power: Power, loud: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which of the loud frames are no tones, and what is so close to them that it is the same word: `(frames,)`."""
    at = np.flatnonzero(loud)
    share, strongest = _peaks(power[at])
    own = np.zeros_like(loud)
    own[at[share < TONE_SHARE]] = True
    for key in at[(share >= KEY_SHARE) & (strongest >= _bin(KEY_HZ))]:
        own[max(0, key - 1) : key + 2] = False
    held = own.copy()
    held[:-LEAD_FRAMES] |= own[LEAD_FRAMES:]
    for late in range(1, HANG_FRAMES + 1):
        held[late:] |= own[:-late]
    return held


def _spectra(frames: Samples, rate_hz: int) -> Power:
    """Power spectra of `(frames, size)`, scaled so that a row's sum is the mean square in the band."""
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


def _bin(hertz: float) -> int:
    """The column of `Power` in which a frequency lies."""
    return round(hertz * FRAME_S) - round(BAND_HZ[0] * FRAME_S)


def _peaks(power: Power) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Share of each frame's energy in its three strongest peaks, and the bin of the strongest, both `(frames,)`."""
    count, bins = power.shape
    rest = np.zeros((count, bins + 2 * PEAK_BINS), np.float32)  # a peak at the edge reaches beyond it
    rest[:, PEAK_BINS:-PEAK_BINS] = power
    flat, begins = rest.reshape(-1), np.arange(count) * rest.shape[1]
    reach = np.arange(-PEAK_BINS, PEAK_BINS + 1)
    strongest = power.argmax(axis=1)
    for _ in range(3):
        flat[(begins + rest.argmax(axis=1))[:, None] + reach] = 0
    return 1 - rest.sum(axis=1) / (power.sum(axis=1) + 1e-12), strongest
