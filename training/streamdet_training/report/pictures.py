"""The report's pictures, each drawn as an SVG that needs nothing from anywhere.

Colours: an entry has one of ENTRIES, bona fide and spoof have their own (Okabe and Ito's palette, which colour-blind
readers can tell apart).
"""

from collections.abc import Sequence
from io import BytesIO
from typing import Any, Final

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, PercentFormatter, StrMethodFormatter
from scipy.special import expit
from scipy.stats import norm

from streamdet.bundle import Manifest
from streamdet.records import State
from streamdet.verdict import Standing, Tracker
from streamdet_training import bootstrap, metrics
from streamdet_training.evaluate import Entry, Row, Scored, Section, by_class
from streamdet_training.metrics import Floats
from streamdet_training.streaming import FOUND_S, HORIZON_S, SPEECH_S, Heard

ENTRIES: Final = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#8c6d31", "#555555")
LABELS: Final = {"bonafide": "#0a7a5c", "spoof": "#c2410c"}
STATES: Final[dict[State, str]] = {
    "listening": "#cbd5e1",
    "bonafide": "#0a7a5c",
    "uncertain": "#eab308",
    "spoof": "#c2410c",
}
STYLE: Final[Any] = {  # matplotlib names every key it knows in the type
    "svg.hashsalt": "streamdet",  # the same report is the same file
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#64748b",
    "axes.grid": True,
    "grid.color": "#e2e8f0",
    "axes.axisbelow": True,
    "legend.frameon": False,
}
DET_TICKS: Final = (0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8)
BINS: Final = 8
STAR: Final[Any] = {"ms": 14, "mec": "#1e293b", "mew": 0.7, "zorder": 5, "clip_on": False}
# Errors shown of either label, and how many windows a clip needs for its course to be one.
WORST: Final = 3
WORST_WINDOWS: Final = 3


@mpl.rc_context(STYLE)
def det(section: Section) -> bytes:
    """DET curves: miss against false alarm rate on normal-deviate axes (Martin et al., Eurospeech 1997)."""
    figure = _figure(5.6, 5)
    axes = figure.subplots()
    for at, (entry, found) in enumerate(zip(section.entries, section.evaluations, strict=True)):
        miss, false_alarm = metrics.rates(*by_class(entry.scored))
        x, y = (norm.ppf(rate.clip(1e-3, 0.999)) for rate in (false_alarm, miss))
        eer = found.rows[0].report.eer
        axes.plot(x, y, color=_colour(at), label=f"{entry.name}: EER {100 * eer:.1f} %")
        axes.plot(*[norm.ppf(np.clip(eer, 1e-3, 0.999))] * 2, "o", color=_colour(at))
    axes.axline((0, 0), slope=1, color="#94a3b8", lw=0.8, ls=":")
    ticks, names = norm.ppf(DET_TICKS), [f"{100 * tick:g}" for tick in DET_TICKS]
    limits = norm.ppf([0.008, 0.85])
    axes.set(xlabel="spoof accepted (%)", ylabel="bona fide rejected (%)", xlim=limits, ylim=limits, aspect="equal")
    axes.set_xticks(ticks, names)
    axes.set_yticks(ticks, names)
    axes.legend(loc="upper right")
    return _svg(figure)


@mpl.rc_context(STYLE)
def histograms(section: Section) -> bytes:
    """How the LLRs of either class lie, an axis an entry, and where calibrated LLRs want the threshold."""
    figure = _figure(8, 0.6 + 1.7 * len(section.entries))
    everything = np.array([it.llr for entry in section.entries for it in entry.scored])
    low, high = np.percentile(everything, [0.5, 99.5])
    edges = np.linspace(min(low, -1), max(high, 1), 41)
    rows = figure.subplots(len(section.entries), 1, sharex=True, squeeze=False)[:, 0]
    for axes, entry in zip(rows, section.entries, strict=True):
        for name, scores in zip(("bonafide", "spoof"), by_class(entry.scored), strict=True):
            inside = np.clip(scores, edges[0], edges[-1])
            label = "bona fide" if name == "bonafide" else name
            weights = np.full(len(scores), 1 / len(scores))
            axes.hist(inside, edges, weights=weights, color=LABELS[name], alpha=0.6, label=label)
        axes.axvline(metrics.BAYES_THRESHOLD, color="#334155", lw=1, ls="--", label="Bayes threshold")
        axes.set_title(entry.name, loc="left", fontsize=9)
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.set_ylabel("share of class")
    rows[0].legend(loc="upper right", ncols=3)
    rows[-1].set_xlabel("LLR (nat); the outermost bars hold what lies beyond")
    return _svg(figure)


@mpl.rc_context(STYLE)
def reliability(section: Section, resamples: int, seed: int) -> bytes:
    """Said against seen: of trials given a probability of bona fide, how many are? Both classes weigh the same."""
    figure = _figure(5.6, 5)
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="#94a3b8", lw=0.8, ls=":", label="calibrated")
    for at, entry in enumerate(section.entries):
        said, seen, low, high = _reliability(entry.scored, resamples, seed)
        bars = np.maximum(0, [seen - low, high - seen])
        axes.errorbar(said, seen, yerr=bars, fmt="o-", ms=4, lw=1.2, capsize=2, color=_colour(at), label=entry.name)
    axes.set(
        xlabel="P(bona fide) by the LLR, at even odds",
        ylabel="share of bona fide, at even odds",
        xlim=(-0.02, 1.02),
        ylim=(-0.02, 1.02),
        aspect="equal",
    )
    axes.legend(loc="upper left")
    return _svg(figure)


@mpl.rc_context(STYLE)
def bars(section: Section, group: str) -> bytes:
    """EER by system or by channel, the entries beside each other, the worst of the first on top."""
    found = [
        {row.name: row for row in evaluation.rows if row.group == group} for evaluation in section.evaluations
    ]  # fmt: skip
    names = sorted(found[0], key=lambda name: found[0][name].report.eer)
    height = 0.8 / len(found)
    figure = _figure(8, 1 + len(names) * (0.17 + 0.11 * len(found)))
    axes = figure.subplots()
    for at, (entry, rows) in enumerate(zip(section.entries, found, strict=True)):
        where = np.arange(len(names)) + (len(found) - 1 - 2 * at) * height / 2
        eers = np.array([rows[name].report.eer for name in names])
        axes.barh(where, eers, height * 0.92, color=_colour(at), label=entry.name)
        if rows[names[0]].intervals:
            limits = np.array([rows[name].intervals["eer"] for name in names]).T
            error = np.maximum(0, [eers - limits[0], limits[1] - eers])
            axes.errorbar(eers, where, xerr=error, fmt="none", ecolor="#334155", elinewidth=0.8, capsize=1.5)
    axes.axvline(0.5, color="#94a3b8", lw=0.8, ls=":")
    axes.set_yticks(range(len(names)), [_counted(found[0][name]) for name in names])
    axes.set(xlabel="EER", xlim=(0, None), ylim=(-0.6, len(names) - 0.4))
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.grid(visible=False, axis="y")
    if len(found) > 1:
        axes.legend(loc="lower right")
    return _svg(figure)


@mpl.rc_context(STYLE)
def delays(section: Section) -> bytes:
    """Time from the onset of spoof to the alarm, and the share found, against false alarms an hour."""
    figure = _figure(9, 4)
    left, right = figure.subplots(1, 2)
    for at, entry in enumerate(section.entries):
        if entry.streaming is None:
            continue
        points, own = [it for it in entry.streaming.curve if it.calls], entry.streaming.operating
        # No alarm at all is no rate of zero: drawn at half an alarm, hollow.
        seen = [it for it in points if it.alarms]
        none = [it for it in points if not it.alarms][:1]
        hours = next((it.alarms / it.false_alarms_per_hour for it in seen), 1.0)
        for axes, values in ((left, "mean_delay_s"), (right, "found")):
            shown = [(it.false_alarms_per_hour or 0.5 / hours, _value(it, values)) for it in [*seen, *none]]
            if not shown:
                continue
            axes.plot(*zip(*shown, strict=True), "-", color=_colour(at), lw=1.4)
            dots = shown[: len(seen)] or [(np.nan, np.nan)]
            axes.plot(*zip(*dots, strict=True), ".", color=_colour(at), ms=5, label=entry.name)
            if none:
                axes.plot(*shown[-1], "o", mfc="white", color=_colour(at), ms=5)
            if not own.calls:
                continue
            own_rate = own.false_alarms_per_hour or 0.5 / hours
            axes.plot(own_rate, _value(own, values), "*", color=_colour(at), **STAR)
    for axes in (left, right):
        axes.set(xscale="log", xlabel="false alarms per hour of bona fide speech")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.xaxis.set_minor_locator(NullLocator())
    left.set(ylabel=f"mean time from onset to alarm (s), first {HORIZON_S:g} s", ylim=(0, HORIZON_S * 1.03))
    right.set(ylabel=f"found within {FOUND_S[1]:g} s of the onset", ylim=(0, 1.03))
    right.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    handles, _ = left.get_legend_handles_labels()
    marks = [
        Line2D([], [], marker="*", ls="", color="#94a3b8", mec="#1e293b", ms=11, label="the bundle's own height"),
        Line2D([], [], marker="o", ls="", mfc="white", color="#64748b", ms=5, label="no false alarm seen"),
    ]
    figure.legend(handles=[*handles, *marks], loc="outside upper center", ncols=3)
    return _svg(figure)


@mpl.rc_context(STYLE)
def by_speech(section: Section) -> bytes:
    """EER against seconds of speech: the same stretches at every length, and (dashed) all that are long enough."""
    figure = _figure(6.4, 4)
    axes = figure.subplots()
    for at, entry in enumerate(section.entries):
        if entry.streaming is None:
            continue
        for rows, style, suffix in ((entry.streaming.heard_same, "o-", ""), (entry.streaming.heard, "s--", ", all")):
            _with_bars(axes, rows, style, _colour(at), entry.name + suffix, solid=not suffix)
    axes.set(xscale="log", xlabel="seconds of speech", ylabel="EER", ylim=(0, None))
    axes.set_xticks(SPEECH_S, [f"{seconds:g}" for seconds in SPEECH_S])
    axes.minorticks_off()
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.legend()
    return _svg(figure)


def worst(entry: Entry) -> list[Scored]:
    """The clips that are furthest on the wrong side, of those with a course to show."""
    long = [it for it in entry.scored if sum(llr is not None for _, llr in it.windows) >= WORST_WINDOWS]
    bonafide = sorted((it for it in long if it.clip.label == "bonafide"), key=lambda it: it.llr)
    spoof = sorted((it for it in long if it.clip.label == "spoof"), key=lambda it: -it.llr)
    return [*bonafide[:WORST], *spoof[:WORST]]


@mpl.rc_context(STYLE)
def timelines(errors: Sequence[Scored], manifest: Manifest) -> bytes:
    """Each error's course: LLR of each window, rolling LLR, and the state along the bottom."""
    columns = 2 if len(errors) > 1 else 1
    lines = -(-len(errors) // columns)
    figure = _figure(9.5, 0.7 + 1.9 * lines)
    grid = figure.subplots(lines, columns, squeeze=False)
    for axes in grid.ravel()[len(errors) :]:
        axes.set_visible(False)
    for at, it in enumerate(errors):
        # Down the columns: bona fide on the left, spoof on the right.
        _timeline(grid[at % lines, at // lines], it, manifest)
    marks = [
        Line2D([], [], marker="o", ls="", color="#475569", ms=4, label="LLR of a window"),
        Line2D([], [], color="#0072b2", label="rolling LLR"),
        *(Patch(color=colour, label=state) for state, colour in STATES.items()),
    ]
    figure.legend(handles=marks, loc="outside upper center", ncols=6)
    return _svg(figure)


def standings(windows: Sequence[tuple[float, float | None]], manifest: Manifest) -> list[Standing]:
    """What the daemon's tracker would have said after each window (end_s, LLR)."""
    tracker = Tracker(manifest.decision, manifest.calibration, manifest.audio)
    found, before_s = [], 0.0
    for end_s, llr in windows:
        found.append(tracker.update(llr, end_s, end_s - before_s))
        before_s = end_s
    return found


def _timeline(axes: Axes, it: Scored, manifest: Manifest) -> None:
    ends_s = [end_s for end_s, _ in it.windows]
    stood = standings(it.windows, manifest)
    scored = [(end_s, llr) for end_s, llr in it.windows if llr is not None]
    axes.axhline(0, color="#94a3b8", lw=0.8)
    axes.plot(*zip(*scored, strict=True), "o", color="#475569", ms=4)
    axes.plot(ends_s, [standing.rolling_llr for standing in stood], color="#0072b2", lw=1.3)
    for begin_s, end_s, standing in zip([0.0, *ends_s], ends_s, stood, strict=False):
        axes.axvspan(begin_s, end_s, 0, 0.06, color=STATES[standing.state], lw=0)
    low, high = axes.get_ylim()
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g} s"))
    axes.set(xlim=(0, ends_s[-1] * 1.02), ylim=(low - 0.12 * (high - low), high))
    label = "bona fide" if it.clip.label == "bonafide" else f"spoof, {it.clip.system}"
    axes.set_title(f"{it.clip.path.stem} ({label})", loc="left", fontsize=8, color=LABELS[it.clip.label])


def _reliability(scored: Sequence[Scored], resamples: int, seed: int) -> tuple[Floats, Floats, Floats, Floats]:
    """Said, seen, and the 95 % bounds of the latter, `(bins,)`; bins hold equally many trials."""
    ordered = sorted(scored, key=lambda it: it.llr)
    said = expit([it.llr for it in ordered])
    is_bona = np.array([it.clip.label == "bonafide" for it in ordered])
    bins = np.arange(said.size) * BINS // said.size
    member = np.eye(BINS)[bins]  # (trials, bins)
    even = np.where(is_bona, 0.5 / is_bona.sum(), 0.5 / (~is_bona).sum())
    filled = member.any(axis=0)
    mean = (even * said @ member)[filled] / (even @ member)[filled]
    seen = ((even * is_bona) @ member)[filled] / (even @ member)[filled]
    if not resamples:
        return mean, seen, seen, seen
    draws = bootstrap.draw(
        [it.clip.speaker for it in ordered if it.clip.label == "bonafide"],
        [it.clip.system for it in ordered if it.clip.label == "spoof"],
        resamples,
        seed,
    )
    of_bona = draws.bonafide @ member[is_bona] / draws.bonafide.sum(axis=1, keepdims=True)
    of_fake = draws.spoof @ member[~is_bona] / draws.spoof.sum(axis=1, keepdims=True)
    with np.errstate(invalid="ignore"):
        shares = (of_bona / (of_bona + of_fake))[:, filled]
    low, high = np.nanpercentile(shares, bootstrap.BOUNDS, axis=0)
    return mean, seen, low, high


def _with_bars(axes: Axes, rows: Sequence[Heard], style: str, colour: str, label: str, *, solid: bool) -> None:
    if not rows:
        return
    seconds, eers = [row.seconds for row in rows], np.array([row.eer for row in rows])
    error = None
    if solid and all(row.interval is not None for row in rows):
        limits = np.array([row.interval for row in rows]).T
        error = np.maximum(0, [eers - limits[0], limits[1] - eers])
    alpha = 1.0 if solid else 0.55
    axes.errorbar(seconds, eers, yerr=error, fmt=style, color=colour, ms=4, lw=1.3, capsize=2, alpha=alpha, label=label)


def _value(point: object, name: str) -> float:
    value = getattr(point, name)
    return float(value[1] if isinstance(value, tuple) else value)


def _counted(row: Row) -> str:
    counts = f"{row.report.spoof}" if row.group == "system" else f"{row.report.bonafide}+{row.report.spoof}"
    return f"{row.name} ({counts})"


def _colour(at: int) -> str:
    return ENTRIES[at % len(ENTRIES)]


def _figure(width_in: float, height_in: float) -> Figure:
    return Figure(figsize=(width_in, height_in), layout="constrained")


def _svg(figure: Figure) -> bytes:
    file = BytesIO()
    figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    return file.getvalue()
