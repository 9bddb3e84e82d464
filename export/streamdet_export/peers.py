"""One side of `streamdet bench peers`, in a process of its own.

    python -m streamdet_export.peers torch|call|calls ASK.json

reads the name of a way from each line of stdin and answers each with one `Turn` as JSON.
"""

import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from streamdet.audio import read_recording
from streamdet.bench.recordings import Recordings
from streamdet_export.bench_peers import Ask, Turn, Way

_STATUS: Final = Path("/proc/self/status")
_FORGET: Final = Path("/proc/self/clear_refs")


def read(ask: Ask) -> Recordings:
    """Read the recordings' first channels, as far as they are wanted, and repeat them for as many calls as are."""
    found = {}
    for number in range(ask.calls or len(ask.files)):
        path = Path(ask.files[number % len(ask.files)])
        samples, rate_hz = read_recording(path)
        found[f"{number}-{path.stem.replace(' ', '_')}"] = (samples[: round(ask.seconds * rate_hz), 0], rate_hz)
    return found


def turn(way: Callable[[Recordings], Mapping[str, float]], recordings: Recordings) -> Turn:
    """Run one way over all recordings and say what it took."""
    forget_peak()
    began_s, began_cpu_s = time.perf_counter(), time.process_time()
    scores = dict(way(recordings))
    taken_s, cpu_s = time.perf_counter() - began_s, time.process_time() - began_cpu_s
    audio_s = sum(samples.size / rate_hz for samples, rate_hz in recordings.values())
    return Turn(taken_s, cpu_s, audio_s, peak_bytes(), scores)


def forget_peak() -> None:
    """Let the process's peak of memory begin anew (Linux: proc(5), clear_refs)."""
    try:
        _FORGET.write_text("5", "ascii")
    except OSError:
        return  # then the figure is the process's highest ever: too high, never too low


def peak_bytes() -> int:
    """Return the highest resident memory since then."""
    lines = _STATUS.read_text("utf-8").splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:"))


def open_side(name: str, ask: Ask) -> Any:
    """Load one side's model, without the libraries of the other."""
    if name == "torch":
        from streamdet_export.peers_torch import Torch

        return Torch(ask)
    from streamdet_export.peers_ours import Ours

    return Ours(ask, at_once=name == "calls")


def main() -> None:
    """Answer each line of stdin."""
    ask = msgspec.json.decode(sys.argv[2].encode(), type=Ask)
    recordings = read(ask)
    answers, sys.stdout = sys.stdout, open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115 # libraries' own words
    side = open_side(sys.argv[1], ask)
    for line in sys.stdin:
        way = msgspec.convert(line.strip(), Way)
        answers.write(msgspec.json.encode(turn(getattr(side, way), recordings)).decode() + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
