"""A linear prediction vocoder: an all-pole filter for each frame, driven by pulses where speech is voiced, else noise.

Atal and Hanauer 1971, as telephone coders and diphone engines have used it since.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve_toeplitz
from scipy.signal import lfilter

from streamdet.audio import Samples
from streamdet_training.synth.world import bend, pitch

Array = NDArray[np.float64]

PITCH_FRAME_MS = 5.0


def lpc(samples: Samples, rate_hz: int, rng: np.random.Generator) -> Samples:
    """Analyse `(T,)` and make it again, of the same length."""
    audio = samples.astype(np.float64)
    f0, time_s = pitch(audio, rate_hz, PITCH_FRAME_MS)
    if rng.random() < 0.5:
        f0 = bend(f0, rng)
    excitation = _excite(np.interp(np.arange(audio.size) / rate_hz, time_s, f0), rate_hz, rng)
    # Two poles for each kHz and some for the glottis and the mouth, as the textbook has it; less is buzzier.
    order = int(rng.integers(8, round(rate_hz / 1000) + 8))
    size, step = round(rng.uniform(0.020, 0.035) * rate_hz), round(rng.uniform(0.004, 0.012) * rate_hz)
    emphasis = rng.choice([0.0, 0.9, 0.97])
    made = _filter(lfilter([1, -emphasis], [1], audio), excitation, order, size, step)
    speech: Samples = lfilter([1], [1, -emphasis], made).astype(np.float32)
    return speech


def _excite(f0: Array, rate_hz: int, rng: np.random.Generator) -> Array:
    """Excitation `(T,)` of unit power: pulses at the pitch with some noise where `f0` is above 0, else noise alone."""
    noise = rng.standard_normal(f0.size)
    voiced = f0 > 30  # interpolation between voiced and unvoiced leaves a ramp
    beat = np.floor(np.cumsum(np.where(voiced, f0, 0) / rate_hz))
    starts = np.flatnonzero(np.diff(beat, prepend=0) > 0)
    pulses = np.zeros(f0.size)
    pulses[starts] = np.sqrt(rate_hz / f0[starts])
    shaped = np.convolve(pulses, _pulse(rate_hz, rng))[: f0.size]
    share = rng.uniform(0.0, 0.4)
    return np.where(voiced, np.sqrt(1 - share) * shaped + np.sqrt(share) * noise, noise)


def _pulse(rate_hz: int, rng: np.random.Generator) -> Array:
    """Draw one period's pulse, of unit energy: a click, a glottal flow's derivative, or a spread click."""
    kind = rng.integers(3)
    time = np.arange(round(rng.uniform(0.001, 0.004) * rate_hz)) + 1.0
    if kind == 0:
        shape = np.ones(1)
    elif kind == 1:
        shape = np.gradient(np.square(time) * (time[-1] + 1 - time))
    else:
        shape = rng.standard_normal(time.size) * np.exp(-4 * time / time.size)
    unit: Array = shape / np.sqrt(np.square(shape).sum())
    return unit


def _filter(audio: Array, excitation: Array, order: int, size: int, step: int) -> Array:
    """Give the excitation each frame's envelope and power; the filter's state goes on from frame to frame."""
    shape = np.hanning(size)
    padded = np.pad(audio, size // 2)
    made, state = np.empty_like(excitation), np.zeros(order)
    for start in range(0, audio.size, step):
        frame = padded[start : start + size]
        spectrum = np.abs(np.fft.rfft(frame * shape[: frame.size], 2 * size)) ** 2
        correlation = np.fft.irfft(spectrum)[: order + 1]
        correlation[0] = correlation[0] * (1 + 1e-6) + 1e-9  # digital silence has no inverse
        poles = solve_toeplitz(correlation[:-1], correlation[1:])
        power = max(correlation[0] - poles @ correlation[1:], 1e-12) / np.square(shape).sum()
        stretch = excitation[start : start + step]
        made[start : start + step], state = lfilter([np.sqrt(power)], [1, *-poles], stretch, zi=state)
    return made
