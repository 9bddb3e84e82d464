"""How good a detector is on labelled recordings: metrics pooled, by system and by channel."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import msgspec
from rich.console import Console
from rich.progress import track
from rich.table import Table

from streamdet.errors import DataError, MissingError
from streamdet.scorer import Scorer
from streamdet_training import metrics
from streamdet_training.data import Clip
from streamdet_training.metrics import Report
from streamdet_training.scores import Trial, score_clip


class Row(msgspec.Struct, frozen=True):
    """A report on some of the trials."""

    group: str
    """`pooled`, `system` or `channel`."""
    name: str
    report: Report


class Evaluation(msgspec.Struct, frozen=True):
    """All that `streamdet evaluate` says."""

    rows: list[Row]
    unscored: list[str]
    """Clips without one window that had enough speech: their LLR counts as 0."""


class Scored(msgspec.Struct, frozen=True):
    """A labelled score, from a bundle or from a file."""

    clip: Clip
    llr: float


def score_with_bundle(clips: Sequence[Clip], scorer: Scorer) -> list[Trial]:
    """Score clips by the daemon's own path, with a bar on a terminal."""
    console = Console(stderr=True)
    shown = track(clips, "scoring", console=console, disable=not console.is_terminal)
    return [score_clip(clip, scorer.manifest, scorer.score) for clip in shown]


def read_scores(path: Path, clips: Sequence[Clip]) -> list[Scored]:
    """Read a score file (`filename` and score, tab- or space-separated, a header or none) for labelled clips.

    Raises:
        MissingError: no such file.
        DataError: a line is no score, or a clip has none.
    """
    if not path.is_file():
        raise MissingError.of("scores", str(path), "a file that exists")
    found = dict(_score_lines(path))
    missing = [clip for clip in clips if clip.path.name not in found and clip.path.stem not in found]
    if missing:
        raise DataError.of(f"{path} filename", missing[0].path.name, f"a score for each of {len(clips)} clips")
    return [Scored(clip, found.get(clip.path.name, found.get(clip.path.stem, 0.0))) for clip in clips]


def evaluate(scored: Sequence[Scored], unscored: Iterable[str] = ()) -> Evaluation:
    """Report on all trials, then on each system's spoof against all bona fide, then on each channel by itself."""
    bonafide = [it for it in scored if it.clip.label == "bonafide"]
    spoof = [it for it in scored if it.clip.label == "spoof"]
    rows = [Row("pooled", "all", _report(bonafide, spoof))]
    for name, some in _grouped(spoof, "system").items():
        rows.append(Row("system", name, _report(bonafide, some)))
    channels = _grouped(spoof, "channel")
    for name, some in _grouped(bonafide, "channel").items():
        if name in channels and name != "-":
            rows.append(Row("channel", name, _report(some, channels[name])))
    return Evaluation(rows, list(unscored))


def of_trials(trials: Sequence[Trial]) -> Evaluation:
    """Evaluate what `score_with_bundle` gave."""
    unscored = [trial.clip.path.name for trial in trials if not trial.llrs]
    found = evaluate([Scored(trial.clip, trial.llr) for trial in trials], unscored)
    if unscored:
        # What the model can do, beside what the gate leaves of it.
        heard = [Scored(trial.clip, trial.llr) for trial in trials if trial.llrs]
        found.rows.insert(1, msgspec.structs.replace(evaluate(heard).rows[0], name="with enough speech"))
    return found


def table(evaluation: Evaluation) -> Table:
    """Lay the rows out for a person."""
    shown = Table(box=None, header_style="bold", pad_edge=False)
    shown.add_column("")
    for column in ("bona fide", "spoof", "EER %", "minDCF", "actDCF", "Cllr", "min Cllr"):
        shown.add_column(column, justify="right")
    group = ""
    for row in evaluation.rows:
        if row.group != group and row.group != "pooled":
            shown.add_row(f"by {row.group}", style="dim")
        group, report = row.group, row.report
        numbers = (report.min_dcf, report.act_dcf, report.cllr, report.min_cllr)
        counts = (str(report.bonafide), str(report.spoof), f"{100 * report.eer:.1f}")
        shown.add_row(row.name, *counts, *(f"{number:.3f}" for number in numbers))
    return shown


def plot_det(scored: Sequence[Scored], path: Path) -> None:
    """Draw the DET curve: miss against false alarm rate on normal-deviate axes (Martin et al., Eurospeech 1997)."""
    from matplotlib.figure import Figure  # half a second to import, and few ask for a plot
    from scipy.stats import norm

    bonafide, spoof = ([it.llr for it in scored if it.clip.label == label] for label in ("bonafide", "spoof"))
    miss, false_alarm = metrics.rates(bonafide, spoof)
    ticks = [0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8]
    figure = Figure(figsize=(5, 5), layout="constrained")
    axes = figure.subplots()
    axes.plot(norm.ppf(false_alarm.clip(1e-3, 0.999)), norm.ppf(miss.clip(1e-3, 0.999)))
    axes.set_xticks(norm.ppf(ticks), [f"{100 * tick:g}" for tick in ticks])
    axes.set_yticks(norm.ppf(ticks), [f"{100 * tick:g}" for tick in ticks])
    axes.set(xlabel="spoof accepted (%)", ylabel="bona fide rejected (%)")
    axes.grid(visible=True, alpha=0.3)
    figure.savefig(path)


def _report(bonafide: Sequence[Scored], spoof: Sequence[Scored]) -> Report:
    return metrics.report([it.llr for it in bonafide], [it.llr for it in spoof])


def _grouped(scored: Iterable[Scored], by: str) -> Mapping[str, list[Scored]]:
    groups: dict[str, list[Scored]] = defaultdict(list)
    for it in scored:
        groups[getattr(it.clip, by)].append(it)
    return dict(sorted(groups.items()))


def _score_lines(path: Path) -> Iterable[tuple[str, float]]:
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        columns = line.split()
        if number == 1 and columns[:1] == ["filename"]:
            continue
        try:
            name, score = columns
            yield name, float(score)
        except ValueError:
            raise DataError.of(f"{path}:{number}", line, "a filename and a score") from None
