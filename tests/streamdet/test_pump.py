"""The pump: one batch is made ready while another runs, and nothing else changes because of it."""

import asyncio
import functools
import gc
import threading
from collections.abc import Callable

import numpy as np
import pytest

from streamdet import pump as pumps
from streamdet.audio import encode
from streamdet.config import Scoring as Settings
from streamdet.engine import Engine
from streamdet.errors import DeviceError
from streamdet.health import Health
from streamdet.metrics import Metrics
from streamdet.pump import TOGETHER, Pump
from streamdet.records import AudioFormat, Frame, Verdict
from streamdet.scorer import Scorer
from streamdet.scoring import Loaded, Scoring

RATE_HZ = 8000
S16 = AudioFormat(RATE_HZ, "s16le")
PATIENCE_S = 30.0


def in_a_loop(test):
    """Run an async test."""

    @functools.wraps(test)
    def run(*args, **fixtures):
        asyncio.run(test(*args, **fixtures))

    return run


async def until(what: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while True:
            if what():
                return
            await asyncio.sleep(0.001)


class Slow:
    """A scorer whose runs wait for `go`; its score is the mean of a window."""

    def __init__(self, manifest, buckets: tuple[int, ...], runs: int = 1) -> None:
        self.manifest = manifest
        self.buckets, self.runs, self.head = buckets, runs, None
        self.began: list[int] = []
        self.go = threading.Semaphore(0)
        self.result: Callable[[np.ndarray], np.ndarray] = lambda audio: audio.mean(axis=1)

    def run(self, *parts: np.ndarray) -> np.ndarray:
        self.began.append(sum(map(len, parts)))
        assert self.go.acquire(timeout=PATIENCE_S)
        return self.result(np.concatenate(parts))


class Line:
    """A pump, its engine, and what they said."""

    def __init__(self, scorer: Slow | Scorer, batch_max: int = 16) -> None:
        self.said: list[object] = []
        self.runs: list[int] = []
        self.scorer = scorer
        self.gave_up: list[int] = []
        self.pump = Pump(scorer, batch_max, lambda windows, _: self.runs.append(windows), self.gave_up.append)
        self.engine = Engine(scorer.manifest, self.said.append, wake=self.pump.wake)
        self._sent: dict[str, int] = {}

    async def __aenter__(self) -> "Line":
        self.pump.__enter__()
        self.running = asyncio.ensure_future(self.pump.run(self.engine))
        return self

    async def __aexit__(self, *error: object) -> None:
        self.running.cancel()
        await asyncio.wait([self.running])
        if isinstance(self.scorer, Slow):
            self.scorer.go.release(1000)  # a thread may still wait
        self.pump.__exit__()

    def hear(self, stream: str, second: bytes) -> None:
        at = self._sent.get(stream, 0)
        self._sent[stream] = at + RATE_HZ
        self.engine.feed(Frame(stream, S16, second, start=at), 0.0)

    def verdicts(self, stream: str | None = None) -> list[Verdict]:
        return [it for it in self.said if isinstance(it, Verdict) and stream in (None, it.stream)]

    async def until_ended_or(self, what: Callable[[], bool]) -> None:
        await until(lambda: what() or self.running.done())

    async def until(self, what: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not what():
                assert not self.running.done(), self.running
                await asyncio.sleep(0.001)


@pytest.fixture
def made(monkeypatch) -> list[int]:
    """Ends of the windows that were made ready (s)."""
    found: list[int] = []
    make_ready = pumps.make_ready

    def noted(windows, manifest):
        ready = make_ready(windows, manifest)
        found.extend(window.end_sample // RATE_HZ for window in windows)
        return ready

    monkeypatch.setattr(pumps, "make_ready", noted)
    return found


@pytest.fixture
def slow(tiny_bundle):
    """Makes slow scorers."""
    return functools.partial(Slow, tiny_bundle.manifest)


@pytest.fixture
def talk(babble) -> bytes:
    return encode(babble[:RATE_HZ], "s16le")


@pytest.fixture
def seconds(babble) -> list[bytes]:
    """Of one voice."""
    return [encode(babble[at : at + RATE_HZ], "s16le") for at in range(0, babble.size, RATE_HZ)]


@in_a_loop
async def test_the_next_batch_is_made_ready_while_one_runs(slow, talk, made):
    async with Line(slow((1, 2, 4))) as line:
        line.hear("a", talk)
        await line.until(lambda: line.scorer.began == [1])
        line.hear("b", talk)
        await line.until(lambda: made == [1, 1])
        assert line.verdicts() == []
        line.scorer.go.release(2)
        await line.until(lambda: len(line.verdicts()) == 2)


@in_a_loop
async def test_what_comes_while_one_runs_rides_together_and_fills_buckets(slow, talk, made):
    async with Line(slow((1, 2, 4))) as line:
        line.hear("first", talk)
        await line.until(lambda: line.scorer.began == [1])
        for name in "abc":
            line.hear(name, talk)
        await line.until(lambda: len(made) == 4)
        line.scorer.go.release(3)
        await line.until(lambda: len(line.verdicts()) == 4)
        assert line.runs == [1, 2, 1]
        assert [it.stream for it in line.verdicts()] == ["first", "a", "b", "c"]


@in_a_loop
async def test_a_track_has_one_window_on_its_way_and_its_verdicts_come_in_order(slow, talk):
    async with Line(slow((1, 2, 4), runs=2)) as line:
        line.hear("a", talk)
        await line.until(lambda: line.scorer.began == [1])
        for _ in range(3):
            line.hear("a", talk)
        await asyncio.sleep(0.05)
        assert line.scorer.began == [1]
        line.scorer.go.release(2)
        await line.until(lambda: len(line.verdicts()) == 2)
        assert [(it.seq, it.end_s, it.skipped) for it in line.verdicts()] == [(0, 1.0, 0), (1, 4.0, 2)]


@in_a_loop
async def test_as_many_runs_go_at_once_as_the_scorer_takes(slow, talk):
    async with Line(slow((1,), runs=2)) as line:
        for name in "abc":
            line.hear(name, talk)
        await line.until(lambda: line.scorer.began == [1, 1])
        await asyncio.sleep(0.05)
        assert line.scorer.began == [1, 1]
        line.scorer.go.release(3)
        await line.until(lambda: len(line.verdicts()) == 3)


@in_a_loop
async def test_idle_runs_share_what_is_ready(slow, talk):
    async with Line(slow((1, 2, 4, 8), runs=2)) as line:
        for name in "abcd":
            line.hear(name, talk)
        await line.until(lambda: len(line.scorer.began) == 2)
        assert line.scorer.began == [2, 2]
        line.scorer.go.release(2)
        await line.until(lambda: len(line.verdicts()) == 4)


@pytest.mark.parametrize("runs", [1, 2])
@in_a_loop
async def test_what_waits_is_at_most_one_batch_for_each_run(slow, talk, made, runs):
    """The rest stay with their tracks, where newer windows take their places."""
    async with Line(slow((1, 2), runs)) as line:
        for number in range(9):
            line.hear(f"t{number}", talk)
        await line.until(lambda: len(made) == 4 * runs)
        await asyncio.sleep(0.05)
        assert (line.scorer.began, len(made)) == ([2] * runs, 4 * runs)
        line.hear("t8", talk)
        line.scorer.go.release(9)
        await line.until(lambda: len(line.verdicts()) == 9)
        assert [(it.end_s, it.skipped) for it in line.verdicts("t8")] == [(2.0, 1)]


@in_a_loop
async def test_a_silent_window_waits_for_no_run(slow, talk):
    async with Line(slow((1, 2, 4))) as line:
        line.hear("a", talk)
        await line.until(lambda: line.scorer.began == [1])
        line.hear("silent", bytes(2 * RATE_HZ))
        await line.until(lambda: len(line.verdicts("silent")) == 1)
        assert line.verdicts("silent")[0].llr is None
        assert line.scorer.began == [1]


@in_a_loop
async def test_a_batch_of_blocks_is_as_large_as_what_it_encodes(slow, block_bundle, seconds, made):
    """Four seconds at once are four blocks: two such windows fill a bucket of eight, and nothing waits beyond it."""
    scorer = slow((1, 2, 4, 8))
    scorer.manifest, scorer.head = block_bundle.manifest, lambda sums: sums[:, :, 0].max(axis=1)
    scorer.result = lambda audio: np.ones((len(audio), 8), np.float32)
    async with Line(scorer) as line:
        for second in seconds[:4]:
            for name in "abcdef":
                line.hear(name, second)
        await line.until(lambda: scorer.began == [8])
        await line.until(lambda: len(made) == 4)
        await asyncio.sleep(0.05)
        assert made == [4] * 4
        scorer.go.release(2)
        await line.until(lambda: scorer.began == [8, 8, 8])
        scorer.go.release(1)
        await line.until(lambda: len(line.verdicts()) == 6)
        for name in "abcdef":
            line.hear(name, seconds[4])
        await line.until(lambda: sum(scorer.began[3:]) >= 1)
        scorer.go.release(9)
        await line.until(lambda: len(line.verdicts()) == 12)
        assert sum(scorer.began[3:]) == 6


@in_a_loop
async def test_a_window_that_misses_more_blocks_than_a_bucket_holds_goes_all_the_same(slow, block_bundle, seconds):
    scorer = slow((1, 2))
    scorer.manifest, scorer.head = block_bundle.manifest, lambda sums: sums[:, :, 0].max(axis=1)
    scorer.result = lambda audio: np.ones((len(audio), 8), np.float32)
    async with Line(scorer) as line:
        for second in seconds[:4]:
            line.hear("a", second)
        await line.until(lambda: scorer.began == [4])
        scorer.go.release(1)
        await line.until(lambda: len(line.verdicts()) == 1)


@pytest.mark.parametrize("kind", ["tiny_bundle", "block_bundle"])
@in_a_loop
async def test_scores_go_to_the_windows_they_belong_to(request, kind, babble):
    """Loudness is the toys' score: a wall of calls, each of its own loudness, some silent."""
    seconds = {f"t{n}": encode(babble[:RATE_HZ] * n / 20, "s16le") for n in range(20)}
    scorer = Scorer(request.getfixturevalue(kind), provider="cpu", threads=2, batch_max=4)
    async with Line(scorer, 4) as line:
        for _ in range(3):
            had = len(line.verdicts())
            for name, second in seconds.items():
                line.hear(name, second)
            await line.until(lambda had=had: len(line.verdicts()) == had + 20)
    alone = Line(scorer)
    for _ in range(3):
        for name, second in seconds.items():
            alone.hear(name, second)
            jobs = alone.engine.take(1)
            alone.engine.settle(jobs, scorer.score([job.window for job in jobs]), 0.0)
    for name in seconds:
        assert [it.llr for it in line.verdicts(name)] == pytest.approx(
            [it.llr for it in alone.verdicts(name)], abs=1e-4
        )
    assert len({it.llr for it in line.verdicts()}) > 10


@in_a_loop
async def test_a_file_gets_a_place_in_every_batch_and_only_one(slow, talk, made):
    async with Line(slow((1, 2, 4, 8))) as line:
        line.hear("first", talk)
        await line.until(lambda: line.scorer.began == [1])
        for number in range(3):
            line.engine.open(f"file{number}", S16, 0.0, resume=lambda: None)
            line.engine.feed(Frame(f"file{number}", S16, talk), 0.0, lossless=True)
        for number in range(20):
            line.hear(f"t{number}", talk)
        assert TOGETHER < 8
        await line.until(lambda: len(made) == 9)
        line.scorer.go.release(2)
        await line.until(lambda: len(line.verdicts()) == 9)
        streams = [it.stream for it in line.verdicts()[1:]]
        assert sum(name.startswith("file") for name in streams) == 1


@in_a_loop
async def test_what_keeps_a_thread_is_known_and_forgotten(slow, talk):
    async with Line(slow((1,), runs=2)) as line:
        assert line.pump.under_way == {}
        line.hear("a", talk)
        await line.until(lambda: line.scorer.began == [1])
        (first,) = line.pump.under_way
        line.hear("b", talk)
        await line.until(lambda: line.scorer.began == [1, 1])
        assert [call.what for call in line.pump.under_way.values()] == ["run", "run"]
        assert next(iter(line.pump.under_way)) == first
        line.scorer.go.release(2)
        await line.until(lambda: len(line.verdicts()) == 2)
        assert line.pump.under_way == {}


@in_a_loop
async def test_a_thread_is_under_way_until_it_comes_back_even_if_nobody_waits_for_it(slow, talk):
    scorer = slow((1,))
    async with Line(scorer) as line:
        line.hear("a", talk)
        await line.until(lambda: scorer.began)
        line.running.cancel()
        await asyncio.wait([line.running])
        assert [call.what for call in line.pump.under_way.values()] == ["run"]
        scorer.go.release()
        await until(lambda: not line.pump.under_way)


@in_a_loop
async def test_no_two_pumps_give_a_call_the_same_number(slow, talk):
    async with Line(slow((1,))) as one, Line(slow((1,))) as other:
        for line in (one, other):
            line.hear("a", talk)
            await line.until(lambda line=line: line.scorer.began == [1])
        assert not one.pump.under_way.keys() & other.pump.under_way.keys()


def not_a_number(audio: np.ndarray) -> np.ndarray:
    return np.full(len(audio), np.nan, np.float32)


def broken(_: np.ndarray) -> np.ndarray:
    raise RuntimeError("Non-zero status code returned while running Gather node")


def faulty(_: np.ndarray) -> np.ndarray:
    raise RuntimeError("CUDA failure 700: an illegal memory access was encountered ; GPU=0 ; expr=cudaMemcpyAsync")


@pytest.mark.parametrize("result", [not_a_number, broken])
@in_a_loop
async def test_a_failed_run_costs_its_windows_and_no_track(slow, seconds, result):
    """The tracks go on: no hole in `seq`, the lost window is counted as skipped, and so is its audio as news."""
    async with Line(slow((1, 2, 4))) as line:
        good = line.scorer.result
        for result_of_run in (good, result, result, good, result, result, good):
            line.scorer.result = result_of_run
            had = line.engine.counts()
            for name in "ab":
                line.hear(name, seconds[0])
            line.scorer.go.release(2)
            await line.until(
                lambda had=had: (
                    line.engine.counts().windows + line.engine.counts().skipped == had.windows + had.skipped + 2
                )
            )
        for name in "ab":
            found = [(it.seq, it.end_s, it.skipped) for it in line.verdicts(name)]
            assert found == [(0, 1.0, 0), (1, 4.0, 2), (2, 7.0, 2)]
        assert line.engine.counts().skipped == sum(it.skipped for it in line.verdicts()) == 8
        assert sum(line.gave_up) == 8
        assert line.pump.under_way == {}


@pytest.mark.parametrize("result", [not_a_number, broken])
@in_a_loop
async def test_three_failed_runs_in_a_row_end_the_pump(slow, seconds, result):
    async with Line(slow((1,))) as line:
        line.scorer.result = result
        line.scorer.go.release(9)
        for failed in (1, 2, 3):
            line.hear("a", seconds[0])
            await line.until_ended_or(lambda failed=failed: line.gave_up == [1] * failed)
        with pytest.raises(DeviceError, match="runs that failed in a row: 3, expected under 3"):
            await line.running
        assert line.verdicts() == []
        assert line.pump.under_way == {}


@in_a_loop
async def test_a_fault_of_the_card_ends_the_pump_at_once(slow, seconds):
    async with Line(slow((1,), runs=2)) as line:
        line.scorer.result = faulty
        line.scorer.go.release(1)
        line.hear("a", seconds[0])
        with pytest.raises(DeviceError, match="CUDA failure 700"):
            async with asyncio.timeout(PATIENCE_S):
                await line.running


@in_a_loop
async def test_a_failed_preparation_costs_its_windows_and_three_end_the_pump(slow, seconds, monkeypatch):
    make_ready = pumps.make_ready
    async with Line(slow((1,))) as line:
        line.scorer.go.release(9)
        monkeypatch.setattr(pumps, "make_ready", lambda windows, _: len(windows) // 0)
        for failed in (1, 2):
            line.hear("a", seconds[0])
            await line.until(lambda failed=failed: line.gave_up == [1] * failed)
        monkeypatch.setattr(pumps, "make_ready", make_ready)
        line.hear("a", seconds[0])
        await line.until(lambda: len(line.verdicts()) == 1)
        assert line.verdicts()[0].skipped == 2
        monkeypatch.setattr(pumps, "make_ready", lambda windows, _: len(windows) // 0)
        for failed in (3, 4, 5):
            line.hear("a", seconds[0])
            await line.until_ended_or(lambda failed=failed: line.gave_up == [1] * failed)
        with pytest.raises(DeviceError, match="preparations that failed in a row: 3"):
            await line.running


@in_a_loop
async def test_a_pump_that_finishes_settles_what_it_has_and_takes_nothing_new(slow, talk):
    async with Line(slow((1, 2))) as line:
        line.hear("a", talk)
        await line.until(lambda: line.scorer.began == [1])
        line.hear("b", talk)
        await line.until(lambda: len(line.pump.under_way) == 1)
        finishing = asyncio.ensure_future(line.pump.finish())
        await asyncio.sleep(0)
        line.hear("c", talk)
        line.scorer.go.release(9)
        await line.until(finishing.done)
        assert {it.stream for it in line.verdicts()} == {"a", "b"}
        assert [job.track.stream.name for job in line.engine.take(9)] == ["c"]


@in_a_loop
async def test_a_model_that_was_replaced_twice_ends_once_with_what_it_had_begun(slow, talk):
    scorers = [slow((1,)) for _ in range(3)]
    said: list[object] = []
    wrong: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: wrong.append(context))
    engine = Engine(scorers[0].manifest, said.append, wake=lambda: scoring.wake())
    scoring = Scoring(engine, Health(Metrics(), 1), lambda _: None, wrong.append)
    async with scoring:
        for scorer in scorers:
            scorer.provider = "CPUExecutionProvider"
            scoring.begin(Loaded(scorer, {1: 1.0}), Settings())
            if scorer is scorers[0]:
                engine.feed(Frame("a", S16, talk), 0.0)
                await until(lambda: scorers[0].began == [1])
        await asyncio.sleep(0)
        scorers[0].go.release()
        await until(lambda: len(scoring.pumps) == 1)
        assert any(isinstance(it, Verdict) for it in said)
    gc.collect()  # only then a task's exception that nobody took is told
    assert wrong == []


@in_a_loop
async def test_leaving_waits_for_no_thread_where_it_should_not(slow, talk):
    line = Line(slow((1,)))
    line.pump.__enter__()
    line.running = asyncio.ensure_future(line.pump.run(line.engine))
    line.hear("a", talk)
    await line.until(lambda: line.scorer.began == [1])
    line.running.cancel()
    await asyncio.wait([line.running])
    line.pump.waits = False
    line.pump.__exit__()
    assert [call.what for call in line.pump.under_way.values()] == ["run"]
    line.scorer.go.release(1)


@pytest.mark.parametrize(
    ("configured_s", "slowest_s", "allowed_s"),
    [(0.0, 0.01, 2.0), (0.0, 0.5, 10.0), (1.5, 0.5, 1.5), (30.0, 0.01, 30.0)],
)
def test_the_deadline_is_what_is_configured_or_follows_the_warm_up(configured_s, slowest_s, allowed_s):
    assert pumps.allowed_s(configured_s, slowest_s) == allowed_s
