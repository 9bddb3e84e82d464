"""How good a detector is on labelled recordings: metrics pooled, by system and by channel, with their intervals.

An *entry* is one line of a comparison: a bundle, straight or through a telephone line, or a score file. A *section* is
one split, with all entries side by side on the same clips.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import combinations
from typing import Final

import msgspec
from rich.console import Console
from rich.progress import track
from rich.table import Table

from streamdet.bundle import Manifest
from streamdet.errors import DataError, UsageError
from streamdet.scorer import Scorer
from streamdet_training import bootstrap, metrics, tandem
from streamdet_training.bootstrap import Difference, Interval
from streamdet_training.data import Clip
from streamdet_training.metrics import Report
from streamdet_training.scores import Trial, score_clip
from streamdet_training.streaming import FOUND_S, HORIZON_S, Streaming
from streamdet_training.tandem import AsvRates, Form

# What `--without` may name: a field of a clip.
WITHOUT: Final = ("system", "source", "speaker", "channel")


class Row(msgspec.Struct, frozen=True, omit_defaults=True):
    """A report on some of the trials."""

    group: str
    """`pooled`, `system` or `channel`."""
    name: str
    report: Report
    intervals: dict[str, Interval] = {}
    """95 % intervals by metric, where resamples were asked for: all metrics of pooled rows, the EER of the others."""
    min_tdcf_2019: float | None = None
    """Of pooled rows, where ASV scores were given and this form was asked for; never to be compared with the other."""
    min_tdcf_2021: float | None = None


class Evaluation(msgspec.Struct, frozen=True):
    """All that is said of one entry."""

    rows: list[Row]
    unscored: list[str]
    """Clips without one window that had enough speech: their LLR counts as 0."""


class Scored(msgspec.Struct, frozen=True):
    """A labelled score, from a bundle or from a file."""

    clip: Clip
    llr: float
    windows: tuple[tuple[float, float | None], ...] = ()
    """(end_s, LLR) of each; empty when only the clip's score is known."""

    @property
    def heard(self) -> bool:
        """Whether any window had enough speech, as far as is known."""
        return not self.windows or any(llr is not None for _, llr in self.windows)


class Entry(msgspec.Struct, frozen=True):
    """One line of the comparison."""

    name: str
    scored: list[Scored]
    manifest: Manifest | None = None
    """Of a bundle."""
    streaming: Streaming | None = None


class View(msgspec.Struct, frozen=True):
    """Some of the trials, as a pooled row of their own."""

    name: str
    keeps: Callable[[Scored], bool]


class Section(msgspec.Struct, frozen=True):
    """One split: what is said of each entry, and how far they are apart."""

    split: str
    entries: list[Entry]
    evaluations: list[Evaluation]
    """One an entry."""
    differences: list[tuple[str, str, Difference]]
    """For each pair of entries, the EER of the second minus that of the first."""


class Wanted(msgspec.Struct, frozen=True):
    """What to compute beside the metrics themselves."""

    resamples: int = 0
    """Behind the intervals; 0 for none."""
    seed: int = bootstrap.SEED
    asv: AsvRates | None = None
    tdcf: Form | None = None
    views: Sequence[View] = ()


def score_with_bundle(clips: Sequence[Clip], scorer: Scorer, line: str | None = None) -> list[Trial]:
    """Score clips by the daemon's own path, with a bar on a terminal."""
    console = Console(stderr=True)
    shown = track(clips, "scoring", console=console, disable=not console.is_terminal)
    return [score_clip(clip, scorer.manifest, scorer.score, line) for clip in shown]


def of_trials(trials: Sequence[Trial]) -> list[Scored]:
    """Make of what `score_with_bundle` gave what `evaluate` takes."""
    return [Scored(trial.clip, trial.llr, trial.windows) for trial in trials]


def evaluate(scored: Sequence[Scored], wanted: Wanted = Wanted()) -> Evaluation:  # noqa: B008 - it is frozen
    """Report on all trials, then on each system's spoof against all bona fide, then on each channel by itself."""
    unscored = [it for it in scored if not it.heard]
    rows = [_row("pooled", "all", scored, wanted)]
    # What the model can do, beside what the gate leaves of it.
    heard = [View("with enough speech", lambda it: it.heard)] if unscored else []
    for view in [*heard, *wanted.views]:
        some = [it for it in scored if view.keeps(it)]
        if {it.clip.label for it in some} == {"bonafide", "spoof"}:
            rows.append(_row("pooled", view.name, some, wanted))
    bonafide = [it for it in scored if it.clip.label == "bonafide"]
    spoof = [it for it in scored if it.clip.label == "spoof"]
    for name, some in _grouped(spoof, "system").items():
        rows.append(_row("system", name, [*bonafide, *some], wanted))
    channels = _grouped(spoof, "channel")
    for name, some in _grouped(bonafide, "channel").items():
        if name in channels and name != "-":
            rows.append(_row("channel", name, [*some, *channels[name]], wanted))
    return Evaluation(rows, [it.clip.path.name for it in unscored])


def compare(split: str, entries: Sequence[Entry], wanted: Wanted) -> Section:
    """Evaluate every entry, and each pair of them on the same resamples."""
    differences = []
    for first, second in combinations(entries, 2):
        if not wanted.resamples:
            break
        clips = [it.clip for it in first.scored]
        found = bootstrap.eer_difference(by_class(second.scored), by_class(first.scored), _draws(clips, wanted))
        differences.append((first.name, second.name, found))
    return Section(split, list(entries), [evaluate(entry.scored, wanted) for entry in entries], differences)


def without(given: Sequence[str], clips: Sequence[Clip]) -> list[View]:
    """The view that leaves out what `FIELD:VALUE`s name; none where nothing is given.

    Raises:
        UsageError: it is no such pair, or no clip has that value.
        DataError: a label is left without a clip.
    """
    if not given:
        return []
    pairs = []
    for one in given:
        field, colon, value = one.partition(":")
        if not colon or field not in WITHOUT:
            raise UsageError.of("--without", one, f"FIELD:VALUE with one of {', '.join(WITHOUT)}")
        if not any(getattr(clip, field) == value for clip in clips):
            raise UsageError.of("--without", one, f"a {field} that some clip has")
        pairs.append((field, value))
    left = [clip for clip in clips if not _is_any(clip, pairs)]
    for label in ("bonafide", "spoof"):
        if not any(clip.label == label for clip in left):
            raise DataError.of(f"{label} clips without {', '.join(given)}", 0, "at least one")
    return [View(f"without {', '.join(value for _, value in pairs)}", lambda it: not _is_any(it.clip, pairs))]


def new_sources(clips: Sequence[Clip], train: Sequence[Clip]) -> list[View]:
    """The view of clips whose source is known and gave nothing to train; none where that is everything or unknown."""
    known = {clip.source for clip in train} - {"-"}
    shared = [clip for clip in clips if clip.source in known]
    return [View("sources not in train", lambda it: it.clip.source not in {"-", *known})] if shared else []


def by_class(scored: Iterable[Scored]) -> tuple[list[float], list[float]]:
    """LLRs of bona fide, and of spoof."""
    scores: dict[str, list[float]] = {"bonafide": [], "spoof": []}
    for it in scored:
        scores[it.clip.label].append(it.llr)
    return scores["bonafide"], scores["spoof"]


def table(evaluation: Evaluation) -> Table:
    """Lay the rows out for a person."""
    shown = Table(box=None, header_style="bold", pad_edge=False)
    shown.add_column("")
    rows = evaluation.rows
    tdcf = [form for form in tandem.FORMS if getattr(rows[0], f"min_tdcf_{form}") is not None]
    columns = ["bona fide", "spoof", "EER %", *(["95 %"] if rows[0].intervals else [])]
    columns += ["minDCF", "actDCF", "Cllr", "min Cllr", *(f"min t-DCF {form}" for form in tdcf)]
    for column in columns:
        shown.add_column(column, justify="right")
    group = ""
    for row in rows:
        if row.group != group and row.group != "pooled":
            shown.add_row(f"by {row.group}", style="dim")
        group, report = row.group, row.report
        numbers = [report.min_dcf, report.act_dcf, report.cllr, report.min_cllr]
        numbers += [getattr(row, f"min_tdcf_{form}") for form in tdcf if row.group == "pooled"]
        counts = [str(report.bonafide), str(report.spoof), f"{100 * report.eer:.1f}"]
        if row.intervals:
            counts.append(percent_interval(row.intervals["eer"]))
        shown.add_row(row.name, *counts, *(f"{number:.3f}" for number in numbers))
    return shown


def streaming_lines(entry: Entry) -> list[str]:
    """What `--streaming` found, for a person; nothing where it was not asked for."""
    found = entry.streaming
    if found is None:
        return []
    lines = []
    for name, point in (("turning in mid-call", found.operating), ("spoof from the start", found.spoof)):
        line = f"{name}: {point.calls} calls, {point.early} more with an alarm before"
        if point.mean_delay_s is not None:
            line += f"; mean delay {point.mean_delay_s:.1f} s of {HORIZON_S:g}, found "
            by = zip(FOUND_S, point.found, strict=True)
            line += ", ".join(f"{100 * share:.0f} % within {seconds:g} s" for seconds, share in by)
        lines.append(line)
    own, steady = found.operating, found.steadiness
    lines.append(f"false alarms: {own.false_alarms_per_hour:.1f} an hour of speech (95 %: at most {own.upper_95:.1f})")
    windows = ", ".join(f"{it.windows_per_minute:.1f} on {it.kind} calls" for it in steady)
    lines.append(f"windows scored a minute: {windows}")
    lines.append("flips an hour: " + ", ".join(f"{it.flips_per_hour:.0f} on {it.kind} calls" for it in steady))
    for rows, which in ((found.heard_same, "the same stretches"), (found.heard, "all stretches")):
        eers = ", ".join(f"{100 * row.eer:.1f} % at {row.seconds:g} s" for row in rows)
        lines.append(f"EER by speech, {which}: {eers or 'none is long enough'}")
    return lines


def percent_interval(interval: Interval) -> str:
    """`17.1 to 24.9`."""
    return f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f}"


def _row(group: str, name: str, scored: Sequence[Scored], wanted: Wanted) -> Row:
    bonafide, spoof = by_class(scored)
    intervals, tdcf = {}, {}
    if wanted.resamples:
        of = bootstrap.METRICS if group == "pooled" else ("eer",)
        intervals = bootstrap.intervals(bonafide, spoof, _draws([it.clip for it in scored], wanted), of)
    if group == "pooled" and wanted.asv is not None and wanted.tdcf is not None:
        tdcf[f"min_tdcf_{wanted.tdcf}"] = tandem.min_tdcf(wanted.tdcf, bonafide, spoof, wanted.asv)
    return Row(group, name, metrics.report(bonafide, spoof), intervals, **tdcf)


def _draws(clips: Sequence[Clip], wanted: Wanted) -> bootstrap.Draws:
    speakers = [clip.speaker for clip in clips if clip.label == "bonafide"]
    systems = [clip.system for clip in clips if clip.label == "spoof"]
    return bootstrap.draw(speakers, systems, wanted.resamples, wanted.seed)


def _is_any(clip: Clip, pairs: Iterable[tuple[str, str]]) -> bool:
    return any(getattr(clip, field) == value for field, value in pairs)


def _grouped(scored: Iterable[Scored], by: str) -> Mapping[str, list[Scored]]:
    groups: dict[str, list[Scored]] = defaultdict(list)
    for it in scored:
        groups[getattr(it.clip, by)].append(it)
    return dict(sorted(groups.items()))
