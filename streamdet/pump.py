"""The pump: due windows out of the engine, through preparation and model, scores back in.

    take ──▶ decode, gate, resample, fill ──▶ ready ──▶ the model ──▶ settle
             └──── preparing thread ────┘              └─ scoring threads ─┘

The event loop owns all state; the threads get plain arrays and give plain arrays back. While batches run, the next ones
are made ready; one is closed no earlier than a run has room for it, so batches form by themselves. What is ready and
waits is at most one batch for each run that may go at once, and a track has one window in flight: nothing here can
grow, and no verdict overtakes another of its track.
"""

import asyncio
import bisect
import itertools
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, Self, TypeVar

import msgspec

from streamdet.bundle import Manifest
from streamdet.engine import Engine
from streamdet.records import Score
from streamdet.scorer import Scorer
from streamdet.track import Job
from streamdet.window import Ready, make_ready, settle

T = TypeVar("T")

# Windows made ready in one go. One hand-over to a thread costs a tenth of a window's preparation, and a model that
# waits should not have to wait for many.
TOGETHER: Final = 4


class Made(msgspec.Struct, frozen=True):
    """A window on its way, ready for the model."""

    job: Job
    ready: Ready

    @property
    def rows(self) -> int:
        """What it costs: one, or as many as it has blocks that nobody remembers."""
        return len(self.ready.audio)


class Pump:
    """Keeps a scorer fed with the due windows of an engine."""

    def __init__(self, scorer: Scorer, batch_max: int, scored: Callable[[int, float], object]) -> None:
        """Do nothing yet; `scored` hears of each run: its windows, and the seconds it took."""
        self._scorer: Final = scorer
        self._most: Final = min(batch_max, scorer.buckets[-1])
        self._scored: Final = scored
        self._due: Final = asyncio.Event()
        self._filled: Final = asyncio.Event()
        self._made: list[Made] = []
        self._running = 0
        self._preparing: Final = ThreadPoolExecutor(1, "preparing")
        self._scoring: Final = ThreadPoolExecutor(scorer.runs, "scoring")
        self._numbers: Final = itertools.count()
        self._since_s: dict[int, float] = {}
        """Since when each call has been in its thread, oldest first."""

    def __enter__(self) -> Self:
        """Threads start with their first work."""
        return self

    def __exit__(self, *error: object) -> None:
        """Wait for the threads."""
        self._preparing.shutdown()
        self._scoring.shutdown()

    def wake(self) -> None:
        """Say that a window became due."""
        self._due.set()

    @property
    def busy_since_s(self) -> float | None:
        """Since when (monotonic) a thread has been at what it has had longest; None when none has anything."""
        return next(iter(self._since_s.values()), None)

    async def run(self, engine: Engine) -> None:
        """Pump until cancelled.

        Raises:
            StreamdetError: the model gave something that is no number; whatever else a thread raises.
        """
        tasks = [asyncio.ensure_future(self._prepare(engine))]
        tasks += [asyncio.ensure_future(self._score(engine)) for _ in range(self._scorer.runs)]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    # -- inside ------------------------------------------------------------------------------------------------------

    async def _prepare(self, engine: Engine) -> None:
        """Make due windows ready as long as the next batches have room for them."""
        while True:
            await self._due.wait()
            self._due.clear()
            while jobs := self._take(engine):
                made = await self._in_thread(self._preparing, _make, jobs, self._scorer.manifest)
                self._made += [each for each in made if each.ready.heard]
                self._filled.set()
                gated = [each for each in made if not each.ready.heard]
                _settle(engine, gated, [Score(None, each.ready.speech_s[0]) for each in gated])

    def _take(self, engine: Engine) -> list[Job]:
        """Some of what the next batches have room for, one for each run; each has a place for a lossless window."""
        lossless = sum(made.job.track.timeline.lossless for made in self._made)
        room = self._most * self._scorer.runs - sum(made.rows for made in self._made)
        return engine.take(max(0, min(TOGETHER, room)), reserve=lossless <= len(self._made) // self._most)

    async def _score(self, engine: Engine) -> None:
        """Run what is ready, the longest waiting first, as long as anything is."""
        while True:
            await self._filled.wait()
            while batch := self._next_batch():
                self._due.set()  # there is room again
                began_s = time.monotonic()
                self._running += 1
                scores = await self._in_thread(self._scoring, self._run, batch)
                self._running -= 1
                self._scored(len(batch), time.monotonic() - began_s)
                _settle(engine, batch, scores)
            self._filled.clear()

    def _next_batch(self) -> list[Made]:
        """A fair share for the runs that could begin now, and as many as fill a bucket."""
        rows = list(itertools.accumulate(made.rows for made in self._made))
        share = -(-rows[-1] // (self._scorer.runs - self._running)) if rows else 0
        fitting = (bucket for bucket in self._scorer.buckets if bucket <= min(share, self._most))
        size = max(fitting, default=0)
        # One at least, even if it misses more blocks than a bucket has room for.
        count = max(bisect.bisect_right(rows, size), min(1, len(rows)))
        batch, self._made = self._made[:count], self._made[count:]
        return batch

    def _run(self, batch: Sequence[Made]) -> list[Score]:
        scorer, parts = self._scorer, [made.ready for made in batch]
        return settle(parts, scorer.run(*(ready.audio for ready in parts)), scorer.manifest, scorer.head)

    async def _in_thread(self, threads: ThreadPoolExecutor, call: Callable[..., T], *args: object) -> T:
        number = next(self._numbers)
        self._since_s[number] = time.monotonic()
        try:
            return await asyncio.get_running_loop().run_in_executor(threads, call, *args)
        finally:
            del self._since_s[number]


def _make(jobs: Sequence[Job], manifest: Manifest) -> list[Made]:
    return [Made(job, make_ready([job.window], manifest)) for job in jobs]


def _settle(engine: Engine, made: Sequence[Made], scores: Sequence[Score]) -> None:
    engine.settle([each.job for each in made], scores, time.monotonic())
