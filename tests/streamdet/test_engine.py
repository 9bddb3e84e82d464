"""The engine: due windows, fairness, gaps, pauses, ends, and refusals."""

import gc
import itertools
import random
import weakref

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamdet.bundle import Audio, Calibration, Decision, FileEntry, Manifest, Model
from streamdet.engine import Engine
from streamdet.errors import ConfigError, OverloadError, ProtocolError
from streamdet.records import AudioFormat, Event, Frame, Score, Verdict
from streamdet.replay import replay_samples

MANIFEST = Manifest(
    format=1,
    name="test",
    created="2026-01-01T00:00:00Z",
    audio=Audio(rate_hz=16000, window_samples=64000, hop_samples=16000),
    model=Model(kind="window"),
    calibration=Calibration(),
    decision=Decision(alarm=2.0, clear=2.0, drift=0.1),
    provenance={},
    files={"model.onnx": FileEntry(sha256="0" * 64, bytes=0)},
)
RATE_HZ = 8000
MULAW = AudioFormat(RATE_HZ, "mulaw")


class Bench:
    """An engine, what it said, and a scorer that adds up bytes."""

    def __init__(self, **options):
        self.said = []
        self.engine = Engine(MANIFEST, self.said.append, **options)

    def feed(self, payload: bytes, stream="a", form=MULAW, now_s=0.0, lossless=False, **fields):
        return self.engine.feed(Frame(stream, form, payload, **fields), now_s, lossless=lossless)

    def score(self, limit=100, now_s=0.0):
        jobs = self.engine.take(limit)
        self.engine.settle(jobs, [Score(self.llr(job.window.data), 1.0) for job in jobs], now_s)
        return jobs

    def score_all(self):
        while self.score():
            pass

    @staticmethod
    def llr(data: bytes) -> float:
        return (sum(data) % 1000) / 1000

    def verdicts(self, stream=None):
        return [it for it in self.said if isinstance(it, Verdict) and stream in (None, it.stream)]

    def events(self, kind):
        return [it for it in self.said if isinstance(it, Event) and it.type == kind]


def audio(seconds: float, seed=0, rate_hz=RATE_HZ) -> bytes:
    return random.Random(seed).randbytes(int(seconds * rate_hz))


def seconds_of(payload: bytes, step_s=0.02):
    step = int(step_s * RATE_HZ)
    return [payload[at : at + step] for at in range(0, len(payload), step)]


def test_first_verdict_after_one_second_then_every_hop():
    bench = Bench()
    for part in seconds_of(audio(6)):
        bench.feed(part)
        bench.score()
    assert [v.end_s for v in bench.verdicts()] == [1, 2, 3, 4, 5, 6]
    assert [v.start_s for v in bench.verdicts()] == [0, 0, 0, 0, 1, 2]
    assert [v.seq for v in bench.verdicts()] == list(range(6))
    assert sum(v.skipped for v in bench.verdicts()) == 0


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 4000), min_size=1, max_size=60), st.sampled_from([8000, 11025, 16000]))
def test_splitting_the_input_differently_changes_nothing(sizes, rate_hz):
    """The same bytes give the same verdicts, whatever frames they came in."""
    form = AudioFormat(rate_hz, "mulaw")
    data = audio(5.7, rate_hz=rate_hz)

    def verdicts(cuts):
        bench, at = Bench(), 0
        for size in cuts:
            bench.feed(data[at : at + size], form=form)
            bench.score_all()
            at += size
        while at < len(data):
            bench.feed(data[at : at + 160], form=form)
            bench.score_all()
            at += 160
        bench.engine.close("a", "end", 0.0)
        bench.score_all()
        return [(v.start_s, v.end_s, v.llr, v.rolling_llr, v.p_spoof, v.state) for v in bench.verdicts()]

    assert verdicts(sizes) == verdicts([])


def test_newest_due_window_wins_and_skips_are_counted():
    bench = Bench()
    for part in seconds_of(audio(5.5)):
        bench.feed(part)
    bench.score()
    assert [(v.end_s, v.skipped) for v in bench.verdicts()] == [(5, 4)]
    assert bench.engine.counts().skipped == 4


def test_a_skipped_window_loses_no_evidence():
    """Four seconds scored at once weigh as much as four windows of one new second each."""
    slow, fast = Bench(), Bench()
    for part in seconds_of(b"\x10" * 8 * RATE_HZ):
        for bench in (slow, fast):
            bench.feed(part)
        fast.score()
        if slow.engine.counts().windows == 0 or fast.engine.counts().windows % 4 == 0:
            slow.score()
    slow.score()
    total = [bench.verdicts()[-1].rolling_llr for bench in (slow, fast)]
    assert total[0] == pytest.approx(total[1], rel=1e-9)


def test_overload_is_shared_evenly():
    """With room for a quarter of the windows, every track gets the same share."""
    bench = Bench()
    for second in range(40):
        for stream in range(20):
            bench.feed(audio(1, seed=second), stream=f"s{stream}")
        bench.score(limit=5)
    windows = [len(bench.verdicts(f"s{stream}")) for stream in range(20)]
    assert max(windows) - min(windows) <= 1
    for stream in range(20):
        found = bench.verdicts(f"s{stream}")
        ends = [0.0] + [v.end_s for v in found]
        assert all(b - a <= 5 for a, b in itertools.pairwise(ends))
        assert sum(v.skipped + 1 for v in found) == found[-1].end_s


def overloaded(tracks: int, seconds: int, places: int) -> Bench:
    """Every track a second of audio each second, and room for `places` windows in that time."""
    bench = Bench()
    for second in range(seconds):
        for stream in range(tracks):
            bench.feed(audio(1, seed=second), stream=f"s{stream}")
        bench.score(limit=places)
    return bench


def test_calls_that_end_all_at_once_do_not_hold_up_those_that_go_on():
    """Of 40 tracks 30 end; there is room for 12 windows a second, and within two of theirs the others are normal."""
    bench = overloaded(40, 12, places=12)
    for stream in range(10, 40):
        bench.feed(audio(0.5), stream=f"s{stream}")
        bench.engine.close(f"s{stream}", "end", 0.0)
    for second in range(12, 20):
        for stream in range(10):
            bench.feed(audio(1, seed=second), stream=f"s{stream}")
        bench.score(limit=12)
    for stream in range(10):
        skipped = [v.skipped for v in bench.verdicts(f"s{stream}") if v.end_s > 12]
        assert len(skipped) >= 7
        assert not any(skipped[2:])


@pytest.mark.parametrize("places", [1, 4, 16])
def test_ended_calls_get_their_last_words_whoever_else_talks(places):
    bench = overloaded(40, 3, places)
    for stream in range(20, 40):
        bench.engine.close(f"s{stream}", "end", 0.0)
    reasons = []
    for second in range(3, 3 + 128 // places):
        for stream in range(20):
            bench.feed(audio(1, seed=second), stream=f"s{stream}")
        reasons += [job.track.stream.reason for job in bench.score(limit=places)]
    # They stand among the others until they are come upon, which is within the first 20 of these.
    assert reasons[-96:].count("end") == 6


def test_the_more_ended_calls_wait_the_more_of_them_are_served(monkeypatch):
    monkeypatch.setattr("streamdet.line.ENDED_MOST", 20)
    bench = overloaded(40, 3, places=4)
    for stream in range(10, 40):
        bench.engine.close(f"s{stream}", "end", 0.0)
    bench.score(limit=8)  # finds them among those who stood in line
    for stream in range(10):
        bench.feed(audio(1), stream=f"s{stream}")
    assert {job.track.stream.reason for job in bench.score(limit=8)} == {"end"}


def test_no_track_is_in_a_batch_twice():
    bench = Bench()
    bench.feed(audio(1))
    first = bench.engine.take(8)
    bench.feed(audio(1))
    assert bench.engine.take(8) == []
    bench.engine.settle(first, [Score(0.0, 1.0)], 0.0)
    assert len(bench.engine.take(8)) == 1


def test_lossless_skips_nothing_and_pauses_its_reader():
    resumed = []
    bench = Bench()
    bench.engine.open("file", MULAW, 0.0, resume=lambda: resumed.append(True))
    more = [bench.feed(audio(0.5, seed=at), stream="file", lossless=True) for at in range(4)]
    assert more == [True, True, True, False]
    bench.score()
    assert resumed == [True]
    for at in range(20):
        bench.feed(audio(0.5, seed=at), stream="file", lossless=True)
        bench.score()
    bench.engine.close("file", "end", 0.0)
    bench.score_all()
    assert [v.end_s for v in bench.verdicts()] == list(range(1, 13))
    assert sum(v.skipped for v in bench.verdicts()) == 0


def test_lossless_gets_at_least_one_place_and_live_goes_first():
    bench = Bench()
    for at in range(3):
        bench.engine.open(f"file{at}", MULAW, 0.0, resume=lambda: None)
        bench.feed(audio(1), stream=f"file{at}", lossless=True)
    for at in range(3):
        bench.feed(audio(1), stream=f"live{at}")
    batch = [job.track.stream.name for job in bench.engine.take(3)]
    assert batch == ["live0", "live1", "file0"]


def test_channels_are_tracks_of_their_own():
    stereo = AudioFormat(RATE_HZ, "s16le", 2)
    left, right = b"\x01\x00" * RATE_HZ, b"\x00\x02" * RATE_HZ
    payload = b"".join(left[at : at + 2] + right[at : at + 2] for at in range(0, len(left), 2))
    bench = Bench()
    bench.feed(payload, form=stereo)
    jobs = bench.engine.take(8)
    assert [job.window.data for job in jobs] == [left, right]


def test_gap_of_known_length_advances_the_clock():
    bench = Bench()
    bench.feed(audio(1), start=0)
    bench.score_all()
    bench.feed(audio(1), start=2 * RATE_HZ)
    jobs = bench.engine.take(8)
    assert jobs[0].window.end_sample == 3 * RATE_HZ
    assert jobs[0].window.data[RATE_HZ : 2 * RATE_HZ] == b"\xff" * RATE_HZ
    assert [(e.at_s, e.detail) for e in bench.events("gap")] == [(1.0, {"seconds": 1.0})]


@given(st.integers(1, 60 * RATE_HZ), st.floats(0.1, 5.9))
@settings(max_examples=50, deadline=None)
def test_windows_wholly_inside_a_gap_are_no_skips(missing, before_s):
    """However long the gap: nothing is counted as skipped, and the audio before it is in a window."""
    before = audio(before_s)
    bench = Bench()
    for part in seconds_of(before):
        bench.feed(part)
        bench.score_all()
    bench.feed(b"", start=len(before) + missing)
    bench.score_all()
    bench.feed(audio(1))
    bench.score_all()
    assert sum(v.skipped for v in bench.verdicts()) == 0
    ends = [v.end_s for v in bench.verdicts()]
    assert ends == sorted(ends)
    assert max(v.end_s for v in bench.verdicts() if v.start_s < before_s) >= len(before) / RATE_HZ


def test_any_frame_may_be_the_first():
    """A daemon that restarted in mid-call takes the sender's clock as it is."""
    bench = Bench()
    bench.feed(audio(1), start=100 * RATE_HZ)
    bench.score()
    assert bench.verdicts()[0].end_s == 101
    assert bench.events("gap") == []


def test_a_jump_of_seq_is_a_gap_of_unknown_length():
    bench = Bench()
    bench.feed(audio(0.02), seq=0)
    bench.feed(audio(0.02), seq=5)
    assert bench.events("gap")[0].detail == {"seconds": None, "frames": 4}


def test_start_wins_over_seq():
    bench = Bench()
    bench.feed(audio(0.02), seq=0, start=0)
    bench.feed(audio(0.02), seq=0, start=160)
    assert bench.events("close") == []
    assert bench.events("gap") == []


@pytest.mark.parametrize("again", [{"start": 0}, {"seq": 0}])
def test_beginning_again_closes_and_opens(again):
    bench = Bench()
    bench.feed(audio(1), **again)
    bench.feed(audio(1), **again)
    bench.score_all()
    assert [e.detail["reason"] for e in bench.events("close")] == ["restart"]
    opened = [e.detail["opened"] for e in bench.events("open")]
    assert len(set(opened)) == 2
    assert {v.opened for v in bench.verdicts()} == set(opened)
    assert [v.seq for v in bench.verdicts()] == [0, 0]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"form": AudioFormat(16000, "mulaw")}, "format: 16000 Hz mulaw, 1 channel.*expected 8000 Hz mulaw"),
        ({"start": 100}, "start: 100, expected 8000 or more"),
        ({"start": 62 * RATE_HZ}, "start: 496000, expected a gap of at most 60 s"),
        ({"seq": 3}, "seq: 3, expected 5 or more"),
    ],
)
def test_refusals_name_field_value_and_expectation(fields, message):
    bench = Bench()
    bench.feed(audio(1), seq=4)
    with pytest.raises(ProtocolError, match=message):
        bench.feed(audio(0.02), **fields)
    assert bench.engine.status()[0]["seconds"] == 1.0


def test_too_much_and_half_samples_are_refused():
    bench = Bench()
    with pytest.raises(ProtocolError, match="payload bytes: 8001, expected at most 8000: one hop"):
        bench.feed(bytes(8001))
    with pytest.raises(ProtocolError, match="payload bytes: 3, expected a multiple of 2"):
        bench.feed(bytes(3), form=AudioFormat(RATE_HZ, "s16le"))
    assert not bench.engine.is_open("a")


def test_a_refused_frame_does_not_postpone_the_idle_close():
    bench = Bench(idle_timeout_s=10)
    bench.feed(audio(1), now_s=0.0)
    with pytest.raises(ProtocolError):
        bench.feed(audio(1), form=AudioFormat(16000, "mulaw"), now_s=9.0)
    bench.engine.tick(9.9)
    assert bench.engine.is_open("a")
    bench.engine.tick(10.0)
    assert not bench.engine.is_open("a")
    bench.score_all()
    assert bench.events("close")[0].detail["reason"] == "idle"


def test_pause_drops_audio_unseen_and_keeps_the_clock():
    bench = Bench()
    bench.feed(audio(1))
    bench.engine.pause("a", 0.0)
    bench.engine.pause("a", 0.0)
    bench.feed(audio(1))
    bench.engine.tick(1000.0)
    bench.engine.resume("a", 1000.0)
    bench.feed(audio(1), now_s=1000.0)
    data = bench.engine.take(8)[0].window.data
    assert data[RATE_HZ : 2 * RATE_HZ] == b"\xff" * RATE_HZ
    assert [len(bench.events(kind)) for kind in ("paused", "resumed")] == [1, 1]


@pytest.mark.parametrize(("rest_s", "ends"), [(0.4, [1.0]), (0.5, [1.0, 1.5]), (0.9, [1.0, 1.9])])
def test_a_rest_of_half_a_hop_is_a_last_window(rest_s, ends):
    bench = Bench()
    bench.feed(audio(1))
    bench.feed(audio(rest_s), end=True)
    bench.score_all()
    assert [v.end_s for v in bench.verdicts()] == ends
    assert bench.events("close")[0].detail["reason"] == "end"


def test_close_waits_for_the_last_verdict_and_sums_up():
    bench = Bench()
    bench.feed(audio(1))
    in_flight = bench.engine.take(8)
    bench.feed(audio(1))
    bench.engine.close("a", "drain", 0.0)
    assert bench.events("close") == []
    bench.engine.settle(in_flight, [Score(0.5, 1.0)], 0.0)
    assert not bench.engine.idle
    bench.score_all()
    assert bench.engine.idle
    assert isinstance(bench.said[-1], Event)
    detail = bench.said[-1].detail
    assert (detail["reason"], detail["seconds"], detail["windows"]) == ("drain", 2.0, 2)


@pytest.mark.parametrize("ending", ["end", "close"])
def test_a_call_that_has_ended_leaves_at_once_and_waits_for_no_garbage_collector(ending):
    bench = Bench()
    bench.feed(audio(1) * 2, form=AudioFormat(RATE_HZ, "mulaw", 2))
    (first, second) = bench.score()
    tracks = [weakref.ref(first.track), weakref.ref(second.track)]
    del first, second
    gc.collect()
    gc.disable()
    try:
        if ending == "end":
            bench.feed(b"", form=AudioFormat(RATE_HZ, "mulaw", 2), end=True)
        else:
            bench.engine.close("a", "drain", 0.0)
        assert bench.events("close")
        assert [track() for track in tracks] == [None, None]
    finally:
        gc.enable()


def test_an_id_that_is_open_is_refused():
    bench = Bench()
    bench.feed(audio(1))
    with pytest.raises(ProtocolError, match="not open already"):
        bench.engine.open("a", MULAW, 0.0, resume=lambda: None)
    bench.engine.open("file", MULAW, 0.0, resume=lambda: None)
    with pytest.raises(ProtocolError, match="another kind of connection"):
        bench.feed(audio(1), stream="file")


def test_one_stream_too_many_is_refused():
    bench = Bench(max_streams=1)
    bench.feed(audio(1))
    with pytest.raises(OverloadError, match="at most 1"):
        bench.feed(audio(1), stream="b")


def test_errors_are_reported_at_most_once_a_second():
    bench = Bench()
    bench.feed(audio(1))
    for at in range(20):
        bench.engine.error("a", "bad header", at / 10)
    bench.engine.error("nobody", "bad header", 0.0)
    assert len(bench.events("error")) == 2


def test_state_changes_are_events():
    bench = Bench()
    for part in seconds_of(audio(6)):
        bench.feed(part)
        jobs = bench.engine.take(1)
        bench.engine.settle(jobs, [Score(-5.0, 1.0) for _ in jobs], 0.0)
    changes = [(e.detail["from"], e.detail["to"], e.at_s) for e in bench.events("state")]
    assert changes == [("listening", "bonafide", 1.0), ("bonafide", "spoof", 2.0)]


def test_lag_counts_from_the_reading_of_the_last_byte():
    bench = Bench()
    bench.feed(audio(0.98), now_s=1.0)
    bench.feed(audio(0.02), now_s=2.0)
    bench.feed(audio(0.5), now_s=2.5)
    bench.score(now_s=3.0)
    assert bench.verdicts()[0].lag_ms == pytest.approx(1000)


def test_a_reader_is_never_stopped_before_a_window_is_due():
    """With 3 s before the first window, two hops wait long before anything can be taken."""
    bench = Bench(min_window_s=3.0)
    resumed = []
    bench.engine.open("a", MULAW, 0.0, resume=lambda: resumed.append(True))
    going = [bench.feed(audio(1), lossless=True) for _ in range(3)]
    assert going[:2] == [True, True]
    bench.score_all()
    assert going[2] or resumed
    assert [v.end_s for v in bench.verdicts()] == [3]


def test_with_one_place_a_batch_files_and_calls_take_turns():
    bench = Bench()
    bench.engine.open("file", MULAW, 0.0, resume=lambda: None)
    for _ in range(2):
        bench.feed(audio(1), "file", lossless=True)
    served = []
    for second in range(4):
        for call in ("l0", "l1"):
            bench.feed(audio(1, seed=second), call)
        served += [job.track.stream.name for job in bench.score(limit=1)]
    assert {"file", "l0", "l1"} <= set(served)


def test_beginning_again_may_bring_another_format():
    bench = Bench()
    bench.feed(audio(1), start=0)
    bench.feed(bytes(320), form=AudioFormat(RATE_HZ, "s16le"), start=0)
    assert [event.detail["encoding"] for event in bench.events("open")] == ["mulaw", "s16le"]
    bench.score_all()
    assert bench.events("close")[0].detail["reason"] == "restart"


# -- an adaptive hop -------------------------------------------------------------------------------------------------


class Told(Bench):
    """A bench whose windows have LLRs by where they end."""

    def __init__(self, llr_at, **options):
        super().__init__(adaptive=True, **options)
        self.llr_at = llr_at

    def score(self, limit=100, now_s=0.0):
        jobs = self.engine.take(limit)
        scores = [Score(self.llr_at(job.window.end_sample / job.window.format.rate_hz), 1.0) for job in jobs]
        self.engine.settle(jobs, scores, now_s)
        return jobs

    def ends(self):
        return [verdict.end_s for verdict in self.verdicts()]


def test_a_settled_voice_is_scored_every_other_hop_and_a_doubtful_one_every_half():
    bench = Told(lambda end_s: 4.0 if end_s <= 12 else -1.5)
    for part in seconds_of(audio(20)):
        bench.feed(part)
        bench.score()
    ends = bench.ends()
    assert ends[:5] == [1, 2, 3, 4, 5]  # bona fide from the first second on, settled four later
    assert [end for end in ends if 5 <= end <= 13] == [5, 7, 9, 11, 13]
    assert set(np.diff(ends)) == {0.5, 1.0, 2.0}
    alarm = next(at for at, v in enumerate(bench.verdicts()) if v.state == "spoof")
    assert ends[alarm] - ends[alarm - 1] == 0.5
    assert set(np.diff(ends[alarm:])) == {1.0}
    assert sum(v.skipped for v in bench.verdicts()) == 0


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.one_of(st.none(), st.floats(-5, 5)), min_size=60, max_size=60),
    st.floats(0.3, 14),
    st.sampled_from([8000, 11025, 16000]),
    st.integers(0, 2**31),
)
def test_live_lossless_and_replay_hear_the_same_windows(llrs, seconds, rate_hz, seed):
    """Every second counts once, windows end at half hops, and only the last may end elsewhere."""
    rng, form, samples = (
        random.Random(seed),
        AudioFormat(rate_hz, "f32le"),
        np.zeros((int(seconds * rate_hz), 1), "<f4"),
    )

    def llr_at(end_s):
        return llrs[round(4 * end_s)]

    def heard(verdicts):
        return [(v.start_s, v.end_s, v.llr, v.rolling_llr, v.state, v.skipped) for v in verdicts]

    said = []
    for lossless in (False, True):
        bench, at = Told(llr_at), 0
        if lossless:
            bench.engine.open("a", form, 0.0, resume=lambda: None)
        while at < len(samples):
            size = rng.randint(1, rate_hz // 3)
            while not bench.feed(samples[at : at + size].tobytes(), form=form, lossless=lossless):
                bench.score()
                at += size
                size = 0
            at += size
            if not lossless or rng.random() < 0.3:
                bench.score_all()
        bench.engine.close("a", "end", 0.0)
        bench.score_all()
        said.append(heard(bench.verdicts()))
        ends = np.array([0, *bench.ends()])
        assert (np.diff(ends) >= 0.5 - 1e-3).all()
        assert np.diff(ends[2:]).max(initial=0) <= 2.0 + 1e-3
        assert (np.abs(2 * ends[:-1] - np.round(2 * ends[:-1])) < 1e-3).all()
        assert len(samples) / rate_hz - ends[-1] < 0.5 + 1e-3
        assert bench.engine.idle
    replayed = replay_samples(
        "a",
        samples,
        rate_hz,
        MANIFEST,
        lambda windows: [Score(llr_at(it.end_sample / rate_hz), 1.0) for it in windows],
        adaptive=True,
    )
    assert said[0] == said[1] == heard([it for it in replayed if isinstance(it, Verdict)])


def test_what_is_not_due_by_choice_is_no_skip():
    settled, doubtful = Told(lambda _: 4.0), Told(lambda _: 0.0, prior_spoof=0.5)
    for bench in (settled, doubtful):
        for part in seconds_of(audio(8)):
            bench.feed(part)
            bench.score()
        before = len(bench.verdicts())
        for part in seconds_of(audio(4, seed=1)):
            bench.feed(part)  # and nothing is scored
        bench.score()
        last = bench.verdicts()[before]
        assert bench.verdicts()[before - 1].end_s in (7, 8)
        # Settled, windows at 9 and 11 s were due: one of them was skipped. Doubtful, eight were, the last one taken.
        assert last.skipped == (1 if bench is settled else 7)
        assert last.end_s == 12


def test_a_settled_call_that_ends_is_heard_to_its_end():
    bench = Told(lambda _: 4.0)
    for part in seconds_of(audio(10.8)):
        bench.feed(part)
        bench.score()
    bench.engine.close("a", "end", 0.0)
    bench.score_all()
    assert bench.ends()[-2:] == [9, 10.8]


def test_a_gap_in_a_settled_call_cuts_what_was_said_before_it():
    bench = Told(lambda _: 4.0)
    for part in seconds_of(audio(10)):
        bench.feed(part)
        bench.score()
    assert bench.ends()[-1] == 9
    bench.feed(audio(0.02), start=40 * RATE_HZ)
    bench.score_all()
    assert bench.ends()[-1] == 13.5  # the newest that still holds something from before 10 s
    assert sum(v.skipped for v in bench.verdicts()) == 0
    for part in seconds_of(audio(3)):
        bench.feed(part)
        bench.score()
    assert bench.ends()[-1] == 42


def test_blocks_lie_on_hops_so_their_hop_is_fixed():
    model = Model(kind="block", output="sums", head="head.onnx", left_samples=8000)
    with pytest.raises(ConfigError, match=r"scoring\.hop: 'adaptive', expected fixed"):
        Engine(msgspec.structs.replace(MANIFEST, model=model), lambda _: None, adaptive=True)


# -- runs that fail ----------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from(["feed", "take", "settle", "drop"]), min_size=5, max_size=120),
    st.sampled_from(["live", "lossless"]),
)
def test_whatever_fails_every_hop_is_a_verdict_or_a_skip_and_seq_has_no_hole(steps, kind):
    bench, taken, fed = Bench(), [], 0
    lossless = kind == "lossless"
    if lossless:
        bench.engine.open("a", MULAW, 0.0, resume=lambda: None)
    for step in steps:
        if step == "feed" and not (lossless and fed - bench.engine.counts().windows > 4):
            bench.feed(audio(0.5, seed=fed), lossless=lossless)
            fed += 1
        elif step == "take":
            taken += bench.engine.take(1)
        elif step == "settle" and taken:
            bench.engine.settle([taken.pop()], [Score(0.5, 1.0)], 0.0)
        elif step == "drop" and taken:
            bench.engine.drop([taken.pop()], 0.0)
    if taken:
        bench.engine.drop(taken, 0.0)
    bench.engine.abandon("drain", 0.0)
    said = bench.verdicts()
    assert [it.seq for it in said] == list(range(len(said)))
    hops, rest = divmod(fed, 2)
    ends = [*range(1, hops + 1), *([hops + 0.5] if rest else [])]
    counts = bench.engine.counts()
    assert counts.windows == len(said)
    assert counts.windows + counts.skipped == len(ends)
    for close in bench.events("close"):
        assert (close.detail["windows"], close.detail["skipped"]) == (len(said), counts.skipped)
    assert len(bench.events("close")) == len(bench.events("open"))
    assert bench.engine.take(100) == []


def test_what_a_dropped_window_had_that_was_new_is_news_in_the_next():
    """Four seconds of which three failed weigh as much as four seconds that were skipped."""
    failing, late = Bench(), Bench()
    for number, part in enumerate(seconds_of(b"\x10" * 4 * RATE_HZ, 1.0)):
        failing.feed(part)
        late.feed(part)
        if number < 3:
            failing.engine.drop(failing.engine.take(1), 0.0)
    failing.score()
    late.score()
    (one,), (other,) = failing.verdicts(), late.verdicts()
    assert (one.skipped, one.rolling_llr, one.total_speech_s) == (
        other.skipped,
        other.rolling_llr,
        other.total_speech_s,
    )


def test_a_dropped_window_makes_room_for_a_lossless_reader():
    resumed = []
    bench = Bench()
    bench.engine.open("a", MULAW, 0.0, resume=lambda: resumed.append(True))
    while bench.feed(audio(1), lossless=True):
        pass
    bench.engine.drop(bench.engine.take(1), 0.0)
    bench.engine.drop(bench.engine.take(1), 0.0)
    assert resumed


def test_a_score_that_comes_after_the_end_is_not_told():
    bench = Bench()
    bench.feed(audio(1))
    jobs = bench.engine.take(1)
    bench.engine.abandon("drain", 0.0)
    told = len(bench.said)
    bench.engine.settle(jobs, [Score(0.5, 1.0)], 0.0)
    bench.engine.drop(jobs, 0.0)
    assert len(bench.said) == told
    assert bench.engine.counts().skipped == 1
    assert bench.engine.idle


# -- streams whose frames are missed, and streams that were under way --------------------------------------------------


@pytest.mark.parametrize("kind", ["live", "lossless"])
def test_a_stream_without_frames_stalls_once_and_the_next_frame_ends_it(kind):
    bench, lossless = Bench(stalled_after_s=2.0), kind == "lossless"
    if lossless:
        bench.engine.open("a", MULAW, 0.0, resume=lambda: None)
    bench.feed(audio(0.5), now_s=0.0, lossless=lossless)
    for now_s in (1.0, 1.9):
        bench.engine.tick(now_s)
    assert bench.events("stalled") == []
    assert not bench.engine.status()[0]["stalled"]
    for now_s in (2.0, 3.0, 4.0):
        bench.engine.tick(now_s)
    assert [(e.at_s, e.detail) for e in bench.events("stalled")] == [(0.5, {"seconds": 2.0})]
    assert bench.engine.status()[0]["stalled"]
    bench.feed(audio(0.5), now_s=4.5, lossless=lossless)
    assert [(e.at_s, e.detail) for e in bench.events("resumed")] == [(0.5, {"stalled_s": 4.5})]
    assert not bench.engine.status()[0]["stalled"]
    bench.engine.tick(6.5)
    assert len(bench.events("stalled")) == 2


def test_a_paused_stream_does_not_stall():
    bench = Bench(stalled_after_s=2.0)
    bench.feed(audio(0.5), now_s=0.0)
    bench.engine.pause("a", 0.0)
    bench.engine.tick(100.0)
    assert bench.events("stalled") == []
    bench.engine.resume("a", 100.0)
    bench.engine.tick(101.0)
    assert bench.events("stalled") == []


def test_a_pause_ends_a_stall_without_a_word_of_its_own():
    bench = Bench(stalled_after_s=2.0)
    bench.feed(audio(0.5), now_s=0.0)
    bench.engine.tick(3.0)
    bench.engine.pause("a", 3.0)
    assert not bench.engine.status()[0]["stalled"]
    bench.feed(audio(0.5), now_s=4.0)
    bench.engine.resume("a", 5.0)
    assert [e.detail for e in bench.events("resumed")] == [{}]


def test_a_reader_that_was_told_to_wait_does_not_stall():
    bench = Bench(stalled_after_s=2.0)
    bench.engine.open("a", MULAW, 0.0, resume=lambda: None)
    while bench.feed(audio(1), lossless=True):
        pass
    bench.engine.tick(100.0)
    assert bench.events("stalled") == []
    bench.score(now_s=101.0)
    bench.score(now_s=101.0)
    bench.engine.tick(102.0)
    assert bench.events("stalled") == []
    bench.engine.tick(103.0)
    assert len(bench.events("stalled")) == 1


def test_a_connection_without_any_audio_stalls_too():
    bench = Bench(stalled_after_s=2.0)
    bench.engine.open("a", MULAW, 0.0, resume=lambda: None, start=3 * RATE_HZ)
    bench.engine.tick(2.0)
    assert [(e.at_s, e.detail) for e in bench.events("stalled")] == [(3.0, {"seconds": 2.0})]


@pytest.mark.parametrize(
    ("fields", "from_s"),
    [
        ({"start": 0}, 0.0),
        ({"start": 5 * RATE_HZ}, 5.0),
        ({"seq": 0}, 0.0),
        ({"seq": 7}, None),
        ({}, None),
        ({"seq": 7, "start": 4000}, 0.5),
    ],
)
def test_the_open_event_says_whether_a_stream_was_under_way(fields, from_s):
    bench = Bench()
    bench.feed(audio(0.5), **fields)
    (opened,) = bench.events("open")
    assert (opened.detail["continued_from_s"], opened.at_s) == (from_s, from_s or 0.0)


def test_a_lossless_stream_goes_on_where_an_earlier_connection_left_off():
    bench = Bench()
    bench.engine.open("a", MULAW, 0.0, resume=lambda: None, start=10 * RATE_HZ + 2000)
    for part in seconds_of(audio(2)):
        bench.feed(part, lossless=True)
        bench.score_all()
    assert bench.events("open")[0].detail["continued_from_s"] == 10.25
    assert [(v.seq, v.start_s, v.end_s) for v in bench.verdicts()] == [(0, 10.25, 12.0)]
    assert bench.engine.status()[0]["seconds"] == 2.0


def test_at_the_end_no_window_gives_way_to_a_newer_one_unless_its_track_was_behind():
    bench = Bench()
    for part in seconds_of(audio(3.2)):
        bench.feed(part, stream="behind")
    bench.score()
    bench.feed(audio(1), stream="calm")
    for part in seconds_of(audio(1.8)):
        bench.feed(part, stream="behind")
    bench.engine.keep_windows()
    for _ in range(3):
        bench.feed(audio(1), stream="calm")
    bench.feed(audio(1), stream="new")
    bench.feed(audio(1), stream="new")
    bench.engine.close_all("drain", 0.0)
    bench.score_all()
    assert [(it.end_s, it.skipped) for it in bench.verdicts("calm")] == [(1, 0), (2, 0), (3, 0), (4, 0)]
    assert [(it.end_s, it.skipped) for it in bench.verdicts("new")] == [(1, 0), (2, 0)]
    assert [(it.end_s, it.skipped) for it in bench.verdicts("behind")] == [(3, 2), (5, 1)]
