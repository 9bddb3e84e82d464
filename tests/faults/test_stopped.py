"""Processes that stand still: a daemon that is stopped and goes on, subscribers that take nothing and stay."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from streamdet.bench.flood import Flood, flooding
from tests.faults.harness import figure, memory, stopped, wait_for
from tests.faults.recorder import Recorder, account

BROKEN = str(Path(__file__).with_name("broken.py"))
CALLS = 10
STOPPED_S = 2.0


# -- the daemon --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["audio", "pcm"])
def test_a_daemon_that_stood_still_goes_on_with_every_call(way, serve, record, dial):
    """Even where they have been silent for longer than the idle timeout: it was the daemon that did not listen."""
    served = serve(streams={"idle_timeout_s": STOPPED_S / 2})
    recorder = record(served)
    calls = dial(served.endpoints["audio"] if way == "audio" else served.endpoints["pcm"][1])
    streams = [calls.stream(number) for number in calls.open(CALLS)]
    recorder.await_verdicts(streams, 2)
    with stopped(served.process):
        time.sleep(STOPPED_S)
    goes_on_s = time.monotonic()
    recorder.await_verdicts(streams, 3, since_s=goes_on_s)
    calls.end()
    recorder.await_closed(streams)
    tracks = recorder.histories(calls.prefix)
    counted = account(tracks.values())
    figure("sigstop", way=way, stopped_s=STOPPED_S, **counted._asdict(), blocked=calls.report().blocked)
    assert (counted.missing, counted.duplicates, counted.holes, counted.unclosed) == (0, 0, 0, 0)
    assert counted.openings == CALLS
    assert {event.detail["reason"] for event in recorder.events("close")} <= {"end"}
    assert recorder.events("gap") == []
