"""The search for the most calls, against daemons that are a line of arithmetic."""

import itertools
import math

from hypothesis import given
from hypothesis import strategies as st

from streamdet.bench.search import RESOLUTION, search, twice

FOREVER = lambda: True  # noqa: E731 - a name for it reads better below


def daemon(capacity, asked):
    """Keeps up with `capacity` calls, and no more."""

    def hold(calls):
        asked.append(calls)
        return "kept" if calls <= capacity else "broken"

    return hold


@given(st.integers(0, 3000), st.integers(1, 64))
def test_it_ends_within_the_resolution_below_what_the_daemon_can_do(capacity, start):
    asked = []
    found = search(daemon(capacity, asked), start=start, most=4096, time_left=FOREVER)
    assert found.why == "daemon"
    assert found.calls <= capacity < found.above
    assert found.above - found.calls <= max(1, RESOLUTION * found.above)
    assert len(asked) <= 4 + 3 * math.log2(4096)


def test_what_is_too_many_is_asked_twice_and_so_is_what_decides():
    asked = []
    search(daemon(20, asked), start=16, most=64, time_left=FOREVER)
    assert asked == [16, 32, 32, 24, 24, 20, 20, 22, 22, 21, 21]


@given(st.integers(1, 500))
def test_one_bad_second_in_three_changes_nothing(capacity):
    bad = itertools.cycle([False, False, True])

    def hold(calls):
        return "kept" if calls <= capacity and not next(bad) else "broken"

    found = search(hold, start=16, most=4096, time_left=FOREVER)
    assert found.calls <= capacity < found.above
    assert found.above - found.calls <= max(1, RESOLUTION * found.above)


def test_a_load_that_cannot_be_played_is_not_the_daemons_limit():
    found = search(lambda calls: "kept" if calls <= 100 else "void", start=16, most=4096, time_left=FOREVER)
    assert found.why == "generator"
    assert found.calls <= 100 < found.above


def test_no_more_than_what_was_asked_for():
    asked = []
    found = search(daemon(10_000, asked), start=16, most=100, time_left=FOREVER)
    assert (found.calls, found.above, found.why) == (100, None, "most")
    assert asked == [16, 32, 64, 100, 100]


def test_without_time_it_says_what_it_knows():
    asked = []
    hold = daemon(100, asked)
    found = search(hold, start=16, most=4096, time_left=lambda: len(asked) < 3)
    assert (found.calls, found.above, found.why) == (64, None, "budget")
    asked.clear()
    found = search(hold, start=16, most=4096, time_left=lambda: len(asked) < 6)
    assert (found.calls, found.above, found.why) == (96, 128, "budget")


def test_a_number_that_was_kept_by_luck_is_asked_again():
    """96 calls are too many but were kept on the way up; when 192 and all between are not, they are held once more."""
    answers = iter(["kept"])

    def hold(calls):
        return next(answers, "broken") if calls == 96 else "kept" if calls <= 80 else "broken"

    found = search(hold, start=48, most=4096, time_left=FOREVER)
    assert found.calls <= 80 < found.above <= 84
    assert found.why == "daemon"


def test_one_call_may_be_too_many():
    found = search(lambda _: "broken", start=16, most=64, time_left=FOREVER)
    assert (found.calls, found.above, found.why) == (0, 1, "daemon")


def test_an_answer_counts_when_it_came_twice():
    answers = iter(["kept", "broken", "void", "broken"])
    assert twice(lambda _: next(answers), 1, FOREVER) == "broken"
    assert next(answers, "none left") == "none left"
