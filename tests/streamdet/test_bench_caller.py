"""The caller keeps its own deadlines, and says when it does not; the load knows which windows that makes due."""

import json
import socket
from collections import deque

import numpy as np
import pytest

from streamdet.audio import decode
from streamdet.bench import caller as callers
from streamdet.bench.caller import TICK_S, Caller, Order, PcmLine, Play, ZmqLine
from streamdet.bench.load import GOLDEN, TURN_S, Load, said
from streamdet.bundle import starter_recordings
from streamdet.errors import DataError
from streamdet.wire import frames

PLAY = Play("zeromq", "tcp://127.0.0.1:1", "bench-x-", "", 8000, "mulaw", frame_bytes=160, frame_ticks=10)
AUDIO = bytes(range(250)) * 64  # 100 frames, no two alike


class Tape:
    """A line that only remembers."""

    def __init__(self, room: int = 1_000_000) -> None:
        self.frames: list[tuple[int, bytes]] = []
        self.ended: int | None = None
        self.room = room

    def send(self, number: int, payload: bytes) -> bool:
        self.frames.append((number, payload))
        return len(self.frames) <= self.room

    def end(self, number: int) -> None:
        self.ended = number


@pytest.fixture
def tapes(monkeypatch):
    made: dict[int, Tape] = {}

    def dial(number):
        made[number] = Tape()
        return made[number]

    monkeypatch.setattr(callers, "dialler", lambda _: dial)
    return made


class Clock:
    """Time that passes by sleeping, and by nothing else unless told so."""

    def __init__(self, now_s: float = 100.0) -> None:
        self.now_s = now_s

    def monotonic(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


def test_frames_go_out_at_their_ticks_and_in_order(tapes):
    caller = Caller(PLAY, AUDIO)
    caller.obey(Order("open", [(7, 1003), (8, 1003), (9, 1010)]))
    served = [tick for tick in range(990, 1035) if caller.serve(tick)]
    assert served == [1003, 1010, 1013, 1020, 1023, 1030, 1033]
    assert [number for number, _ in tapes[7].frames] == [0, 1, 2, 3]
    assert [number for number, _ in tapes[9].frames] == [0, 1, 2]
    first = tapes[7].frames[0][1]
    at = AUDIO.index(first)
    assert b"".join(payload for _, payload in tapes[7].frames) == AUDIO[at : at + 640]
    assert first != tapes[8].frames[0][1]


def test_a_call_ends_at_its_tick_with_the_number_of_the_frame_that_will_not_come(tapes):
    caller = Caller(PLAY, AUDIO)
    caller.obey(Order("open", [(7, 1000), (8, 1000)]))
    caller.obey(Order("close", [(7, 1017)]))
    for tick in range(1000, 1050):
        caller.serve(tick)
    assert [number for number, _ in tapes[7].frames] == [0, 1]
    assert tapes[7].ended == 2
    assert len(tapes[8].frames) == 5
    caller.end_all(1051)
    assert tapes[8].ended == 6


@pytest.mark.usefixtures("tapes")
def test_ticks_are_absolute_and_what_is_late_is_told(monkeypatch):
    """One send that hangs for 35 ms makes its own tick late, and those it ran over; not the later ones."""
    clock = Clock()
    monkeypatch.setattr(callers, "time", clock)
    clock.process_time = lambda: 0.0
    caller = Caller(PLAY, AUDIO)
    first = round(clock.now_s / TICK_S) + 5
    caller.obey(Order("open", [(number, first + number) for number in range(10)]))
    orders: deque[Order | None] = deque()
    serve, said_so = caller.serve, []

    def slowly(tick):
        if tick == first + 102:
            clock.now_s += 0.035
        if tick == first + 199:
            orders.extend([Order("report"), None])
        return serve(tick)

    monkeypatch.setattr(caller, "serve", slowly)
    callers.run(caller, orders, said_so.append)
    (sent,) = said_so
    assert sent.frames == 200
    assert sent.late_ms_p50 == pytest.approx(0, abs=1e-6)
    assert sent.late_ms_max == pytest.approx(35)
    late = 1e3 * 0.035 - np.arange(0, 35, 1e3 * TICK_S)  # 18 of 200 ticks
    assert sent.late_ms_p99 == pytest.approx(np.percentile([*late, *[0] * 182], 99))


def test_a_report_is_of_what_came_since_the_last(tapes):
    caller = Caller(PLAY, AUDIO)
    caller.obey(Order("open", [(1, 0)]))
    for tick in range(100):
        caller.serve(tick)
    tapes[1].room = 15
    caller.was_late(0.5)
    assert caller.obey(Order("report")).frames == 10
    for tick in range(100, 200):
        caller.serve(tick)
    second = caller.obey(Order("report"))
    assert (second.frames, second.blocked, second.late_ms_max) == (5, 5, 0)


def test_what_goes_over_zeromq_is_what_the_daemon_reads():
    sent = []

    class Push:
        def send_multipart(self, parts, _):
            sent.append(frames.parse([bytes(part) for part in parts]))

    line = ZmqLine(Push(), "bench-x-7", PLAY, 160)
    assert line.send(3, b"x" * 160)
    line.end(4)
    assert [(it.stream, it.start, it.payload, it.end) for it in sent] == [
        ("bench-x-7", 480, b"x" * 160, False),
        ("bench-x-7", 640, b"", True),
    ]
    assert sent[0].sent_at_s > 1e9


def test_pcm_keeps_what_the_daemon_does_not_read_and_counts_what_is_too_much(tmp_path):
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "pcm.sock"))
        server.listen()
        line = PcmLine("bench-x-1", Play("pcm", f"unix:{tmp_path}/pcm.sock", "", "", 8000, "mulaw", 160, 10))
        peer, _ = server.accept()
        with peer:
            taken = 0
            while line.send(taken, b"y" * 1000):
                taken += 1
            assert taken > callers.HELD_BYTES / 1000  # the kernel's buffers take some too
            received = bytearray()
            while received.count(b"y") < 1000 * taken:
                received += peer.recv(1 << 20)
                line.send(taken, b"")
            line.end(taken)
            assert peer.recv(1) == b""
        greeting, _, audio = bytes(received).partition(b"\n")
        assert json.loads(greeting.removeprefix(b"STREAMDET "))["stream"] == "bench-x-1"
        assert audio == b"y" * 1000 * taken


# -- which windows are due ---------------------------------------------------------------------------------------------


class Silent:
    """In place of a daemon, of a caller and of ears."""

    verdicts = "inproc://nobody"
    stdin = stdout = None


@pytest.fixture
def load(monkeypatch):
    monkeypatch.setattr("streamdet.bench.load.Ears", lambda *_: Silent())
    monkeypatch.setattr(Load, "_order", lambda *_: None)

    def make(hop_s=1.0, frame_ticks=10):
        play = Play("zeromq", "", "bench-x-", "", 8000, "mulaw", 16 * frame_ticks, frame_ticks)
        return Load(Silent(), Silent(), play, hop_s)

    return make


@pytest.mark.parametrize("frame_ticks", [10, 30, 50, 333])
def test_a_window_counts_in_the_stretch_in_which_its_last_frame_is_due(load, frame_ticks):
    one = load(frame_ticks=frame_ticks)
    one.set_calls(3)
    for call, first in one._open:
        all_hops = one.hops(first, 0.0, first * TICK_S + 100)
        assert all_hops[0] == 1
        due = {hop: one.due_s(call, hop) for hop in range(1, 100)}
        for began_s in np.linspace(first * TICK_S, first * TICK_S + 60, 77):
            wanted = [hop for hop, at_s in due.items() if began_s <= at_s < began_s + 7.77]
            assert list(one.hops(first, began_s, began_s + 7.77)) == wanted


def test_the_last_frame_of_a_hop_is_the_one_that_completes_it(load):
    one = load(frame_ticks=30)  # 60 ms: the first hop ends in the seventeenth frame
    one.set_calls(1)
    first = one._open[0][1]
    assert one.due_s(0, 1) == pytest.approx(first * TICK_S + 16 * 0.06)


def test_any_number_of_calls_is_spread_over_the_hop():
    for calls in (3, 10, 100, 777):
        places = np.sort([at * GOLDEN % 1 for at in range(calls)])
        gaps = np.diff([*places, places[0] + 1])
        assert gaps.max() < 3 / calls


def test_calls_are_opened_at_the_end_and_ended_from_there(load):
    one = load()
    one.set_calls(4)
    four = list(one._open)
    one.set_calls(2)
    assert one._open == four[:2]
    one.set_calls(3)
    assert [number for number, _ in one._open] == [0, 1, 4]  # a new call has a name of its own


def test_what_is_said_is_speech_and_with_half_duplex_half_of_it():
    recordings = starter_recordings()
    whole, half = (decode(said(recordings, half_duplex=each), "mulaw") for each in (False, True))
    assert whole.size == half.size
    turns = half.reshape(-1, round(8000 * TURN_S))
    assert not turns[1::2].any()
    assert np.array_equal(turns[::2], whole.reshape(turns.shape)[::2])
    with pytest.raises(DataError, match="at least one"):
        said([])
