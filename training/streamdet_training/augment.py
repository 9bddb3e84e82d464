"""Makes clips sound as if they had come another way: room, tone, band, level, noise, telephone.

All that a recording's path can do to a voice must happen to both classes alike, or the path is what is learnt. Every
function takes and returns `(T,)` float32 and draws from the generator it is given, so a batch can be drawn again.
"""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import torch
import torchaudio.functional as taf
from numpy.typing import NDArray

from streamdet.audio import Samples
from streamdet_training.codecs import through
from streamdet_training.recipe import Augment, CodecName

Float = TypeVar("Float", bound=np.floating)


def augment(samples: Samples, rate_hz: int, how: Augment, rng: np.random.Generator) -> Samples:
    """Apply each change with its own probability, in the order in which a call would meet them."""
    if rng.random() < how.room:
        samples = add_room(samples, rate_hz, rng.uniform(*how.room_rt60_s), rng)
    if rng.random() < how.equaliser:
        samples = equalise(samples, rate_hz, rng)
    if rng.random() < how.band_limit:
        samples = limit_band(samples, rate_hz, rng.uniform(*how.band_limit_hz))
    samples = set_level(samples, rng.uniform(*how.gain_dbfs))
    if rng.random() < how.noise:
        samples = add_noise(samples, rate_hz, rng.uniform(*how.noise_snr_db), rng.uniform(0, 2), rng)
    if rng.random() < how.codec:
        samples = code(samples, rate_hz, how.codecs, rng)
        if rng.random() < how.tandem:
            samples = code(samples, rate_hz, how.codecs, rng)
    return np.clip(samples, -1, 1)


def crop(samples: NDArray[Float], length: int, rng: np.random.Generator) -> NDArray[Float]:
    """Return a random stretch of `length` samples, or all of a shorter clip."""
    start = int(rng.integers(0, max(1, samples.size - length + 1)))
    return samples[start : start + length]


def add_room(samples: Samples, rate_hz: int, rt60_s: float, rng: np.random.Generator) -> Samples:
    """Convolve with exponentially decaying noise behind a direct sound: -60 dB after `rt60_s`."""
    time_s = np.arange(round(rt60_s * rate_hz)) / rate_hz
    tail = rng.standard_normal(time_s.size) * 10 ** (-3 * time_s / rt60_s)
    tail *= rng.uniform(0.1, 0.7) / np.sqrt(np.square(tail).sum())
    tail[0] = 1.0
    heard: torch.Tensor = taf.fftconvolve(torch.from_numpy(samples), torch.from_numpy(tail.astype(np.float32)))
    return heard[: samples.size].numpy()


def equalise(samples: Samples, rate_hz: int, rng: np.random.Generator) -> Samples:
    """Tilt the spectrum by up to 4 dB an octave either way, and raise or lower one broad band by up to 8 dB."""
    hertz = _hertz(samples, rate_hz)
    tilt_db = rng.uniform(-4, 4) * np.log2((hertz + 100) / 1000)
    centre_hz, width_hz = rng.uniform(200, 0.4 * rate_hz), rng.uniform(100, 1500)
    bump_db = rng.uniform(-8, 8) * np.exp(-np.square((hertz - centre_hz) / width_hz))
    return _filter(samples, 10 ** ((tilt_db + bump_db) / 20))


def limit_band(samples: Samples, rate_hz: int, upper_hz: float) -> Samples:
    """Take away what lies above `upper_hz`, over a slope of about 200 Hz."""
    return _filter(samples, 1 / (1 + np.exp((_hertz(samples, rate_hz) - upper_hz) / 50)))


def set_level(samples: Samples, dbfs: float) -> Samples:
    """Scale to a root mean square of `dbfs` below full scale; silence stays silent."""
    rms = np.sqrt(np.square(samples, dtype=np.float64).mean())
    gain: np.float64 = 10 ** (dbfs / 20) / max(rms, np.float64(1e-5))
    return (samples * gain).astype(np.float32)


def add_noise(samples: Samples, rate_hz: int, snr_db: float, slope: float, rng: np.random.Generator) -> Samples:
    """Add noise whose power falls with frequency to the power `slope` (0 white, 1 pink, 2 brown)."""
    white = rng.standard_normal(samples.size).astype(np.float32)
    noise = _filter(white, ((_hertz(samples, rate_hz) + 50) / 1000) ** (-slope / 2))
    heard: torch.Tensor = taf.add_noise(torch.from_numpy(samples), torch.from_numpy(noise), torch.tensor(snr_db))
    return heard.float().numpy()


def code(samples: Samples, rate_hz: int, names: Sequence[CodecName], rng: np.random.Generator) -> Samples:
    """Code and decode by one of `names`."""
    return through(samples, rate_hz, names[int(rng.integers(len(names)))], rng)


def _hertz(samples: Samples, rate_hz: int) -> NDArray[np.floating]:
    return np.fft.rfftfreq(samples.size, 1 / rate_hz)


def _filter(samples: Samples, gain: NDArray[np.floating]) -> Samples:
    return np.fft.irfft(np.fft.rfft(samples) * gain, n=samples.size).astype(np.float32)
