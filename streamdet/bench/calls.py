"""`streamdet bench calls`: how many calls at real time does this machine carry, and how late are their verdicts?"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import msgspec
import numpy as np

from streamdet.bench.load import Held, Load
from streamdet.bench.report import Draw
from streamdet.bench.search import Found, Outcome, search
from streamdet.bench.steady import agree, percentiles
from streamdet.scorer import Scorer

# Repeats of the number that was found, until three p99 lags agree.
REPEATS: Final = 6
# Timed runs of the bare model.
RUNS: Final = 40

COLUMNS: Final = {
    "calls": "calls",
    "point": "point",
    "lag p50 ms": "lag_ms_p50",
    "p95": "lag_ms_p95",
    "p99": "lag_ms_p99",
    "client p99": "client_ms_p99",
    "transit p99": "transit_ms_p99",
    "batch": "mean_batch",
    "windows": "windows",
    "missing": "missing",
    "daemon cores": "daemon_cores",
    "client cores": "client_cores",
    "late p99": "late_ms_p99",
    "added p99": "added_ms_p99",
}


class Limits(msgspec.Struct, frozen=True):
    """What a number of calls has to keep, and how long it is looked at."""

    limit_ms: float = 250.0
    """Of the 99th percentile of lag: the daemon's own, and the client's from frame due to verdict received."""
    warm_up_s: float = 2.0
    """After the last call has begun."""
    hold_s: float = 5.0
    budget_s: float = 150.0
    """For all of it; the search ends early enough to leave some for half of the number."""


class Bench:
    """Holds numbers of calls, one after the other, and keeps what was seen."""

    def __init__(self, load: Load, limits: Limits, tell: Callable[[str], None] = lambda _: None) -> None:
        """Tell of every stretch as it ends."""
        self._load: Final = load
        self._limits: Final = limits
        self._tell: Final = tell
        self._ends_s: Final = time.monotonic() + limits.budget_s
        self.held: Final[list[Held]] = []

    def find(self, start: int, most: int) -> Found:
        """Find the most calls that keep the limit, and hold them until three stretches agree."""
        reserve_s = 4 * self._stretch_s
        found = search(self._try, start=start, most=most, time_left=lambda: self._left_s() > reserve_s)
        if found.calls:
            self.repeat(found.calls, keep_s=2 * self._stretch_s)
        return honest(found, {each["calls"]: each["point"] for each in rows(self.held, self._limits.limit_ms)})

    def repeat(self, calls: int, *, keep_s: float = 0.0) -> list[Held]:
        """Hold a number until the p99 lags of three stretches agree, or time is out but for `keep_s`."""
        mine = [held for held in self.held if held.calls == calls]
        while len(mine) < REPEATS and not agree([held.lag_ms(99)[0] for held in mine]):
            if mine and self._left_s() < keep_s + self._stretch_s:
                break
            mine.append(self.hold(calls))
        return mine

    def hold(self, calls: int) -> Held:
        """Hold a number for one stretch."""
        load, limits = self._load, self._limits
        if calls != load.calls:
            fewer = calls < load.calls
            ready_s = load.set_calls(calls) + limits.warm_up_s
            if fewer:
                load.await_closed()
            time.sleep(max(0.0, ready_s - time.monotonic()))
        held = load.hold(limits.hold_s, grace_s=min(limits.limit_ms / 1e3, load.hop_s))
        self.held.append(held)
        p99, whole = held.lag_ms(99)[0], held.whole_ms(99)[0]
        self._tell(
            f"{calls} calls: {outcome(held, limits.limit_ms)}, lag p99 {p99:.0f} ms, at the client {whole:.0f} ms, "
            f"{held.missing} of {held.expected} windows missing"
            + (f"; the caller was {held.sent.late_ms_p99:.0f} ms late" if held.void else "")
        )
        return held

    def _try(self, calls: int) -> Outcome:
        return outcome(self.hold(calls), self._limits.limit_ms)

    @property
    def _stretch_s(self) -> float:
        return self._limits.hold_s + self._limits.warm_up_s + 2 * self._load.hop_s

    def _left_s(self) -> float:
        return self._ends_s - time.monotonic()


def outcome(held: Held, limit_ms: float) -> Outcome:
    """Say whether every window came, and in time; a void stretch says nothing."""
    if held.void:
        return "void"
    in_time = held.windows and held.lag_ms(99)[0] <= limit_ms and held.whole_ms(99)[0] <= limit_ms
    return "kept" if in_time and not held.missing and not held.sent.blocked else "broken"


def honest(found: Found, points: Mapping[int, str]) -> Found:
    """Step down where the repeats said that the number was too good: to the most calls that were mostly kept."""
    if points.get(found.calls, "kept") == "kept":
        return found
    least = max((calls for calls, point in points.items() if point == "kept" and calls < found.calls), default=0)
    return Found(least, found.calls, "budget")


def pure_ms(scorer: Scorer, batch: int, runs: int = RUNS) -> float:
    """Median time of the model alone with a batch of this size (ms); of a block model, of so many blocks."""
    shape = batch, scorer.manifest.input_samples
    audio = (0.1 * np.random.default_rng(0).standard_normal(shape)).astype(np.float32)
    taken_ms = []
    for _ in range(runs + 2):
        began_s = time.perf_counter()
        scorer.run(audio)
        taken_ms.append(1e3 * (time.perf_counter() - began_s))
    return percentiles(taken_ms[2:], 50)[0]


def row(stretches: list[Held], limit_ms: float) -> dict[str, Any]:
    """Sum up the stretches of one number of calls: medians of each stretch's figures, sums of counts."""
    said = [outcome(held, limit_ms) for held in stretches]
    good = [held for held in stretches if not held.void] or stretches

    def middle(figures: list[float | None]) -> float | None:
        known = [figure for figure in figures if figure is not None]
        return percentiles(known, 50)[0] if known else None

    percents: dict[str, Callable[[Held, float], Sequence[float | None]]] = {
        "lag_ms": Held.lag_ms,
        "client_ms": Held.whole_ms,
        "transit_ms": Held.transit_ms,
    }
    return {
        "calls": stretches[0].calls,
        "point": summed_up(said),
        "stretches": len(stretches),
        "void_stretches": said.count("void"),
        "agreed": agree([held.lag_ms(99)[0] for held in good]),
        **{
            f"{name}_p{at}": middle([measure(held, at)[0] for held in good])
            for name, measure in percents.items()
            for at in (50, 95, 99)
        },
        "mean_batch": middle([held.mean_batch for held in good]),
        "batch_ms": middle([held.batch_ms for held in good]),
        "windows": sum(len(held.windows) for held in good),
        "missing": sum(held.missing for held in good),
        "gated": sum(window.gated for held in good for window in held.windows),
        "daemon_cores": middle([held.daemon_cores for held in good]),
        "client_cores": middle([held.client_cores for held in good]),
        "frames_per_s": middle([held.sent.frames / held.seconds for held in good]),
        "caller_us_per_frame": middle([1e6 * held.sent.cpu_s / max(1, held.sent.frames) for held in good]),
        "late_ms_p99": max(held.sent.late_ms_p99 for held in stretches),
        "late_ms_max": max(held.sent.late_ms_max for held in stretches),
        "blocked": sum(held.sent.blocked for held in stretches),
    }


def summed_up(said: Sequence[Outcome]) -> str:
    """Return what most stretches gave, void ones left out; `mixed` where as many were kept as broken."""
    kept, broken = said.count("kept"), said.count("broken")
    if not kept and not broken:
        return "void"
    return "mixed" if kept == broken else "kept" if kept > broken else "broken"


def rows(held: list[Held], limit_ms: float) -> list[dict[str, Any]]:
    """One row a number of calls, ascending."""
    return [row([each for each in held if each.calls == calls], limit_ms) for calls in sorted({h.calls for h in held})]


def added(row: dict[str, Any], pure: float) -> dict[str, Any]:
    """Hold the lag of half of the calls against the model alone."""
    return {
        "pure_ms": pure,
        "added_ms_p50": row["lag_ms_p50"] - pure,
        "added_ms_p99": row["lag_ms_p99"] - pure,
        "ratio_lag_p99_to_pure": row["lag_ms_p99"] / pure,
    }


def conclusion(found: Found, limit_ms: float, model: str) -> str:
    """Say in a sentence what was found."""
    text = f"{model}: {found.calls} calls with p99 lag under {limit_ms:g} ms"
    why = {
        "daemon": f"{found.above} are too many",
        "generator": f"more than that the caller cannot play on time: at least {found.calls}",
        "most": "no more were asked for",
        "budget": "there was no time to look closer" + (f": {found.above} are too many" if found.above else ""),
    }
    return f"{text}; {why[found.why]}"


def curve(found: list[dict[str, Any]], limit_ms: float) -> Draw:
    """Draw calls against lag, and against CPU."""
    good = [row for row in found if row["point"] != "void"]

    def draw(figure: Any) -> None:
        lag, cpu = figure.subplots(1, 2)
        calls = [row["calls"] for row in good]
        for at in (50, 95, 99):
            lag.plot(calls, [row[f"lag_ms_p{at}"] for row in good], "o-", label=f"lag p{at}")
        lag.plot(calls, [row["client_ms_p99"] for row in good], "x--", label="at the client, p99")
        lag.axhline(limit_ms, color="grey", linestyle=":", label="limit")
        lag.set(xlabel="calls", ylabel="ms", yscale="log")
        lag.legend()
        for name in ("daemon_cores", "client_cores"):
            if all(row[name] is not None for row in good):
                cpu.plot(calls, [row[name] for row in good], "o-", label=name.replace("_", " "))
        cpu.plot(calls, [row["mean_batch"] for row in good], "x--", label="mean batch")
        cpu.set(xlabel="calls", ylabel="cores, windows a batch")
        cpu.legend()

    return draw
