"""Scores of trials, by the daemon's own path, and the files that hold them."""

import csv
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path, PurePath

import msgspec
import numpy as np

from streamdet.audio import Samples, resample
from streamdet.bundle import Manifest
from streamdet.errors import DataError, MissingError
from streamdet.records import RATES_HZ, Score, Window
from streamdet.replay import replay_samples
from streamdet_training import lines, recordings
from streamdet_training.data import Clip

ScoreWindows = Callable[[Sequence[Window]], Sequence[Score]]


class Trial(msgspec.Struct, frozen=True):
    """A clip and what the model says of its windows."""

    clip: Clip
    windows: tuple[tuple[float, float | None], ...]
    """(end_s, LLR) of each; None where the speech gate turned it away."""

    @property
    def llrs(self) -> list[float]:
        """Of the windows that were scored."""
        return [llr for _, llr in self.windows if llr is not None]

    @property
    def llr(self) -> float:
        """The trial's score: their mean, or 0 when there is none."""
        return float(np.mean(self.llrs)) if self.llrs else 0.0


def heard(clip: Clip, line: str | None = None) -> tuple[Samples, int]:
    """Read a clip's first channel `(T,)` and its rate (Hz), as it is or as it comes over a line of `lines.LINES`."""
    samples, rate_hz = recordings.read(clip.path)
    if line is not None:
        return lines.through(samples, rate_hz, line)
    # No live call has any other rate, so the engine knows none: the next one up loses nothing.
    to_hz = next((known for known in RATES_HZ if known >= rate_hz), RATES_HZ[-1])
    return resample(samples, rate_hz, to_hz), to_hz


def cut(samples: Samples, rate_hz: int, manifest: Manifest) -> list[Window]:
    """Return the windows that the daemon would score for `(T,)`, without a model."""
    windows: list[Window] = []

    def listen(due: Sequence[Window]) -> list[Score]:
        windows.extend(due)
        return [Score(None, 0.0) for _ in due]

    replay_samples("clip", samples[:, None], rate_hz, manifest, listen)
    return windows


def score_clips(clips: Iterable[Clip], manifest: Manifest, score: ScoreWindows) -> list[Trial]:
    """Score each clip's windows (first channel) in batches of one clip."""
    return [score_clip(clip, manifest, score) for clip in clips]


def score_clip(clip: Clip, manifest: Manifest, score: ScoreWindows, line: str | None = None) -> Trial:
    """Score the windows of one clip's first channel, over a line if one is named."""
    samples, rate_hz = heard(clip, line)
    windows = cut(samples, rate_hz, manifest)
    scored = zip(windows, score(windows), strict=True)
    return Trial(clip, tuple((window.end_sample / rate_hz, result.llr) for window, result in scored))


def by_class(trials: Iterable[Trial]) -> tuple[list[float], list[float]]:
    """Scores of the bona fide trials, and of the spoof trials."""
    scores: dict[str, list[float]] = {"bonafide": [], "spoof": []}
    for trial in trials:
        scores[trial.clip.label].append(trial.llr)
    return scores["bonafide"], scores["spoof"]


def read(path: Path, clips: Sequence[Clip]) -> dict[str, list[float]]:
    """Read scores of labelled clips.

    Either a score file (file name and score, tab- or space-separated, a header or none) or the scores.csv of a report,
    which may hold several bundles'. File names may lack their extension or their folders; lines for other clips are
    passed over.

    Returns:
        entry -> a score for each clip, in their order. The entry of a score file is its own name without extension.

    Raises:
        MissingError: no such file.
        DataError: a line is no score, a clip has none or two, or a file name fits several clips.
    """
    if not path.is_file():
        raise MissingError.of("scores", str(path), "a file that exists")
    clip_of = _finder(clips)
    found: dict[str, dict[int, float]] = defaultdict(dict)
    for where, entry, name, score in _table(path) if _is_table(path) else _lines(path):
        at = clip_of(name, where)
        if at is None:
            continue
        if at in found[entry]:
            raise DataError.of(f"{where} filename", name, "one score a clip")
        found[entry][at] = score
    for scores in found.values() or [dict[int, float]()]:
        missing = next((clip for at, clip in enumerate(clips) if at not in scores), None)
        if missing is not None:
            raise DataError.of(f"{path} filename", missing.path.name, f"a score for each of {len(clips)} clips")
    return {entry: [scores[at] for at in range(len(clips))] for entry, scores in found.items()}


def _finder(clips: Sequence[Clip]) -> Callable[[str, str], int | None]:
    """Which clip a file's name means: the last part of its path, with folders in front where that is not enough."""
    named: dict[str, list[int]] = defaultdict(list)
    for at, clip in enumerate(clips):
        for name in {clip.path.name, clip.path.stem}:
            named[name].append(at)

    def find(name: str, where: str) -> int | None:
        folders = _folders(PurePath(name))
        fits = {at: _alike(folders, _folders(clips[at].path)) for at in named.get(PurePath(name).name, ())}
        most = max(fits.values(), default=0)
        best = [at for at, alike in fits.items() if alike == most and (alike or not folders)]
        if len(best) > 1:
            raise DataError.of(f"{where} filename", name, f"a path that fits one clip; this fits {len(best)}")
        return best[0] if best else None

    return find


def _folders(path: PurePath) -> list[str]:
    """Names of the folders that a file lies in, the innermost first."""
    return [part for part in reversed(path.parent.parts) if part not in ("/", "..")]


def _alike(ours: Sequence[str], theirs: Sequence[str]) -> int:
    """How many of the innermost folders are the same."""
    same = [one == other for one, other in zip(ours, theirs, strict=False)]
    return same.index(False) if False in same else len(same)


def _is_table(path: Path) -> bool:
    with path.open(encoding="utf-8") as file:
        header = file.readline().strip().split(",")
    return {"path", "bundle", "llr"} <= set(header)


def _table(path: Path) -> Iterator[tuple[str, str, str, float]]:
    """Where, entry, file name, score of each row of a scores.csv."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file)
        for row in rows:
            where = f"{path}:{rows.line_num}"
            yield where, row["bundle"] or "-", row["path"] or "", _score(row["llr"], where, row)


def _lines(path: Path) -> Iterator[tuple[str, str, str, float]]:
    """The same of each line of a score file."""
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        columns, where = line.split(), f"{path}:{number}"
        if not columns or (number == 1 and columns[0] == "filename"):
            continue
        if len(columns) != 2:
            raise DataError.of(where, line, "a filename and a score")
        yield where, path.stem, columns[0], _score(columns[1], where, line)


def _score(text: str | None, where: str, shown: object) -> float:
    try:
        score = float(text or "")
    except ValueError:
        raise DataError.of(where, shown, "a filename and a score") from None
    if not math.isfinite(score):
        raise DataError.of(f"{where} score", text, "a finite number")
    return score
