"""The watch: what hangs is noticed, what was only stopped or is only slow is not."""

import math
import threading
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamdet import watch
from streamdet.pump import Call
from streamdet.watch import LOOK_S, Ages, Watch, overdue

PATIENCE_S = 30.0
RUN = Call("run", 4)


def pump(*numbers: int, deadline_s: float = 2.0) -> SimpleNamespace:
    return SimpleNamespace(under_way=dict.fromkeys(numbers, RUN), deadline_s=deadline_s)


def looks(pumps, until_s: float, step_s: float = LOOK_S) -> float | None:
    """When something is overdue, looking every `step_s`; None until `until_s`."""
    ages = Ages()
    for number in range(1 + math.ceil(until_s / step_s)):
        if overdue(pumps, ages, number * step_s) is not None:
            return number * step_s
    return None


def test_a_run_that_does_not_come_back_is_overdue_after_its_deadline():
    found_s = looks([pump(1)], 10.0)
    assert found_s is not None
    assert 2.0 < found_s <= 2.0 + LOOK_S


def test_each_pump_has_a_deadline_of_its_own():
    assert looks([pump(1, deadline_s=5.0), pump(2, deadline_s=3.0)], 10.0) == 3.0 + LOOK_S
    assert looks([pump(1, deadline_s=math.inf)], 100.0) is None


def test_what_comes_back_in_time_is_never_overdue():
    ages, at_s = Ages(), 0.0
    for number in range(100):
        for _ in range(7):
            assert overdue([pump(number)], ages, at_s) is None
            at_s += LOOK_S


def test_an_old_call_is_not_hidden_by_young_ones():
    ages = Ages()
    found = [overdue([pump(0, number)], ages, number * LOOK_S) for number in range(1, 11)]
    assert found[-1] is not None
    assert found[-1].call is RUN


@given(st.lists(st.floats(0, 3600), min_size=1, max_size=50))
def test_a_process_that_was_stopped_ages_by_no_more_than_two_looks_a_look(pauses_s):
    ages, at_s = Ages(), 0.0
    ages.look([1], at_s)
    for count, pause_s in enumerate(pauses_s, 1):
        at_s += pause_s
        assert ages.look([1], at_s)[1] <= min(at_s, 2 * LOOK_S * count) + 1e-6


def test_sixty_seconds_of_sigstop_make_nothing_overdue():
    ages = Ages()
    assert overdue([pump(1)], ages, 0.0) is None
    assert overdue([pump(1)], ages, 60.0) is None


def test_the_thread_tells_of_what_hangs_once():
    told, found = threading.Event(), []

    def hung(overdue_call):
        found.append(overdue_call)
        told.set()

    with Watch(lambda: [pump(7, deadline_s=0.01)], hung) as looking:
        assert told.wait(PATIENCE_S)
    assert looking.noticed
    assert [one.call for one in found] == [RUN]


def test_leaving_ends_the_thread():
    with Watch(lambda: [pump(7)], lambda _: None) as looking:
        pass
    assert not looking.noticed
    assert not looking._thread.is_alive()


@pytest.mark.parametrize("heard", [True, False])
def test_the_end_is_systemds_where_it_listens_and_code_71_in_any_case(monkeypatch, heard):
    done = []
    monkeypatch.setattr(watch, "notify", lambda **told: done.append(told) or heard)
    monkeypatch.setattr(watch.time, "sleep", lambda seconds: done.append(seconds))
    monkeypatch.setattr(watch.os, "_exit", lambda code: done.append(("exit", code)))
    watch.end_process(watch.Overdue(RUN, 2.5, 2.0), lambda: done.append("last words"))
    waited = [watch.TRIGGERED_S] if heard else []
    assert done == ["last words", watch.LAST_WORDS_S, {"WATCHDOG": "trigger"}, *waited, ("exit", 71)]
