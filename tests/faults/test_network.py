"""Live calls over a network that is late, in pieces, deaf for a while, cut, or loses packets."""

import ctypes
import os
import shutil
import subprocess
import threading
import time

import pytest

from tests.faults.harness import figure, wait_for
from tests.faults.recorder import account

CALLS = 6
# Longer than the daemon's patience with a stream before it says `stalled`, shorter than the idle timeout.
DEAF_S = 3.0
LOST_PERCENT = 10
CLONE_NEWNET = 0x40000000
RULES = """
table inet faults {
    chain input {
        type filter hook input priority 0;
        tcp dport %d numgen random mod 100 < %d counter drop
    }
}
"""


@pytest.fixture
def through(serve, record, dial, chaos):
    """Calls that reach a daemon through a proxy: recorder, proxy, calls, streams."""

    def one(**options):
        served = serve(**options)
        recorder = record(served)
        proxy = chaos(served.endpoints["audio"])
        calls = dial(proxy.address)
        streams = [calls.stream(number) for number in calls.open(CALLS)]
        recorder.await_verdicts(streams)
        return recorder, proxy, calls, streams

    return one


def taken_stock(name, recorder, calls, streams):
    calls.end()
    recorder.await_closed(streams)
    tracks = recorder.histories(calls.prefix)
    counted = account(tracks.values())
    gaps_s = [event.detail["seconds"] for event in recorder.events("gap")]
    lost = {"gaps": len(gaps_s), "lost_s": float(sum(gaps_s)), "stalled": len(recorder.events("stalled"))}
    transit = [verdict.transit_ms for verdict in recorder.verdicts() if verdict.transit_ms is not None]
    figure(name, **counted._asdict(), **lost, transit_ms_max=max(transit), blocked=calls.report().blocked)
    assert (counted.tracks, counted.openings, *counted[4:]) == (CALLS, CALLS, 0, 0, 0, 0)
    return tracks, lost


def scores_what_was_said(tracks, calls, rescore) -> bool:
    """Whether every window holds what the call said at its time; those with a gap in them cannot."""
    for number in range(CALLS):
        (opening,) = tracks[calls.stream(number), 0].openings
        for _, verdict in opening.heard:
            whole = not any(begin < verdict.end_s and end > verdict.start_s for begin, end in opening.gaps)
            if whole and verdict.llr != rescore(calls, number, verdict):
                return False
    return True


def test_a_network_that_is_late_and_cuts_to_pieces_loses_nothing(through, rescore):
    recorder, proxy, calls, streams = through()
    proxy.latency_s, proxy.jitter_s, proxy.slice_bytes = 0.3, 0.1, 7
    recorder.await_verdicts(streams, 3, since_s=time.monotonic())
    tracks, lost = taken_stock("network-late", recorder, calls, streams)
    assert lost["gaps"] == 0
    assert max(verdict.transit_ms for verdict in recorder.verdicts()) > 250
    assert scores_what_was_said(tracks, calls, rescore)


def test_connections_that_are_reset_come_back_and_the_gap_is_told(through, rescore):
    recorder, proxy, calls, streams = through()
    for _ in range(3):
        proxy.latency_s = 0.2  # so that something is on its way, which a reset loses
        before = proxy.connections
        time.sleep(0.5)  # the fault: what is sent meanwhile
        proxy.reset()
        wait_for(lambda before=before: proxy.connections >= before + CALLS)
        recorder.await_verdicts(streams, 1, since_s=time.monotonic())
    proxy.latency_s = 0.0
    tracks, lost = taken_stock("network-reset", recorder, calls, streams)
    assert lost["gaps"] > 0
    assert scores_what_was_said(tracks, calls, rescore)


def test_a_network_that_is_deaf_for_a_while_is_told_and_nothing_is_lost(through, rescore):
    recorder, proxy, calls, streams = through()
    proxy.blackhole = True
    time.sleep(DEAF_S)
    proxy.blackhole = False
    recorder.await_verdicts(streams, 3, since_s=time.monotonic())
    tracks, lost = taken_stock("network-deaf", recorder, calls, streams)
    assert lost["gaps"] == 0
    assert {event.stream for event in recorder.events("stalled")} == set(streams)
    assert {event.stream for event in recorder.events("resumed")} == set(streams)
    assert scores_what_was_said(tracks, calls, rescore)


def test_a_network_that_stays_deaf_ends_the_streams_and_is_found_out(through):
    """The control: with a shorter patience than the fault lasts the calls do not go on as the same stream."""
    recorder, proxy, _, streams = through(streams={"idle_timeout_s": 2.0, "stalled_after_s": 1.0})
    proxy.blackhole = True
    recorder.await_closed(streams)
    proxy.blackhole = False
    recorder.await_verdicts(streams, 1, since_s=time.monotonic())
    assert account(recorder.histories("call-").values()).openings == 2 * CALLS


# -- packets that are lost ---------------------------------------------------------------------------------------------


def in_a_network_of_its_own(work) -> None:
    """Run in a thread with a network namespace to itself: what it starts, processes too, lives in there."""
    failure: list[BaseException] = []

    def run() -> None:
        try:
            if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET):
                pytest.skip(f"no network of our own: {os.strerror(ctypes.get_errno())}")
            subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
            work()
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failure:
        raise failure[0]


@pytest.mark.skipif(shutil.which("nft") is None or shutil.which("ip") is None, reason="no nft or no ip")
def test_lost_packets_cost_time_and_nothing_else(serve, record, dial, rescore):
    def work() -> None:
        served = serve()
        recorder = record(served)
        port = int(served.endpoints["audio"].rpartition(":")[2])
        calls = dial(served.endpoints["audio"])
        streams = [calls.stream(number) for number in calls.open(CALLS)]
        recorder.await_verdicts(streams)
        rules = subprocess.run(["nft", "-f", "-"], input=RULES % (port, LOST_PERCENT), capture_output=True, text=True)
        if rules.returncode:
            pytest.skip(f"nft: {rules.stderr.strip()}")
        recorder.await_verdicts(streams, 4, since_s=time.monotonic())
        listed = subprocess.run(["nft", "list", "ruleset"], capture_output=True, text=True, check=True).stdout
        dropped = int(listed.partition("packets ")[2].split()[0])
        subprocess.run(["nft", "flush", "ruleset"], check=True)
        tracks, lost = taken_stock("network-loss", recorder, calls, streams)
        figure("network-loss", percent=LOST_PERCENT, dropped=dropped)
        assert dropped > 0
        assert lost["gaps"] == 0
        assert scores_what_was_said(tracks, calls, rescore)

    in_a_network_of_its_own(work)
