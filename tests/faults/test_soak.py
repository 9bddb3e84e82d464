"""The soak's verdict: a slope that is within noise is said to be, and a leak is found. The long form is `soak.py`."""

import numpy as np
import pytest

from tests.faults.slope import independent, slope
from tests.faults.soak import NOISE_BYTES_PER_OPEN, Sample, growth, show, soak

OPENS = np.linspace(0, 10_000, 360)
SEEDS = range(40)


def remembering(seed: int, memory: float = 0.9, sd: float = 100e3) -> np.ndarray:
    """Noise as memory shows it: each sample is most of the one before (AR(1))."""
    rng = np.random.default_rng(seed)
    steps = sd * np.sqrt(1 - memory**2) * rng.standard_normal(OPENS.size)
    series = np.zeros(OPENS.size)
    for at in range(1, OPENS.size):
        series[at] = memory * series[at - 1] + steps[at]
    return series


def test_noise_that_remembers_is_not_taken_for_growth():
    said = [slope(OPENS, remembering(seed)).grows() for seed in SEEDS]
    assert np.mean(said) <= 0.1


def test_the_textbook_interval_would_take_it_for_growth():
    """The control: without the correction every third flat series grows."""
    wrong = 0
    for seed in SEEDS:
        y = remembering(seed)
        fitted, covariance = np.polyfit(OPENS, y, 1, cov=True)
        wrong += abs(fitted[0]) > 1.96 * np.sqrt(covariance[0, 0])
    assert wrong / len(SEEDS) > 0.3


@pytest.mark.parametrize("leak", [50.0, 500.0])
def test_a_leak_of_some_bytes_an_open_is_found_under_that_noise(leak):
    found = [slope(OPENS, 100e6 + leak * OPENS + remembering(seed)) for seed in SEEDS]
    assert all(each.grows(NOISE_BYTES_PER_OPEN) for each in found)
    assert np.mean([each.low <= leak <= each.high for each in found]) >= 0.85


def test_one_step_up_is_not_the_slope_of_a_leak_but_steps_without_end_are():
    one = np.where(OPENS > 3000, 1e6, 0.0)
    many = np.floor(OPENS / 500) * 50e3
    assert slope(OPENS, one).value == 0
    assert slope(OPENS, many).value == pytest.approx(100, rel=0.1)


def test_a_series_without_any_noise_is_worth_all_its_samples():
    assert slope(OPENS, np.full(OPENS.size, 1e8)) == (0, 0, 0)
    assert independent(np.zeros(100)) == 100


def test_too_short_a_series_says_nothing():
    x = np.arange(8.0)
    assert slope(x, np.cumsum(x)).low == -np.inf
    found = growth(sampled(np.cumsum(OPENS[:9]), np.full(9, 80)), warm_up=0)
    assert (found.grows, found.verdict) == (False, "too short to tell")


def sampled(own: np.ndarray, descriptors: np.ndarray) -> list[Sample]:
    return [
        Sample(5.0 * at, round(opened), round(of), round(of), round(fds), at / 10)
        for at, (opened, of, fds) in enumerate(zip(OPENS, own, descriptors, strict=False))
    ]


def test_what_a_daemon_takes_while_it_warms_up_is_no_growth():
    warming = 100e6 + 20e6 * np.minimum(1, OPENS / 2000) + remembering(1)
    samples = sampled(warming, np.full(OPENS.size, 80))
    assert not growth(samples).grows
    assert growth(samples, warm_up=0).own.value > NOISE_BYTES_PER_OPEN


def test_steps_that_come_to_an_end_are_an_allocators_and_steps_that_go_on_a_leaks():
    """As seen: 0.3 MB at opens 5,100 and 6,000 of 10,000, and then nothing for 4,000."""
    marks = 96e6 + 0.3e6 * np.searchsorted([1500, 3500, 5100, 6000], OPENS)
    leak = 96e6 + 0.1e6 * np.floor(OPENS / 500)
    flat = np.full(OPENS.size, 80)
    found = growth(sampled(marks, flat))
    assert found.own.value > NOISE_BYTES_PER_OPEN > found.late
    assert not found.grows
    assert growth(sampled(leak, flat)).grows


def test_a_descriptor_in_a_hundred_opens_is_growth():
    flat = 100e6 + remembering(2)
    assert not growth(sampled(flat, 80 + remembering(3, sd=2))).grows
    assert growth(sampled(flat, 80 + OPENS / 100 + remembering(3, sd=2))).grows


# -- with a daemon -----------------------------------------------------------------------------------------------------

# Some seconds, and memory that is still warming up: only what cannot be missed is asserted.
MINUTES, OPENED = 0.35, 160
LOST_BYTES = 400_000


@pytest.mark.parametrize("leak", ["", f"{LOST_BYTES},1"])
def test_a_short_soak_counts_its_opens_and_finds_a_large_leak(leak, tiny_bundle):
    found, heard, ordered = soak(MINUTES, OPENED, steady=4, leak=leak, bundle=tiny_bundle.path)
    show(found, heard, ordered)
    assert abs(ordered - OPENED) < 20
    assert heard["open"] >= ordered
    assert heard["close"] == heard["open"]
    assert heard["holes"] == 0
    leaking = (found.own.value > LOST_BYTES / 2, found.descriptors.value > 0.5)
    assert leaking == ((True, True) if leak else (False, False))
