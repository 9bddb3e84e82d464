"""Rooms: a direct sound, then echoes one by one, then a tail that dies as asked, high notes first."""

import numpy as np
import pytest
from scipy.signal import butter, sosfilt

from streamdet_training import rooms

RATE_HZ = 16_000
SEEDS = range(20)


def response(seed, rt60_s=0.4):
    return rooms.impulse_response(RATE_HZ, rt60_s, np.random.default_rng(seed)).astype(np.float64)


def band(samples, low_hz, high_hz):
    """The echoes alone, in one band; a filter of low order rings for less time than any room."""
    sections = butter(2, (low_hz, high_hz), "bandpass", fs=RATE_HZ, output="sos")
    return sosfilt(sections, np.concatenate([[0.0], samples[1:]]))


def rt60_s(samples):
    """By Schroeder's backward integration, from -5 to -25 dB of what comes after the first 30 ms."""
    left_db = 10 * np.log10(np.cumsum(np.square(samples[::-1]))[::-1][480:])
    left_db -= left_db[0]
    where = np.flatnonzero((left_db < -5) & (left_db > -25))
    return -60 / np.polyfit(where / RATE_HZ, left_db[where], 1)[0]


@pytest.mark.parametrize("asked_s", [0.2, 0.5])
def test_a_room_rings_as_long_as_asked(asked_s):
    found = [rt60_s(band(response(seed, asked_s), 600, 1800)) for seed in SEEDS]
    assert np.median(found) == pytest.approx(asked_s, rel=0.15)


def test_high_notes_die_first():
    found = [(rt60_s(band(response(seed), 50, 400)), rt60_s(band(response(seed), 3000, 7000))) for seed in SEEDS]
    low, high = np.median(found, axis=0)
    assert low > 1.2 * high


def test_the_direct_sound_comes_first_and_keeps_its_level():
    for seed in SEEDS:
        heard = response(seed)
        assert heard[0] == pytest.approx(1, abs=0.1)
        assert abs(heard[1:]).max() < 1


def test_early_echoes_are_few_and_late_ones_many():
    """Sparse pulses have a kurtosis far above that of noise, which is 3; a decay alone makes little of it."""
    early, late = [], []
    for seed in SEEDS:
        heard = response(seed)
        for part, found in ((heard[8:176], early), (heard[800:1600], late)):
            found.append(np.mean(part**4) / np.mean(part**2) ** 2)
    assert np.median(early) > 8
    assert np.median(late) < 5


def test_rooms_are_of_all_sorts():
    """From a handset at the mouth to a telephone across the table: direct sound over echo in dB."""
    ratios = [-10 * np.log10(np.square(response(seed)[1:]).sum()) for seed in range(60)]
    assert min(ratios) < 3
    assert max(ratios) > 15


def test_a_voice_in_a_room_is_its_convolution_and_stays_in_place():
    clip = (0.1 * np.random.default_rng(0).standard_normal(8000)).astype(np.float32)
    heard = rooms.add_room(clip, RATE_HZ, 0.3, np.random.default_rng(5))
    answer = rooms.impulse_response(RATE_HZ, 0.3, np.random.default_rng(5))
    assert heard.dtype == np.float32
    assert np.allclose(heard, np.convolve(clip, answer)[: clip.size], atol=1e-5)
    correlation = np.correlate(heard[1000:7000], clip[1000:7000], "full")
    assert correlation.argmax() == 5999  # lag 0


@pytest.mark.parametrize("length", [1, 2, 50])
@pytest.mark.parametrize("rt60_s", [0.001, 0.05, 1.0])
def test_short_clips_and_short_rooms_do(length, rt60_s):
    heard = rooms.add_room(np.ones(length, np.float32), RATE_HZ, rt60_s, np.random.default_rng(1))
    assert heard.shape == (length,)
    assert np.isfinite(heard).all()
