"""The WORLD vocoder: pitch, spectral envelope and aperiodicity, each bent a little, and speech again from the three.

Morise et al. 2016: DIO with StoneMask, or Harvest, for pitch; CheapTrick for the envelope; D4C for aperiodicity.
"""

from typing import Final

import numpy as np
import pyworld
from numpy.typing import NDArray

from streamdet.audio import Samples, resample

Array = NDArray[np.float64]

# D4C looks for its lowest band around 3 kHz and decides on voicing by what lies above 4 kHz.
D4C_HZ: Final = 16_000


def world(samples: Samples, rate_hz: int, rng: np.random.Generator) -> Samples:
    """Analyse `(T,)` and make it again, within a frame of the same length."""
    audio = samples.astype(np.float64)
    frame_ms = rng.uniform(3, 8)
    f0, time_s = pitch(audio, rate_hz, frame_ms, "dio" if rng.random() < 0.85 else "harvest")
    envelope = pyworld.cheaptrick(audio, f0, time_s, rate_hz)
    aperiodicity = _aperiodicity(samples, f0, time_s, rate_hz)
    if rng.random() < 0.6:
        envelope = _smooth_bins(envelope, int(rng.integers(24, 81)))
    if rng.random() < 0.5:
        envelope = _smooth_frames(envelope, int(rng.integers(2, 8)))
    if rng.random() < 0.6:
        aperiodicity = np.clip(aperiodicity ** rng.uniform(0.4, 2.5), 1e-3, 1 - 1e-6)
    if rng.random() < 0.6:
        f0 = bend(f0, rng)
    made: Array = pyworld.synthesize(f0, envelope, aperiodicity, rate_hz, frame_ms)
    return made.astype(np.float32)


def pitch(audio: Array, rate_hz: int, frame_ms: float, way: str = "dio") -> tuple[Array, Array]:
    """Fundamental frequency (Hz, 0 where unvoiced) and time (s) of each frame."""
    if way == "harvest":
        f0, time_s = pyworld.harvest(audio, rate_hz, frame_period=frame_ms)
        return f0, time_s
    rough, time_s = pyworld.dio(audio, rate_hz, frame_period=frame_ms)
    return pyworld.stonemask(audio, rough, time_s, rate_hz), time_s


def bend(f0: Array, rng: np.random.Generator) -> Array:
    """Move the pitch by up to 20 % and make its contour flatter or livelier, as another voice or an engine would."""
    voiced = f0 > 0
    if not voiced.any():
        return f0
    mean = np.log(f0[voiced]).mean()
    spread = rng.uniform(0.3, 1.3) if rng.random() < 0.5 else 1.0
    bent = np.zeros_like(f0)
    bent[voiced] = np.exp(mean + spread * (np.log(f0[voiced]) - mean)) * rng.uniform(0.8, 1.2)
    return bent


def _aperiodicity(samples: Samples, f0: Array, time_s: Array, rate_hz: int) -> Array:
    """Share of noise in each bin, 0 to 1, `(frames, bins)`: for lower rates from the lower bins of a resampled copy."""
    bins = pyworld.get_cheaptrick_fft_size(rate_hz) // 2 + 1
    if rate_hz >= D4C_HZ:
        found: Array = pyworld.d4c(samples.astype(np.float64), f0, time_s, rate_hz)
        return found
    up = resample(samples, rate_hz, D4C_HZ).astype(np.float64)
    wide: Array = pyworld.d4c(up, f0, time_s, D4C_HZ)
    at = np.linspace(0, (wide.shape[1] - 1) * rate_hz / D4C_HZ, bins)
    return np.stack([np.interp(at, np.arange(row.size), row) for row in wide])


def _smooth_bins(envelope: Array, kept: int) -> Array:
    """Keep the lowest `kept` cepstral coefficients of each frame, as engines with few parameters do."""
    cepstrum = np.fft.irfft(np.log(envelope))
    cepstrum[:, kept:-kept] = 0
    smooth: Array = np.exp(np.fft.rfft(cepstrum).real)
    return smooth


def _smooth_frames(envelope: Array, frames: int) -> Array:
    """Average the log spectrum over neighbours, as acoustic models trained on a mean do."""
    log = np.log(envelope)
    padded = np.pad(log, ((frames // 2, frames - 1 - frames // 2), (0, 0)), mode="edge")
    smooth: Array = np.exp(np.lib.stride_tricks.sliding_window_view(padded, frames, axis=0).mean(axis=-1))
    return smooth
