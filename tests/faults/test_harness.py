"""What the fault tests stand on finds what it is there to find: each check is fed something wrong here."""

import os
import signal
import socket
import time

import pytest

from streamdet.bundle import load
from streamdet.engine import Engine
from streamdet.records import AudioFormat, Frame, Score
from tests.faults.harness import PATIENCE_S, figure, wait_for
from tests.faults.recorder import Heard, account, histories, without

MULAW = AudioFormat(8000, "mulaw")
SECOND = b"\xff" * 8000


class Spoken:
    """An engine that is driven by hand, and what it says."""

    def __init__(self, manifest) -> None:
        self.heard: list[Heard] = []
        self.engine = Engine(manifest, lambda record: self.heard.append(Heard(0.0, record)))

    def play(self, first: int, last: int, *, score: bool = True) -> None:
        """Feed seconds `first` to `last`, each scored before the next comes, or none."""
        for second in range(first, last):
            self.engine.feed(Frame("a", MULAW, SECOND, start=8000 * second), float(second))
            if score:
                self.score()

    def score(self) -> None:
        while jobs := self.engine.take(4):
            self.engine.settle(jobs, [Score(1.0, 1.0)] * len(jobs), 0.0)


@pytest.fixture
def spoken(tiny_bundle) -> Spoken:
    return Spoken(load(tiny_bundle.path).manifest)


def only(heard):
    (history,) = histories(heard).values()
    return history


def test_a_call_whose_every_second_has_its_verdict_misses_nothing(spoken):
    spoken.play(0, 5)
    spoken.engine.feed(Frame("a", MULAW, SECOND[:5000], start=40_000, end=True), 5.0)
    spoken.score()
    assert account([only(spoken.heard)]) == (1, 1, 6, 0, 0, 0, 0, 0)


@pytest.mark.parametrize("at", [0, 2, 4])
def test_a_verdict_that_is_lost_is_missed(spoken, at):
    spoken.play(0, 5)
    spoken.engine.close_all("drain", 5.0)
    history = only(without(spoken.heard, at))
    assert history.missing == [at + 1.0]
    assert account([history]).holes == 1


def test_a_rest_without_a_verdict_is_missed(spoken):
    spoken.play(0, 3)
    spoken.engine.feed(Frame("a", MULAW, SECOND[:5000], start=24_000, end=True), 5.0)
    spoken.score()
    assert only(without(spoken.heard, 3)).missing == [3.625]


def test_a_verdict_that_comes_twice_is_counted(spoken):
    spoken.play(0, 3)
    spoken.heard.append(next(each for each in reversed(spoken.heard) if hasattr(each.record, "llr")))
    assert account([only(spoken.heard)]).duplicates == 1


def test_a_window_that_was_skipped_and_says_so_is_not_missed(spoken):
    spoken.play(0, 3)
    spoken.play(3, 5, score=False)
    spoken.score()
    counted = account([only(spoken.heard)])
    assert (counted.skipped, counted.missing) == (1, 0)


def test_a_gap_longer_than_a_window_is_no_loss(spoken):
    spoken.play(0, 2)
    spoken.play(22, 24)
    spoken.engine.close_all("drain", 5.0)
    assert account([only(spoken.heard)]).missing == 0


def test_a_stream_that_goes_on_after_a_restart_tells_what_nobody_read(spoken, tiny_bundle):
    spoken.play(0, 3)
    spoken.engine.close_all("drain", 3.0)
    after = Spoken(load(tiny_bundle.path).manifest)
    after.play(5, 8)
    history = only(spoken.heard + after.heard)
    assert len(history.openings) == 2
    assert history.unread_s == [2.0]
    assert history.missing == []
    assert account([history]).unclosed == 1


def test_a_daemon_without_a_close_is_known_up_to_its_last_verdict(spoken, tiny_bundle):
    spoken.play(0, 3)
    after = Spoken(load(tiny_bundle.path).manifest)
    after.play(4, 6)
    assert only(spoken.heard + after.heard).unread_s == [1.0]


# -- with processes ----------------------------------------------------------------------------------------------------


def test_calls_come_through_and_hear_what_they_said(serve, record, dial, rescore):
    """Over ZeroMQ and raw PCM at once, and a window's score is that of what the call said then."""
    served = serve()
    recorder = record(served)
    live = dial(served.endpoints["audio"], prefix="zmq-")
    raw = dial(served.endpoints["pcm"][1], prefix="raw-")
    for calls in (live, raw):
        numbers = calls.open(3)
        recorder.await_verdicts(map(calls.stream, numbers), 2)
        calls.end()
        recorder.await_closed(map(calls.stream, numbers))
        tracks = recorder.histories(calls.prefix)
        counted = account(tracks.values())
        assert counted[:2] == (3, 3)
        assert counted[4:] == (0, 0, 0, 0)
        for number in numbers:
            _, verdict = tracks[calls.stream(number), 0].openings[0].heard[0]
            assert verdict.llr == rescore(calls, number, verdict)
    assert live.report().frames > 150
    assert served.descriptors() > 10
    assert served.memory().rss > served.memory().pss > 10e6
    figure("harness", calls=6, cpu_s=served.cpu_s())


def test_a_call_that_heard_something_else_is_found_out(serve, record, dial, rescore):
    served = serve()
    recorder = record(served)
    calls = dial(served.endpoints["audio"])
    calls.open(2)
    recorder.await_verdicts(["call-0", "call-1"])
    _, verdict = recorder.histories()["call-0", 0].openings[0].heard[0]
    assert verdict.llr == rescore(calls, 0, verdict)
    assert verdict.llr != rescore(calls, 1, verdict)


def test_held_sockets_refuse_nobody_while_there_is_no_daemon(prepare):
    held = prepare(activated=["http"])
    host, _, port = held.endpoints["http"].rpartition(":")
    socket.create_connection((host, int(port)), PATIENCE_S).close()
    bare = prepare()
    host, _, port = bare.endpoints["http"].rpartition(":")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((host, int(port)), PATIENCE_S)


def test_a_daemon_that_ends_is_started_again(serve, supervise):
    served = serve()
    supervisor = supervise(served)
    pid = served.pid
    os.kill(pid, signal.SIGKILL)
    life = supervisor.restarted(1)
    assert (life.pid, life.code) == (pid, -signal.SIGKILL)
    assert served.pid != pid
    assert served.ready


def echo() -> socket.socket:
    return socket.create_server(("127.0.0.1", 0))


def test_a_proxy_is_late_and_cuts_to_pieces_but_loses_nothing(chaos):
    with echo() as server:
        proxy = chaos(f"127.0.0.1:{server.getsockname()[1]}")
        proxy.latency_s, proxy.jitter_s, proxy.slice_bytes = 0.05, 0.02, 7
        with socket.create_connection(("127.0.0.1", proxy.port)) as near, server.accept()[0] as far:
            began_s = time.monotonic()
            near.sendall(bytes(range(200)))
            received = b""
            while len(received) < 200:
                received += far.recv(1000)
            assert received == bytes(range(200))
            assert time.monotonic() - began_s >= 0.05


def test_a_proxy_goes_deaf_and_hears_again(chaos):
    with echo() as server:
        proxy = chaos(f"127.0.0.1:{server.getsockname()[1]}")
        with socket.create_connection(("127.0.0.1", proxy.port)) as near, server.accept()[0] as far:
            near.sendall(b"a")
            assert far.recv(1) == b"a"
            proxy.blackhole = True
            near.sendall(b"b")
            far.settimeout(0.2)
            with pytest.raises(TimeoutError):
                far.recv(1)
            proxy.blackhole = False
            far.settimeout(PATIENCE_S)
            assert far.recv(1) == b"b"


def test_a_proxy_resets(chaos):
    with echo() as server:
        proxy = chaos(f"127.0.0.1:{server.getsockname()[1]}")
        with socket.create_connection(("127.0.0.1", proxy.port)) as near, server.accept()[0] as far:
            wait_for(lambda: proxy.connections)
            near.sendall(b"a")
            assert far.recv(1) == b"a"
            proxy.reset()
            for end in (near, far):
                with pytest.raises(ConnectionResetError):
                    end.recv(1)
