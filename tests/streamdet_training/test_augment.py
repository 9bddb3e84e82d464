"""Augmentation: any clip stays a clip, and each change does what it says."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from streamdet_training import augment
from streamdet_training.recipe import Augment

RATE_HZ = 16_000
EVERYTHING = Augment(room=1, equaliser=1, band_limit=1, noise=1, codec=1, tandem=1)
NOW_AND_THEN = Augment(room=0.5, equaliser=0.5, band_limit=0.5, noise=0.5, codec=0.5, tandem=0.5)

CLIPS = arrays(np.float32, st.integers(1, 3000), elements=st.floats(-1, 1, width=32))


def noise(samples: int, seed: int = 1) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal(samples)).astype(np.float32)


def power(samples: np.ndarray) -> float:
    return float(np.square(samples, dtype=np.float64).mean())


@pytest.mark.parametrize("how", [EVERYTHING, NOW_AND_THEN, Augment()], ids=["everything", "now and then", "level"])
@settings(max_examples=30, deadline=None)
@given(samples=CLIPS, seed=st.integers(0, 2**32))
def test_any_clip_stays_a_clip_and_a_seed_gives_it_again(how, samples, seed):
    before = samples.copy()
    heard = augment.augment(samples, RATE_HZ, how, np.random.default_rng(seed))
    assert heard.shape == samples.shape
    assert heard.dtype == np.float32
    assert np.isfinite(heard).all()
    assert abs(heard).max() <= 1
    assert np.array_equal(heard, augment.augment(samples, RATE_HZ, how, np.random.default_rng(seed)))
    assert np.array_equal(samples, before)  # clips are kept in memory and heard again


def test_nothing_is_drawn_from_elsewhere():
    """Not even the choice of a law, which hypothesis' own seeding of numpy would hide."""
    for seed in range(20):
        one, two = (augment.augment(noise(400), RATE_HZ, EVERYTHING, np.random.default_rng(seed)) for _ in range(2))
        assert np.array_equal(one, two)


def test_another_seed_gives_another_clip():
    one, two = (augment.augment(noise(4000), RATE_HZ, EVERYTHING, np.random.default_rng(seed)) for seed in (1, 2))
    assert not np.array_equal(one, two)


def test_shares_are_kept():
    """Level alone has no choice to make; with noise on half of the clips, half of them differ from that."""
    samples, how = noise(400), {"gain_dbfs": (-20, -20), "noise_snr_db": (10, 10)}
    plain = augment.augment(samples, RATE_HZ, Augment(**how), np.random.default_rng(0))
    rng = np.random.default_rng(3)
    noisy = [augment.augment(samples, RATE_HZ, Augment(**how, noise=0.5), rng) for _ in range(400)]
    assert 160 < sum(not np.array_equal(plain, heard) for heard in noisy) < 240


@settings(deadline=None)
@given(samples=CLIPS, length=st.integers(1, 4000), seed=st.integers(0, 99))
def test_a_crop_is_a_stretch_of_the_clip(samples, length, seed):
    cut = augment.crop(samples, length, np.random.default_rng(seed))
    assert cut.size == min(length, samples.size)
    assert any(np.array_equal(cut, samples[at : at + cut.size]) for at in range(samples.size - cut.size + 1))


def test_crops_reach_both_ends():
    clip, rng = np.arange(10, dtype=np.float32), np.random.default_rng(0)
    assert {augment.crop(clip, 8, rng)[0] for _ in range(100)} == {0, 1, 2}


@pytest.mark.parametrize("snr_db", [5, 20, 40])
@pytest.mark.parametrize("slope", [0, 1, 2])
def test_noise_is_as_strong_as_asked(snr_db, slope):
    samples = noise(RATE_HZ)
    added = augment.add_noise(samples, RATE_HZ, snr_db, slope, np.random.default_rng(5)) - samples
    assert 10 * np.log10(power(samples) / power(added)) == pytest.approx(snr_db, abs=0.5)


def test_noise_falls_with_frequency_as_asked():
    """From 500 Hz to 4 kHz are three octaves: 9 dB of pink noise."""
    samples = noise(4 * RATE_HZ)
    pink = augment.add_noise(samples, RATE_HZ, 0, 1, np.random.default_rng(5)) - samples
    spectrum = np.square(abs(np.fft.rfft(pink)))
    low, high = spectrum[4 * 450 : 4 * 550].mean(), spectrum[4 * 3950 : 4 * 4050].mean()
    assert 10 * np.log10(low / high) == pytest.approx(9, abs=1.5)


def test_a_band_limit_takes_away_what_lies_above_it():
    before = np.square(abs(np.fft.rfft(noise(RATE_HZ))))
    after = np.square(abs(np.fft.rfft(augment.limit_band(noise(RATE_HZ), RATE_HZ, 3500))))
    assert after[4000:].sum() < 1e-6 * before[4000:].sum()
    assert after[:3000].sum() == pytest.approx(before[:3000].sum(), rel=1e-3)


@pytest.mark.parametrize("dbfs", [-35, -12])
def test_a_level_is_set(dbfs):
    assert 10 * np.log10(power(augment.set_level(noise(4000), dbfs))) == pytest.approx(dbfs, abs=0.01)
    assert not augment.set_level(np.zeros(100, np.float32), dbfs).any()


def test_a_room_lasts_as_long_as_asked():
    click = np.zeros(RATE_HZ, np.float32)
    click[100] = 1
    heard = augment.add_room(click, RATE_HZ, 0.3, np.random.default_rng(1))
    assert not heard[:100].round(6).any()
    assert heard[100] == pytest.approx(1, abs=1e-5)
    tail = heard[101:]
    assert 0.1**2 * 0.9 < np.square(tail).sum() < 0.7**2 * 1.1
    early, late = power(tail[:480]), power(tail[2400:2880])  # 150 ms later: -30 dB of -60 dB in 300 ms
    assert 10 * np.log10(early / late) == pytest.approx(30, abs=2)


def test_an_equaliser_tilts_and_bumps_by_no_more_than_it_says():
    before = abs(np.fft.rfft(noise(RATE_HZ)))
    for seed in range(10):
        after = abs(np.fft.rfft(augment.equalise(noise(RATE_HZ), RATE_HZ, np.random.default_rng(seed))))
        change_db = 20 * np.log10(after[200:7000] / before[200:7000])
        assert np.ptp(change_db) > 0.5
        assert abs(change_db).max() < 4 * np.log2(7.1) + 8 + 0.1
