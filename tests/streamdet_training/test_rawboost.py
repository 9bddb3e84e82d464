"""RawBoost: each of its eight algorithms leaves the marks that its formulae say."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from streamdet_training import rawboost
from streamdet_training.rawboost import SNR_DB

RATE_HZ = 16_000
CLIPS = arrays(np.float32, st.integers(1, 3000), elements=st.floats(-1, 1, width=32))


def noise(samples: int = RATE_HZ) -> np.ndarray:
    return 0.1 * np.random.default_rng(1).standard_normal(samples)


def tone(hertz: float = 1000) -> np.ndarray:
    return np.sin(2 * np.pi * hertz * np.arange(RATE_HZ) / RATE_HZ)


def power(samples: np.ndarray) -> float:
    return float(np.square(samples).mean())


@pytest.mark.parametrize("algorithm", range(1, 9))
@settings(max_examples=15, deadline=None)
@given(samples=CLIPS, rate_hz=st.sampled_from([8000, 16000, 44100]), seed=st.integers(0, 99))
def test_any_clip_stays_a_clip_and_a_seed_gives_it_again(algorithm, samples, rate_hz, seed):
    before = samples.copy()
    one, two = (rawboost.rawboost(samples, rate_hz, algorithm, np.random.default_rng(seed)) for _ in range(2))
    assert one.shape == samples.shape
    assert one.dtype == np.float32
    assert np.isfinite(one).all()
    assert abs(one).max() <= 1
    assert np.array_equal(one, two)
    assert np.array_equal(samples, before)


@pytest.mark.parametrize("algorithm", range(1, 9))
def test_the_level_of_a_file_does_not_decide_how_much_it_is_distorted(algorithm):
    loud, quiet = noise().astype(np.float32), (noise() / 64).astype(np.float32)  # a power of two loses no bit
    one, two = (rawboost.rawboost(clip, RATE_HZ, algorithm, np.random.default_rng(3)) for clip in (loud, quiet))
    assert np.allclose(one, two, atol=1e-5)


def test_convolutive_noise_adds_harmonics():
    """Powers 2 to 5 of a tone lie at 2 to 5 times its frequency, 5 to 20 dB and more below it."""
    levels_db = []
    for seed in range(20):
        heard = np.square(abs(np.fft.rfft(rawboost.convolutive(tone(), RATE_HZ, np.random.default_rng(seed)))))
        levels_db.append(10 * np.log10(heard[[2000, 3000, 4000, 5000]] / heard[1000]))
    second, third, fourth, fifth = np.median(levels_db, axis=0)
    assert -30 < second < -5
    assert -30 < third < -5
    assert fourth < second
    assert fifth < third


def test_convolutive_noise_has_no_constant_part():
    assert abs(rawboost.convolutive(tone(), RATE_HZ, np.random.default_rng(0)).mean()) < 1e-9


def test_impulsive_noise_touches_no_more_than_a_tenth_of_the_samples():
    shares = []
    for seed in range(50):
        wave = noise() / abs(noise()).max() / 3  # three times it is still within [-1, 1]
        heard = rawboost.impulsive(wave, np.random.default_rng(seed))
        shares.append(np.mean(heard != wave))
        assert (abs(heard - wave) <= 2 * abs(wave) + 1e-12).all()
    assert max(shares) <= 0.10
    assert np.mean(shares) == pytest.approx(0.05, abs=0.015)
    assert min(shares) < 0.02


def test_stationary_noise_has_an_snr_of_10_to_40_db():
    found = []
    for seed in range(50):
        added = rawboost.coloured(noise(), RATE_HZ, np.random.default_rng(seed)) - noise()
        found.append(10 * np.log10(power(noise()) / power(added)))
    assert SNR_DB == (10, 40)
    assert 10 <= min(found) < 15
    assert 35 < max(found) <= 40


def test_stationary_noise_is_coloured():
    """Band-stops leave holes in the spectrum: ten bands differ by several dB, where white noise has tenths."""
    added = rawboost.coloured(noise(), RATE_HZ, np.random.default_rng(4)) - noise()
    bands = [10 * np.log10(band.mean()) for band in np.array_split(np.square(abs(np.fft.rfft(added))), 40)]
    assert np.ptp(bands) > 6


def test_band_stops_pass_all_but_their_bands():
    for seed in range(20):
        coefficients = rawboost.band_stops(RATE_HZ, np.random.default_rng(seed))
        gain = abs(np.fft.rfft(coefficients, 4096))
        assert gain.max() == pytest.approx(1, abs=0.01)
        assert gain.min() < 0.5
        assert np.allclose(coefficients, coefficients[::-1])  # linear phase: what is filtered keeps its place


def test_filters_have_no_delay():
    click = np.zeros(4000)
    click[2000] = 1
    around = rawboost.convolutive(click, RATE_HZ, np.random.default_rng(1))[1500:2501]
    assert np.allclose(around, around[::-1])
    assert np.square(around[490:511]).sum() > 0.9 * np.square(around).sum()


def marks(algorithm: int, seed: int) -> tuple[bool, bool, bool]:
    """Whether a tone behind silence shows what 1, 2 and 3 do: harmonics, broken samples, noise in silence."""
    samples = np.concatenate([np.zeros(RATE_HZ), tone()]).astype(np.float32)
    heard = rawboost.rawboost(samples, RATE_HZ, algorithm, np.random.default_rng(seed)).astype(np.float64)
    silent, spoken = heard[4000:12000] - heard[4000:12000].mean(), heard[RATE_HZ:]
    noisy = np.median(abs(silent)) > 1e-3  # a median does not see the few samples that algorithm 2 touches
    spectrum = np.square(abs(np.fft.rfft(spoken)))
    harmonics = spectrum[2000] > 30 * np.median(spectrum[1500:2500])
    residue = abs(np.diff(spoken - tone() * (spoken @ tone()) / (tone() @ tone()), n=2))
    return harmonics, residue.max() > 12 * np.median(residue), noisy


@pytest.mark.parametrize(
    ("algorithm", "expected"),
    [
        (1, (True, False, False)),
        (2, (False, True, False)),
        (3, (False, False, True)),
        (5, (True, True, False)),
        (6, (True, False, True)),
        (8, (True, True, False)),
    ],
)
def test_each_algorithm_is_made_of_its_parts(algorithm, expected):
    votes = np.mean([marks(algorithm, seed) for seed in range(15)], axis=0)
    assert tuple((votes > 0.5).tolist()) == expected


@pytest.mark.parametrize(("algorithm", "parts"), [(4, (1, 2, 3)), (5, (1, 2)), (6, (1, 3)), (7, (2, 3))])
def test_series_are_one_after_the_other(algorithm, parts):
    samples, rng = noise().astype(np.float32), np.random.default_rng(2)
    wave = samples.astype(np.float64) / abs(samples).max()
    for part in parts:
        if part == 1:
            wave = rawboost.convolutive(wave, RATE_HZ, rng)
        else:
            wave = rawboost.impulsive(wave, rng) if part == 2 else rawboost.coloured(wave, RATE_HZ, rng)
    heard = rawboost.rawboost(samples, RATE_HZ, algorithm, np.random.default_rng(2))
    assert np.allclose(heard, rawboost.within(wave), atol=1e-6)


def test_silence_stays_silent():
    assert not rawboost.rawboost(np.zeros(100, np.float32), RATE_HZ, 4, np.random.default_rng(0)).any()
