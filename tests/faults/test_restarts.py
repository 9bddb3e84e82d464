"""A daemon that ends, politely or not, under live calls: what is lost, for how long nobody hears anything."""

import itertools
import math
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.faults.calls import Calls
from tests.faults.harness import Knocking, Life, Served, Supervisor, figure, wait_for
from tests.faults.recorder import Account, History, Recorder, account

CALLS = 40
ROUNDS = 5
DOORS = ("audio", "verdicts", "control", "http", "pcm")
BROKEN = str(Path(__file__).with_name("broken.py"))
# Audio (s) that may be in the kernel's and the library's buffers when a process dies: ten frames.
BETWEEN_S = 0.2


class Run(NamedTuple):
    """A daemon that was ended and started again, and what became of its calls."""

    tracks: dict[tuple[str, int], History]
    account: Account
    lives: list[Life]
    killed_s: list[float]
    """When the signals were sent (monotonic s)."""
    calls: Calls

    def history(self, number: int) -> History:
        return self.tracks[self.calls.stream(number), 0]

    def after_the_signal_s(self) -> list[float]:
        """Audio (s) of each call and each restart that was due to be sent after the signal and that nobody read."""
        return [
            opening.origin_s - self.calls.clock_s(number, killed_s)
            for number in range(CALLS)
            for killed_s, opening in zip(self.killed_s, self.history(number).openings[1:], strict=True)
        ]

    def show(self, name: str) -> None:
        waits = [history.longest_wait_s() for history in self.tracks.values()]
        unread = [seconds for history in self.tracks.values() for seconds in history.unread_s]
        figure(
            name,
            **self.account._asdict(),
            ended_s=max(life.ended_s - at for life, at in zip(self.lives, self.killed_s, strict=True)),
            serving_s=max(life.ready_s - life.ended_s for life in self.lives),
            verdict_gap_s=max(waits),
            unread_frames=round(sum(unread) / 0.02),
            unread_s_max=max(unread, default=0.0),
            blocked=self.calls.report().blocked,
        )


def run_through(numbers: Sequence[int], supervisor: Supervisor, recorder: Recorder, calls: Calls) -> Run:
    """Send one signal after the other while calls go on; end the calls, and take stock."""
    streams = [calls.stream(each) for each in calls.open(CALLS)]
    recorder.await_verdicts(streams, 2)
    killed_s = []
    for count, number in enumerate(numbers, 1):
        killed_s.append(time.monotonic())
        os.kill(supervisor.served.pid, number)
        life = supervisor.restarted(count)
        recorder.await_verdicts(streams, 1, since_s=life.ready_s)
    calls.end()
    recorder.await_closed(streams)
    tracks = recorder.histories(calls.prefix)
    return Run(tracks, account(tracks.values()), supervisor.lives, killed_s, calls)


def clocks_are_right(run: Run, rescore, openings: Sequence[int]) -> bool:
    """Whether the daemons scored what the calls said at the times that their verdicts name."""
    for number, which in itertools.product(range(0, CALLS, 13), openings):
        _, verdict = run.history(number).openings[which].heard[0]
        if verdict.llr != rescore(run.calls, number, verdict):
            return False
    return True


@pytest.fixture
def setting(prepare, supervise, record, dial):
    """A daemon that is started again when it ends, somebody who hears it, and a caller."""

    def make(**options):
        served = prepare(**options).started()
        return supervise(served), record(served), dial(served.endpoints["audio"])

    return make


def test_sigterm_loses_nothing_that_reached_the_daemon(setting, rescore):
    run = run_through([signal.SIGTERM] * ROUNDS, *setting())
    run.show("sigterm")
    assert [life.code for life in run.lives] == [0] * ROUNDS
    counted = run.account
    assert (counted.missing, counted.duplicates, counted.holes, counted.unclosed) == (0, 0, 0, 0)
    assert (counted.tracks, counted.openings) == (CALLS, CALLS * (ROUNDS + 1))
    reasons = [opening.close.detail["reason"] for opening in run.history(0).openings]
    assert reasons == ["drain"] * ROUNDS + ["end"]
    assert min(min(history.unread_s) for history in run.tracks.values()) >= 0, "some audio was scored twice"
    assert max(max(history.unread_s) for history in run.tracks.values()) < BETWEEN_S
    assert clocks_are_right(run, rescore, range(ROUNDS + 1))


def test_sigkill_loses_only_what_was_in_the_dead_process(setting, rescore):
    run = run_through([signal.SIGKILL] * ROUNDS, *setting())
    run.show("sigkill")
    counted = run.account
    assert (counted.missing, counted.duplicates, counted.holes) == (0, 0, 0)
    assert counted.unclosed == CALLS * ROUNDS
    assert min(min(history.unread_s) for history in run.tracks.values()) >= 0, "some audio was scored twice"
    assert max(run.after_the_signal_s()) < BETWEEN_S
    assert clocks_are_right(run, rescore, range(ROUNDS + 1))


def doors_of(served: Served) -> dict[str, str]:
    return {name: served.endpoints[name] if name != "pcm" else served.endpoints["pcm"][0] for name in DOORS}


def test_sockets_that_systemd_holds_refuse_nobody_whatever_ends_the_daemon(setting, rescore):
    supervisor, recorder, calls = setting(activated=DOORS)
    with Knocking(doors_of(supervisor.served)) as knocking:
        run = run_through([signal.SIGTERM, signal.SIGKILL, signal.SIGTERM], supervisor, recorder, calls)
    run.show("activated")
    figure("activated", connections=knocking.taken, refused=len(knocking.refused))
    counted = run.account
    assert knocking.refused == []
    assert knocking.taken > 50
    assert (counted.missing, counted.duplicates, counted.holes, counted.unclosed) == (0, 0, 0, CALLS)
    assert min(min(history.unread_s) for history in run.tracks.values()) >= 0, "some audio was scored twice"
    assert max(max(history.unread_s) for history in run.tracks.values()) < 1 + BETWEEN_S
    assert clocks_are_right(run, rescore, range(4))


def test_sockets_that_nobody_holds_refuse_while_the_daemon_is_away(serve):
    served = serve()
    with Knocking(doors_of(served)) as knocking:
        served.terminate()
        wait_for(lambda: set(knocking.refused) == set(DOORS))


@pytest.mark.parametrize("how", ["no-drain", "forgets"])
def test_a_daemon_that_does_not_drain_or_forgets_a_verdict_is_found_out(how, setting):
    run = run_through([signal.SIGTERM], *setting(program=[BROKEN, how]))
    counted = run.account
    assert counted.holes or counted.unclosed
    assert math.isfinite(counted.verdicts)
