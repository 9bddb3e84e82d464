"""Metrics: worked examples, and what must hold for any scores."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamdet.errors import DataError
from streamdet_training import metrics

SCORES = st.lists(st.floats(-30, 30), min_size=1, max_size=40)
LEVELS = st.lists(st.integers(-20, 20), min_size=1, max_size=40)  # ties are likely


def test_perfect_scores():
    found = metrics.report([20.0, 21.0, 25.0], [-20.0, -30.0])
    assert (found.bonafide, found.spoof) == (3, 2)
    assert (found.eer, found.min_dcf, found.act_dcf, found.min_cllr) == (0, 0, 0, 0)
    assert found.cllr == pytest.approx(0, abs=1e-8)


def test_scores_without_information():
    scores = np.arange(1000.0)
    assert metrics.eer(scores, scores) == pytest.approx(0.5)
    assert metrics.min_dcf(scores, scores) == pytest.approx(1)
    assert metrics.min_cllr(scores, scores) == pytest.approx(1)
    assert metrics.cllr([0.0, 0.0], [0.0]) == pytest.approx(1)


def test_reversed_scores():
    assert metrics.eer([-1.0, -2.0], [1.0, 2.0]) == 1


def test_an_example_worked_by_hand():
    """From the lowest score up: spoof, spoof, bona fide, spoof, bona fide, bona fide.

    A threshold between -1 and 0 misses 1 of 3 and lets 1 of 3 pass: the EER. One between -2 and -1 misses none and lets
    1 of 3 pass: cost 1.9 * 0 + 1/3, the lowest. The actual threshold of -0.642 costs 1.9/3 + 1/3. Pooling adjacent
    violators gives -1 and 0 the same LLR of 0: one bit for 1 of 3 on either side.
    """
    found = metrics.report([2.0, 1.0, -1.0], [-2.0, 0.0, -3.0])
    assert found.eer == pytest.approx(1 / 3)
    assert found.min_dcf == pytest.approx(1 / 3)
    assert found.act_dcf == pytest.approx(2.9 / 3)
    # log2(1 + e^x) at -2, -1, 1 and -2, 0, -3
    assert found.cllr == pytest.approx(
        ((0.183118 + 0.451941 + 1.894636) / 3 + (0.183118 + 1 + 0.070097) / 3) / 2, abs=1e-5
    )
    assert found.min_cllr == pytest.approx(1 / 3)


def test_rates_that_never_meet_are_averaged_where_they_are_nearest():
    """Between 1 and 2: one of two missed, one of three let pass."""
    assert metrics.eer([2.0, 0.0], [1.0, -1.0, -2.0]) == pytest.approx((1 / 2 + 1 / 3) / 2)


def test_classes_of_different_sizes_weigh_the_same():
    """Ten times the same trials are no new information."""
    bona, fake = [2.0, 1.0, -1.0], [-2.0, 0.0, -3.0]
    one, ten = metrics.report(bona, fake), metrics.report(bona * 10, fake)
    for name in ("act_dcf", "cllr", "min_cllr"):
        assert getattr(ten, name) == pytest.approx(getattr(one, name)), name


def test_the_actual_threshold_is_that_of_asvspoof_5():
    assert metrics.act_dcf([-0.641], [-5.0]) == 0
    assert metrics.act_dcf([-0.643], [-5.0]) == pytest.approx(0.95 / 0.5)
    assert metrics.act_dcf([5.0], [-0.643]) == 0
    assert metrics.act_dcf([5.0], [-0.641]) == pytest.approx(1)


@given(st.one_of(SCORES, LEVELS), st.one_of(SCORES, LEVELS))
def test_the_best_threshold_and_calibration_are_no_worse_than_the_actual(bona, fake):
    found = metrics.report(bona, fake)
    assert found.min_dcf <= found.act_dcf + 1e-9
    assert found.min_cllr <= found.cllr + 1e-9
    assert 0 <= found.eer <= 1
    assert -1e-9 <= found.min_dcf <= 1 + 1e-9
    assert -1e-9 <= found.min_cllr <= 1 + 1e-9


@given(LEVELS, LEVELS)
def test_discrimination_does_not_depend_on_the_scale(bona, fake):
    before = metrics.report(bona, fake)
    for through in (lambda x: 3 * x - 7, lambda x: x**3, lambda x: math.exp(x / 10)):
        after = metrics.report([through(x) for x in bona], [through(x) for x in fake])
        assert after.eer == before.eer
        assert after.min_dcf == before.min_dcf
        assert after.min_cllr == pytest.approx(before.min_cllr)


@given(SCORES, SCORES)
def test_rates_go_from_everything_accepted_to_nothing_accepted(bona, fake):
    miss, false_alarm = metrics.rates(bona, fake)
    assert (miss[0], false_alarm[0], miss[-1]) == (0, 1, 1)
    assert false_alarm[-1] == pytest.approx(0)
    assert (np.diff(miss) >= 0).all()
    assert (np.diff(false_alarm) <= 1e-12).all()


@pytest.mark.parametrize("metric", [metrics.eer, metrics.min_dcf, metrics.act_dcf, metrics.cllr, metrics.min_cllr])
def test_what_cannot_be_measured_is_refused(metric):
    with pytest.raises(DataError, match="at least one of either class"):
        metric([], [1.0])
    with pytest.raises(DataError, match="at least one of either class"):
        metric([1.0], [])
    with pytest.raises(DataError, match="score: nan, expected a finite number"):
        metric([1.0, math.nan], [1.0])
