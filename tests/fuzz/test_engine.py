"""Any order of frames, gaps, pauses, ends, batches, failed runs and ticks leaves an engine that keeps its books.

Hypothesis plays all roles at once: three live senders, one lossless one, an operator, a pump whose runs take their time
or fail, and the clock. After each step: the clock of a track is the audio that it was sent, a track has one window in
flight at the most, what a track holds is bounded. Verdicts count up without holes and nothing follows a `close`. At the
end every hop of every call without gaps was heard or is counted as skipped.
"""

from collections import Counter
from typing import Any

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from streamdet.bundle import Audio, Calibration, Decision, FileEntry, Manifest, Model
from streamdet.engine import Engine
from streamdet.errors import OverloadError, ProtocolError
from streamdet.records import AudioFormat, Event, Frame, Score, Verdict
from streamdet.track import LOSSLESS_SPARE_HOPS, Track

RATE_HZ = 8000
HOP, WINDOW = RATE_HZ, 4 * RATE_HZ
FORMATS = [AudioFormat(RATE_HZ, "mulaw"), AudioFormat(RATE_HZ, "s16le", 2)]
LIVE = ("a", "b", "c")
FILE = "file"
MOST_STREAMS = 3
IDLE_S = 10.0
FILES = {"model.onnx": FileEntry("0" * 64, 0), "head.onnx": FileEntry("0" * 64, 0)}
MODELS = {
    "windows": Model(kind="window"),
    "blocks": Model(kind="block", head="head.onnx", left_samples=HOP),
}


def manifest(model: Model) -> Manifest:
    return Manifest(
        format=1,
        name="test",
        created="2026-01-01T00:00:00Z",
        audio=Audio(16_000, 64_000, 16_000),
        model=model,
        calibration=Calibration(),
        decision=Decision(alarm=2.0, clear=2.0, drift=0.1),
        provenance={},
        files=FILES,
    )


class Call:
    """What a sender knows of an opening."""

    def __init__(self, opened: str, form: AudioFormat, now_s: float, start: int = 0) -> None:
        self.opened = opened
        self.form = form
        self.first = self.samples = start
        self.heard_s = now_s
        self.gaps = False
        self.paused = False


class Books(RuleBasedStateMachine):
    """An engine, and the same books kept by hand."""

    model = MODELS["windows"]
    engine_of = Engine

    def __init__(self) -> None:
        super().__init__()
        self.engine = self.engine_of(
            manifest(self.model), self._hear, max_streams=MOST_STREAMS, idle_timeout_s=IDLE_S, ahead_s=1e6
        )
        self.now_s = 0.0
        self.calls: dict[str, Call] = {}
        self.ended: list[Call] = []
        self.opened: dict[str, str] = {}
        self.flying: list[list[Any]] = []
        self.room = True
        self.verdicts: Counter[tuple[str, int]] = Counter()
        self.skips: Counter[tuple[str, int]] = Counter()
        self.closed: dict[str, Event] = {}

    # -- what the engine says --------------------------------------------------------------------------------------

    def _hear(self, record: Verdict | Event) -> None:
        if isinstance(record, Verdict):
            key = record.opened, record.channel
            assert record.opened not in self.closed, "nothing follows a close"
            assert record.seq == self.verdicts[key], "verdicts count up without holes"
            assert 0 <= record.start_s < record.end_s <= record.start_s + WINDOW / RATE_HZ + 1e-6
            self.verdicts[key] += 1
            self.skips[key] += record.skipped
        elif record.type == "open":
            self.opened[record.stream] = record.detail["opened"]
        elif record.type == "close":
            assert record.detail["opened"] not in self.closed, "a call is closed once"
            self.closed[record.detail["opened"]] = record

    # -- who does what ---------------------------------------------------------------------------------------------

    @rule(
        stream=st.sampled_from(LIVE),
        form=st.sampled_from(FORMATS),
        samples=st.just(HOP) | st.integers(0, HOP),
        jump=st.none() | st.sampled_from([0, 0, 0, 80, HOP // 2, 3 * HOP, 7 * HOP, 59 * HOP, 61 * HOP, -1, -HOP]),
        end=st.sampled_from([False] * 9 + [True]),
    )
    def send(self, stream: str, form: AudioFormat, samples: int, jump: int | None, end: bool) -> None:
        """A frame that goes on, leaves a gap, goes back, begins again, or has another format."""
        call = self.calls.get(stream)
        start = None if jump is None else max(0, (call.samples if call else 0) + jump)
        again = call is not None and start == 0 < call.samples
        goes_on = call is None or (form == call.form and (start is None or 0 <= start - call.samples <= 60 * HOP))
        try:
            self.engine.feed(Frame(stream, form, bytes(samples * form.block_bytes), start=start, end=end), self.now_s)
        except ProtocolError:
            assert not again
            assert not goes_on
            return
        except OverloadError:
            assert call is None
            assert len(self.calls) == MOST_STREAMS
            return
        assert again or goes_on
        if again:
            self._ended(stream)
            call = None
        if call is None:
            call = self.calls[stream] = Call(self.opened[stream], form, self.now_s, start or 0)
        call.heard_s = self.now_s
        call.gaps |= start is not None and start > call.samples
        call.samples = max(call.samples, start or 0) + samples
        if end:
            self._ended(stream)

    @precondition(lambda self: FILE not in self.calls and len(self.calls) < MOST_STREAMS)
    @rule(form=st.sampled_from(FORMATS))
    def open_file(self, form: AudioFormat) -> None:
        """Somebody connects who may be told to wait."""
        self.room = True
        opened = self.engine.open(FILE, form, self.now_s, resume=self._resume)
        self.calls[FILE] = Call(opened, form, self.now_s)

    def _resume(self) -> None:
        self.room = True

    @precondition(lambda self: FILE in self.calls and self.room)
    @rule(samples=st.just(HOP) | st.integers(0, HOP))
    def send_file(self, samples: int) -> None:
        """He sends as fast as he may."""
        call = self.calls[FILE]
        payload = bytes(samples * call.form.block_bytes)
        self.room = self.engine.feed(Frame(FILE, call.form, payload), self.now_s, lossless=True)
        call.samples += samples

    @rule(stream=st.sampled_from((*LIVE, FILE)), what=st.sampled_from(["pause", "resume", "pause", "resume", "close"]))
    def operate(self, stream: str, what: str) -> None:
        """Somebody at the control socket."""
        call = self.calls.get(stream)
        try:
            if what == "close":
                self.engine.close(stream, "end", self.now_s)
            else:
                getattr(self.engine, what)(stream, self.now_s)
        except ProtocolError:
            assert call is None
            return
        assert call is not None
        if what == "close":
            self._ended(stream)
        else:
            call.paused, call.heard_s = what == "pause", self.now_s

    @rule(limit=st.integers(1, 6))
    def take(self, limit: int) -> None:
        """A run begins."""
        jobs = self.engine.take(limit)
        assert len(jobs) <= limit
        taken = [job.track for batch in [*self.flying, jobs] for job in batch]
        assert len(set(map(id, taken))) == len(taken), "a track has one window in flight at the most"
        if jobs:
            self.flying.append(jobs)

    @precondition(lambda self: self.flying)
    @rule(which=st.integers(0, 9), llr=st.none() | st.floats(-9, 9), fails=st.sampled_from([False] * 5 + [True]))
    def settle(self, which: int, llr: float | None, fails: bool) -> None:
        """A run ends, not always the one that began first, or fails."""
        jobs = self.flying.pop(which % len(self.flying))
        if fails:
            self.engine.drop(jobs, self.now_s)
        else:
            self.engine.settle(jobs, [Score(llr, 1.0) for _ in jobs], self.now_s)

    @rule(seconds=st.sampled_from([0.02, 1.0, 1.0, 4.0, IDLE_S]))
    def tick(self, seconds: float) -> None:
        """Time passes."""
        self.now_s += seconds
        self.engine.tick(self.now_s)
        for stream, call in list(self.calls.items()):
            idle = stream != FILE and not call.paused and self.now_s - call.heard_s >= IDLE_S
            assert self.engine.is_open(stream, call.opened) != idle
            if idle:
                self._ended(stream)

    def _ended(self, stream: str) -> None:
        self.ended.append(self.calls.pop(stream))

    # -- what is always true -----------------------------------------------------------------------------------------

    @invariant()
    def the_clock_of_each_track_is_the_audio_that_it_was_sent(self) -> None:
        for stream, call in self.calls.items():
            assert self.engine.is_open(stream, call.opened)
            for track in self.engine._streams[stream].tracks:
                assert track.ring.end_sample == call.samples

    @invariant()
    def what_a_track_holds_is_bounded(self) -> None:
        for stream in (*self.engine._streams.values(), *self.engine._ending.values()):
            assert all(bounded(track) for track in stream.tracks)

    @invariant()
    def the_totals_add_up(self) -> None:
        counts = self.engine.counts()
        assert counts.streams == len(self.calls) <= MOST_STREAMS
        assert counts.windows == self.verdicts.total()
        assert counts.opened == len(self.calls) + len(self.ended)
        assert counts.pending == len(self.ended) - len(self.closed)

    def teardown(self) -> None:
        """All calls end; every run comes back."""
        self.engine.close_all("drain", self.now_s)
        for stream in list(self.calls):
            self._ended(stream)
        while self.flying or (jobs := self.engine.take(100)):
            for batch in self.flying or [jobs]:
                self.engine.settle(batch, [Score(0.0, 1.0) for _ in batch], self.now_s)
            self.flying.clear()
        assert self.engine.idle
        assert {call.opened for call in self.ended} == set(self.closed), "every call is closed"
        for call in self.ended:
            self._check_close(call, self.closed[call.opened])
        assert self.engine.counts().skipped == sum(event.detail["skipped"] for event in self.closed.values())

    def _check_close(self, call: Call, close: Event) -> None:
        for channel in close.detail["channels"]:
            key = call.opened, channel["channel"]
            assert channel["windows"] == self.verdicts[key]
            assert channel["skipped"] >= self.skips[key]
            if not call.gaps and call.first == 0:
                assert channel["windows"] + channel["skipped"] == due(call.samples)


def due(samples: int) -> int:
    """Windows of so much audio from its first sample on: one a hop, and a rest of at least half of one."""
    return samples // HOP + (2 * (samples % HOP) >= HOP)


def bounded(track: Track) -> bool:
    most = track.timeline.reach_samples + LOSSLESS_SPARE_HOPS * track.timeline.hop_samples
    held = sum(len(job.window.data) for job in track._held)
    size = len(track.ring._silence)
    return (
        len(track.ring._bytes) <= most * size
        and held <= track.timeline.reach_samples * size * 2
        and len(track._read) < 9
    )


class BooksOfBlocks(Books):
    model = MODELS["blocks"]


@pytest.mark.parametrize("books", [Books, BooksOfBlocks])
def test_whatever_happens_the_books_are_kept(books):
    run_state_machine_as_test(books, settings=settings(max_examples=200, stateful_step_count=50))


class Forgetful(Engine):
    """Loses a window now and then without counting it as skipped."""

    def drop(self, jobs, now_s):  # noqa: ARG002 - as the one that it replaces
        for job in jobs:
            job.track.in_flight = False


class Chatty(Engine):
    """Says that a call is over before its last verdict."""

    def _settle_end(self, stream):
        in_flight = [track for track in stream.tracks if track.in_flight]
        for track in in_flight:
            track.in_flight = False
        super()._settle_end(stream)
        for track in in_flight:
            track.in_flight = True


class Hasty(Engine):
    """Lets a track have two windows in flight."""

    def take(self, limit, *, reserve=True):
        jobs = super().take(limit, reserve=reserve)
        for job in jobs:
            job.track.in_flight = False
        return jobs


@pytest.mark.parametrize("broken", [Forgetful, Chatty, Hasty])
def test_an_engine_that_does_not_keep_them_is_found_out(broken):
    """The control of all of the above."""
    books = type("Broken", (Books,), {"engine_of": broken})
    at_once = settings(max_examples=300, stateful_step_count=60, database=None, phases=[Phase.generate])
    with pytest.raises((AssertionError, ExceptionGroup)):
        run_state_machine_as_test(books, settings=at_once)
