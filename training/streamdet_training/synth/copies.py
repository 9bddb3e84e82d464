"""Copy-synthesis: each clip through some of the vocoders, over several processes, from where an earlier run stood."""

import hashlib
import logging
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
import soundfile
import torch

from streamdet.audio import Samples
from streamdet.errors import DataError, StreamdetError
from streamdet_training.clips import Clip
from streamdet_training.synth import listing, sources, systems
from streamdet_training.synth.listing import Row
from streamdet_training.synth.match import match

log = logging.getLogger(__name__)

LISTED_EVERY_S: Final = 15.0  # a reader of a long run's manifest need not wait for its end


class Task(msgspec.Struct, frozen=True):
    """One clip, and where it goes by which system."""

    clip: Clip
    paths: dict[str, Path]
    seed: int


class Done(msgspec.Struct):
    """What became of a task."""

    task: Task
    spent_s: dict[str, float] = {}
    """What was made, and how long it took."""
    errors: list[StreamdetError] = []
    """What was not."""
    short: bool = False
    """The clip was passed over."""


def plan(clips: Sequence[Clip], out: Path, names: Sequence[str], per_clip: int, seed: int) -> list[Task]:
    """Give each clip `per_clip` of the systems, drawn by its name and the seed: a later run draws the same."""
    tasks = []
    for clip in clips:
        order = _generator(seed, clip.path.name).permutation(len(names))[:per_clip]
        tag = hashlib.sha256(os.path.relpath(clip.path, out).encode()).hexdigest()[:6]  # two folders, one file name
        file = f"{clip.path.stem}-{tag}-{seed}.flac"
        tasks.append(Task(clip, {names[at]: out / names[at] / file for at in sorted(order)}, seed))
    return tasks


def make(tasks: Sequence[Task], out: Path, weights: Path, *, min_s: float, jobs: int) -> int:
    """Make what is not there yet, and list everything in the manifest of `out`.

    A clip that cannot be used is one line in the log; one shorter than `min_s` is counted.

    Args:
        tasks: what to make.
        out: the folder, the paths of `tasks` below it.
        weights: folder of the trained vocoders' weights.
        min_s: shorter clips are passed over (s).
        jobs: processes; 1 is this one.

    Returns:
        0, or the exit code of the last failure.
    """
    rows = listing.read(out)
    there = 0
    for task in tasks:
        for name, path in task.paths.items():
            if path.is_file():
                there += 1
                row = _row(task.clip, name, path, out)
                rows.setdefault(row.path, row)
    left = [rest for rest in map(_rest, tasks) if rest.paths]
    log.info("%d to make, %d are there", sum(len(task.paths) for task in left), there)
    tally, listed_s, code = _Tally(), time.monotonic(), 0
    for done in _run(left, weights, min_s, jobs):
        for error in done.errors:
            log.error("%s: %s", done.task.clip.path, error)
            code = error.exit_code
        for name in done.spent_s:
            row = _row(done.task.clip, name, done.task.paths[name], out)
            rows[row.path] = row
            tally.add(name, row.duration_s, done.spent_s[name])
        tally.short += done.short
        tally.failed += bool(done.errors)
        if time.monotonic() - listed_s > LISTED_EVERY_S:
            listing.write(out, rows.values())
            listed_s = time.monotonic()
    listing.write(out, rows.values())
    tally.log()
    return code


def _rest(task: Task) -> Task:
    """What is left of a task."""
    return Task(task.clip, {name: path for name, path in task.paths.items() if not path.is_file()}, task.seed)


def _run(tasks: Sequence[Task], weights: Path, min_s: float, jobs: int) -> Iterator[Done]:
    if jobs == 1:
        yield from (_make(task, weights, min_s) for task in tasks)
        return
    # Fresh processes: a fork of one in which torch has started threads may wait for ever.
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), initializer=_settle) as pool:
        try:
            for done in as_completed([pool.submit(_make, task, weights, min_s) for task in tasks]):
                yield done.result()
        except BrokenProcessPool:
            raise StreamdetError.of("--jobs", jobs, "processes that live; one was killed, perhaps for memory") from None
        finally:
            pool.shutdown(cancel_futures=True)


def _settle() -> None:
    torch.set_num_threads(1)  # the processes are the parallelism


def _make(task: Task, weights: Path, min_s: float) -> Done:
    done = Done(task)
    try:
        samples, rate_hz = sources.read(task.clip.path)
        done.short = samples.size < min_s * rate_hz
        if done.short:
            return done
        for name, path in task.paths.items():
            began_s = time.monotonic()
            made = _vocoded(name, samples, rate_hz, weights, task)
            listing.save(path, match(made, samples, rate_hz), rate_hz)
            done.spent_s[name] = time.monotonic() - began_s
    except StreamdetError as error:
        done.errors.append(error)
    return done


def _vocoded(name: str, samples: Samples, rate_hz: int, weights: Path, task: Task) -> Samples:
    clip = task.paths[name].stem
    vocoder = systems.vocoder(name, weights, clip)
    try:
        return vocoder(samples, rate_hz, _generator(task.seed, f"{name}/{clip}"))
    except (ValueError, RuntimeError, np.linalg.LinAlgError) as error:
        # The libraries' ways to say that a recording is like no speech.
        first = str(error).partition("\n")[0]
        raise DataError.of(f"{name} of recording", task.clip.path.name, f"something like speech ({first})") from error


def _row(clip: Clip, system: str, path: Path, out: Path) -> Row:
    about = soundfile.info(path)
    return Row(
        path=path.relative_to(out).as_posix(),
        label="spoof",
        speaker=clip.speaker,
        system=f"synth-{system}",
        source_repo=clip.source,
        rate_hz=about.samplerate,
        duration_s=round(about.duration, 3),
        split=clip.split,
        note=f"chan={clip.channel};of={os.path.relpath(clip.path, out)}",
    )


def _generator(seed: int, name: str) -> np.random.Generator:
    return np.random.default_rng((seed, *hashlib.sha256(name.encode()).digest()[:8]))


class _Tally:
    """What each system made, and how fast."""

    def __init__(self) -> None:
        self._made: dict[str, tuple[int, float, float]] = {}
        self.short = self.failed = 0

    def add(self, system: str, audio_s: float, spent_s: float) -> None:
        clips, audio, spent = self._made.get(system, (0, 0.0, 0.0))
        self._made[system] = (clips + 1, audio + audio_s, spent + spent_s)

    def log(self) -> None:
        for name, (clips, audio_s, spent_s) in self._made.items():
            log.info("%s: %d clips, %.0f s, %.0f x real time a process", name, clips, audio_s, audio_s / spent_s)
        if self.short or self.failed:
            log.info("%d clips passed over as too short, %d failed", self.short, self.failed)
