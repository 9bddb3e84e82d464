"""Metrics: worked examples, and what must hold for any scores."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import confusion_matrix, log_loss, roc_curve

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


def test_of_places_that_are_equally_near_the_first_counts():
    """After one spoof: 0 missed, 1/2 pass; then 1/3 missed, 1/2 pass; then 2/3 and 1/2, which is just as near."""
    assert metrics.eer([-1.0, 0.0, 2.0], [-2.0, 1.0]) == (1 / 3 + 1 / 2) / 2


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


# -- ties ------------------------------------------------------------------------------------------------------------


def test_an_example_with_ties_worked_by_hand_to_the_last_digit():
    """From the lowest score up: spoof at -1; bona fide, bona fide, spoof at 0; bona fide at 1.

    Stepped through in this order the misses are 0, 0, 1/3, 2/3, 2/3, 1 and the false alarms 1, 1/2, 1/2, 1/2, 0, 0.
    They are nearest at 1/3 and 1/2. The lowest cost is that of no miss and 1/2 let pass, which is also the actual one.
    The level 0 has 2 of 3 bona fide: an LLR of ln 2 - ln 3/2 = ln 4/3 after the best monotonic map.
    """
    found = metrics.report([1.0, 0.0, 0.0], [0.0, -1.0])
    assert found.eer == (1 / 3 + 1 / 2) / 2
    assert found.min_dcf == found.act_dcf == 0.5
    one = math.log2(1 + math.exp(-1))
    assert found.cllr == pytest.approx(((one + 2) / 3 + (1 + one) / 2) / 2, rel=1e-15)
    assert found.min_cllr == pytest.approx((2 / 3 * math.log2(7 / 4) + 1 / 2 * math.log2(7 / 3)) / 2, rel=1e-15)


def test_scores_that_are_all_equal_are_stepped_through_bona_fide_first():
    """As in the ASVspoof packages: no threshold has this EER, and order within a class changes nothing."""
    found = metrics.report([0.0, 0.0], [0.0, 0.0, 0.0])
    assert (found.eer, found.min_dcf) == (1, 1)
    assert found.min_cllr == pytest.approx(1)


@given(LEVELS, LEVELS, st.randoms(use_true_random=False))
def test_the_order_within_a_class_changes_nothing(bona, fake, random):
    before = metrics.report(bona, fake)
    random.shuffle(bona)
    random.shuffle(fake)
    after = metrics.report(bona, fake)
    assert (after.eer, after.min_dcf, after.act_dcf) == (before.eer, before.min_dcf, before.act_dcf)
    assert (after.cllr, after.min_cllr) == (pytest.approx(before.cllr), pytest.approx(before.min_cllr))


# -- against scikit-learn --------------------------------------------------------------------------------------------


def labelled(bona, fake):
    return np.concatenate([np.ones(len(bona)), np.zeros(len(fake))]), np.concatenate([bona, fake])


def even_weights(labels):
    """Both classes weigh the same."""
    return np.where(labels == 1, 0.5 / labels.sum(), 0.5 / (1 - labels).sum())


DISTINCT = st.lists(st.integers(-400, 400), min_size=2, max_size=60, unique=True)


@given(DISTINCT, st.data())
def test_rates_eer_and_costs_are_those_of_sklearns_roc_curve(levels, data):
    split = data.draw(st.integers(1, len(levels) - 1))
    bona, fake = np.array(levels[:split]) / 20, np.array(levels[split:]) / 20
    labels, scores = labelled(bona, fake)
    accepted_spoof, accepted, thresholds = roc_curve(labels, scores, drop_intermediate=False)
    miss = 1 - accepted
    at = np.argmin(np.round(np.abs(miss - accepted_spoof), 12)[::-1])  # both from the lowest threshold up
    assert metrics.eer(bona, fake) == pytest.approx((miss[::-1][at] + accepted_spoof[::-1][at]) / 2)
    assert metrics.min_dcf(bona, fake) == pytest.approx((1.9 * miss + accepted_spoof).min())
    counts = confusion_matrix(labels, scores >= metrics.BAYES_THRESHOLD, labels=[0, 1], normalize="true")
    assert metrics.act_dcf(bona, fake) == pytest.approx(1.9 * counts[1, 0] + counts[0, 1])
    assert len(thresholds) == len(levels) + 1


@given(st.one_of(SCORES, LEVELS), st.one_of(SCORES, LEVELS))
def test_cllr_is_sklearns_log_loss_in_bit_with_even_classes(bona, fake):
    labels, scores = labelled(bona, fake)
    weights = even_weights(labels)
    p = np.stack([expit(-scores), expit(scores)], 1)
    expected = log_loss(labels, p, sample_weight=weights, labels=[0, 1]) / math.log(2)
    assert metrics.cllr(bona, fake) == pytest.approx(expected, rel=1e-6, abs=1e-9)


@given(LEVELS, LEVELS)
def test_min_cllr_is_that_of_sklearns_isotonic_regression(bona, fake):
    labels, scores = labelled(bona, fake)
    weights = even_weights(labels)
    p = IsotonicRegression().fit(scores, labels, sample_weight=weights).predict(scores).clip(0, 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        costs = np.where(labels == 1, -np.log2(p), -np.log2(1 - p))
    assert metrics.min_cllr(bona, fake) == pytest.approx(weights @ costs, abs=1e-9)


def test_a_logistic_regression_of_sklearn_lands_between_min_cllr_and_the_cllr_of_raw_scores():
    rng = np.random.default_rng(5)
    bona, fake = 3 * rng.normal(1, 1, 300) + 5, 3 * rng.normal(-1, 1, 200) + 5
    labels, scores = labelled(bona, fake)
    fitted = LogisticRegression(C=1e6).fit(scores[:, None], labels, sample_weight=even_weights(labels) * 500)
    llrs = fitted.decision_function(scores[:, None])
    calibrated = metrics.cllr(llrs[:300], llrs[300:])
    assert metrics.min_cllr(bona, fake) <= calibrated <= metrics.min_cllr(bona, fake) + 0.05
    assert metrics.cllr(bona, fake) > calibrated + 1
