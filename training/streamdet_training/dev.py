"""How good is a detector in training, on speakers and systems that it has not met? By the daemon's own path."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

import numpy as np

from streamdet.bundle import Manifest
from streamdet.records import Score, Window
from streamdet.window import score_windows
from streamdet_training import metrics
from streamdet_training.clips import Clip
from streamdet_training.listener import Listener
from streamdet_training.scores import Trial, by_class, cut, heard

# Windows in one run of the model. Clips have a handful each; more than this costs memory and gains little speed.
BATCH: Final = 32


def measure(clips: Sequence[Clip], manifest: Manifest, model: Listener) -> tuple[float, float]:
    """EER and min Cllr over the clips with enough speech to score: raw scores know no neutral value."""
    scored = by_class(trial for trial in score(clips, manifest, model) if trial.llrs)
    return metrics.eer(*scored), metrics.min_cllr(*scored)


def score(clips: Iterable[Clip], manifest: Manifest, model: Listener) -> Iterator[Trial]:
    """Score clips as `scores.score_clips` does, with the windows of several clips in one batch."""
    waiting: list[tuple[Clip, int, list[Window]]] = []
    for clip in clips:
        samples, rate_hz = heard(clip)
        windows = cut(samples, rate_hz, manifest)
        if len(windows) + sum(len(others) for _, _, others in waiting) > BATCH:
            yield from _scored(waiting, manifest, model)
            waiting = []
        waiting.append((clip, rate_hz, windows))
    yield from _scored(waiting, manifest, model)


def _scored(waiting: Sequence[tuple[Clip, int, list[Window]]], manifest: Manifest, model: Listener) -> Iterator[Trial]:
    windows = [window for _, _, of_clip in waiting for window in of_clip]
    found: list[Score] = []
    for at in range(0, len(windows), BATCH):
        found += score_windows(windows[at : at + BATCH], manifest, model.run, model.head)
    results = iter(found)
    for clip, rate_hz, of_clip in waiting:
        yield Trial(clip, tuple((window.end_sample / rate_hz, next(results).llr) for window in of_clip))


def some(clips: Sequence[Clip], count: int) -> list[Clip]:
    """Choose up to `count` clips, half of them bona fide where there are as many; 0 takes all.

    The seed is fixed: runs of several seeds are compared on the same clips.
    """
    if not 0 < count < len(clips):
        return list(clips)
    order = np.random.default_rng(0).permutation(len(clips))
    bona_fide = [at for at in order if clips[at].label == "bonafide"]
    spoof = [at for at in order if clips[at].label == "spoof"]
    fewer = min(count // 2, len(bona_fide), len(spoof))
    longer, shorter = (bona_fide, spoof) if len(bona_fide) > len(spoof) else (spoof, bona_fide)
    few = shorter[: max(1, fewer)]
    return [clips[at] for at in sorted([*few, *longer[: max(1, count - len(few))]])]
