"""A window in blocks: which of them the model has to encode, and the sums of all of them, side by side for the head.

A block is one hop of audio and up to `left_samples` before it. Its pooling sums are a pure function of its bytes, and a
window's score is one of its blocks' sums. What a track remembers of them saves work and changes nothing.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from streamdet.audio import Samples, fill, resample
from streamdet.bundle import Manifest
from streamdet.records import AudioFormat, Sums, Window
from streamdet.speech import starts

# The largest logit of a block that is not there: exp(this - any other) is 0, and it is far from float32's limits.
ABSENT_LOGIT: Final = -1e30

Place = Sums | int | None
"""Where a block's sums come from: remembered, a row that the model is to encode, or nowhere, since it is left out."""


class Rows:
    """The blocks that the model is to encode, the same bytes once only: their sums would be the same."""

    def __init__(self, manifest: Manifest) -> None:
        """Begin without any."""
        self._manifest: Final = manifest
        self._audio: list[Samples] = []
        self._row_of: dict[tuple[AudioFormat, bytes], int] = {}

    @property
    def audio(self) -> Samples:
        """What to run, `(R, input_samples)`."""
        return np.stack(self._audio) if self._audio else np.empty((0, self._manifest.input_samples), np.float32)

    def places(self, window: Window, samples: Samples, speech: NDArray[np.bool_]) -> list[Place]:
        """Find the blocks of a window that is to be scored, and take in those that nobody remembers.

        Args:
            window: of the track.
            samples: its bytes decoded, `(T,)` at its own rate.
            speech: which of the gate's frames in it are speech, `(frames,)`.
        """
        sums = window.sums or (None,) * len(window.block_ends)
        found: list[Place] = []
        for end_sample, known, is_heard in zip(window.block_ends, sums, _heard(window, speech), strict=True):
            new = is_heard and known is None
            found.append(self._row(window, samples, end_sample) if new else known if is_heard else None)
        return found

    def _row(self, window: Window, samples: Samples, end_sample: int) -> int:
        form, model_hz, wanted = window.format, self._manifest.audio.rate_hz, self._manifest.input_samples
        last = samples.size - (window.end_sample - end_sample)
        # Rounded up: what is a sample short after resampling would be filled with one from its start.
        first = max(0, last - -(-wanted * form.rate_hz // model_hz))
        key = (form, window.data[first * form.sample_bytes : last * form.sample_bytes])
        if key not in self._row_of:
            self._row_of[key] = len(self._audio)
            self._audio.append(fill(resample(samples[first:last], form.rate_hz, model_hz), wanted))
        return self._row_of[key]


def look_up(places: Sequence[Sequence[Place]], encoded: Samples) -> list[tuple[Sums | None, ...]]:
    """Put in the sums `(R, S)` of what was encoded."""
    # A copy: a view would keep the whole batch in memory for as long as a track remembers one row of it.
    return [
        tuple(encoded[place].copy() if isinstance(place, int) else place for place in of_window) for of_window in places
    ]


def side_by_side(found: Sequence[Sequence[Sums | None]], blocks: int) -> Samples:
    """Sums of the blocks of W windows, for the head: `(W, blocks, S)`, the newest last, one at least in each window."""
    size = next(sums.size for of_window in found for sums in of_window if sums is not None)
    laid = np.zeros((len(found), blocks, size), np.float32)
    laid[:, :, 0] = ABSENT_LOGIT
    for row, of_window in zip(laid, found, strict=True):
        for at, sums in enumerate(of_window, blocks - len(of_window)):
            if sums is not None:
                row[at] = sums
    return laid


def _heard(window: Window, speech: NDArray[np.bool_]) -> list[bool]:
    """Which blocks of a window have any speech inside their hop; all, where none has and it is scored all the same."""
    ends = np.array(window.block_ends) - window.start_sample
    of_frame = np.searchsorted(ends, starts(speech.size, window.format.rate_hz), side="right")
    heard = np.bincount(of_frame[speech], minlength=ends.size) > 0
    return [bool(is_heard) or not heard.any() for is_heard in heard]
