"""A window is a pure function of its bytes: decode, gate, resample, fill, run, calibrate.

The scorer serves through these functions, training and evaluation go through them too, each with a model of its own.
"""

from collections.abc import Callable, Sequence

import numpy as np

from streamdet.audio import Samples, decode, fill, resample
from streamdet.bundle import Audio, Manifest
from streamdet.errors import StreamdetError
from streamdet.records import Score, Window
from streamdet.speech import speech_s

Run = Callable[[Samples], Samples]
"""A model: `(B, window_samples)` in [-1, 1] to raw CM scores `(B,)`."""


def score_windows(windows: Sequence[Window], manifest: Manifest, run: Run) -> list[Score]:
    """Score the bytes of windows; one with too little speech gets no LLR and costs no run.

    Raises:
        StreamdetError: the model gave something that is no number.
    """
    decoded = [decode(window.data, window.format.encoding) for window in windows]
    speech = [speech_s(samples, window.format.rate_hz) for samples, window in zip(decoded, windows, strict=True)]
    heard = [at for at, seconds in enumerate(speech) if seconds >= manifest.decision.min_speech_s]
    llrs: list[float | None] = [None] * len(windows)
    if heard:
        batch = np.stack([prepare(decoded[at], windows[at].format.rate_hz, manifest.audio) for at in heard])
        for at, cm_score in zip(heard, run(batch), strict=True):
            if not np.isfinite(cm_score):
                # Clipping would make it full evidence for bona fide. The model is broken: end, and say so.
                raise StreamdetError.of("CM score", float(cm_score), "a finite number from the model")
            llrs[at] = manifest.calibration.scale * float(cm_score) + manifest.calibration.offset
    return [Score(llr, seconds) for llr, seconds in zip(llrs, speech, strict=True)]


def prepare(samples: Samples, rate_hz: int, audio: Audio) -> Samples:
    """From decoded samples `(T,)` at their own rate to what the model wants: `(window_samples,)`."""
    return fill(resample(samples, rate_hz, audio.rate_hz), audio.window_samples)
