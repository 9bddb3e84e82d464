"""Intervals: whole voices are drawn, and each resample's metrics are those of the clips that were drawn."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamdet_training import bootstrap, metrics
from streamdet_training.bootstrap import Draws

LEVELS = st.lists(st.integers(-9, 9), min_size=1, max_size=25)


def once(bona, fake) -> Draws:
    return Draws(np.ones((1, len(bona)), np.int32), np.ones((1, len(fake)), np.int32))


@given(LEVELS, LEVELS)
def test_every_trial_drawn_once_is_the_metric_itself(bona, fake):
    found, expected = bootstrap.resampled(bona, fake, once(bona, fake)), metrics.report(bona, fake)
    assert found["eer"] == expected.eer
    assert found["min_dcf"] == expected.min_dcf
    for name in ("act_dcf", "cllr", "min_cllr"):
        assert found[name] == pytest.approx(getattr(expected, name), abs=1e-12)


@given(LEVELS, LEVELS, st.integers(0, 99))
def test_a_resample_has_the_metrics_of_the_clips_that_were_drawn(bona, fake, seed):
    draws = bootstrap.draw([str(at % 4) for at in range(len(bona))], ["-"] * len(fake), 5, seed)
    found = bootstrap.resampled(bona, fake, draws)
    for at in range(5):
        drawn_bona, drawn_fake = np.repeat(bona, draws.bonafide[at]), np.repeat(fake, draws.spoof[at])
        for name in ("act_dcf", "cllr", "min_cllr"):
            assert found[name][at] == pytest.approx(getattr(metrics, name)(drawn_bona, drawn_fake), abs=1e-9), name
        # A clip drawn k times is passed in one step here and in k there.
        step = draws.bonafide[at].max() / drawn_bona.size + draws.spoof[at].max() / drawn_fake.size
        assert abs(found["eer"][at] - metrics.eer(drawn_bona, drawn_fake)) <= step
        assert found["min_dcf"][at] >= metrics.min_dcf(drawn_bona, drawn_fake) - 1e-9


def test_clips_of_one_speaker_are_drawn_together_and_unknown_ones_by_themselves():
    draws = bootstrap.draw(["a", "b", "a", "b", "c"], ["-", "-", "-"], 200, 1)
    assert (draws.bonafide[:, 0] == draws.bonafide[:, 2]).all()
    assert (draws.bonafide[:, 1] == draws.bonafide[:, 3]).all()
    assert (draws.bonafide[:, [0, 1, 4]].sum(axis=1) == 3).all()
    assert len(np.unique(draws.spoof, axis=0)) > 3
    assert (draws.spoof.sum(axis=1) == 3).all()


def test_where_there_is_one_cluster_its_clips_are_drawn():
    draws = bootstrap.draw(["a"] * 6, ["x"] * 6, 50)
    assert len(np.unique(draws.bonafide, axis=0)) > 10
    assert len(np.unique(draws.spoof, axis=0)) > 10


def test_the_same_seed_draws_the_same_and_another_does_not():
    first, same, other = (bootstrap.draw(list("abcdef"), list("xyz"), 50, seed) for seed in (3, 3, 4))
    assert (first.bonafide == same.bonafide).all()
    assert (first.bonafide != other.bonafide).any()


def test_voices_whose_clips_go_together_have_wider_intervals_than_clips_would():
    rng = np.random.default_rng(0)
    voice = rng.normal(0, 2, 10)
    bona, fake = np.repeat(voice, 30) + 1 + rng.normal(0, 0.1, 300), np.repeat(voice, 30) - 1
    names = [str(at // 30) for at in range(300)]
    clustered = bootstrap.intervals(bona, fake, bootstrap.draw(names, names, 300), ["eer"])["eer"]
    single = bootstrap.intervals(bona, fake, bootstrap.draw(["-"] * 300, ["-"] * 300, 300), ["eer"])["eer"]
    assert clustered[1] - clustered[0] > 2 * (single[1] - single[0])
    assert clustered[0] < metrics.eer(bona, fake) < clustered[1]


def test_blocks_of_resamples_change_nothing(monkeypatch):
    rng = np.random.default_rng(0)
    bona, fake = rng.normal(1, 1, 40), rng.normal(-1, 1, 30)
    draws = bootstrap.draw(["-"] * 40, ["-"] * 30, 20)
    whole = bootstrap.resampled(bona, fake, draws)
    monkeypatch.setattr(bootstrap, "BLOCK_WEIGHTS", 3 * 70)
    for name, values in bootstrap.resampled(bona, fake, draws).items():
        assert values == pytest.approx(whole[name])


def test_what_is_hard_for_both_cancels_out_of_a_difference():
    rng = np.random.default_rng(0)
    bona, fake = rng.normal(0.7, 1, 200), rng.normal(-0.7, 1, 200)
    worse_bona = bona.copy()
    worse_bona[:20] -= 3
    draws = bootstrap.draw(["-"] * 200, ["-"] * 200, 400)
    found = bootstrap.eer_difference((worse_bona, fake), (bona, fake), draws)
    assert found.difference == metrics.eer(worse_bona, fake) - metrics.eer(bona, fake)
    assert 0 < found.interval[0] < found.difference < found.interval[1]
    assert found.worse_share > 0.95
    width = np.diff(bootstrap.intervals(bona, fake, draws, ["eer"])["eer"])[0]
    assert found.interval[1] - found.interval[0] < width
    same = bootstrap.eer_difference((bona, fake), (bona, fake), draws)
    assert (same.difference, same.interval) == (0, (0, 0))
