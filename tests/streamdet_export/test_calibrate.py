"""Scores become LLRs, and sums of LLRs over seconds become LLRs again."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamdet.bundle import Calibration
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


def test_the_rolling_rows_take_back_what_overconfidence_costs():
    rows = calibrate.rolling(voices(200), DRAFT)
    assert [row[0] for row in rows] == sorted(row[0] for row in rows)
    assert all(scale > 0 for _, scale, _ in rows)

    ten_s = next(row for row in rows if row[0] == 10.0)
    held_out = [(call.label, calibrate._sums(call, DRAFT, 10.0)) for call in voices(200, seed=1)]
    plain = [np.concatenate([s for found, s in held_out if found == label]) for label in ("bonafide", "spoof")]
    corrected = [ten_s[1] * sums + ten_s[2] for sums in plain]
    assert metrics.cllr(*corrected) < metrics.cllr(*plain) - 0.05


def test_without_calls_that_long_a_row_is_the_mean_llr():
    (row,) = calibrate.rolling(voices(10), DRAFT, seconds=(50.0,))
    assert row == (50.0, DRAFT.audio.window_s / 50.0, 0.0)


def test_fits_go_into_the_manifest():
    rows = ((1.0, 4.0, 0.1), (4.0, 1.0, 0.0))
    made = calibrate.calibrated(DRAFT, calibrate.Fit(2.0, -0.5), rows)
    assert made.calibration == Calibration(2.0, -0.5, rows)
