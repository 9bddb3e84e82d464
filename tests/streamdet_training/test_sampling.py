"""How often each clip is drawn."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamdet_training.clips import Clip
from streamdet_training.sampling import Drawer, shares


def spoof(system: str, count: int = 1) -> list[Clip]:
    return [Clip(path=Path(f"{system}{at}"), label="spoof", system=system) for at in range(count)]


def bona(source: str, speaker: str, count: int = 1) -> list[Clip]:
    return [
        Clip(path=Path(f"{source}{speaker}{at}"), label="bonafide", source=source, speaker=speaker)
        for at in range(count)
    ]


@pytest.mark.parametrize(("balance", "small"), [(0, 1 / 10), (0.5, 1 / 4), (1, 1 / 2)])
def test_balance_goes_from_clips_to_systems(balance, small):
    found = shares([*spoof("large", 9), *spoof("small")], balance, {})
    assert found.sum() == pytest.approx(1)
    assert found[-1] == pytest.approx(small)
    assert np.allclose(found[:9], found[0])


@pytest.mark.parametrize(("balance", "quiet"), [(0, 1 / 11), (0.5, 0.25 * 10**0.5 / (10**0.5 + 1)), (1, 1 / 4)])
def test_bona_fide_is_balanced_by_source_and_then_by_speaker(balance, quiet):
    """Of one source 9 clips are of one speaker and 1 of another; of the other source there is one clip."""
    found = shares([*bona("a", "p1", 9), *bona("a", "p2"), *bona("b", "p1")], balance, {})
    assert found.sum() == pytest.approx(1)
    assert found[9] == pytest.approx(quiet)


def test_what_speaks_in_a_spoof_does_not_matter():
    clips = [Clip(path=Path(str(at)), label="spoof", system="a", speaker=f"p{at % 3}") for at in range(10)]
    assert np.allclose(shares(clips, 1, {}), 0.1)


def test_copies_are_bounded_and_the_others_share_the_rest():
    clips = [*spoof("copy-world", 40), *spoof("copy-lpc", 40), *spoof("vits", 10), *spoof("xtts", 10)]
    found = shares(clips, 0, {"copy-": 0.3})
    assert found[:80].sum() == pytest.approx(0.3)
    assert found[80:90].sum() == found[90:].sum() == pytest.approx(0.35)


def test_a_bound_that_is_kept_anyway_changes_nothing():
    clips = [*spoof("a", 3), *spoof("b", 7)]
    assert np.array_equal(shares(clips, 0.5, {"a": 0.9, "c": 0.0}), shares(clips, 0.5, {}))


def test_several_bounds_hold_together():
    clips = [*spoof("a", 50), *spoof("b", 50), *spoof("c", 10)]
    found = shares(clips, 0, {"a": 0.2, "b": 0.3})
    assert found[:50].sum() == pytest.approx(0.2, abs=0.01)
    assert found[50:100].sum() == pytest.approx(0.3, abs=0.01)


def test_where_there_is_nothing_else_a_bound_gives_way():
    assert shares(spoof("copy", 4), 0.5, {"copy": 0.1}).sum() == pytest.approx(1)


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("pqr")), min_size=1, max_size=30),
    st.floats(0, 1),
    st.floats(0.01, 1),
)
def test_shares_are_positive_and_add_up(voices, balance, most):
    clips = [Clip(path=Path(str(at)), label="bonafide", source=a, speaker=p) for at, (a, p) in enumerate(voices)]
    found = shares(clips, balance, {"a": most})
    assert found.min() > 0
    assert found.sum() == pytest.approx(1)


def test_clips_are_drawn_as_often_as_their_share():
    clips = [*spoof("large", 9), *spoof("small")]
    drawer, rng = Drawer(clips, 0.5, {}), np.random.default_rng(1)
    drawn = [drawer.draw(rng).system for _ in range(4000)]
    assert drawn.count("small") / 4000 == pytest.approx(0.25, abs=0.03)
