"""`streamdet bench peers`: the engine against what a user would write instead, with the same weights and recordings.

The ways take turns within one run. torch and onnxruntime live in processes of their own (peers.py), so that neither's
memory or threads are the other's.
"""

import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, Final, Literal, get_args

import msgspec

from streamdet.bench.steady import Steady, take_turns
from streamdet.errors import StreamdetError

Way = Literal["eager", "batched", "whole", "call", "calls"]
WAYS: Final[tuple[Way, ...]] = get_args(Way)
TORCH: Final[tuple[Way, ...]] = ("eager", "batched", "whole")
SAID: Final[Mapping[Way, str]] = {
    "eager": "torch, a window at a time",
    "batched": "torch, windows in batches",
    "whole": "torch, a recording at once",
    "call": "streamdet, one call",
    "calls": "streamdet, calls side by side",
}


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """What both processes are told."""

    run: str
    bundle: str
    files: tuple[str, ...]
    seconds: float
    """Of each recording at the most."""
    calls: int = 0
    """Recordings are repeated for so many; 0: each is one call."""
    threads: int
    batch: int
    device: Literal["cpu", "cuda"]
    autocast: Literal["no", "fp16", "bf16"] = "no"
    """Of torch."""


class Turn(msgspec.Struct, frozen=True):
    """All recordings once, one way."""

    taken_s: float
    cpu_s: float
    """Of the process: steadier than the clock on a machine with other work."""
    audio_s: float
    peak_bytes: int
    """Highest resident memory of the process during the turn."""
    scores: dict[str, float]
    """Raw CM scores by recording and the window's end; a whole recording has one."""


Measure = Callable[[], Turn]


def bench(ask: Ask, ways: Sequence[Way], threads: Sequence[int], rounds: int) -> list[dict[str, Any]]:
    """Measure every way with every number of threads.

    Args:
        ask: what all share; its threads are replaced.
        ways: to compare.
        threads: of torch and of onnxruntime, alike.
        rounds: turns of each way at the most.

    Raises:
        StreamdetError: a process broke down.
    """
    rows: list[dict[str, Any]] = []
    for count in threads:
        asked = msgspec.structs.replace(ask, threads=count)
        with ExitStack() as stack:
            # One for all of torch's; one each of ours, since the daemon's scorer shares out its threads otherwise.
            sides = {way: "torch" if way in TORCH else way for way in ways}
            workers = {side: stack.enter_context(Worker(asked, side)) for side in dict.fromkeys(sides.values())}
            found, turns = measure({way: partial(workers[side].run, way) for way, side in sides.items()}, rounds)
        rows += summary(asked, found, turns)
    return rows


def measure(ways: Mapping[Way, Measure], rounds: int) -> tuple[dict[Way, Steady], dict[Way, list[Turn]]]:
    """Take turns; figures are seconds of audio a second."""
    turns: dict[Way, list[Turn]] = {way: [] for way in ways}

    def once(way: Way) -> float:
        turns[way].append(ways[way]())
        return turns[way][-1].audio_s / turns[way][-1].taken_s

    # Each process has warmed up by itself, on a window: a whole turn of a large model takes minutes.
    return take_turns({way: partial(once, way) for way in ways}, warm_up=0, rounds=rounds), turns


def summary(ask: Ask, found: Mapping[Way, Steady], turns: Mapping[Way, Sequence[Turn]]) -> list[dict[str, Any]]:
    """Return a row a way; ratios say how many times faster `streamdet`'s calls side by side are than it."""
    rows = []
    for way, speed in found.items():
        mine = turns[way]
        row: dict[str, Any] = {
            "way": SAID[way],
            "threads": ask.threads,
            "audio_s_per_s": speed.median,
            "windows_per_s": None if way == "whole" else speed.median * len(mine[0].scores) / mine[0].audio_s,
            "cpu_s_per_audio_s": _median_cpu_s(mine) / mine[0].audio_s,
            "peak_bytes": max(turn.peak_bytes for turn in mine),
            "largest_difference": difference(turns, way),
            "agreed": speed.agreed,
        }
        if way != "calls" and "calls" in found:
            row["ratio_calls_to_this"] = found["calls"].median / speed.median
            row["ratio_cpu_this_to_calls"] = _median_cpu_s(mine) / _median_cpu_s(turns["calls"])
        rows.append(row)
    return rows


def difference(turns: Mapping[Way, Sequence[Turn]], way: Way) -> float | None:
    """Largest difference of a window's score from torch's, one window at a time; None where windows are not its own."""
    if way in ("eager", "whole") or "eager" not in turns:
        return None
    theirs, mine = turns["eager"][0].scores, turns[way][0].scores
    if theirs.keys() != mine.keys():
        raise StreamdetError.of(
            "bench peers windows", sorted(theirs.keys() ^ mine.keys())[:3], "the same ones each way"
        )
    return max(abs(mine[key] - theirs[key]) for key in mine)


def _median_cpu_s(turns: Sequence[Turn]) -> float:
    return Steady(tuple(turn.cpu_s for turn in turns)).median


class Worker:
    """A process that holds one side's model and runs a way when told to."""

    def __init__(self, ask: Ask, side: str) -> None:
        """Start it; the model is loaded and warm by its first turn."""
        command = [sys.executable, "-P", "-m", "streamdet_export.peers", side, msgspec.json.encode(ask).decode()]
        pipe = subprocess.PIPE
        self._side = side
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)  # noqa: S603 # our own interpreter and module

    def run(self, way: Way) -> Turn:
        """Have one turn.

        Raises:
            StreamdetError: the process ended instead.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(f"{way}\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            line = ""
        else:
            line = self._process.stdout.readline()
        if not line:
            said = (self._process.communicate()[1] or "").strip().rpartition("\n")[2]
            raise StreamdetError.of(
                f"bench peers, {self._side}", said or f"exit code {self._process.returncode}", "a process that goes on"
            )
        return msgspec.json.decode(line, type=Turn)

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()
