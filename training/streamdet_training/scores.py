"""Scores of trials, by the daemon's own path, and the files that hold them."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import msgspec
import numpy as np

from streamdet.audio import Samples, read_recording
from streamdet.bundle import Manifest
from streamdet.records import Score, Window
from streamdet.replay import replay_samples
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


def score_clip(clip: Clip, manifest: Manifest, score: ScoreWindows) -> Trial:
    """Score the windows of one clip's first channel."""
    samples, rate_hz = read_recording(clip.path)
    windows = cut(samples[:, 0], rate_hz, manifest)
    scored = zip(windows, score(windows), strict=True)
    return Trial(clip, tuple((window.end_sample / rate_hz, result.llr) for window, result in scored))


def by_class(trials: Iterable[Trial]) -> tuple[list[float], list[float]]:
    """Scores of the bona fide trials, and of the spoof trials."""
    scores: dict[str, list[float]] = {"bonafide": [], "spoof": []}
    for trial in trials:
        scores[trial.clip.label].append(trial.llr)
    return scores["bonafide"], scores["spoof"]


def write(path: Path, trials: Iterable[Trial]) -> None:
    """Write a score file as ASVspoof 5 has it: tab-separated, `filename` and `cm-score`."""
    lines = ["filename\tcm-score", *(f"{trial.clip.path.name}\t{trial.llr:.6f}" for trial in trials)]
    path.write_text("\n".join(lines) + "\n", "utf-8")
