"""Windows in blocks: a score is a function of bytes, whatever was remembered, skipped, or rode in the same batch."""

import gc
import weakref
from collections.abc import Collection

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamdet.audio import SILENCE, decode, encode, fill, resample
from streamdet.blocks import ABSENT_LOGIT
from streamdet.bundle import Audio, Calibration, Decision, FileEntry, Manifest, Model
from streamdet.engine import Engine
from streamdet.errors import StreamdetError
from streamdet.records import ENCODINGS, RATES_HZ, AudioFormat, Event, Frame, Score, Verdict, Window
from streamdet.replay import replay_samples
from streamdet.speech import activity, speech_s, starts
from streamdet.window import score_windows

MODEL_HZ = 16_000
FRAMES = 20  # of features in a hop
WIDTH = 2  # of a feature
S16 = AudioFormat(8000, "s16le")
ENTRY = FileEntry(sha256="0" * 64, bytes=0)


def manifest(hop=16_000, blocks=4, left=8_000, min_speech_s=0.2) -> Manifest:
    return Manifest(
        format=1,
        name="blocks",
        created="2026-01-01T00:00:00Z",
        audio=Audio(MODEL_HZ, blocks * hop, hop),
        model=Model(kind="block", output="sums", head="head.onnx", left_samples=left),
        calibration=Calibration(scale=2.0, offset=0.5),
        decision=Decision(min_speech_s=min_speech_s),
        provenance={},
        files={"model.onnx": ENTRY, "head.onnx": ENTRY},
    )


def frames_of(audio: np.ndarray, hop: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits `(B, F)` and features `(B, F, D)` of the hops of blocks; what lies before the hop moves both."""
    ours = np.array_split(audio[:, -hop:], FRAMES, axis=1)
    before = np.abs(audio).mean(axis=1)
    level = np.stack([np.abs(part).mean(axis=1) for part in ours], axis=1)
    crest = np.stack([part.max(axis=1) for part in ours], axis=1)
    return 40 * level + before[:, None], np.stack([crest + before[:, None], level**2], axis=2)


class Counting:
    """A block model in numpy, which counts what it had to encode."""

    def __init__(self, made: Manifest) -> None:
        self.manifest = made
        self.rows: list[int] = []

    def run(self, audio: np.ndarray) -> np.ndarray:
        assert audio.shape[1] == self.manifest.input_samples
        self.rows.append(len(audio))
        logits, features = frames_of(audio, self.manifest.audio.hop_samples)
        largest = logits.max(axis=1, keepdims=True)
        weights = np.exp(logits - largest)[:, :, None]
        sums = [largest, weights.sum(axis=1), (weights * features).sum(axis=1), (weights * features**2).sum(axis=1)]
        return np.concatenate(sums, axis=1).astype(np.float32)

    def head(self, sums: np.ndarray) -> np.ndarray:
        largest = sums[:, :, :1].astype(np.float64)
        total = (np.exp(largest - largest.max(axis=1, keepdims=True)) * sums[:, :, 1:]).sum(axis=1)
        mean, square = np.split(total[:, 1:] / total[:, :1], 2, axis=1)
        return (mean.sum(axis=1) + 3 * (square - mean**2).sum(axis=1)).astype(np.float32)

    def score(self, windows):
        return score_windows(windows, self.manifest, self.run, self.head)


def ends_of(made: Manifest, form: AudioFormat, begin: int, end: int) -> list[int]:
    """Where the blocks of a window end, as docs/bundle.md has it."""

    def grid(hop: int) -> int:
        return hop * made.audio.hop_samples * form.rate_hz // MODEL_HZ

    hop = next(hop for hop in range(10_000) if grid(hop + 1) > end)
    back = range(made.audio.window_samples // made.audio.hop_samples)
    ends = [grid(hop - i) if grid(hop) == end else end - grid(i) for i in back]
    half = made.audio.hop_samples * form.rate_hz / MODEL_HZ / 2
    return [at for at in ends if at - begin >= half or at == end]


def expected(made: Manifest, form: AudioFormat, origin: int, data: bytes, start: int, end: int) -> float | None:
    """The LLR of a window from the whole track's bytes: pooling over all frames of all blocks with speech at once."""
    samples = decode(data, form.encoding)
    window = samples[start - origin : end - origin]
    if speech_s(window, form.rate_hz) < made.decision.min_speech_s:
        return None
    active = activity(window, form.rate_hz)
    spoken = start + starts(active.size, form.rate_hz)[active]
    ends = sorted(ends_of(made, form, start, end))
    heard = [at for before, at in zip([start, *ends], ends, strict=False) if ((spoken >= before) & (spoken < at)).any()]
    reach = -(-made.input_samples * form.rate_hz // MODEL_HZ)
    rows = [
        fill(
            resample(samples[max(origin, at - reach) - origin : at - origin], form.rate_hz, MODEL_HZ),
            made.input_samples,
        )
        for at in heard or ends
    ]
    logits, features = frames_of(np.stack(rows).astype(np.float64), made.audio.hop_samples)
    logits, features = logits.reshape(-1), features.reshape(-1, WIDTH)
    weights = (np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum())[:, None]
    mean = (weights * features).sum(axis=0)
    spread = (weights * (features - mean) ** 2).sum(axis=0)
    return 2.0 * float(mean.sum() + 3 * spread.sum()) + 0.5


def call(seconds: float, form: AudioFormat, seed: int) -> bytes:
    """A call with pauses: noise in syllables, silent for some half seconds."""
    rng = np.random.default_rng(seed)
    time_s = np.arange(int(seconds * form.rate_hz)) / form.rate_hz
    speaks = rng.random(int(2 * seconds) + 1) < 0.6
    envelope = np.clip(np.sin(2 * np.pi * 4 * time_s), 0, 1) * speaks[(2 * time_s).astype(int)] * rng.uniform(0.1, 0.4)
    return encode((envelope * rng.standard_normal(time_s.size)).astype(np.float32), form.encoding)


class Line:
    """A track as its sender knows it: what was said, with silence where nothing was heard."""

    def __init__(self, made: Manifest, form: AudioFormat, origin: int, seed: int) -> None:
        self.manifest, self.form, self.origin = made, form, origin
        self.source = call(30, form, seed)
        self.said = b""

    @property
    def end(self) -> int:
        return self.origin + len(self.said) // self.form.sample_bytes

    def say(self, samples: int) -> bytes:
        data = self.source[len(self.said) :][: samples * self.form.sample_bytes]
        self.said += data
        return data

    def silence(self, samples: int) -> None:
        self.said += SILENCE[self.form.encoding] * samples
        self.source = self.said + self.source[len(self.said) :]

    def expected(self, verdict: Verdict) -> float | None:
        start, end = (round(at_s * self.form.rate_hz) for at_s in (verdict.start_s, verdict.end_s))
        return expected(self.manifest, self.form, self.origin, self.said, start, end)


STEPS = st.lists(
    st.tuples(st.sampled_from(["say", "say", "say", "score", "gap", "pause"]), st.floats(0.05, 1.0)),
    min_size=4,
    max_size=24,
)


@settings(max_examples=60)
@given(
    steps=st.lists(STEPS, min_size=1, max_size=3),
    rate_hz=st.sampled_from(RATES_HZ[:6]),
    encoding=st.sampled_from(ENCODINGS),
    shape=st.sampled_from([(16_000, 4, 8_000), (8_000, 4, 8_000), (5_001, 3, 2_500), (16_000, 2, 0), (8_000, 1, 700)]),
    origins=st.lists(st.integers(0, 40_000), min_size=3, max_size=3),
    limit=st.integers(1, 8),
)
def test_a_score_is_a_function_of_bytes(steps, rate_hz, encoding, shape, origins, limit):
    """Whatever was skipped, remembered, paused or lost, at any rate, and whoever else was in the batch."""
    made, form = manifest(*shape), AudioFormat(rate_hz, encoding)
    counting, said = Counting(made), []
    engine = Engine(made, said.append, min_window_s=0.5)
    lines = {f"s{at}": Line(made, form, origins[at], seed=at) for at in range(len(steps))}
    hop = made.audio.hop_samples * rate_hz // MODEL_HZ

    def score() -> None:
        if jobs := engine.take(limit):
            engine.settle(jobs, counting.score([job.window for job in jobs]), 0.0)

    for at in range(max(map(len, steps))):
        for (name, line), own in zip(lines.items(), steps, strict=True):
            kind, size = own[at % len(own)]
            samples = int(size * hop)
            if kind == "score":
                score()
            elif kind == "say" or name not in {track["stream"] for track in engine.status()}:
                start = line.end
                engine.feed(Frame(name, form, line.say(samples), start=start), 0.0)
            elif kind == "gap":
                line.silence(7 * samples)
                engine.feed(Frame(name, form, b"", start=line.end), 0.0)
            else:
                start = line.end
                line.silence(samples)
                engine.pause(name, 0.0)
                engine.feed(Frame(name, form, bytes(samples * form.sample_bytes), start=start), 0.0)
                engine.resume(name, 0.0)
    engine.close_all("end", 0.0)
    while not engine.idle:
        score()
    for verdict in (record for record in said if isinstance(record, Verdict)):
        llr = lines[verdict.stream].expected(verdict)
        assert verdict.llr == (llr if llr is None else pytest.approx(llr, abs=1e-4))


def llrs(said: list[Verdict | Event]) -> dict[float, float | None]:
    return {record.end_s: record.llr for record in said if isinstance(record, Verdict)}


def live(
    counting: Counting, data: bytes, form: AudioFormat = S16, at: Collection[int] = range(1000)
) -> dict[float, float | None]:
    """Feed a call hop by hop, and score after those of `at`."""
    said: list[Verdict | Event] = []
    engine = Engine(counting.manifest, said.append)
    size = form.rate_hz * form.sample_bytes
    for hop, first in enumerate(range(0, len(data), size), 1):
        engine.feed(Frame("a", form, data[first : first + size]), 0.0)
        while hop in at and (jobs := engine.take(1)):
            engine.settle(jobs, counting.score([job.window for job in jobs]), 0.0)
    return llrs(said)


def babble(seconds: int, rate_hz: int = 8000) -> np.ndarray:
    time_s = np.arange(seconds * rate_hz) / rate_hz
    envelope = np.clip(np.sin(2 * np.pi * 4 * time_s), 0, 1) * (0.5 + 0.4 * np.sin(2 * np.pi * 0.1 * time_s))
    return (0.2 * envelope * np.random.default_rng(7).standard_normal(time_s.size)).astype(np.float32)


def test_every_hop_is_encoded_once():
    counting = Counting(manifest())
    found = live(counting, encode(babble(12), "s16le"))
    assert list(found) == list(range(1, 13))
    assert None not in found.values()
    assert counting.rows == [1] * 12


def test_what_was_skipped_once_is_made_up_for():
    counting, everything = Counting(manifest()), Counting(manifest())
    found = live(counting, encode(babble(12), "s16le"), at={1, 2, 3, 5, 6, 7, 8, 12})
    assert counting.rows == [1, 1, 1, 2, 1, 1, 1, 4]
    expected = live(everything, encode(babble(12), "s16le"))
    assert found == {end_s: pytest.approx(expected[end_s], abs=1e-5) for end_s in found}


@pytest.mark.parametrize("every", [2, 3, 4, 6])
def test_who_is_late_again_and_again_hears_one_hop_at_a_time(every):
    counting = Counting(manifest())
    found = live(counting, encode(babble(24), "s16le"), at=range(every, 25, every))
    assert list(found) == list(range(every, 25, every))
    assert counting.rows == [min(every, 4)] + [1] * (24 // every - 1)


def test_windows_grow_again_after_the_load():
    said, counting = [], Counting(manifest())
    engine = Engine(counting.manifest, said.append)
    data = encode(babble(14), "s16le")
    for hop in range(14):
        engine.feed(Frame("a", S16, data[16_000 * hop : 16_000 * (hop + 1)]), 0.0)
        if hop + 1 in {4, 7, 10, 11, 12, 13, 14}:
            jobs = engine.take(1)
            engine.settle(jobs, counting.score([job.window for job in jobs]), 0.0)
    windows = [(record.start_s, record.end_s) for record in said if isinstance(record, Verdict)]
    assert windows == [(0, 4), (6, 7), (9, 10), (9, 11), (9, 12), (9, 13), (10, 14)]
    assert counting.rows == [4, 1, 1, 1, 1, 1, 1]


def test_a_hop_without_speech_costs_no_run():
    counting, samples = Counting(manifest()), babble(12)
    samples[int(3.9 * 8000) : int(7.1 * 8000)] = 0  # the gate holds on a little before and after a word
    found = live(counting, encode(samples, "s16le"))
    assert sum(counting.rows) == 9
    assert found[7.0] is not None  # its first second speaks
    assert list(counting.rows) == [1] * 9  # and where nothing is new, nothing is run


def test_nothing_is_run_where_nobody_speaks():
    counting = Counting(manifest())
    assert set(live(counting, bytes(2 * 8000 * 6)).values()) == {None}
    assert counting.rows == []


def test_a_gate_that_asks_for_nothing_hears_all_blocks():
    counting = Counting(manifest(min_speech_s=0.0))
    assert None not in live(counting, bytes(2 * 8000 * 6)).values()
    assert counting.rows == [1] * 6


def test_lossless_and_live_say_the_same():
    samples = babble(11)[: int(10.7 * 8000)]
    counting = Counting(manifest())
    replayed = llrs(replay_samples("a", samples[:, None], 8000, counting.manifest, counting.score))
    found = live(Counting(manifest()), encode(samples, "f32le"), AudioFormat(8000, "f32le"))
    assert list(replayed) == [*range(1, 11), 10.7]
    assert {end_s: replayed[end_s] for end_s in found} == pytest.approx(found, abs=1e-5)
    assert counting.rows == [1] * 10 + [4]  # the rest's blocks lie on a grid of their own


def test_the_same_bytes_in_one_batch_are_encoded_once():
    """Evaluation scores the windows of a clip together, without a track that remembers."""
    counting, windows = Counting(manifest()), []
    engine = Engine(counting.manifest, lambda _: None)
    data = encode(babble(6), "s16le")
    for at in range(0, len(data), 16_000):
        engine.feed(Frame("a", S16, data[at : at + 16_000]), 0.0)
        jobs = engine.take(1)
        windows += [job.window for job in jobs]
        engine.settle(jobs, [Score(None, 0.0) for _ in jobs], 0.0)
    found = [score.llr for score in counting.score(windows)]
    assert counting.rows == [6]
    assert found == pytest.approx(list(live(Counting(manifest()), data).values()), abs=1e-5)


def test_a_track_remembers_no_more_than_a_window_and_nothing_after_its_end():
    counting, alive = Counting(manifest()), []
    engine = Engine(counting.manifest, lambda _: None)
    data = encode(babble(12), "s16le")
    for at in range(0, len(data), 16_000):
        engine.feed(Frame("a", S16, data[at : at + 16_000]), 0.0)
        jobs = engine.take(1)
        scores = counting.score([job.window for job in jobs])
        alive += [weakref.ref(sums) for score in scores for sums in score.sums if sums is not None]
        engine.settle(jobs, scores, 0.0)
        track = jobs[0].track
        del jobs, scores
        gc.collect()
        # Three more make a window with the hop that comes next. Each owns its few bytes, and no batch behind them.
        kept = {id(ref()): (ref().base is None, ref().nbytes) for ref in alive if ref() is not None}
        assert len(kept) <= 3
        assert set(kept.values()) == {(True, 4 * (2 + 2 * WIDTH))}
    engine.close("a", "end", 0.0)
    gc.collect()
    assert engine.idle
    assert track.stream.name == "a"  # somebody may hold on to the track
    assert [ref for ref in alive if ref() is not None] == []


def test_overload_is_shared_evenly_and_ends_with_the_load():
    """A scorer that encodes 10 blocks in the time of a hop, and 20 tracks."""
    counting, said = Counting(manifest()), []
    engine = Engine(counting.manifest, said.append)
    names = [f"s{at}" for at in range(20)]
    data = encode(babble(60), "s16le")
    spent, ends = 0, {}

    def pass_time(hops: range, names: list[str]) -> None:
        nonlocal spent
        for hop in hops:
            for name in names:
                engine.feed(Frame(name, S16, data[16_000 * hop : 16_000 * (hop + 1)]), 0.0)
            spent = max(spent - 10, -10)
            while spent < 0 and (jobs := engine.take(1)):
                counting.rows.clear()
                engine.settle(jobs, counting.score([job.window for job in jobs]), 0.0)
                spent += sum(counting.rows)

    pass_time(range(48), names)
    for name in names:
        ends[name] = [record.end_s for record in said if isinstance(record, Verdict) and record.stream == name]
    counts = [len(found) for found in ends.values()]
    assert max(counts) - min(counts) <= 1
    # Twice as many tracks as fit: every second hop.
    assert [np.diff(found[2:]).mean() for found in ends.values()] == pytest.approx([2.0] * 20, rel=0.15)
    for name in names[5:]:
        engine.close(name, "end", 0.0)
    said.clear()
    pass_time(range(48, 60), names[:5])
    for name in names[:5]:
        found = [record.end_s for record in said if isinstance(record, Verdict) and record.stream == name]
        assert set(range(53, 61)) <= set(found)  # a window after the load dropped, every hop has its own again


def test_what_is_no_number_is_no_evidence():
    window = Window(S16, encode(babble(1), "s16le"), 0, 8000, 0.0, None, (8000,))
    counting = Counting(manifest())
    with pytest.raises(StreamdetError, match="CM score: nan"):
        score_windows([window], counting.manifest, lambda audio: np.full((len(audio), 6), np.nan), counting.head)


def test_an_absent_block_weighs_nothing():
    counting = Counting(manifest())
    sums = counting.run(np.random.default_rng(0).uniform(-1, 1, (2, 24_000)).astype(np.float32))
    absent = np.array([ABSENT_LOGIT, 0, 0, 0, 0, 0], np.float32)
    with_absent = counting.head(np.stack([absent, sums[0], absent, sums[1]])[None])
    assert with_absent == pytest.approx(counting.head(sums[None]), rel=1e-6)
