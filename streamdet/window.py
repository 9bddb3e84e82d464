"""A window is a pure function of its bytes: decode, gate, resample, fill, run, calibrate.

The scorer serves through these functions, training and evaluation go through them too, each with a model of its own.
What a bundle's kind changes is here and in `blocks.py`: a windowed model hears whole windows, a block model the blocks
that no track remembers, whose sums a head then merges.
"""

import math
from collections.abc import Callable, Iterator, Sequence

import msgspec
import numpy as np

from streamdet import blocks
from streamdet.audio import Samples, decode, fill, resample
from streamdet.bundle import Manifest
from streamdet.errors import StreamdetError
from streamdet.records import Score, Sums, Window
from streamdet.speech import activity, seconds

Run = Callable[[Samples], Samples]
"""A model: `(B, input_samples)` in [-1, 1] to raw CM scores `(B,)`, or to the blocks' pooling sums `(B, S)`."""
Head = Callable[[Samples], Samples]
"""Of a block model: the sums of windows' blocks `(B, N, S)` to raw CM scores `(B,)`."""


class Ready(msgspec.Struct, frozen=True):
    """Windows made ready for the model: the half of the work that needs none."""

    audio: Samples
    """What the model is to run, `(R, input_samples)`: H windows to be scored, or blocks of theirs to be encoded."""
    heard: list[int]
    """Which of the W windows have enough speech to be scored, `(H,)`."""
    speech_s: list[float]
    """Speech in every window (s), `(W,)`."""
    places: list[list[blocks.Place]]
    """Of each window to be scored, where the sums of its blocks are found; empty where windows are scored whole."""


def score_windows(windows: Sequence[Window], manifest: Manifest, run: Run, head: Head | None = None) -> list[Score]:
    """Score the bytes of windows; one with too little speech gets no LLR and costs no run.

    Raises:
        StreamdetError: the model gave something that is no number.
    """
    ready = make_ready(windows, manifest)
    return settle([ready], run(ready.audio) if len(ready.audio) else np.empty(0, np.float32), manifest, head)


def make_ready(windows: Sequence[Window], manifest: Manifest) -> Ready:
    """Decode, gate, resample and fill."""
    decoded = [decode(window.data, window.format.encoding) for window in windows]
    lengths = [window.end_sample - window.start_sample for window in windows]
    rates_hz = [window.format.rate_hz for window in windows]
    active = [activity(samples[-n:], rate_hz) for samples, n, rate_hz in zip(decoded, lengths, rates_hz, strict=True)]
    speech = [seconds(some, n / rate_hz) for some, n, rate_hz in zip(active, lengths, rates_hz, strict=True)]
    heard = [at for at, speech_s in enumerate(speech) if speech_s >= manifest.decision.min_speech_s]
    if manifest.blocks:
        rows = blocks.Rows(manifest)
        places = [rows.places(windows[at], decoded[at], active[at]) for at in heard]
        return Ready(rows.audio, heard, speech, places)
    audio = np.empty((len(heard), manifest.input_samples), np.float32)
    for row, at in enumerate(heard):
        audio[row] = fill(resample(decoded[at], rates_hz[at], manifest.audio.rate_hz), manifest.input_samples)
    return Ready(audio, heard, speech, [])


def settle(parts: Sequence[Ready], ran: Samples, manifest: Manifest, head: Head | None = None) -> list[Score]:
    """From what the model made of what was ready to calibrated LLRs.

    Args:
        parts: whose audio ran together, W windows in all.
        ran: raw CM scores `(R,)`, or the blocks' pooling sums `(R, S)`.
        manifest: of the model.
        head: of a block model.

    Returns:
        the scores of all W, in their order.

    Raises:
        StreamdetError: a score is no number.
    """
    sums: list[tuple[Sums | None, ...]] = []
    row = 0
    for ready in parts:
        sums += blocks.look_up(ready.places, ran[row : row + len(ready.audio)])
        row += len(ready.audio)
    if sums:
        assert head is not None, "a block model has a head"
        ran = head(blocks.side_by_side(sums, manifest.blocks))
    found = zip([_llr(float(cm_score), manifest) for cm_score in ran], sums or [()] * len(ran), strict=True)
    return [score for ready in parts for score in _in_order(ready, found)]


def _in_order(ready: Ready, found: Iterator[tuple[float, tuple[Sums | None, ...]]]) -> list[Score]:
    """The next LLRs that were found for the windows that were to be scored, and none for the others."""
    scores = [Score(None, speech_s) for speech_s in ready.speech_s]
    for at in ready.heard:
        llr, sums = next(found)
        scores[at] = Score(llr, ready.speech_s[at], sums)
    return scores


def _llr(cm_score: float, manifest: Manifest) -> float:
    if not math.isfinite(cm_score):
        # Clipping would make it full evidence for bona fide. The model is broken: end, and say so.
        raise StreamdetError.of("CM score", cm_score, "a finite number from the model")
    return manifest.calibration.scale * cm_score + manifest.calibration.offset
