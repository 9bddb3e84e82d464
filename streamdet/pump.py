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
import logging
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, Self, TypeVar

import msgspec

from streamdet import providers
from streamdet.bundle import Manifest
from streamdet.engine import Engine
from streamdet.errors import DeviceError
from streamdet.logs import fields
from streamdet.records import Score
from streamdet.scorer import Scorer
from streamdet.track import Job
from streamdet.window import Ready, make_ready, settle

log = logging.getLogger(__name__)

T = TypeVar("T")

# Windows made ready in one go. One hand-over to a thread costs a tenth of a window's preparation, and a model that
# waits should not have to wait for many.
TOGETHER: Final = 4
# One run may fail for what is in it. Whatever fails three times, with nothing in between that worked, is broken, and a
# new process is the only mend that is known for a device.
FAILURES_MAX: Final = 3
# A run that takes this many times as long as the slowest of the warm-up hangs: room for a machine that is busy with
# other things. But no less than so many seconds, for models of milliseconds.
DEADLINE_RUNS: Final = 20
DEADLINE_LEAST_S: Final = 2.0


# Of a call in any pump of the process.
_numbers: Final = itertools.count()


class Call(msgspec.Struct, frozen=True):
    """What a thread of the pump has been given."""

    what: str
    """`run` or `preparation`."""
    windows: int


class Made(msgspec.Struct, frozen=True):
    """A window on its way, ready for the model."""

    job: Job
    ready: Ready

    @property
    def rows(self) -> int:
        """What it costs: one, or as many as it has blocks that nobody remembers."""
        return len(self.ready.audio)


class Failures:
    """Counts what failed in a row in one place."""

    def __init__(self, what: str) -> None:
        """Begin with none; `what` fails."""
        self._what: Final = what
        self._count = 0

    def succeeded(self) -> None:
        """Forget them."""
        self._count = 0

    def failed(self, error: Exception) -> None:
        """Take one more.

        Raises:
            DeviceError: it was one too many, or one after which nothing can be trusted.
        """
        self._count += 1
        if providers.is_fault(str(error)):
            raise DeviceError(f"{self._what}: a fault of the card, expected none ({first_line(error)})") from error
        if self._count >= FAILURES_MAX:
            raise DeviceError.of(
                f"{self._what}s that failed in a row", self._count, f"under {FAILURES_MAX} ({first_line(error)})"
            ) from error


class Pump:
    """Keeps a scorer fed with the due windows of an engine."""

    def __init__(
        self,
        scorer: Scorer,
        batch_max: int,
        scored: Callable[[int, float], object],
        failed: Callable[[int], object] = lambda _: None,
        deadline_s: float = math.inf,
    ) -> None:
        """Do nothing yet.

        Args:
            scorer: what runs.
            batch_max: most windows in one run.
            scored: hears of each run: its windows, and the seconds it took.
            failed: hears of each run and preparation that failed: its windows.
            deadline_s: after this long a call hangs, for whoever watches.
        """
        self._scorer: Final = scorer
        self._model: Final = scorer.manifest.model_id
        self._most: Final = min(batch_max, scorer.buckets[-1])
        self._scored: Final = scored
        self._failed: Final = failed
        self.deadline_s = deadline_s
        self._due: Final = asyncio.Event()
        self._filled: Final = asyncio.Event()
        self._made: list[Made] = []
        self._running = 0
        self._preparing: Final = ThreadPoolExecutor(1, "preparing")
        self._scoring: Final = ThreadPoolExecutor(scorer.runs, "scoring")
        self._failures: Final = {what: Failures(what) for what in ("preparation", "run")}
        self._under_way: Final[dict[int, Call]] = {}
        self._retired = False
        self._quiet: Final = asyncio.Event()
        """Set whenever a thread of this pump has come back."""
        self.waits = True
        """Whether leaving waits for the threads; they may hang."""

    def __enter__(self) -> Self:
        """Threads start with their first work."""
        return self

    def __exit__(self, *error: object) -> None:
        """Wait for the threads, unless nobody should."""
        self._preparing.shutdown(wait=self.waits, cancel_futures=True)
        self._scoring.shutdown(wait=self.waits, cancel_futures=True)

    def wake(self) -> None:
        """Say that a window became due."""
        self._due.set()

    @property
    def under_way(self) -> dict[int, Call]:
        """What threads are at, by a number that no other call of the process has; any thread may ask."""
        return self._under_way.copy()

    async def run(self, engine: Engine) -> None:
        """Pump until cancelled.

        Raises:
            DeviceError: scoring is broken.
        """
        tasks = [asyncio.ensure_future(self._prepare(engine))]
        tasks += [asyncio.ensure_future(self._score(engine)) for _ in range(self._scorer.runs)]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    async def finish(self) -> None:
        """Take no more windows, and return when those that were taken are settled; `run` goes on meanwhile."""
        self._retired = True
        while self._made or self._under_way:
            self._quiet.clear()
            await self._quiet.wait()

    # -- inside ------------------------------------------------------------------------------------------------------

    async def _prepare(self, engine: Engine) -> None:
        """Make due windows ready as long as the next batches have room for them."""
        while True:
            await self._due.wait()
            self._due.clear()
            while jobs := self._take(engine):
                await self._prepare_some(engine, jobs)

    async def _prepare_some(self, engine: Engine, jobs: list[Job]) -> None:
        """Make windows ready; a method of its own, as the next is: a loop that waits would hold the last sound."""
        call = Call("preparation", len(jobs))
        made = await self._attempt(engine, jobs, self._preparing, call, _make, jobs, self._scorer.manifest)
        if made is None:
            return
        self._made += [each for each in made if each.ready.heard]
        self._filled.set()
        gated = [each for each in made if not each.ready.heard]
        self._settle(engine, gated, [Score(None, each.ready.speech_s[0]) for each in gated])

    def _take(self, engine: Engine) -> list[Job]:
        """Some of what the next batches have room for, one for each run; each has a place for a lossless window."""
        if self._retired:
            return []
        lossless = sum(made.job.track.timeline.lossless for made in self._made)
        room = self._most * self._scorer.runs - sum(made.rows for made in self._made)
        return engine.take(max(0, min(TOGETHER, room)), reserve=lossless <= len(self._made) // self._most)

    async def _score(self, engine: Engine) -> None:
        """Run what is ready, the longest waiting first, as long as anything is."""
        while True:
            await self._filled.wait()
            while batch := self._next_batch():
                await self._score_some(engine, batch)
            self._filled.clear()

    async def _score_some(self, engine: Engine, batch: list[Made]) -> None:
        self._due.set()  # there is room again
        began_s = time.monotonic()
        self._running += 1
        call, jobs = Call("run", len(batch)), [made.job for made in batch]
        scores = await self._attempt(engine, jobs, self._scoring, call, self._run, batch)
        self._running -= 1
        if scores is not None:
            self._scored(len(batch), time.monotonic() - began_s)
            self._settle(engine, batch, scores)

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

    def _settle(self, engine: Engine, made: Sequence[Made], scores: Sequence[Score]) -> None:
        engine.settle([each.job for each in made], scores, time.monotonic(), model=self._model)

    async def _attempt(
        self,
        engine: Engine,
        jobs: Sequence[Job],
        threads: ThreadPoolExecutor,
        call: Call,
        work: Callable[..., T],
        *args: object,
    ) -> T | None:
        """Have a thread do its part for some windows; None where it failed and they were given up.

        Raises:
            DeviceError: that was once too often.
        """
        try:
            done = await self._in_thread(threads, call, work, *args)
        except Exception as error:  # onnxruntime raises a class of its own for each status code, with no common base
            engine.drop(jobs, time.monotonic())
            self._failed(len(jobs))
            log.error("%s failed", call.what, extra=fields(windows=call.windows, reason=first_line(error)))
            self._failures[call.what].failed(error)
            return None
        self._failures[call.what].succeeded()
        return done

    async def _in_thread(self, threads: ThreadPoolExecutor, call: Call, work: Callable[..., T], *args: object) -> T:
        """Have a thread do it, which is under way until it comes back, even if nobody waits for it any more."""
        number, thread = next(_numbers), threads.submit(work, *args)
        self._under_way[number] = call
        try:
            return await asyncio.wrap_future(thread)
        finally:
            # At once, unless this task was cancelled: its thread goes on, and the process must not wait for it to end.
            thread.add_done_callback(lambda _: self._under_way.pop(number))
            self._quiet.set()


def allowed_s(configured_s: float, slowest_s: float) -> float:
    """How long a thread may take for one call before it counts as hung (s).

    Args:
        configured_s: `scoring.deadline_s`; 0 leaves it to the warm-up.
        slowest_s: the slowest run of the warm-up.
    """
    return configured_s or max(DEADLINE_LEAST_S, DEADLINE_RUNS * slowest_s)


def first_line(error: Exception) -> str:
    """What an error says, as one line; some say nothing but what they are."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


def _make(jobs: Sequence[Job], manifest: Manifest) -> list[Made]:
    return [Made(job, make_ready([job.window], manifest)) for job in jobs]
