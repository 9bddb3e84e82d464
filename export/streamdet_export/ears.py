"""Real windows, as the daemon would cut them, for scales of int8 that hold what the model will hear."""

from collections.abc import Sequence
from typing import Final

from streamdet.audio import Samples
from streamdet.bundle import Manifest
from streamdet.errors import DataError
from streamdet.window import make_ready
from streamdet_training.clips import Clip
from streamdet_training.scores import cut, heard

# Scales that 64 windows showed scored as those that 256 did; docs/benchmarks.md.
WINDOWS: Final = 64


def some_windows(clips: Sequence[Clip], manifest: Manifest, count: int = WINDOWS) -> list[Samples]:
    """Return up to `count` windows `(T,)` with speech in them, one a clip, from all over the list.

    Raises:
        DataError: no clip has enough speech.
    """
    found: list[Samples] = []
    for clip in clips[:: max(1, len(clips) // count)]:
        found.extend(make_ready(cut(*heard(clip), manifest)[-1:], manifest).audio)
        if len(found) == count:
            break
    if not found:
        raise DataError.of("clips with enough speech", 0, "some: int8 takes its scales from them")
    return found
