"""Scores become LLRs, and sums of LLRs over seconds become LLRs again."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamdet.bundle import Calibration
from streamdet.verdict import Tracker
from streamdet_export import calibrate
from streamdet_training import metrics
from streamdet_training.calls import Call
from streamdet_training.recipe import Backbone, Recipe

DRAFT = Recipe(name="x", backbone=Backbone(config={})).draft()


def scores(separation: float, clips: int = 400, seed: int = 0) -> tuple[list[list[float]], list[list[float]]]:
    """One window a clip: normal scores of spread 1 at plus and minus half the separation."""
    rng = np.random.default_rng(seed)
    return (
        [[float(x)] for x in rng.normal(separation / 2, 1, clips)],
        [[float(x)] for x in rng.normal(-separation / 2, 1, clips)],
    )


def test_normal_scores_get_the_llrs_that_theory_gives_them():
    """For N(m, 1) against N(-m, 1) the LLR of x is 2 m x."""
    fit = calibrate.affine(*scores(3.0, clips=20_000))
    assert fit.scale == pytest.approx(3.0, rel=0.05)
    assert fit.offset == pytest.approx(0.0, abs=0.1)


@given(st.floats(0.1, 10), st.floats(-20, 20))
def test_stretched_and_shifted_scores_get_the_same_llrs(stretch, shift):
    bona, spoof = scores(2.0)
    plain = calibrate.affine(bona, spoof)
    other = calibrate.affine(*([[stretch * x + shift for x in clip] for clip in clips] for clips in (bona, spoof)))
    for clip in bona[:20]:
        assert other.scale * (stretch * clip[0] + shift) + other.offset == pytest.approx(
            plain.scale * clip[0] + plain.offset, abs=0.02
        )


def test_a_clip_weighs_the_same_however_many_windows_it_has():
    bona, spoof = scores(2.0)
    plain = calibrate.affine(bona, spoof)
    longer = calibrate.affine([clip * (1 + 9 * (at % 2)) for at, clip in enumerate(bona)], spoof)
    assert longer.scale == pytest.approx(plain.scale, abs=1e-3)


def test_a_model_worse_than_chance_gets_llrs_of_about_nothing(caplog):
    spoof, bona = scores(2.0)
    fit = calibrate.affine(bona, spoof)
    assert 0 < fit.scale < 0.01
    assert "do not score higher" in caplog.text


def voices(count: int, seed: int = 0) -> list[Call]:
    """Calls whose windows go wrong together: a voice has an LLR of its own, its windows scatter little around it."""
    rng, calls = np.random.default_rng(seed), []
    for number in range(count):
        label, mean = (("bonafide", 1.0), ("spoof", -1.0))[number % 2]
        own = rng.normal(mean, 1.4)  # N(1, sqrt 2) against N(-1, sqrt 2): a calibrated LLR
        windows = tuple((float(end), float(own + rng.normal(0, 0.2))) for end in range(1, 31))
        calls.append(Call(label, f"{label}{number}", "-", windows))
    return calls


def evidence(call: Call, at_s: float) -> list[float]:
    """Sums of a call with so many seconds behind them."""
    return [total for seconds, total in calibrate._evidence(call, DRAFT) if seconds == at_s]


def test_the_evidence_is_the_trackers_own():
    """Gated windows, a skip and the end of what the sum remembers: seconds and sum are what the daemon would have."""
    rng = np.random.default_rng(0)
    ends_s = [1.0, 2.0, 3.0, 6.0, 6.5, *np.arange(7.0, 30.0)]
    windows = tuple((float(end), None if at % 4 == 1 else float(rng.normal(0, 4))) for at, end in enumerate(ends_s))
    found = iter(calibrate._evidence(Call("bonafide", "a", "-", windows), DRAFT))
    tracker, before_s = Tracker(DRAFT.decision, Calibration(), DRAFT.audio), 0.0
    for end_s, llr in windows:
        standing = tracker.update(llr, end_s, end_s - before_s)
        before_s = end_s
        if llr is not None:
            seconds, total = next(found)
            weights = [weight for _, weight, _ in tracker._evidence]
            assert (seconds, total) == pytest.approx((4.0 * sum(weights), standing.rolling_llr))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("count", [2, 4, 40])
def test_more_seconds_never_count_for_less(seed, count):
    """What the mean LLR is worth rises with the seconds behind it, whatever few voices say."""
    rows = calibrate.rolling(voices(count, seed), DRAFT)
    worth = [scale * seconds for seconds, scale, _ in rows]
    assert worth == sorted(worth)


def test_one_voice_a_class_that_can_be_separated_does_not_run_away():
    calls = [
        Call(label, label, "-", tuple((float(end), llr) for end in range(1, 31)))
        for label, llr in (("bonafide", 2.0), ("spoof", -2.0))
    ]
    rows = calibrate.rolling(calls, DRAFT)
    assert all(scale * seconds / DRAFT.audio.window_s < 4 for seconds, scale, _ in rows)


def test_equal_llrs_say_nothing_and_break_nothing():
    calls = [
        Call(label, f"{label}{at}", "-", tuple((float(end), 0.5) for end in range(1, 31)))
        for label in ("bonafide", "spoof")
        for at in range(4)
    ]
    assert np.isfinite(calibrate.rolling(calls, DRAFT)).all()
    fit = calibrate.affine([[0.5]] * 4, [[0.5]] * 4)
    assert fit.scale * 0.5 + fit.offset == pytest.approx(0.0, abs=0.01)


def test_the_rolling_rows_take_back_what_overconfidence_costs():
    rows = calibrate.rolling(voices(200), DRAFT)
    assert [row[0] for row in rows] == sorted(row[0] for row in rows)
    assert all(scale > 0 for _, scale, _ in rows)

    ten_s = next(row for row in rows if row[0] == 10.0)
    held_out = [(call.label, evidence(call, 10.0)) for call in voices(200, seed=1)]
    plain = [np.concatenate([s for found, s in held_out if found == label]) for label in ("bonafide", "spoof")]
    corrected = [ten_s[1] * sums + ten_s[2] for sums in plain]
    assert metrics.cllr(*corrected) < metrics.cllr(*plain) - 0.05


def test_without_a_class_the_rows_are_the_mean_llr_less_one_second():
    bonafide = [call for call in voices(10) if call.label == "bonafide"]
    assert calibrate.rolling(bonafide, DRAFT, seconds=(4.0, 9.0)) == ((4.0, 4 / 5, 0.0), (9.0, 4 / 10, 0.0))


def test_the_prior_says_where_llrs_are_best_and_is_not_in_them():
    """Scores whose true LLR bends: each prior fits the line to its own end, and none adds its own log odds."""
    rng = np.random.default_rng(0)
    bona = [[float(x)] for x in rng.normal(2, 2, 4000)]
    spoof = [[float(x)] for x in rng.normal(-1, 1, 4000)]
    fits = {prior: calibrate.affine(bona, spoof, prior) for prior in (0.05, 0.5, 0.95)}

    def cost(prior: float, fit: calibrate.Fit) -> float:
        odds = np.log((1 - prior) / prior)
        misses, alarms = (np.array(part)[:, 0] * fit.scale + fit.offset + odds for part in (bona, spoof))
        return (1 - prior) * np.logaddexp(0, -misses).mean() + prior * np.logaddexp(0, alarms).mean()

    for prior in fits:
        assert min(fits, key=lambda other: cost(prior, fits[other])) == prior
    assert abs(fits[0.05].offset) < 2 < np.log(0.95 / 0.05)


def test_the_windows_of_a_clip_share_its_weight():
    """Ten windows of one clip pull no more than the one window of another."""
    bona, spoof = [[2.0] * 10, [0.0]], [[-2.0], [0.0] * 10]
    alike = calibrate.affine([[2.0], [0.0]], [[-2.0], [0.0]])
    assert calibrate.affine(bona, spoof).scale == pytest.approx(alike.scale, abs=1e-4)


def test_fits_go_into_the_manifest():
    rows = ((1.0, 4.0, 0.1), (4.0, 1.0, 0.0))
    made = calibrate.calibrated(DRAFT, calibrate.Fit(2.0, -0.5), rows)
    assert made.calibration == Calibration(2.0, -0.5, rows)
