"""A window is a pure function of its bytes: decode, gate, resample, fill, run, calibrate.

The scorer serves through these functions, training and evaluation go through them too, each with a model of its own.
"""

from collections.abc import Callable, Sequence

import msgspec
import numpy as np

from streamdet.audio import Samples, decode, fill, resample
from streamdet.bundle import Audio, Manifest
from streamdet.errors import StreamdetError
from streamdet.records import Score, Window
from streamdet.speech import speech_s

Run = Callable[[Samples], Samples]
"""A model: `(B, window_samples)` in [-1, 1] to raw CM scores `(B,)`."""


class Ready(msgspec.Struct, frozen=True):
    """Windows made ready for the model: the half of the work that needs none."""

    audio: Samples
    """`(H, window_samples)`: those of the W windows with enough speech to be scored."""
    heard: list[int]
    """Which of the windows they are, `(H,)`."""
    speech_s: list[float]
    """Speech in every window (s), `(W,)`."""


def score_windows(windows: Sequence[Window], manifest: Manifest, run: Run) -> list[Score]:
    """Score the bytes of windows; one with too little speech gets no LLR and costs no run.

    Raises:
        StreamdetError: the model gave something that is no number.
    """
    ready = make_ready(windows, manifest)
    return settle(ready, run(ready.audio) if ready.heard else np.empty(0, np.float32), manifest)


def make_ready(windows: Sequence[Window], manifest: Manifest) -> Ready:
    """Decode, gate, resample and fill."""
    decoded = [decode(window.data, window.format.encoding) for window in windows]
    speech = [speech_s(samples, window.format.rate_hz) for samples, window in zip(decoded, windows, strict=True)]
    heard = [at for at, seconds in enumerate(speech) if seconds >= manifest.decision.min_speech_s]
    audio = np.empty((len(heard), manifest.audio.window_samples), np.float32)
    for row, at in enumerate(heard):
        audio[row] = prepare(decoded[at], windows[at].format.rate_hz, manifest.audio)
    return Ready(audio, heard, speech)


def settle(ready: Ready, cm_scores: Samples, manifest: Manifest) -> list[Score]:
    """From raw CM scores `(H,)` of what was ready to calibrated LLRs `(W,)`.

    Raises:
        StreamdetError: a score is no number.
    """
    llrs: list[float | None] = [None] * len(ready.speech_s)
    for at, cm_score in zip(ready.heard, cm_scores, strict=True):
        if not np.isfinite(cm_score):
            # Clipping would make it full evidence for bona fide. The model is broken: end, and say so.
            raise StreamdetError.of("CM score", float(cm_score), "a finite number from the model")
        llrs[at] = manifest.calibration.scale * float(cm_score) + manifest.calibration.offset
    return [Score(llr, seconds) for llr, seconds in zip(llrs, ready.speech_s, strict=True)]


def prepare(samples: Samples, rate_hz: int, audio: Audio) -> Samples:
    """From decoded samples `(T,)` at their own rate to what the model wants: `(window_samples,)`."""
    return fill(resample(samples, rate_hz, audio.rate_hz), audio.window_samples)
