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
from typing import Final, NamedTuple

import msgspec
import numpy as np
import soundfile
import torch

from streamdet.errors import StreamdetError
from streamdet_training.data import Clip
from streamdet_training.synth import listing, sources, systems
from streamdet_training.synth.listing import Row
from streamdet_training.synth.match import match

log = logging.getLogger(__name__)

LISTED_EVERY_S: Final = 15.0  # a reader of a long run's manifest need not wait for its end


class Task(msgspec.Struct, frozen=True):
    """One clip to make by one system."""

    clip: Clip
    system: str
    seed: int
    path: Path
    """Where it goes."""


class Made(NamedTuple):
    """What became of a task."""

    task: Task
    error: str | None
    exit_code: int
    spent_s: float


def plan(clips: Sequence[Clip], out: Path, names: Sequence[str], per_clip: int, seed: int) -> list[Task]:
    """Give each clip `per_clip` of the systems, drawn by its name and the seed: a later run draws the same."""
    tasks = []
    for clip in clips:
        order = _generator(seed, str(clip.path.name)).permutation(len(names))[:per_clip]
        tag = hashlib.sha256(os.path.relpath(clip.path, out).encode()).hexdigest()[:6]  # two folders, one file name
        file = f"{clip.path.stem}-{tag}-{seed}.flac"
        tasks += [Task(clip, names[at], seed, out / names[at] / file) for at in sorted(order)]
    return tasks


def make(tasks: Sequence[Task], out: Path, weights: Path, *, min_s: float, jobs: int) -> int:
    """Make what is not there yet, and list everything in the manifest of `out`.

    A clip that cannot be used is one line in the log; one shorter than `min_s` is counted.

    Args:
        tasks: what to make.
        out: the folder, `Task.path` below it.
        weights: folder of the trained vocoders' weights.
        min_s: shorter clips are passed over (s).
        jobs: processes; 1 is this one.

    Returns:
        0, or the exit code of the last failure.
    """
    rows = listing.read(out)
    left = []
    for task in tasks:
        if task.path.is_file():
            row = _row(task, out)
            rows.setdefault(row.path, row)
        else:
            left.append(task)
    log.info("%d to make, %d are there", len(left), len(tasks) - len(left))
    code, listed_s = 0, time.monotonic()
    tally = _Tally()
    for made in _run(left, weights, min_s, jobs):
        if made.error is not None:
            log.error("%s: %s: %s", made.task.clip.path, made.task.system, made.error)
            code = made.exit_code
        elif made.task.path.is_file():
            row = _row(made.task, out)
            rows[row.path] = row
        tally.add(made)
        if time.monotonic() - listed_s > LISTED_EVERY_S:
            listing.write(out, rows.values())
            listed_s = time.monotonic()
    listing.write(out, rows.values())
    tally.log()
    return code


def _run(tasks: Sequence[Task], weights: Path, min_s: float, jobs: int) -> Iterator[Made]:
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


def _make(task: Task, weights: Path, min_s: float) -> Made:
    began_s = time.monotonic()
    try:
        samples, rate_hz = sources.read(task.clip.path)
        if samples.size >= min_s * rate_hz:
            name = task.path.stem
            vocoder = systems.vocoder(task.system, weights, name)
            made = vocoder(samples, rate_hz, _generator(task.seed, f"{task.system}/{name}"))
            listing.save(task.path, match(made, samples, rate_hz), rate_hz)
    except StreamdetError as error:
        return Made(task, str(error), error.exit_code, time.monotonic() - began_s)
    return Made(task, None, 0, time.monotonic() - began_s)


def _row(task: Task, out: Path) -> Row:
    about = soundfile.info(task.path)
    clip = task.clip
    return Row(
        path=str(task.path.relative_to(out)),
        label="spoof",
        speaker=clip.speaker,
        system=f"synth-{task.system}",
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
        self._clips: dict[str, int] = {}
        self._audio_s: dict[str, float] = {}
        self._spent_s: dict[str, float] = {}
        self._short = self._failed = 0

    def add(self, made: Made) -> None:
        name = made.task.system
        if made.error is not None:
            self._failed += 1
        elif not made.task.path.is_file():
            self._short += 1
        else:
            self._clips[name] = self._clips.get(name, 0) + 1
            self._audio_s[name] = self._audio_s.get(name, 0.0) + soundfile.info(made.task.path).duration
            self._spent_s[name] = self._spent_s.get(name, 0.0) + made.spent_s

    def log(self) -> None:
        for name, clips in self._clips.items():
            audio_s, spent_s = self._audio_s[name], self._spent_s[name]
            log.info("%s: %d clips, %.0f s, %.0f x real time a process", name, clips, audio_s, audio_s / spent_s)
        if self._short or self._failed:
            log.info("%d passed over as too short, %d failed", self._short, self._failed)
