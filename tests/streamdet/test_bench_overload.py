"""What `bench overload` makes of the windows that came: hops, fairness, memory, and when it is normal again."""

import math

import numpy as np
import pytest

from streamdet import bundle
from streamdet.bench import overload
from streamdet.bench.caller import Sent
from streamdet.bench.load import Held, Window
from streamdet.bench.made import slow_bundle
from streamdet.scorer import Scorer

SENT = Sent(1000, 0, 0.1, 1.0, 2.0, 0.5)


def window(call: int, hop: int, lag_ms: float = 50.0, skipped: int = 0) -> Window:
    return Window(call, hop, lag_ms, lag_ms + 1, 0.2, skipped, gated=False)


def held(windows: list[Window], calls: int, seconds: float = 20.0) -> Held:
    expected = round(calls * seconds)
    return Held(calls, seconds, expected, tuple(windows), SENT, 1.0, 0.1, ((0.0, 100), (1.0, 100)), 16.0, 80.0)


def test_tracks_that_take_turns_have_a_hop_that_stretches_evenly():
    windows = [window(call, hop) for call in range(40) for hop in range(call % 4 + 1, 21, 4)]
    row = overload.row(held(windows, 40), 4, 1.0, range(40))
    assert row["ratio_hop_to_ideal"] == pytest.approx(1)
    assert row["ratio_worst_hop_to_ideal"] == pytest.approx(1)
    assert row["ratio_windows_max_to_min"] == 1
    assert row["skipped_percent"] == pytest.approx(75)
    assert row["tracks_unheard"] == 0


def test_a_track_that_is_passed_over_shows():
    windows = [window(call, hop) for call in range(40) for hop in range(call % 4 + 1, 21, 4 if call else 8)]
    row = overload.row(held(windows, 40), 4, 1.0, range(40))
    assert row["ratio_windows_max_to_min"] == pytest.approx(5 / 3)
    assert row["ratio_worst_hop_to_ideal"] == pytest.approx(2)
    none = overload.row(held([it for it in windows if it.call], 40), 4, 1.0, range(40))
    assert none["tracks_unheard"] == 1
    assert none["ratio_windows_max_to_min"] == math.inf
    assert none["hop_s_worst"] == 40  # not once in 20 s


def test_memory_that_grows_has_a_slope():
    at_s = np.arange(0, 30, 0.5)
    assert overload.slope_mb_per_min([(at, 1e8 + 1e6 * at) for at in at_s]) == pytest.approx(60)
    assert overload.slope_mb_per_min([(at, 1e8) for at in at_s]) == pytest.approx(0, abs=1e-6)
    assert overload.slope_mb_per_min([]) is None


@pytest.mark.parametrize(
    ("windows", "number"),
    [
        ([window(0, 1)], 0),
        ([window(0, 1, lag_ms=900), window(0, 2)], 1),
        ([window(0, 1, skipped=3), window(0, 2, lag_ms=900), window(0, 3)], 2),
        ([window(0, 4, skipped=3)], None),
        ([], None),
    ],
)
def test_normal_is_the_first_window_in_time_without_a_skip_before_it(windows, number):
    assert overload.until_normal(windows, 250.0) == number


def test_a_made_bundle_costs_about_what_was_asked_for(tmp_path):
    made = slow_bundle(tmp_path, 4.0)
    products = int(made.manifest.name.removeprefix("made-"))
    assert products >= 1
    scorer = Scorer(bundle.load(made.path), provider="cpu", threads=1, batch_max=2)
    scorer.warm_up()
    assert np.isfinite(scorer.run(np.ones((2, 64_000), np.float32))).all()
    twice = slow_bundle(tmp_path / "more", 400.0)
    assert int(twice.manifest.name.removeprefix("made-")) > products
