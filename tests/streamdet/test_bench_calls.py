"""What `bench calls` makes of its stretches: outcomes, rows, and the number it stands by."""

import pytest

from streamdet.bench import calls as bench
from streamdet.bench.caller import Sent
from streamdet.bench.load import Held, Window
from streamdet.bench.search import Found


def held(
    calls: int = 10, *, lag_ms: float = 20.0, whole_ms: float = 25.0, missing: int = 0, late_ms: float = 1.0
) -> Held:
    windows = tuple(Window(at % calls, at, lag_ms, whole_ms, 0.3, 0, gated=False) for at in range(50 - missing))
    sent = Sent(2500, 0, 0.1, late_ms, late_ms, 0.05)
    return Held(calls, 5.0, 50, windows, sent, 0.5, 0.1, (), 1.5, 7.0)


@pytest.mark.parametrize(
    ("stretch", "said"),
    [
        (held(), "kept"),
        (held(lag_ms=300.0), "broken"),
        (held(whole_ms=300.0), "broken"),  # the daemon does not see what waits before it reads
        (held(missing=1), "broken"),
        (held(missing=50), "broken"),
        (held(missing=50, late_ms=21.0), "void"),
    ],
)
def test_the_limit_is_kept_when_every_window_comes_and_in_time(stretch, said):
    assert bench.outcome(stretch, 250.0) == said


def test_frames_that_the_daemon_does_not_take_break_the_limit():
    stretch = held()
    blocked = Held(
        **{**{name: getattr(stretch, name) for name in stretch.__struct_fields__}, "sent": Sent(9, 1, 0, 0, 0, 0)}
    )
    assert bench.outcome(blocked, 250.0) == "broken"


def test_void_stretches_leave_no_mark_on_a_row():
    row = bench.row([held(), held(lag_ms=9_000.0, late_ms=500.0), held(lag_ms=22.0)], 250.0)
    assert (row["point"], row["stretches"], row["void_stretches"]) == ("kept", 3, 1)
    assert row["lag_ms_p99"] == pytest.approx(21)
    assert row["windows"] == 100
    assert row["late_ms_p99"] == 500
    only = bench.row([held(late_ms=500.0)], 250.0)
    assert only["point"] == "void"


def test_as_many_kept_as_broken_is_neither():
    assert bench.summed_up(["kept", "broken", "void"]) == "mixed"
    assert bench.summed_up(["kept", "broken", "broken"]) == "broken"


def test_a_number_that_did_not_keep_its_word_is_taken_back():
    found = Found(144, 192, "budget")
    assert bench.honest(found, {72: "kept", 96: "kept", 144: "broken", 192: "broken"}) == Found(96, 144, "budget")
    assert bench.honest(found, {144: "mixed"}) == Found(0, 144, "budget")
    assert bench.honest(found, {144: "kept"}) == found


def test_what_is_added_is_beyond_the_model():
    row = bench.row([held(lag_ms=9.0)], 250.0)
    assert bench.added(row, 4.0) == {
        "pure_ms": 4.0,
        "added_ms_p50": pytest.approx(5.0),
        "added_ms_p99": pytest.approx(5.0),
        "ratio_lag_p99_to_pure": pytest.approx(2.25),
    }
