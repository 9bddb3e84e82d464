"""RawBoost: distortions of the raw waveform that need no data (Tak et al., ICASSP 2022, arXiv 2111.04433).

Three kinds of them, alone and together, with the published parameters. Written from the paper's formulae; where the
published code differs from the paper (one gain for all powers above the first), the code's reading is taken, since the
field's figures come from it.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.signal import firwin, oaconvolve

from streamdet.audio import Samples

Wave = NDArray[np.float64]

# Band-stop filters: how many in a row, their centre (Hz), width (Hz) and number of coefficients.
BANDS: Final = 5
CENTRE_HZ: Final = (20.0, 8000.0)
WIDTH_HZ: Final = (100.0, 1000.0)
COEFFICIENTS: Final = (10, 100)
# Linear and non-linear convolutive noise: the highest power, and the gain (dB) of each power but the first.
POWERS: Final = 5
POWER_GAIN_DB: Final = (-20.0, -5.0)
# Impulsive signal-dependent noise: at most this share of samples changes, by at most this many times its value.
IMPULSES: Final = 0.10
IMPULSE_GAIN: Final = 2.0
# Stationary signal-independent noise.
SNR_DB: Final = (10.0, 40.0)


def rawboost(samples: Samples, rate_hz: int, algorithm: int, rng: np.random.Generator) -> Samples:
    """Apply one of the eight: 1, 2, 3 alone; 4 = 1, 2, 3 in series; 5 = 1, 2; 6 = 1, 3; 7 = 2, 3; 8 = 1 beside 2.

    A clip is brought to a peak of 1 first. The powers of its samples depend on its level, and the level of a file must
    not decide how much it is distorted: corpora differ in it.
    """
    peak = abs(samples).max()
    if not peak > 0:
        return samples.copy()
    wave: Wave = samples.astype(np.float64) / peak
    if algorithm == 8:
        wave = within(convolutive(wave, rate_hz, rng) + impulsive(wave, rng))
    else:
        for step in SERIES[algorithm]:
            wave = _single(step, wave, rate_hz, rng)
    return within(wave).astype(np.float32)


SERIES: Final = {1: (1,), 2: (2,), 3: (3,), 4: (1, 2, 3), 5: (1, 2), 6: (1, 3), 7: (2, 3)}


def _single(algorithm: int, wave: Wave, rate_hz: int, rng: np.random.Generator) -> Wave:
    if algorithm == 1:
        return convolutive(wave, rate_hz, rng)
    return impulsive(wave, rng) if algorithm == 2 else coloured(wave, rate_hz, rng)


def convolutive(wave: Wave, rate_hz: int, rng: np.random.Generator) -> Wave:
    """Sum the powers 1 to 5 of the samples, each through its own band-stops: what cheap microphones and coders add."""
    gains_db = [0.0, *rng.uniform(*POWER_GAIN_DB, POWERS - 1)]
    heard, power = np.zeros_like(wave), np.ones_like(wave)
    for gain_db in gains_db:
        power = power * wave
        heard += _through(power, 10 ** (gain_db / 20) * band_stops(rate_hz, rng))
    return within(heard - np.mean(heard))


def impulsive(wave: Wave, rng: np.random.Generator) -> Wave:
    """Change up to a tenth of the samples, anywhere, by up to twice their own value: clicks and lost bits."""
    count = int(wave.size * rng.uniform(0, IMPULSES))
    where = rng.choice(wave.size, count, replace=False)
    factor = rng.uniform(-1, 1, count) * rng.uniform(-1, 1, count)
    heard = wave.copy()
    heard[where] += IMPULSE_GAIN * factor * wave[where]
    return within(heard)


def coloured(wave: Wave, rate_hz: int, rng: np.random.Generator) -> Wave:
    """Add white noise through band-stops at an SNR of 10 to 40 dB."""
    noise = _through(rng.standard_normal(wave.size), band_stops(rate_hz, rng))
    size = max(float(np.linalg.norm(noise)), np.finfo(float).tiny)
    return wave + noise * (np.linalg.norm(wave) / size * 10 ** (-rng.uniform(*SNR_DB) / 20))


def band_stops(rate_hz: int, rng: np.random.Generator) -> Wave:
    """Draw five band-stops in a row, as the coefficients of one FIR filter whose largest gain is 1."""
    joined: Wave = np.ones(1)
    nyquist_hz = rate_hz / 2
    for _ in range(BANDS):
        centre_hz = rng.uniform(CENTRE_HZ[0], min(CENTRE_HZ[1], nyquist_hz))
        width_hz = rng.uniform(*WIDTH_HZ)
        # A band-stop passes the highest frequency, for which its number of coefficients has to be odd.
        count = int(rng.integers(*COEFFICIENTS, endpoint=True)) // 2 * 2 + 1
        edges_hz = np.clip([centre_hz - width_hz / 2, centre_hz + width_hz / 2], 0.001, nyquist_hz - 0.001)
        joined = np.convolve(joined, firwin(count, edges_hz, window="hamming", fs=rate_hz))
    return np.asarray(joined / abs(np.fft.rfft(joined, 2048)).max())


def within(wave: Wave) -> Wave:
    """Scale down what reaches beyond [-1, 1]; leave the rest."""
    return wave / max(1.0, float(abs(wave).max()))


def _through(wave: Wave, coefficients: Wave) -> Wave:
    """Filter without delay."""
    late = coefficients.size // 2
    heard: Wave = oaconvolve(wave, coefficients)[late : late + wave.size]
    return heard
