"""Draws training batches: balanced over classes and their origins, cropped, augmented.

Batch n is a function of (seed, n) alone: a run that resumes at step n sees what it would have seen, and devices share
the work by taking turns at n.
"""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from streamdet.audio import Samples, fill, read_recording, resample
from streamdet.errors import DataError
from streamdet_training.augment import augment, crop
from streamdet_training.data import Clip
from streamdet_training.recipe import Recipe

# Clips kept in memory by each worker: 4096 of 5 s at 16 kHz are 0.7 GB, and a small corpus fits whole.
KEPT_CLIPS = 4096


class Batches(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Item n is batch n: audio `(B, T)` and labels `(B,)`, 1 = bona fide."""

    def __init__(self, clips: Sequence[Clip], recipe: Recipe) -> None:
        """Draw from `clips` as `recipe` says."""
        self._recipe = recipe
        self._classes = [_Drawer([clip for clip in clips if clip.label == kind]) for kind in ("spoof", "bonafide")]

    def __getitem__(self, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw batch `number`: as many bona fide clips as spoof, all of one length."""
        recipe = self._recipe
        rng = np.random.default_rng((recipe.seed, number))
        crop_s = float(rng.choice(recipe.train.crop_s))
        labels = np.arange(recipe.train.batch) % 2
        audio = [self._clip(self._classes[label].draw(rng), crop_s, rng) for label in labels]
        return torch.from_numpy(np.stack(audio)), torch.from_numpy(labels.astype(np.float32))

    def _clip(self, clip: Clip, crop_s: float, rng: np.random.Generator) -> Samples:
        """Cut at the clip's own rate, then resample and fill: the order in which the daemon does it."""
        samples, rate_hz = _read(clip.path)
        to_hz = self._recipe.window.rate_hz
        cut = crop(samples, round(crop_s * rate_hz), rng).astype(np.float32)
        heard = augment(resample(cut, rate_hz, to_hz), to_hz, self._recipe.augment, rng)
        return fill(heard, round(crop_s * to_hz))


class _Drawer:
    """Draws clips of one class: first an origin, with the square root of its share, then one of its clips.

    By clips alone the largest generator would be most of what is learnt; by origins alone a handful of clips would be
    seen thousands of times.
    """

    def __init__(self, clips: Sequence[Clip]) -> None:
        if not clips:
            raise DataError.of("train clips", 0, "some of either class")
        groups: dict[str, list[Clip]] = {}
        for clip in clips:
            groups.setdefault(clip.system if clip.label == "spoof" else clip.source, []).append(clip)
        self._groups = list(groups.values())
        weights = np.sqrt([len(group) for group in self._groups])
        self._share: NDArray[np.float64] = weights / weights.sum()

    def draw(self, rng: np.random.Generator) -> Clip:
        group = self._groups[rng.choice(len(self._groups), p=self._share)]
        return group[rng.integers(len(group))]


@lru_cache(maxsize=KEPT_CLIPS)
def _read(path: Path) -> tuple[NDArray[np.float16], int]:
    """First channel and rate, in half precision: 66 dB below each sample, under any codec's noise."""
    samples, rate_hz = read_recording(path)
    return samples[:, 0].astype(np.float16), rate_hz
