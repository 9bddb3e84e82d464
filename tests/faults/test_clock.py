"""The wall clock jumps under live calls (libfaketime): nothing changes but wall stamps."""

import time
from pathlib import Path

import pytest

from tests.faults.harness import figure, stopped, wait_for
from tests.faults.recorder import account

CALLS = 4
BROKEN = str(Path(__file__).with_name("broken.py"))
LIBRARY = next(iter(sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))), None)
JUMPS = {"an hour on": "+3600", "a day back": "-86400", "2038": "@2038-01-19 03:14:00", "back to now": "+0"}

pytestmark = pytest.mark.skipif(LIBRARY is None, reason="no libfaketime (Debian: faketime)")


class Clock:
    """A wall clock that may be set while a daemon looks at it."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "faketime"
        self.set("+0")
        self.environment = {
            "LD_PRELOAD": str(LIBRARY),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }

    def set(self, to: str) -> None:
        made = self._file.with_suffix(".new")
        made.write_text(to + "\n", "utf-8")
        made.replace(self._file)


@pytest.fixture
def clock(tmp_path):
    return Clock(tmp_path)


@pytest.fixture
def under_way(serve, record, dial, clock):
    def one(program=("-m", "streamdet")):
        # Calls are silent for a moment while the clock jumps: nobody shall take that for hours.
        served = serve(environment=clock.environment, program=program, streams={"stalled_after_s": 9.0})
        recorder = record(served)
        calls = dial(served.endpoints["audio"])
        streams = [calls.stream(number) for number in calls.open(CALLS)]
        recorder.await_verdicts(streams)
        return served, recorder, calls, streams

    return one


def jump(clock, to, recorder, calls) -> None:
    """Set the clock while nobody sends, and let the daemon look at it: twice, it does so once a second."""
    with stopped(calls.process):
        clock.set(to)
        recorder.await_beat()
        recorder.await_beat()


def test_jumps_of_the_wall_clock_change_nothing_but_wall_stamps(under_way, clock, rescore):
    served, recorder, calls, streams = under_way()
    transits_ms = []
    for to in JUMPS.values():
        jump(clock, to, recorder, calls)
        recorder.await_verdicts(streams, 2, since_s=time.monotonic())
        transits_ms.append(recorder.verdicts()[-1].transit_ms)
    calls.end()
    recorder.await_closed(streams)
    counted = account(recorder.histories(calls.prefix).values())
    lag_ms = max(verdict.lag_ms for verdict in recorder.verdicts())
    figure("clock", jumps=len(JUMPS), **counted._asdict(), lag_ms_max=lag_ms, transit_ms_max=max(transits_ms))
    assert (counted.tracks, counted.openings, *counted[4:]) == (CALLS, CALLS, 0, 0, 0, 0)
    assert {event.detail["reason"] for event in recorder.events("close")} == {"end"}
    assert recorder.events("gap") == recorder.events("stalled") == []
    assert max(transits_ms) > 3000e3, "the clock never jumped"
    assert 0 <= lag_ms < 600e3
    for number in range(CALLS):
        (opening,) = recorder.histories()[calls.stream(number), 0].openings
        assert all(verdict.llr == rescore(calls, number, verdict) for _, verdict in opening.heard)
    assert served.terminate() == 0


def test_a_daemon_that_goes_by_the_wall_clock_is_found_out(under_way, clock):
    _, recorder, calls, _ = under_way([BROKEN, "wall"])
    jump(clock, JUMPS["an hour on"], recorder, calls)
    wait_for(lambda: "idle" in [event.detail["reason"] for event in recorder.events("close")])
