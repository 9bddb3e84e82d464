"""`streamdet bench engine`: the whole line from bytes to verdicts against a bare loop of the model alone.

Both sides have the same batch, session settings and threads, and take turns. The line is the daemon's own, engine and
pump, without sockets: more tracks than it can serve, each of which gets its next second of audio with its verdict.
"""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import uvloop
from numpy.typing import NDArray

from streamdet.audio import decode, encode
from streamdet.bench.recordings import strung
from streamdet.bench.report import Row
from streamdet.bench.steady import percentiles, take_turns
from streamdet.bundle import Bundle, starter_recordings
from streamdet.engine import Engine
from streamdet.errors import DataError
from streamdet.providers import Provider
from streamdet.pump import Pump
from streamdet.records import AudioFormat, Event, Frame, Verdict, Window
from streamdet.scorer import Scorer
from streamdet.speech import activity, seconds
from streamdet.window import make_ready, settle
from streamdet.wire import verdicts

# What senders are advised to.
FRAME_S: Final = 0.1
# More tracks than the line has room for, so that a window is always due.
TRACKS_A_PLACE: Final = 3
# After the last frame at half load: for the verdicts still on their way.
AFTER_S: Final = 0.5


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be measured."""

    bundle: Bundle
    audio: bytes
    """One channel in `form`; windows begin all over it, so all of it should be speech."""
    form: AudioFormat
    provider: Provider = "cpu"
    cuda_graphs: bool = False
    windows: int = 160
    """A turn."""
    rounds: int = 12
    lag_s: float = 10.0
    """Seconds at half load."""

    def scorer(self, batch: int, threads: int) -> Scorer:
        """Load and warm up."""
        scorer = Scorer(
            self.bundle,
            provider=self.provider,
            threads=threads,
            batch_max=batch,
            cuda_graphs=self.cuda_graphs,
            at_once=True,
        )
        scorer.warm_up()
        return scorer


def speech(recordings: Sequence[Path], form: AudioFormat) -> bytes:
    """Recordings one after the other as a call in `form` brings them; without any, those that ship with the starter.

    Raises:
        MissingError: one is not there.
        DataError: one is not audio.
    """
    return encode(strung(recordings or starter_recordings(), form.rate_hz), form.encoding)


class Calls:
    """Tracks that all play the same audio, each from another place."""

    def __init__(self, ask: Ask) -> None:
        """Begin every track at its first frame."""
        self._ask: Final = ask
        self._frame_bytes: Final = round(FRAME_S * ask.form.rate_hz) * ask.form.block_bytes
        self._frames: Final = len(ask.audio) // self._frame_bytes
        self._sent: Final[dict[int, int]] = {}

    def frame(self, track: int) -> Frame:
        """Next frame of a track."""
        number = self._sent.get(track, 0)
        self._sent[track] = number + 1
        at = (number + 37 * track) % self._frames * self._frame_bytes
        payload = self._ask.audio[at : at + self._frame_bytes]
        return Frame(str(track), self._ask.form, payload, start=len(payload) * number // self._ask.form.block_bytes)

    def hop(self, track: int) -> list[Frame]:
        """Next hop of a track."""
        return [self.frame(track) for _ in range(round(self._ask.bundle.manifest.audio.hop_s / FRAME_S))]


def windows_with_speech(ask: Ask, count: int) -> list[Window]:
    """Whole windows all over the audio that the gate takes for speech, cut as for the daemon.

    Raises:
        DataError: the gate takes hardly any for speech.
    """
    manifest = ask.bundle.manifest
    engine, calls, found = Engine(manifest, lambda _: None, max_streams=1 << 20), Calls(ask), list[Window]()
    hops = manifest.audio.window_samples // manifest.audio.hop_samples + 1  # a first block hears a little before
    for track in range(10 * count):
        for frame in (frame for _ in range(hops) for frame in calls.hop(track)):
            engine.feed(frame, 0.0)
        (job,) = engine.take(1)
        found += [job.window] if make_ready([job.window], manifest).heard else []
        if len(found) == count:
            return found
    raise DataError.of("windows with speech", len(found), f"{count} among {10 * count}; give it recordings of speech")


# -- windows a second ------------------------------------------------------------------------------------------------


class Spent(msgspec.Struct, frozen=True):
    """What some windows took."""

    windows: int
    wall_s: float
    cpu_s: float
    """Of the whole process: what a busy machine cannot distort."""

    @property
    def rate(self) -> float:
        """Windows a second."""
        return self.windows / self.wall_s

    @property
    def cpu_ms(self) -> float:
        """CPU milliseconds a window."""
        return 1e3 * self.cpu_s / self.windows


def throughput(ask: Ask, batch: int, threads: int) -> dict[str, Any]:
    """Compare the line with the bare loop at one batch size and number of threads.

    Raises:
        DataError: the gate takes too little of the audio for speech.
    """
    scorer = ask.scorer(batch, threads)
    batch = scorer.buckets[-1]
    runs = bare(scorer, ask, batch)
    spent: dict[str, list[Spent]] = {"engine": [], "bare": []}

    def line() -> float:
        spent["engine"].append(uvloop.run(Line(scorer, batch, ask).served(ask.windows)))
        return spent["engine"][-1].rate

    def alone() -> float:
        spent["bare"].append(at_once(runs, batch, ask.windows))
        return spent["bare"][-1].rate

    found = take_turns({"engine": line, "bare": alone}, rounds=ask.rounds)
    cpu_ms = {name: float(np.median([turn.cpu_ms for turn in turns[1:]])) for name, turns in spent.items()}
    rates = {name: steady.median for name, steady in found.items()}
    return {
        "row": "throughput",
        "batch": batch,
        "threads": threads,
        "runs": scorer.runs,
        "engine_windows_per_s": rates["engine"],
        "bare_windows_per_s": rates["bare"],
        "ratio_engine_to_bare": rates["engine"] / rates["bare"],
        "engine_cpu_ms": cpu_ms["engine"],
        "bare_cpu_ms": cpu_ms["bare"],
        "ratio_cpu_bare_to_engine": cpu_ms["bare"] / cpu_ms["engine"],
        "agreed": all(steady.agreed for steady in found.values()),
    }


def bare(scorer: Scorer, ask: Ask, batch: int) -> list[Callable[[], object]]:
    """Calls that run a scorer's session once on a batch and do nothing else: one for each run that may go at once."""
    audio = make_ready(windows_with_speech(ask, batch), scorer.manifest).audio[:batch]
    return [scorer.bare(audio) for _ in range(scorer.runs)]


def at_once(runs: Sequence[Callable[[], object]], batch: int, windows: int) -> Spent:
    """Repeat each in a thread of its own until about `windows` are done."""
    times = max(1, round(windows / batch / len(runs)))

    def loop(run: Callable[[], object]) -> None:
        for _ in range(times):
            run()

    threads = [threading.Thread(target=loop, args=[run]) for run in runs]
    began_s, cpu_s = time.perf_counter(), time.process_time()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return Spent(times * batch * len(runs), time.perf_counter() - began_s, time.process_time() - cpu_s)


class Line:
    """The daemon between its ears and its voice: engine, pump and messages, with calls that feed it."""

    def __init__(self, scorer: Scorer, batch_max: int, ask: Ask) -> None:
        """Set up; for one use, in one event loop."""
        self._calls: Final = Calls(ask)
        self._pump: Final = Pump(scorer, batch_max, self._scored)
        self._engine: Final = Engine(scorer.manifest, self._emit, max_streams=1 << 20, wake=self._pump.wake)
        self._places: Final = batch_max * (scorer.runs + 1)
        """Windows that are on their way at once."""
        self._ask: Final = ask
        self._answer = False
        """Whether a verdict brings the next hop of its track."""
        self._wanted = 0
        self._enough: Final = asyncio.Event()
        self._verdicts: Final[list[Verdict]] = []
        self.batches: Final[list[int]] = []
        """Windows of each run."""

    async def served(self, windows: int) -> Spent:
        """Serve as many windows, after a few that fill the line; those that were scored count.

        Raises:
            DataError: hardly any was.
        """
        self._answer = True
        async with self._pumping() as pumping:
            for track in range(TRACKS_A_PLACE * self._places):
                self._hop(track)
            await self._until(self._places, pumping)
            began_s, cpu_s, first = time.perf_counter(), time.process_time(), len(self._verdicts)
            await self._until(first + windows, pumping)
            wall_s, cpu_s = time.perf_counter() - began_s, time.process_time() - cpu_s
            scored = sum(verdict.llr is not None for verdict in self._verdicts[first:])
        if 2 * scored < windows:
            expected = f"at least half of {windows}; give it recordings of speech"
            raise DataError.of("windows with speech", scored, expected)
        return Spent(scored, wall_s, cpu_s)

    async def at_real_time(self, tracks: int, seconds: float) -> list[float]:
        """Lags (ms) of the windows of calls that began at any time and come at their own pace."""
        draw = np.random.default_rng(1).uniform(0, self._ask.bundle.manifest.audio.hop_s, tracks)
        async with self._pumping():
            began_s = time.monotonic()
            await asyncio.gather(*(self._call(track, began_s + draw[track], seconds) for track in range(tracks)))
            await asyncio.sleep(AFTER_S)
        return [verdict.lag_ms for verdict in self._verdicts if verdict.llr is not None]

    @asynccontextmanager
    async def _pumping(self) -> Any:
        with self._pump:
            pumping = asyncio.ensure_future(self._pump.run(self._engine))
            try:
                yield pumping
            finally:
                pumping.cancel()
                await asyncio.wait([pumping])

    async def _until(self, verdicts: int, pumping: asyncio.Future[Any]) -> None:
        """Wait for that many verdicts; a pump that ends before says why."""
        self._wanted = verdicts
        self._enough.clear()
        enough: asyncio.Future[Any] = asyncio.ensure_future(self._enough.wait())
        await asyncio.wait([pumping, enough], return_when=asyncio.FIRST_COMPLETED)
        enough.cancel()
        if pumping.done():
            pumping.result()

    async def _call(self, track: int, begin_s: float, seconds: float) -> None:
        for number in range(round(seconds / FRAME_S)):
            await asyncio.sleep(max(0.0, begin_s + number * FRAME_S - time.monotonic()))
            self._engine.feed(self._calls.frame(track), time.monotonic())

    def _hop(self, track: int) -> None:
        for frame in self._calls.hop(track):
            self._engine.feed(frame, time.monotonic())

    def _emit(self, record: Verdict | Event) -> None:
        verdicts.build(record)
        if isinstance(record, Verdict):
            self._verdicts.append(record)
            if len(self._verdicts) == self._wanted:
                self._enough.set()
            if self._answer:
                asyncio.get_running_loop().call_soon(self._hop, int(record.stream))

    def _scored(self, windows: int, _: float) -> None:
        self.batches.append(windows)


# -- where the time goes ---------------------------------------------------------------------------------------------


class Stopwatch:
    """CPU and wall seconds by name."""

    def __init__(self) -> None:
        """Begin at nothing."""
        self.spent_s: Final[dict[str, list[float]]] = {}
        """name -> [CPU, wall]."""

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Add what happens inside."""
        cpu_s, wall_s = time.process_time(), time.perf_counter()
        yield
        total = self.spent_s.setdefault(name, [0.0, 0.0])
        total[0] += time.process_time() - cpu_s
        total[1] += time.perf_counter() - wall_s


def stages(ask: Ask, batch: int, threads: int) -> list[dict[str, Any]]:
    """Time each stage of a window by itself, one after the other, for the same windows.

    What the line costs beyond their sum goes into handing over between threads and the event loop.
    """
    scorer = ask.scorer(batch, threads)
    batch = scorer.buckets[-1]
    said: list[Verdict | Event] = []
    engine, calls = Engine(scorer.manifest, said.append, max_streams=1 << 20), Calls(ask)
    hops = -(-scorer.manifest.audio.window_samples // scorer.manifest.audio.hop_samples)
    for _ in range(hops):
        _one_batch(scorer, engine, calls, Stopwatch(), said, batch)  # until windows are whole
    clock, done = Stopwatch(), 0
    for _ in range(max(1, ask.windows // batch)):
        done += _one_batch(scorer, engine, calls, clock, said, batch)
    return [
        {
            "row": "stage",
            "batch": batch,
            "threads": threads,
            "stage": name,
            "cpu_us": 1e6 * cpu_s / done,
            "wall_us": 1e6 * wall_s / done,
        }
        for name, (cpu_s, wall_s) in clock.spent_s.items()
    ]


def _one_batch(
    scorer: Scorer, engine: Engine, calls: Calls, clock: Stopwatch, said: list[Verdict | Event], batch: int
) -> int:
    manifest = scorer.manifest
    frames = [frame for track in range(batch) for frame in calls.hop(track)]
    with clock("ring"):
        for frame in frames:
            engine.feed(frame, 0.0)
    with clock("cut"):
        jobs = engine.take(batch)
    windows = [job.window for job in jobs]
    with clock("decode"):
        decoded = [decode(window.data, window.format.encoding) for window in windows]
    with clock("gate"):
        for samples, window in zip(decoded, windows, strict=True):
            seconds(activity(samples, window.format.rate_hz), samples.size / window.format.rate_hz)
    with clock("decode to fill"):
        made = [make_ready([window], manifest) for window in windows]
    with clock("stack"):
        audio = np.concatenate([ready.audio for ready in made])
    with clock("run"):
        ran = scorer.run(audio)
    with clock("settle"):
        engine.settle(jobs, settle(made, ran, manifest, scorer.head), 0.0)
    with clock("encode"):
        for record in said:
            verdicts.build(record)
    said.clear()
    return len(jobs)


# -- lag and parity --------------------------------------------------------------------------------------------------


def half_load(ask: Ask, batch: int, threads: int) -> dict[str, Any]:
    """Lag beyond the run of one window by itself, with the calls in real time that half of the model's rate serves."""
    scorer = ask.scorer(batch, threads)
    hop_s = scorer.manifest.audio.hop_s
    (run, *others) = bare(scorer, ask, 1)
    alone_ms = float(np.median([1e3 / at_once([run], 1, 10).rate for _ in range(5)]))
    tracks = max(1, round(at_once([run, *others], 1, ask.windows).rate * hop_s / 2))
    line = Line(scorer, scorer.buckets[-1], ask)
    lags_ms = uvloop.run(line.at_real_time(tracks, ask.lag_s))
    p50, p95, p99 = percentiles([lag_ms - alone_ms for lag_ms in lags_ms], 50, 95, 99)
    return {
        "row": "half load",
        "batch": scorer.buckets[-1],
        "threads": threads,
        "tracks": tracks,
        "windows": len(lags_ms),
        "windows_a_run": float(np.mean(line.batches)) if line.batches else 0.0,
        "alone_ms": alone_ms,
        "added_lag_ms_p50": p50,
        "added_lag_ms_p95": p95,
        "added_lag_ms_p99": p99,
    }


def parity(ask: Ask, batch: int, threads: int) -> list[dict[str, Any]]:
    """Largest difference of LLR between windows by themselves and the same windows in batches of each size."""
    scorer = ask.scorer(batch, threads)
    windows = windows_with_speech(ask, max(scorer.buckets[-1], 16))
    alone = _llrs(scorer, windows, 1)
    return [
        {
            "row": "parity",
            "precision": scorer.manifest.model.precision,
            "batch": size,
            "windows": len(windows),
            "llr_difference": float(np.abs(_llrs(scorer, windows, size) - alone).max()),
        }
        for size in scorer.buckets
    ]


def _llrs(scorer: Scorer, windows: Sequence[Window], size: int) -> NDArray[np.float64]:
    """Of windows whose rows ride `size` at a time; a block model has several rows a window, a live track runs one."""
    ready = make_ready(windows, scorer.manifest)
    rows = range(0, len(ready.audio), size)
    ran = np.concatenate([scorer.run(ready.audio[at : at + size]) for at in rows])
    return np.array([score.llr for score in settle([ready], ran, scorer.manifest, scorer.head)], np.float64)


def tables(rows: Sequence[Row]) -> dict[str, dict[str, str]]:
    """Columns of each kind of row, by its `row`: heading -> key."""
    where = {"batch": "batch", "threads": "threads"}
    every = {
        "throughput": {
            **where,
            "runs at once": "runs",
            "engine, windows/s": "engine_windows_per_s",
            "bare, windows/s": "bare_windows_per_s",
            "engine to bare": "ratio_engine_to_bare",
            "engine, CPU ms": "engine_cpu_ms",
            "bare, CPU ms": "bare_cpu_ms",
            "CPU bare to engine": "ratio_cpu_bare_to_engine",
            "agreed": "agreed",
        },
        "stage": {**where, "stage": "stage", "CPU us a window": "cpu_us", "wall us": "wall_us"},
        "half load": {
            **where,
            "calls": "tracks",
            "windows": "windows",
            "windows a run": "windows_a_run",
            "alone, ms": "alone_ms",
            "added lag p50, ms": "added_lag_ms_p50",
            "p95": "added_lag_ms_p95",
            "p99": "added_lag_ms_p99",
        },
        "parity": {
            "precision": "precision",
            "batch": "batch",
            "windows": "windows",
            "LLR difference": "llr_difference",
        },
    }
    return {kind: columns for kind, columns in every.items() if any(row["row"] == kind for row in rows)}
