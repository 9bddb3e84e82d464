"""Which clips a batch holds: balanced over what made them, and bounded where that would be too much of one thing."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from streamdet.errors import DataError
from streamdet_training.clips import Clip

Shares = NDArray[np.float64]


class Drawer:
    """Draws clips of one class by their shares."""

    def __init__(self, clips: Sequence[Clip], balance: float, at_most: Mapping[str, float]) -> None:
        """Weigh clips as `shares` does."""
        if not clips:
            raise DataError.of("train clips", 0, "some of either class")
        self._clips = clips
        self._up_to = np.cumsum(shares(clips, balance, at_most))

    def draw(self, rng: np.random.Generator) -> Clip:
        """Draw one, again and again from all."""
        at = int(np.searchsorted(self._up_to, rng.random() * self._up_to[-1], side="right"))
        return self._clips[min(at, len(self._clips) - 1)]


def shares(clips: Sequence[Clip], balance: float, at_most: Mapping[str, float]) -> Shares:
    """Work out how often each clip of one class is drawn; `(len(clips),)`, the sum is 1.

    By clips alone the largest generator would be most of what is learnt; by generators alone a handful of clips would
    be seen thousands of times. So an origin of n clips gets a share as n to the power 1 - balance: spoof by system,
    bona fide by source and within it, the same way, by speaker.

    Args:
        clips: of one class.
        balance: 0 for every clip alike, 0.5 for square roots, 1 for every origin alike.
        at_most: the greatest share of the systems (or sources) whose name begins like this.
    """
    origins = [clip.system if clip.label == "spoof" else clip.source for clip in clips]
    speakers = ["" if clip.label == "spoof" else clip.speaker for clip in clips]
    voices = list(zip(origins, speakers, strict=True))
    by_origin, by_voice = Counter(origins), Counter(voices)
    # Within an origin the voices' powers are brought to 1 before the origin's own share is handed out.
    within: dict[str, float] = defaultdict(float)
    for (origin, _), count in by_voice.items():
        within[origin] += count ** (1 - balance)
    found = np.array(
        [by_origin[voice[0]] ** (1 - balance) * by_voice[voice] ** -balance / within[voice[0]] for voice in voices]
    )
    return _bounded(found / found.sum(), origins, at_most)


def _bounded(found: Shares, origins: Sequence[str], at_most: Mapping[str, float]) -> Shares:
    """Scale down what passes its bound, and everything else up; several times, as each moves the others."""
    groups = [(np.array([origin.startswith(start) for origin in origins]), most) for start, most in at_most.items()]
    for _ in range(10 * len(groups)):
        for group, most in groups:
            share = found[group].sum()
            if share > most and not group.all():  # with nothing beside it there is nothing to fill up with
                found = np.where(group, found * most / share, found * (1 - most) / (1 - share))
    return found
