"""`streamdet bench ingest`: what a frame costs on its way from a socket into its track, and what an open track costs.

Sockets, loop, engine and verdicts are the daemon's; only the model costs nothing (`bench/free.py`). The sender is a
process of its own. Flat out (`bench/flood.py`) it keeps the daemon at its limit, so frames a second on the clock are
what both processes get of the machine together, and CPU microseconds a frame are the daemon's own. At real time
(`bench/load.py`) it plays calls, and frames come one at a time: each then costs a share of a wake-up too.
"""

import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Final, get_args

import msgspec

from streamdet import bundle
from streamdet.bench.flood import RATE_HZ, Flood, flooding
from streamdet.bench.load import load
from streamdet.bench.processes import threads
from streamdet.bench.report import Draw, Row
from streamdet.bench.served import Daemon, Over, served
from streamdet.bench.steady import agree, take_turns
from streamdet.errors import StreamdetError

FORMAT: Final = "8000 Hz mulaw"
WAYS: Final[tuple[Over, ...]] = get_args(Over)
# Of a flood, before anything is counted: queues fill, rings are touched for the first time.
WARM_UP_S: Final = 0.3
# A daemon that scores nothing needs no threads; streams of this bench are silent while memory is read, and flat out
# they are as far ahead of real time as it goes.
SETTINGS: Final = {
    "scoring.provider": "cpu",
    "scoring.threads": "1",
    "streams.idle_timeout_s": "3600",
    "limits.ahead_s": "1e6",
}
# Of calls at real time, after the last has begun: each has had its first window.
SETTLE_S: Final = 2.0
# The audio of a track whose memory is read: longer than window and ring.
TRACK_S: Final = 6
# In frames that weigh little themselves: ten thousand may be on their way.
TRACK_MS: Final = 200
# A busy machine takes this long to fill ten thousand tracks.
PATIENCE_S: Final = 120.0

COLUMNS: Final = {
    "over": "over",
    "sent": "sent",
    "streams": "streams",
    "frame ms": "frame_ms",
    "frames/s": "frames_per_s",
    "loop us/frame": "loop_us",
    "libzmq us/frame": "zeromq_us",
    "all us/frame": "whole_us",
    "frames/s a core": "frames_per_core_s",
    "cores": "cores",
    "transit p99 ms": "transit_ms_p99",
    "windows": "windows",
    "agreed": "agreed",
    "tracks": "tracks",
    "kB a track": "track_kb",
    "RSS MB": "rss_mb",
}


class Ask(msgspec.Struct, frozen=True):
    """What to measure."""

    over: tuple[Over, ...] = WAYS
    streams: tuple[int, ...] = (1, 100, 1000)
    frames_ms: tuple[int, ...] = (20, 40, 100)
    seconds: float = 1.0
    """Of one look."""
    rounds: int = 4
    """Looks at the most, until three agree."""
    calls: int = 1000
    """At real time; 0 leaves them out."""
    tracks: int = 10_000
    """Whose memory is read; 0 leaves it out."""

    @property
    def cases(self) -> list[tuple[int, int]]:
        """(streams, frame length) of each flood: all numbers at the shortest frame, all lengths at the most streams."""
        crossed = itertools.product(self.streams, self.frames_ms)
        return [each for each in crossed if each[0] == max(self.streams) or each[1] == min(self.frames_ms)]


class Seen(msgspec.Struct, frozen=True):
    """A daemon's counters at one time."""

    at_s: float
    cpu_s: dict[str, float]
    """By thread."""
    metrics: dict[str, float]

    @classmethod
    def of(cls, daemon: Daemon) -> "Seen":
        """Look now."""
        assert daemon.pid is not None, "a daemon that was started here has a process"
        metrics = daemon.metrics()
        return cls(time.monotonic(), threads(daemon.pid), metrics)

    def frames_since(self, before: "Seen", frame_bytes: int) -> float:
        """Frames that were taken, by their bytes: on a connection the kernel joins what was written apart.

        Raises:
            StreamdetError: none were, or some were refused.
        """
        if refused := self.metrics.get("streamdet_refused_total", 0.0):
            raise StreamdetError.of("refused frames", round(refused), "none")
        name = "streamdet_audio_bytes_total"
        taken = (self.metrics.get(name, 0.0) - before.metrics.get(name, 0.0)) / frame_bytes
        if taken <= 0:
            raise StreamdetError.of("frames taken", taken, "some: the sender does not get through")
        return taken

    def since(self, before: "Seen", frame_bytes: int) -> dict[str, float]:
        """What a frame cost since `before`."""
        frames = self.frames_since(before, frame_bytes)
        spent = {name: used - before.cpu_s.get(name, 0.0) for name, used in self.cpu_s.items()}
        zeromq_s = sum(used for name, used in spent.items() if name.startswith("ZMQbg"))
        whole_s, wall_s = sum(spent.values()), self.at_s - before.at_s
        return {
            "frames_per_s": frames / wall_s,
            "loop_us": 1e6 * spent["main"] / frames,
            "zeromq_us": 1e6 * zeromq_s / frames,
            "rest_us": 1e6 * (whole_s - zeromq_s - spent["main"]) / frames,
            "whole_us": 1e6 * whole_s / frames,
            "frames_per_core_s": frames / whole_s,
            "cores": whole_s / wall_s,
            "windows": self.metrics.get("streamdet_verdicts_total", 0.0)
            - before.metrics.get("streamdet_verdicts_total", 0.0),
        }


def bench(ask: Ask, tell: Callable[[str], None] = lambda _: None) -> list[Row]:
    """Measure everything that was asked for; `tell` hears of each row as it is found."""
    rows: list[Row] = []

    def found(row: Row) -> None:
        rows.append(row)
        tell(", ".join(f"{name} {_short(value)}" for name, value in row.items() if value is not None))

    for over in ask.over:
        with served(over, SETTINGS, program="streamdet.bench.free") as daemon:
            for row in floods(daemon, over, ask):
                found(row)
        for frame_ms in ask.frames_ms if ask.calls else ():
            with served(over, SETTINGS, program="streamdet.bench.free") as daemon:
                found(in_real_time(daemon, over, ask.calls, frame_ms, 3 * ask.seconds))
    for row in memory(ask.tracks) if ask.tracks else ():
        found(row)
    return rows


def floods(daemon: Daemon, over: Over, ask: Ask) -> list[Row]:
    """Flood a daemon in every case, in turns, until the CPU time of a frame has come to rest."""
    looks: dict[str, list[dict[str, float]]] = {}
    numbers = itertools.count()

    def look(case: str, streams: int, frame_ms: int) -> float:
        flood = Flood(over, daemon.audio, streams, frame_ms, name=f"flood-{next(numbers)}")
        with flooding(flood):
            time.sleep(WARM_UP_S)
            before = Seen.of(daemon)
            time.sleep(ask.seconds)
            seen = Seen.of(daemon).since(before, flood.frame_samples)
        looks.setdefault(case, []).append(seen)
        return seen["whole_us"]

    cases = {f"{streams} x {frame_ms}": (streams, frame_ms) for streams, frame_ms in ask.cases}
    turns = {case: partial(look, case, *of) for case, of in cases.items()}
    steady = take_turns(turns, warm_up=0, rounds=ask.rounds)
    return [
        {
            "over": over,
            "sent": "flat out",
            "streams": streams,
            "frame_ms": frame_ms,
            **{name: statistics.median(each[name] for each in looks[case]) for name in looks[case][0]},
            "agreed": steady[case].agreed,
        }
        for case, (streams, frame_ms) in cases.items()
    ]


def in_real_time(daemon: Daemon, over: Over, calls: int, frame_ms: int, seconds: float) -> Row:
    """Play calls, each frame when it is due, and see what they cost."""
    recordings = bundle.starter_recordings()
    with (
        tempfile.TemporaryDirectory(prefix="streamdet-bench-") as folder,
        load(daemon, recordings, over=over, hop_s=1.0, frame_ms=frame_ms, folder=Path(folder), sockets=1) as calling,
    ):
        time.sleep(max(0.0, calling.set_calls(calls) + SETTLE_S - time.monotonic()))
        before, looks = Seen.of(daemon), []
        for _ in range(3):
            held = calling.hold(seconds / 3, grace_s=0.0)
            after = Seen.of(daemon)
            looks.append(after.since(before, RATE_HZ * frame_ms // 1000))
            before = after
    middle = {name: statistics.median(each[name] for each in looks) for name in looks[0]}
    return {
        "over": over,
        "sent": "at real time",
        "streams": calls,
        "frame_ms": frame_ms,
        **middle,
        "transit_ms_p99": held.transit_ms(99)[0],
        "late_ms_p99": held.sent.late_ms_p99,
        "agreed": agree([each["whole_us"] for each in looks]),
    }


def memory(tracks: int) -> list[Row]:
    """Open tracks in a fresh daemon, a tenth of them and then all, and read what they hold."""
    some = max(1, tracks // 10)
    with ExitStack() as stack:
        daemon = stack.enter_context(served("zeromq", SETTINGS, program="streamdet.bench.free"))
        empty_bytes, opened, rows = _resident_bytes(daemon), 0, list[Row]()
        for more, name in ((some, "some"), (tracks - some, "more")):
            if more:
                flood = Flood("zeromq", daemon.audio, more, TRACK_MS, frames=1000 * TRACK_S // TRACK_MS, name=name)
                stack.enter_context(flooding(flood))
                opened += more
                _await_tracks(daemon, opened)
                held_bytes = _resident_bytes(daemon)
                each_kb = (held_bytes - empty_bytes) / opened / 1e3
                rows.append(
                    {
                        "over": "zeromq",
                        "sent": "memory",
                        "tracks": opened,
                        "track_kb": each_kb,
                        "rss_mb": held_bytes / 1e6,
                    }
                )
        return rows


def _await_tracks(daemon: Daemon, tracks: int) -> None:
    """Wait until all audio is in its track and every track has had its verdicts."""
    audio_bytes = tracks * TRACK_S * RATE_HZ
    deadline_s, settled, last = time.monotonic() + PATIENCE_S, False, -1.0
    while not settled:
        if time.monotonic() > deadline_s:
            raise StreamdetError.of("open tracks", tracks, f"a daemon that takes them within {PATIENCE_S:g} s")
        time.sleep(1.1)  # the daemon counts streams once a second
        metrics = daemon.metrics()
        verdicts = metrics.get("streamdet_verdicts_total", 0.0)
        taken = metrics.get("streamdet_audio_bytes_total", 0.0)
        settled = metrics["streamdet_tracks"] == tracks and taken >= audio_bytes and verdicts == last
        last = verdicts


def _resident_bytes(daemon: Daemon) -> int:
    used = daemon.usage()
    assert used is not None, "a daemon that was started here has a process"
    return used.rss_bytes


def curve(rows: Sequence[Row]) -> Draw:
    """Draw CPU time a frame, flat out and at real time, thread by thread."""
    drawn = [row for row in rows if row.get("frames_per_s")]

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        names = [f"{row['over']}\n{row['sent']}\n{row['streams']} x {row['frame_ms']} ms" for row in drawn]
        under = [0.0] * len(drawn)
        for key, label in (("loop_us", "event loop"), ("zeromq_us", "libzmq"), ("rest_us", "other threads")):
            heights = [row[key] for row in drawn]
            axes.bar(names, heights, bottom=under, label=label)
            under = [low + high for low, high in zip(under, heights, strict=True)]
        axes.axhline(20, color="grey", linestyle=":", label="50,000 frames/s on a core")
        axes.set(ylabel="CPU, us a frame")
        axes.tick_params(axis="x", labelsize=6)
        axes.legend()

    return draw


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
