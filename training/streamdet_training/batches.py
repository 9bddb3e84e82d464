"""Draws training batches: balanced over classes and their origins, cropped, augmented, filled.

Batch n is a function of (seed, n) alone: a run that resumes at step n sees what it would have seen, and devices share
the work by taking turns at n.
"""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from streamdet.audio import Samples, fill, resample
from streamdet.errors import DataError, StreamdetError
from streamdet_training.augment import augment, crop
from streamdet_training.data import Clip
from streamdet_training.recipe import Recipe
from streamdet_training.recordings import Kept, Recordings, is_silent
from streamdet_training.sampling import Drawer

log = logging.getLogger(__name__)

Batch = tuple[torch.Tensor, torch.Tensor]

# Silent clips in a row after which nobody believes any longer that they are the exception.
SILENT_IN_A_ROW: Final = 100


def batches(clips: Sequence[Clip], recipe: Recipe, numbers: Sequence[int]) -> Iterator[Batch]:
    """Draw the batches of these numbers, in `train.workers` processes.

    Raises:
        MissingError, DataError, UsageError: as in this process; torch would make a page of a worker's error.
    """
    workers = recipe.train.workers
    # A generator of its own: from torch's, a loader draws a number when it begins, so a resumed run would go on with
    # other dropout than one that was never interrupted.
    own, carried = torch.Generator(), _Carried(Batches(clips, recipe))
    loader = DataLoader(carried, batch_size=None, sampler=numbers, num_workers=workers, generator=own)
    for item in loader:
        if isinstance(item, StreamdetError):
            raise item
        yield item


class Batches(Dataset[Batch]):
    """Item n is batch n: audio `(B, T)` and labels `(B,)`, 1 = bona fide."""

    def __init__(self, clips: Sequence[Clip], recipe: Recipe) -> None:
        """Draw from `clips` as `recipe` says."""
        self._recipe = recipe
        self._recordings = Recordings(recipe.data.cache)
        self._silent: set[Path] = set()
        data = recipe.data
        self._classes = [
            Drawer([clip for clip in clips if clip.label == kind], data.balance, data.at_most)
            for kind in ("spoof", "bonafide")
        ]

    def __getitem__(self, number: int) -> Batch:
        """Draw batch `number`: as many bona fide clips as spoof, all of one length."""
        how = self._recipe.train
        rng = np.random.default_rng((self._recipe.seed, number))
        length_s = float(rng.choice(how.crop_s)) + self._recipe.window.past_s
        # Drawn before anything is known of the clips, so that a length says nothing of a class.
        shortest_s = min(how.shortest_s, length_s)
        own_s = np.where(rng.random(how.batch) < how.fill, rng.uniform(shortest_s, length_s, how.batch), length_s)
        labels = np.arange(how.batch) % 2
        audio = [
            self._clip(self._classes[label], float(crop_s), length_s, rng)
            for label, crop_s in zip(labels, own_s, strict=True)
        ]
        return torch.from_numpy(np.stack(audio)), torch.from_numpy(labels.astype(np.float32))

    def _clip(self, drawer: Drawer, crop_s: float, length_s: float, rng: np.random.Generator) -> Samples:
        """Cut at the clip's own rate, then resample and fill: the order in which the daemon does it."""
        samples, rate_hz = self._heard(drawer, rng)
        to_hz = self._recipe.window.rate_hz
        cut = crop(samples, round(crop_s * rate_hz), rng).astype(np.float32)
        heard = augment(resample(cut, rate_hz, to_hz), to_hz, self._recipe.augment, rng)
        return fill(heard, round(length_s * to_hz))

    def _heard(self, drawer: Drawer, rng: np.random.Generator) -> tuple[Kept, int]:
        """Draw until there is something to hear: a silent clip could teach nothing but that silence has a class."""
        for _ in range(SILENT_IN_A_ROW):
            clip = drawer.draw(rng)
            samples, rate_hz = self._recordings.read(clip.path)
            if not is_silent(samples):
                return samples, rate_hz
            if clip.path not in self._silent:
                self._silent.add(clip.path)
                log.warning("%s is silent and passed over (%d so far)", clip.path, len(self._silent))
        raise DataError.of("train clips", f"{SILENT_IN_A_ROW} silent ones in a row", "speech")


class _Carried(Dataset[Batch | StreamdetError]):
    """Hands an error of ours on as an item, since torch would raise it anew with a traceback for its message."""

    def __init__(self, inner: Batches) -> None:
        self._inner = inner

    def __getitem__(self, number: int) -> Batch | StreamdetError:
        try:
            return self._inner[number]
        except StreamdetError as error:
            return error
