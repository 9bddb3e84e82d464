"""`streamdet bench overload`: more calls than can be scored every hop. Who is heard, how often, at what cost?"""

import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec
import numpy as np

from streamdet.bench.load import Held, Load, Window
from streamdet.bench.report import Draw
from streamdet.bench.steady import percentiles

FACTORS: Final = (1, 2, 4, 8)
# A track is watched for so many of the windows that it should get: fewer, and chance decides who got most.
WINDOWS: Final = 5
# Recovery is watched for so many hops.
RECOVERY_HOPS: Final = 12

COLUMNS: Final = {
    "load": "load",
    "calls": "calls",
    "hop s": "hop_s_mean",
    "of ideal": "ratio_hop_to_ideal",
    "worst": "ratio_worst_hop_to_ideal",
    "max/min": "ratio_windows_max_to_min",
    "unheard": "tracks_unheard",
    "skipped %": "skipped_percent",
    "lag p99 ms": "lag_ms_p99",
    "transit p99": "transit_ms_p99",
    "RSS MB": "rss_mb",
    "MB/min": "rss_mb_per_min",
    "daemon cores": "daemon_cores",
    "late p99": "late_ms_p99",
    "back after": "windows_until_normal_max",
}


class Plan(msgspec.Struct, frozen=True):
    """What is held, and for how long."""

    calls: int
    """As many as are kept in time."""
    factors: tuple[int, ...] = FACTORS
    hold_s: float = 6.0
    """At the least; an overload is watched for WINDOWS windows of each track."""
    limit_ms: float = 250.0
    """A verdict under this lag, without a skip before it, is normal."""


def run(load: Load, plan: Plan, tell: Callable[[str], None] = lambda _: None) -> list[dict[str, Any]]:
    """Hold each load, then let it drop to the first; a row each."""
    rows, rss = [], list[tuple[float, int]]()
    for factor in plan.factors:
        ready_s = load.set_calls(factor * plan.calls)
        warm_up_s = (factor + 1) * load.hop_s  # everybody has been served once since the last call began
        time.sleep(max(0.0, ready_s + warm_up_s - time.monotonic()))
        held = load.hold(max(plan.hold_s, WINDOWS * factor * load.hop_s), grace_s=2 * load.hop_s)
        rss += held.rss
        rows.append(row(held, factor, load.hop_s, load.numbers))
        tell(said(rows[-1]))
    if len(plan.factors) > 1:
        rows.append(recover(load, plan))
        tell(said(rows[-1]))
    if rss:
        began_s = rss[0][0]
        rows[-1]["rss_over_time"] = [[round(at_s - began_s, 2), size] for at_s, size in rss]
    return rows


def row(held: Held, factor: int, hop_s: float, calls: Sequence[int]) -> dict[str, Any]:
    """Say what a load did to its tracks; `calls` are their numbers."""
    counts = Counter(window.call for window in held.windows)
    least, most = min(counts[call] for call in calls), max(counts[call] for call in calls)
    hops_s = effective_hops_s(held.windows, calls, held.seconds, hop_s)
    ideal_s = factor * hop_s
    lag, transit = held.lag_ms(50, 99), held.transit_ms(50, 99)
    return {
        "load": f"{factor}x",
        "calls": held.calls,
        "seconds": held.seconds,
        "hop_s_mean": float(np.mean(hops_s)),
        "hop_s_worst": float(np.max(hops_s)),
        "ratio_hop_to_ideal": float(np.mean(hops_s)) / ideal_s,
        "ratio_worst_hop_to_ideal": float(np.max(hops_s)) / ideal_s,
        "windows": len(held.windows),
        "windows_per_s": len(held.windows) / held.seconds,
        "windows_min": least,
        "windows_max": most,
        "ratio_windows_max_to_min": most / least if least else math.inf,
        "tracks_unheard": sum(not counts[call] for call in calls),
        "skipped_percent": 100 * held.missing / max(1, held.expected),
        "lag_ms_p50": lag[0],
        "lag_ms_p99": lag[1],
        "transit_ms_p50": transit[0],
        "transit_ms_p99": transit[1],
        "rss_mb": held.rss[-1][1] / 1e6 if held.rss else None,
        "rss_mb_per_min": slope_mb_per_min(held.rss),
        "mean_batch": held.mean_batch,
        "batch_ms": held.batch_ms,
        "daemon_cores": held.daemon_cores,
        "client_cores": held.client_cores,
        "frames_per_s": held.sent.frames / held.seconds,
        "late_ms_p99": held.sent.late_ms_p99,
        "blocked": held.sent.blocked,
        "void": held.void,
    }


def effective_hops_s(windows: Sequence[Window], calls: Sequence[int], seconds: float, hop_s: float) -> list[float]:
    """Return the mean time between windows of each track, in audio time.

    A track with one window or none in `seconds` counts as one with that many in all of it.
    """
    ends: dict[int, list[int]] = defaultdict(list)
    for window in windows:
        ends[window.call].append(window.hop)
    found = []
    for call in calls:
        mine = sorted(ends[call])
        if len(mine) > 1:
            found.append(hop_s * (mine[-1] - mine[0]) / (len(mine) - 1))
        else:
            found.append(seconds / max(0.5, len(mine)))
    return found


def slope_mb_per_min(rss: Sequence[tuple[float, int]]) -> float | None:
    """Fit a line through resident memory over time; None for less than three looks."""
    if len(rss) < 3:
        return None
    at_s, size = np.array(rss, float).T
    return round(float(60e-6 * np.polyfit(at_s - at_s[0], size, 1)[0]), 3)


def recover(load: Load, plan: Plan) -> dict[str, Any]:
    """Let the load drop to the first number of calls, and watch those that stay."""
    dropped_s = load.set_calls(plan.factors[0] * plan.calls)
    time.sleep(max(0.0, dropped_s - time.monotonic()))
    held = load.hold(RECOVERY_HOPS * load.hop_s, grace_s=2 * load.hop_s)
    closed = load.await_closed()
    windows = sorted(load.heard(dropped_s, dropped_s + RECOVERY_HOPS * load.hop_s), key=lambda window: window.hop)
    late = {call: until_normal([it for it in windows if it.call == call], plan.limit_ms) for call in load.numbers}
    unsettled = sum(number is None for number in late.values())
    waits = [number for number in late.values() if number is not None]
    lag = held.lag_ms(50, 99)
    return {
        "load": "drop",
        "calls": held.calls,
        "seconds": held.seconds,
        "windows": len(held.windows),
        "skipped_percent": 100 * held.missing / max(1, held.expected),
        "windows_until_normal_p50": percentiles(waits, 50)[0],
        "windows_until_normal_max": None if unsettled else max(waits, default=0),
        "tracks_not_back": unsettled,
        "lag_ms_p50": lag[0],
        "lag_ms_p99": lag[1],
        "transit_ms_p99": held.transit_ms(99)[0],
        "rss_mb": held.rss[-1][1] / 1e6 if held.rss else None,
        "rss_mb_per_min": slope_mb_per_min(held.rss),
        "daemon_cores": held.daemon_cores,
        "client_cores": held.client_cores,
        "late_ms_p99": held.sent.late_ms_p99,
        "void": held.void,
        "ended_calls_closed": closed,
    }


def until_normal(windows: Sequence[Window], limit_ms: float) -> int | None:
    """Count a track's windows, in order, before the first that is in time and follows no skip; None: there is none."""
    normal = (window.lag_ms <= limit_ms and not window.skipped for window in windows)
    return next((number for number, good in enumerate(normal) if good), None)


def said(row: dict[str, Any]) -> str:
    """Sum a row up in a line."""
    void = "; void: the caller was late" if row["void"] else ""
    if row["load"] == "drop":
        worst = row["windows_until_normal_max"]
        after = {None: "not normal by the end", 0: "normal at once"}.get(
            worst, f"normal after {worst} windows at the most"
        )
        return f"drop to {row['calls']} calls: {after}{void}"
    return (
        f"{row['load']}, {row['calls']} calls: a window every {row['hop_s_mean']:.2f} s, "
        f"max/min {row['ratio_windows_max_to_min']:.2f}, transit p99 {row['transit_ms_p99'] or 0:.0f} ms{void}"
    )


def picture(rows: Sequence[dict[str, Any]]) -> Draw:
    """Draw effective hops against the load, and memory over time."""
    held = [row for row in rows if row["load"] != "drop"]
    rss: list[list[float]] = next((row["rss_over_time"] for row in rows if "rss_over_time" in row), [])

    def draw(figure: Any) -> None:
        hops, memory = figure.subplots(1, 2)
        loads = [float(row["load"].removesuffix("x")) for row in held]
        ideal = [row["hop_s_mean"] / row["ratio_hop_to_ideal"] for row in held]
        hops.plot(loads, [row["hop_s_mean"] for row in held], "o-", label="mean")
        hops.plot(loads, [row["hop_s_worst"] for row in held], "x--", label="worst track")
        hops.plot(loads, ideal, ":", color="grey", label="load times hop")
        hops.set(xlabel="load", ylabel="seconds between windows")
        hops.legend()
        memory.plot([at_s for at_s, _ in rss], [size / 1e6 for _, size in rss])
        memory.set(xlabel="s", ylabel="MB resident", ylim=(0, None))

    return draw
