"""Noise of several kinds, made up or from files, at a signal to noise ratio."""

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Final

import numpy as np
import torch
import torchaudio.functional as taf
from numpy.typing import NDArray

from streamdet.audio import Samples, read_recording, resample
from streamdet.errors import DataError
from streamdet_training.recipe import NoiseName

Noise = NDArray[np.floating]

# Voices of a babble: fewer could be understood apart, many more are noise with the spectrum of speech.
TALKERS: Final = (3, 7)
# Recordings that libsndfile reads by their ending; a noise folder may hold licences and lists beside them.
ENDINGS: Final = frozenset({".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff", ".aif", ".au"})
KEPT_FILES: Final = 64  # of a minute at 16 kHz: 250 MB a worker


def add(samples: Samples, noise: Noise, snr_db: float) -> Samples:
    """Add `noise` `(T,)` to as many samples, at a ratio of their powers; silence on either side changes nothing."""
    rms = np.sqrt(np.square(noise, dtype=np.float64).mean())
    if not rms > 0:
        return samples
    level = torch.from_numpy((noise / rms).astype(np.float32))
    heard: torch.Tensor = taf.add_noise(torch.from_numpy(samples), level, torch.tensor(snr_db))
    return heard.float().numpy()


def make(kind: NoiseName, length: int, rate_hz: int, rng: np.random.Generator) -> Noise:
    """Draw `(length,)` of one kind of noise, at any level."""
    return MAKERS[kind](length, rate_hz, rng)


def coloured(length: int, rate_hz: int, slope: float, rng: np.random.Generator) -> Noise:
    """Noise whose power falls with frequency to the power `slope`: 0 white, 1 pink, 2 brown."""
    hertz = np.fft.rfftfreq(length, 1 / rate_hz)
    return _filter(rng.standard_normal(length), ((hertz + 50) / 1000) ** (-slope / 2))


def _any_colour(length: int, rate_hz: int, rng: np.random.Generator) -> Noise:
    return coloured(length, rate_hz, rng.uniform(0, 2), rng)


def hum(length: int, rate_hz: int, rng: np.random.Generator) -> Noise:
    """Mains: 50 or 60 Hz, within 0.1 %, and up to 20 harmonics of uneven strength."""
    base_hz = rng.choice([50.0, 60.0]) * rng.uniform(0.999, 1.001)
    orders = np.arange(1, min(20, int(rate_hz / 2 / base_hz)) + 1)
    strength = rng.lognormal(sigma=0.8, size=orders.size) / orders ** rng.uniform(0.3, 1.5)
    phase = np.exp(2j * np.pi * rng.random(orders.size))
    # A harmonic is a power of the base: a polynomial of it costs a tenth of as many sines.
    base = np.exp(2j * np.pi * base_hz / rate_hz * np.arange(length))
    return np.asarray(np.polyval([*(strength * phase)[::-1], 0], base).real)


def babble(length: int, rate_hz: int, rng: np.random.Generator) -> Noise:
    """Several made-up talkers: pitch, resonances and syllables, without words."""
    count = int(rng.integers(*TALKERS, endpoint=True))
    return np.asarray(sum(_talker(length, rate_hz, rng) * rng.uniform(0.3, 1) for _ in range(count)))


def _talker(length: int, rate_hz: int, rng: np.random.Generator) -> Noise:
    """Pulses of a wandering pitch and some breath, through three resonances, in three to six syllables a second."""
    time_s = np.arange(length) / rate_hz
    pitch_hz = rng.uniform(85, 240) * (1 + 0.2 * np.sin(2 * np.pi * (rng.uniform(0.2, 0.8) * time_s + rng.random())))
    pulses = np.diff(np.floor(np.cumsum(pitch_hz) / rate_hz + rng.random()), prepend=0.0)
    excitation = pulses + rng.uniform(0.005, 0.05) * rng.standard_normal(length)
    hertz = np.fft.rfftfreq(length, 1 / rate_hz)
    peaks = zip((rng.uniform(300, 800), rng.uniform(900, 2000), rng.uniform(2200, 3200)), (80, 120, 200), strict=True)
    shape = sum(1 / (1 + np.square((hertz - centre_hz) / width_hz)) for centre_hz, width_hz in peaks)
    # Syllables of random loudness, some of them pauses.
    beats_s = np.arange(0, length / rate_hz + 1, 1 / rng.uniform(6, 12))
    loudness = np.clip(rng.normal(0.4, 0.6, beats_s.size), 0, None)
    loud = np.interp(time_s, beats_s, loudness)
    return _filter(excitation, np.asarray(shape)) * loud


def clicks(length: int, rate_hz: int, rng: np.random.Generator) -> Noise:
    """One to twenty ticks a second, each ringing for a millisecond or so: bad contacts, keyboards, scratches."""
    count = max(1, rng.poisson(rng.uniform(1, 20) * length / rate_hz))
    hits = np.zeros(length)
    hits[rng.integers(0, length, count)] = rng.normal(size=count)
    time_s = np.arange(round(0.01 * rate_hz)) / rate_hz
    ringing = np.exp(-time_s / rng.uniform(2e-4, 2e-3)) * np.cos(2 * np.pi * rng.uniform(300, 3000) * time_s)
    return np.asarray(np.convolve(hits, ringing)[:length])


MAKERS: Final[dict[NoiseName, Callable[[int, int, np.random.Generator], Noise]]] = {
    "coloured": _any_colour,
    "hum": hum,
    "babble": babble,
    "clicks": clicks,
}


def from_folder(folder: Path, length: int, rate_hz: int, rng: np.random.Generator) -> Noise:
    """Draw a recording and a stretch of it; a short one is repeated.

    Raises:
        DataError: the folder has no recordings, or the one that was drawn cannot be read.
    """
    files = recordings(folder)
    noise = _read(files[int(rng.integers(len(files)))], rate_hz)
    start = int(rng.integers(0, max(1, noise.size - length + 1)))
    return np.resize(noise[start:], length)


@lru_cache
def recordings(folder: Path) -> tuple[Path, ...]:
    """List the recordings in a folder and below it, in order.

    Raises:
        DataError: there are none.
    """
    found = tuple(sorted(path for path in folder.rglob("*") if path.suffix.lower() in ENDINGS))
    if not found:
        raise DataError.of("augment.noise_folder", str(folder), "a folder with recordings")
    return found


@lru_cache(maxsize=KEPT_FILES)
def _read(path: Path, rate_hz: int) -> Samples:
    """First channel at the rate asked for; what is not finite counts as silence."""
    samples, from_hz = read_recording(path)
    return np.nan_to_num(resample(samples[:, 0], from_hz, rate_hz), posinf=0.0, neginf=0.0)


def _filter(samples: Noise, gain: Noise) -> Noise:
    return np.asarray(np.fft.irfft(np.fft.rfft(samples) * gain, n=samples.size))
