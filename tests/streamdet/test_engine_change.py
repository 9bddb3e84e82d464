"""Another bundle under open calls: what stays, what is cut anew, and that windows hold their own audio and no other."""

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamdet.bundle import Audio, Calibration, Decision, FileEntry, Manifest, Model
from streamdet.engine import Engine
from streamdet.errors import ConfigError
from streamdet.records import AudioFormat, Event, Frame, Score, Verdict

RATE_HZ = 8000
MULAW = AudioFormat(RATE_HZ, "mulaw")
# Sixty seconds in which no two stretches are alike.
SAID = np.random.default_rng(5).integers(0, 255, 60 * RATE_HZ, dtype=np.uint8).tobytes()
SETTINGS = {
    "prior_spoof": None,
    "idle_timeout_s": 10.0,
    "stalled_after_s": 2.0,
    "max_streams": 1000,
    "min_window_s": 1.0,
    "adaptive": False,
}


def manifest(name="old", window_s=4.0, hop_s=1.0, rate_hz=16_000, blocks=False, **decision) -> Manifest:
    digest = (name.encode().hex() + 64 * "0")[:64]
    model = Model(kind="window")
    if blocks:
        model = Model(kind="block", output="sums", head="head.onnx", left_samples=rate_hz // 2)
    return Manifest(
        format=1,
        name=name,
        created="2026-01-01T00:00:00Z",
        audio=Audio(rate_hz, int(window_s * rate_hz), int(hop_s * rate_hz)),
        model=model,
        calibration=Calibration(),
        decision=Decision(**{"alarm": 2.0, "clear": 2.0, **decision}),
        provenance={},
        files={name: FileEntry(sha256=digest, bytes=0) for name in ("model.onnx", "head.onnx")},
    )


class Bench:
    """An engine, and a track whose audio is known: no two stretches of it are alike."""

    def __init__(self, first: Manifest, *, lossless: bool = False, start: int = 0, **options) -> None:
        self.said: list = []
        self.engine = Engine(first, self.said.append, **options)
        self.lossless, self.start = lossless, start
        self.truth = bytearray(start)
        self._rng = np.random.default_rng(5)
        if lossless:
            self.engine.open("a", MULAW, 0.0, resume=lambda: None, start=start)

    @property
    def now_s(self) -> float:
        return len(self.truth) / RATE_HZ

    def feed(self, samples: int) -> bool:
        """Say something; False when the engine wants no more."""
        payload = self._rng.integers(0, 255, min(samples, self.engine.hop_bytes(MULAW)), dtype=np.uint8).tobytes()
        frame = Frame("a", MULAW, payload, start=None if self.lossless else len(self.truth))
        self.truth += payload
        return self.engine.feed(frame, self.now_s, lossless=self.lossless)

    def gap(self, samples: int) -> None:
        """The next frame comes this much later."""
        self.truth += b"\xff" * samples

    def take(self):
        """A window, which must hold what was said, and nothing else."""
        jobs = self.engine.take(1)
        for window in (job.window for job in jobs):
            length = window.end_sample - window.start_sample
            assert 0 < length <= 4 * RATE_HZ
            assert length <= len(window.data)
            assert window.start_sample >= self.start
            assert window.data == self.truth[window.end_sample - len(window.data) : window.end_sample]
            assert all(window.start_sample < end <= window.end_sample for end in window.block_ends)
            assert window.block_ends[-1:] in ((), (window.end_sample,))
        return jobs

    def settle(self, jobs, model=None):
        self.engine.settle(jobs, [Score(0.5, 1.0) for _ in jobs], self.now_s, model=model)

    def score(self, model=None):
        while jobs := self.take():
            self.settle(jobs, model)

    def talk(self, seconds: float, model=None):
        for _ in range(round(50 * seconds)):
            self.feed(RATE_HZ // 50)
            self.score(model)

    def change(self, to: Manifest, **changes):
        self.engine.change(to, self.now_s, **{**SETTINGS, **changes})

    @property
    def verdicts(self):
        return [it for it in self.said if isinstance(it, Verdict)]


MANIFESTS = [
    manifest(),
    manifest("same-grid"),
    manifest("short", window_s=2.0),
    manifest("often", hop_s=0.5),
    manifest("slow", hop_s=2.0),
    manifest("other-rate", rate_hz=8_000, window_s=3.0, hop_s=1.0),
    manifest("blocks", blocks=True),
    manifest("few-blocks", window_s=2.0, blocks=True),
]
STEPS = st.one_of(
    st.tuples(st.just("feed"), st.integers(1, 8000)),
    st.tuples(st.just("take"), st.just(0)),
    st.tuples(st.just("settle"), st.just(0)),
    st.tuples(st.just("drop"), st.just(0)),
    st.tuples(st.just("gap"), st.integers(1, 3 * RATE_HZ)),
    st.tuples(st.just("change"), st.integers(0, len(MANIFESTS) - 1)),
    st.tuples(st.just("adaptive"), st.sampled_from([0, 2, 3, 4])),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(STEPS, min_size=5, max_size=80), st.booleans(), st.sampled_from([0, 12_345]))
def test_whatever_bundle_comes_a_track_goes_on(steps, lossless, start):
    bench, taken, full = Bench(MANIFESTS[0], lossless=lossless, start=start), [], False
    for kind, value in steps:
        if kind == "feed" and not full:
            full = not bench.feed(value)
        elif kind == "gap" and not lossless:
            bench.gap(value)
        elif kind == "take":
            taken += bench.take()
        elif kind == "settle" and taken:
            bench.settle([taken.pop()])
        elif kind == "drop" and taken:
            bench.engine.drop([taken.pop()], bench.now_s)
        elif kind in ("change", "adaptive"):
            bench.change(MANIFESTS[value], adaptive=kind == "adaptive")
        full = full and lossless and bench.engine.is_open("a") and bench.engine._streams["a"].full
    bench.settle(taken)
    if bench.engine.is_open("a"):
        bench.engine.close("a", "end", bench.now_s)
    bench.score()
    ends = [it.end_s for it in bench.verdicts]
    assert ends == sorted(set(ends))
    assert [it.seq for it in bench.verdicts] == list(range(len(ends)))
    assert len({it.opened for it in bench.verdicts}) <= 1
    assert bench.engine.idle
    assert bench.engine.take(9) == []


@pytest.mark.parametrize("lossless", [False, True])
@pytest.mark.parametrize("to", MANIFESTS[1:], ids=lambda made: made.name)
def test_a_track_keeps_its_clock_and_count_and_goes_on_at_the_new_hops(to, lossless):
    bench = Bench(MANIFESTS[0], lossless=lossless)
    bench.talk(5.3, "old")
    bench.change(to)
    bench.talk(6.0, "new")
    hop_s, window_s = to.audio.hop_s, to.audio.window_s
    assert [it.end_s for it in bench.verdicts if it.model == "old"] == [1, 2, 3, 4, 5]
    new = [it for it in bench.verdicts if it.model == "new"]
    expected = [number * hop_s for number in range(1, 30) if 5 < number * hop_s <= 11.3]
    assert [it.end_s for it in new] == expected
    assert [it.seq for it in bench.verdicts] == list(range(len(bench.verdicts)))
    assert len({it.opened for it in bench.verdicts}) == 1
    assert all(it.end_s - it.start_s == window_s for it in new[2:])
    assert sum(it.skipped for it in bench.verdicts) == 0
    assert bench.engine.status()[0]["seconds"] == pytest.approx(11.3)


def test_the_verdict_names_the_model_that_scored():
    bench = Bench(MANIFESTS[0])
    bench.feed(RATE_HZ)
    jobs = bench.take()
    bench.change(MANIFESTS[1])
    bench.settle(jobs, model=MANIFESTS[0].model_id)
    bench.feed(RATE_HZ)
    bench.score()
    assert [it.model for it in bench.verdicts] == [MANIFESTS[0].model_id, MANIFESTS[1].model_id]


def test_sums_of_another_model_are_forgotten_also_those_that_come_later():
    old = manifest("old-blocks", blocks=True)
    bench = Bench(old)

    def score(jobs):
        (job,) = jobs
        sums = tuple(np.full(8, end, np.float32) for end in job.window.block_ends)
        bench.engine.settle(jobs, [Score(0.5, 1.0, sums)], bench.now_s)
        return job.window

    for _ in range(3):
        bench.feed(RATE_HZ)
        window = score(bench.take())
    assert [known is not None for known in window.sums] == [True, True, False]
    bench.feed(RATE_HZ)
    in_flight = bench.take()
    bench.change(manifest("new-blocks", blocks=True))
    score(in_flight)
    bench.feed(RATE_HZ)
    assert [known is not None for known in score(bench.take()).sums] == [False] * 4
    bench.feed(RATE_HZ)
    bench.change(manifest("new-blocks", blocks=True, alarm=1.0))  # the same model, another threshold
    assert [known is not None for known in score(bench.take()).sums] == [True] * 3 + [False]


def test_the_state_and_its_evidence_go_on_under_new_thresholds():
    bench = Bench(manifest(rolling_s=10.0))
    bench.talk(5.0)
    before = bench.engine.status()[0]
    for to in (manifest("new", rolling_s=10.0), manifest("half", window_s=2.0, rolling_s=10.0)):
        bench.change(to)
        after = bench.engine.status()[0]
        assert {key: after[key] for key in ("state", "state_since_s", "p_spoof", "windows")} == {
            key: before[key] for key in ("state", "state_since_s", "p_spoof", "windows")
        }
    bench.feed(RATE_HZ)
    bench.score()
    # Six seconds of 0.5, in windows of 2 s: as if it had been this bundle from the start.
    alone = Bench(manifest("half", window_s=2.0, rolling_s=10.0))
    alone.talk(6.0)
    assert bench.verdicts[-1].rolling_llr == pytest.approx(alone.verdicts[-1].rolling_llr)
    assert bench.verdicts[-1].p_spoof == pytest.approx(alone.verdicts[-1].p_spoof)


def test_what_cannot_go_together_is_refused_and_nothing_has_changed():
    bench = Bench(MANIFESTS[0])
    bench.talk(1.5, "old")
    with pytest.raises(ConfigError, match=r"scoring.hop: 'adaptive'"):
        bench.change(manifest("blocks", blocks=True), adaptive=True)
    assert bench.engine.model_id == MANIFESTS[0].model_id
    bench.talk(1.0)
    assert [it.end_s for it in bench.verdicts] == [1, 2]


def test_limits_change_for_streams_that_are_open():
    bench = Bench(MANIFESTS[0])
    bench.talk(1.0)
    bench.change(MANIFESTS[0], idle_timeout_s=3.0, stalled_after_s=1.0, max_streams=1)
    bench.engine.tick(bench.now_s + 1.5)
    assert [it.type for it in bench.said if isinstance(it, Event)][-1] == "stalled"
    bench.engine.tick(bench.now_s + 3.0)
    assert not bench.engine.is_open("a")


def test_the_old_ring_is_wiped():
    bench = Bench(MANIFESTS[0])
    bench.talk(3.0)
    (track,) = bench.engine._streams["a"].tracks
    old = track.ring
    bench.change(MANIFESTS[2])
    assert track.ring is not old
    assert set(old._bytes) == {0xFF}
    assert msgspec.structs.asdict(track.timeline)["window_samples"] == 2 * RATE_HZ


def test_a_reader_that_is_far_ahead_gets_every_window_of_a_finer_grid():
    bench = Bench(manifest(hop_s=2.0), lossless=True)
    bench.feed(2 * RATE_HZ)
    bench.settle(bench.take())
    while bench.feed(2 * RATE_HZ):
        pass
    bench.change(manifest("fine", window_s=2.0, hop_s=0.5))
    bench.engine.close("a", "end", bench.now_s)
    bench.score()
    assert [it.end_s for it in bench.verdicts] == [2.0, *np.arange(2.5, bench.now_s + 0.1, 0.5)]
    assert all(it.end_s - it.start_s == 2.0 for it in bench.verdicts[1:])


def test_windows_reach_back_no_further_than_what_the_shorter_ring_had():
    bench = Bench(manifest("short", window_s=1.0))
    bench.talk(10.0)
    bench.change(manifest("long", window_s=4.0))
    bench.talk(4.0)
    spans = [it.end_s - it.start_s for it in bench.verdicts if it.end_s > 10]
    assert spans == [3.0, 4.0, 4.0, 4.0]


@pytest.mark.parametrize("to", [manifest("short", window_s=2.0), manifest("blocks", window_s=3.0, blocks=True)])
def test_a_window_that_was_held_before_a_gap_is_cut_again(to):
    bench = Bench(MANIFESTS[0])
    bench.talk(5.0)
    bench.feed(RATE_HZ // 2)
    bench.gap(20 * RATE_HZ)
    bench.feed(RATE_HZ // 5)  # what was before the gap is long out of the ring
    bench.change(to)
    (job,) = bench.take()
    window = job.window
    assert window.end_sample - window.start_sample == to.audio.window_s * RATE_HZ
    assert len(window.block_ends) == to.blocks
    if to.blocks:  # with what the first block hears before its hop
        assert len(window.data) == (to.blocks + 0.5) * RATE_HZ


def test_a_track_in_line_leaves_it_when_the_new_grid_has_no_window_due():
    bench = Bench(MANIFESTS[0])
    bench.feed(RATE_HZ)
    bench.change(manifest("slow", hop_s=2.0))
    assert bench.take() == []
    bench.feed(RATE_HZ)
    assert [job.window.end_sample for job in bench.take()] == [2 * RATE_HZ]


def test_a_track_joins_the_line_when_the_new_grid_has_a_window_due():
    woken = []
    bench = Bench(manifest(hop_s=2.0), wake=lambda: woken.append(True))
    bench.feed(int(1.5 * RATE_HZ))
    bench.change(MANIFESTS[1])
    assert woken
    assert [job.window.end_sample for job in bench.take()] == [RATE_HZ]


def test_the_reader_of_a_stream_that_was_full_goes_on_when_the_new_grid_has_room():
    resumed = []
    bench = Bench(MANIFESTS[0])
    bench.engine.open("b", MULAW, 0.0, resume=lambda: resumed.append(True))
    while bench.engine.feed(Frame("b", MULAW, bytes(RATE_HZ)), 0.0, lossless=True):
        pass
    bench.change(manifest("slow", hop_s=2.0))
    assert resumed
