"""Makes clips sound as if they had come another way, in the order in which a call would meet it.

Voice, room, noise, device (distortion, tone, overdrive, band), level, codecs, network. All that a recording's path can
do to a voice must happen to both classes alike, or the path is what is learnt. Every function takes and returns `(T,)`
float32 and draws from the generator it is given, so a batch can be drawn again.
"""

from collections.abc import Sequence
from typing import Final, TypeVar

import numpy as np
import soxr
from numpy.typing import NDArray

from streamdet.audio import Samples, fill, resample
from streamdet_training import noises
from streamdet_training.codecs import fit, through
from streamdet_training.network import jitter, lose_packets
from streamdet_training.rawboost import rawboost
from streamdet_training.recipe import Augment
from streamdet_training.rooms import add_room

Float = TypeVar("Float", bound=np.floating)
Choice = TypeVar("Choice")

# libsoxr's recipes from cubic interpolation, which lets images through, to what the daemon resamples with.
CONVERTERS: Final = ("QQ", "LQ", "MQ", "HQ")


def augment(samples: Samples, rate_hz: int, how: Augment, rng: np.random.Generator) -> Samples:
    """Apply each change with its own probability: `(T,)` at `rate_hz` in, as many samples in [-1, 1] out."""
    if rng.random() < how.speed:
        samples = change_speed(samples, rate_hz, rng.uniform(*how.speed_by))
    if rng.random() < how.room:
        samples = add_room(samples, rate_hz, rng.uniform(*how.room_rt60_s), rng)
    if rng.random() < how.noise:
        samples = add_noise(samples, rate_hz, how, rng)
    samples = through_device(samples, rate_hz, how, rng)
    samples = set_level(samples, rng.uniform(*how.gain_dbfs))
    if rng.random() < how.codec:
        for _ in range(2 if rng.random() < how.tandem else 1):
            samples = through(samples, rate_hz, one_of(how.codecs, rng), rng)
    if rng.random() < how.packet_loss:
        samples = lose_packets(samples, rate_hz, rng.uniform(*how.packet_loss_share), rng)
    if rng.random() < how.jitter:
        samples = jitter(samples, rate_hz, rng)
    return np.clip(samples, -1, 1)


def through_device(samples: Samples, rate_hz: int, how: Augment, rng: np.random.Generator) -> Samples:
    """Apply what microphones, amplifiers and converters do."""
    if rng.random() < how.rawboost:
        samples = rawboost(samples, rate_hz, one_of(how.rawboost_algorithms, rng), rng)
    if rng.random() < how.equaliser:
        samples = equalise(samples, rate_hz, rng)
    if rng.random() < how.handset:
        samples = through_handset(samples, rate_hz, rng)
    if rng.random() < how.clipping:
        samples = overdrive(samples, rng.uniform(*how.clipping_share), soft=rng.random() < 0.5)
    if rng.random() < how.resampling:
        samples = through_rate(samples, rate_hz, one_of(how.resampling_hz, rng), one_of(CONVERTERS, rng))
    if rng.random() < how.band_limit:
        samples = limit_band(samples, rate_hz, rng.uniform(*how.band_limit_hz))
    return samples


def one_of(choices: Sequence[Choice], rng: np.random.Generator) -> Choice:
    """Draw one of `choices`, each as likely."""
    return choices[int(rng.integers(len(choices)))]


def crop(samples: NDArray[Float], length: int, rng: np.random.Generator) -> NDArray[Float]:
    """Return a random stretch of `length` samples, or all of a shorter clip."""
    start = int(rng.integers(0, max(1, samples.size - length + 1)))
    return samples[start : start + length]


def change_speed(samples: Samples, rate_hz: int, faster: float) -> Samples:
    """Play `faster` times as fast, pitch and all; what is missing at the end is filled as the daemon fills a window."""
    played = resample(samples, round(faster * rate_hz), rate_hz)
    return fill(played[: samples.size], samples.size) if played.size else samples


def add_noise(samples: Samples, rate_hz: int, how: Augment, rng: np.random.Generator) -> Samples:
    """Add one kind of made-up noise, or, where the recipe has a folder of noises, one of its files half of the time."""
    snr_db = rng.uniform(*how.noise_snr_db)
    if how.noise_folder is not None and rng.random() < 0.5:
        return noises.add(samples, noises.from_folder(how.noise_folder, samples.size, rate_hz, rng), snr_db)
    return noises.add(samples, noises.make(one_of(how.noise_kinds, rng), samples.size, rate_hz, rng), snr_db)


def equalise(samples: Samples, rate_hz: int, rng: np.random.Generator) -> Samples:
    """Tilt the spectrum by up to 4 dB an octave either way, and raise or lower one broad band by up to 8 dB."""
    hertz = _hertz(samples, rate_hz)
    tilt_db = rng.uniform(-4, 4) * np.log2((hertz + 100) / 1000)
    centre_hz, width_hz = rng.uniform(200, 0.4 * rate_hz), rng.uniform(100, 1500)
    bump_db = rng.uniform(-8, 8) * np.exp(-np.square((hertz - centre_hz) / width_hz))
    return _filter(samples, 10 ** ((tilt_db + bump_db) / 20))


def through_handset(samples: Samples, rate_hz: int, rng: np.random.Generator) -> Samples:
    """Band-pass as a telephone sends: after the send side of ITU-T P.48 (IRS), with the spread of real handsets.

    From 200 to 400 Hz it rises out of 12 to 24 dB an octave, then by 0 to 4 dB an octave up to a broad resonance at 2
    to 3 kHz; from 3.2 to 3.8 kHz on it is shut.
    """
    hertz = np.maximum(_hertz(samples, rate_hz), 1.0)
    lower_hz, upper_hz = rng.uniform(200, 400), rng.uniform(3200, 3800)
    gain_db = rng.uniform(0, 4) * np.log2(np.clip(hertz, lower_hz, upper_hz) / 1000)
    gain_db += rng.uniform(0, 6) * np.exp(-np.square((hertz - rng.uniform(2000, 3000)) / 500))
    gain_db -= 10 * np.log10(1 + (lower_hz / hertz) ** rng.uniform(4, 8))  # 6 dB an octave for each two of the power
    return _filter(samples, 10 ** (gain_db / 20) / (1 + (hertz / upper_hz) ** 20))


def overdrive(samples: Samples, share: float, *, soft: bool) -> Samples:
    """Limit the loudest `share` of the samples: cut them off, or bend everything by a hyperbolic tangent."""
    limit = np.quantile(abs(samples), 1 - share)
    if not limit > 0:  # a clip of little but silence has nothing to cut off
        return samples
    bent = limit * np.tanh(samples / limit) if soft else np.clip(samples, -limit, limit)
    return bent.astype(np.float32)


def through_rate(samples: Samples, rate_hz: int, via_hz: int, converter: str) -> Samples:
    """Through another rate and back by one of libsoxr's converters: to a lower one and what lies above it is gone."""
    there = soxr.resample(samples, rate_hz, via_hz, quality=converter)
    back = soxr.resample(there, via_hz, rate_hz, quality=converter)
    return fit(np.asarray(back, np.float32), samples.size)


def limit_band(samples: Samples, rate_hz: int, upper_hz: float) -> Samples:
    """Take away what lies above `upper_hz`, over a slope of about 200 Hz."""
    return _filter(samples, 1 / (1 + np.exp(np.minimum((_hertz(samples, rate_hz) - upper_hz) / 50, 700.0))))


def set_level(samples: Samples, dbfs: float) -> Samples:
    """Scale to a root mean square of `dbfs` below full scale; silence stays silent."""
    rms = np.sqrt(np.square(samples, dtype=np.float64).mean())
    gain: np.float64 = 10 ** (dbfs / 20) / max(rms, np.float64(1e-5))
    return (samples * gain).astype(np.float32)


def _hertz(samples: Samples, rate_hz: int) -> NDArray[np.floating]:
    return np.fft.rfftfreq(samples.size, 1 / rate_hz)


def _filter(samples: Samples, gain: NDArray[np.floating]) -> Samples:
    return np.fft.irfft(np.fft.rfft(samples) * gain, n=samples.size).astype(np.float32)
