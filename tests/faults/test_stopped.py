"""Processes that stand still: a daemon that is stopped and goes on, subscribers that take nothing and stay."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from streamdet.bench.flood import Flood, flooding
from streamdet.connections import READERS
from tests.faults.harness import figure, stopped, wait_for
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
    counted = account(recorder.histories(calls.prefix).values())
    figure("sigstop", way=way, stopped_s=STOPPED_S, **counted._asdict(), blocked=calls.report().blocked)
    assert (counted.missing, counted.duplicates, counted.holes, counted.unclosed) == (0, 0, 0, 0)
    assert counted.openings == CALLS
    assert {event.detail["reason"] for event in recorder.events("close")} <= {"end"}
    assert recorder.events("gap") == []


def test_a_daemon_that_takes_its_own_absence_for_silence_is_found_out(serve, record, dial):
    served = serve(streams={"idle_timeout_s": STOPPED_S / 2}, program=[BROKEN, "impatient"])
    recorder = record(served)
    calls = dial(served.endpoints["audio"])
    recorder.await_verdicts([calls.stream(number) for number in calls.open(CALLS)])
    with stopped(served.process):
        time.sleep(STOPPED_S)
    wait_for(lambda: [event for event in recorder.events("close") if event.detail["reason"] == "idle"])


# -- its subscribers ---------------------------------------------------------------------------------------------------

FEW = 3
FLOODED = 100
# More than libzmq and the kernel keep for one that takes nothing.
VERDICTS = 60_000
# For as many as may be connected; the recorder is one of them.
PROMISED_BYTES = 64 << 20
MANY = READERS - 1
# For a few: half of it, so that the control need not publish for a minute.
MOST_BYTES = 32 << 20
SUBSCRIBE = """
import sys, zmq
context, poller = zmq.Context(), zmq.Poller()
for _ in range(int(sys.argv[2])):
    socket = context.socket(zmq.SUB)
    socket.subscribe(b"")
    socket.connect(sys.argv[1])
    poller.register(socket, zmq.POLLIN)
silent = {socket for socket, _ in poller.sockets}
while silent:
    for socket, _ in poller.poll():
        socket.recv_multipart()
        silent.discard(socket)
print("heard", flush=True)
while True:
    for socket, _ in poller.poll():
        socket.recv_multipart()
"""


class Subscribers:
    """Take everything that a daemon publishes, in a process of their own, until it is stopped."""

    def __init__(self, address: str, count: int) -> None:
        command = [sys.executable, "-c", SUBSCRIBE, address, str(count)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"heard\n"
        self.process.send_signal(signal.SIGSTOP)

    def close(self) -> None:
        assert self.process.stdout is not None
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()


def flooded(served, recorder, dial, ends, subscribers) -> tuple[list[str], int, int]:
    """Live calls beside a flood of verdicts that some subscribers do not take: streams, bytes before and at most."""

    def windows() -> int:
        return int(served.ask(op="status")["counts"]["windows"])

    calls = dial(served.endpoints["audio"])
    streams = [calls.stream(number) for number in calls.open(CALLS)]
    recorder.await_verdicts(streams)
    # A long name makes long messages.
    flood = Flood("tcp", served.endpoints["pcm"][0], FLOODED, frame_ms=1000, name="flood" * 20)
    with flooding(flood):
        wait_for(lambda: windows() > VERDICTS / 6)  # rings and buffers of those who flood have their size
        before, begun = served.memory().rss, windows()
        ends.callback(Subscribers(served.endpoints["verdicts"], subscribers).close)
        # The most that was seen: who takes nothing for sockets.UNANSWERED_MS is let go, and what waited for him too.
        most = before

        def enough() -> bool:
            nonlocal most
            most = max(most, served.memory().rss)
            return windows() > begun + VERDICTS

        wait_for(enough, 2 * 30.0)
    recorder.await_verdicts(streams, 2, since_s=time.monotonic())
    calls.end()
    recorder.await_closed(streams)
    return streams, before, most


@pytest.mark.parametrize(("subscribers", "most_bytes"), [(FEW, MOST_BYTES), (MANY, PROMISED_BYTES)])
def test_subscribers_that_take_nothing_cost_the_others_nothing_and_the_daemon_little(
    subscribers, most_bytes, serve, ends, dial
):
    served = serve(program=["-m", "streamdet.bench.free"])
    recorder = ends.enter_context(Recorder(served.endpoints["verdicts"], ("v.call-", "e.call-", "hb")))
    recorder.await_beat()
    began_s, spent_s = time.monotonic(), served.cpu_s()
    streams, before, most = flooded(served, recorder, dial, ends, subscribers)
    counted = account(recorder.histories("call-").values())
    figure(
        "stopped-subscribers",
        subscribers=subscribers,
        flooded=VERDICTS,
        grown_mb=(most - before) / 1e6,
        cores=(served.cpu_s() - spent_s) / (time.monotonic() - began_s),
        **counted._asdict(),
    )
    assert counted.tracks == len(streams)
    assert (counted.missing, counted.duplicates, counted.holes, counted.unclosed) == (0, 0, 0, 0)
    assert most - before < most_bytes
    assert served.terminate() == 0


def test_a_daemon_that_keeps_everything_for_them_is_found_out(serve, ends, dial):
    served = serve(program=[BROKEN, "boundless"])
    recorder = ends.enter_context(Recorder(served.endpoints["verdicts"], ("v.call-", "e.call-", "hb")))
    recorder.await_beat()
    _, before, most = flooded(served, recorder, dial, ends, FEW)
    assert most - before > MOST_BYTES
