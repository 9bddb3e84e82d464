"""Is the exported model the trained one? Compared on real clips, before a bundle exists."""

from collections.abc import Sequence
from typing import Final

import msgspec
import numpy as np

from streamdet.bundle import Manifest
from streamdet.errors import BundleError
from streamdet.scorer import Scorer
from streamdet.window import score_windows
from streamdet_export.passes import Precision
from streamdet_training import metrics
from streamdet_training.data import Clip
from streamdet_training.listener import listener
from streamdet_training.model import Detector
from streamdet_training.scores import Trial, by_class, score_clips

# Scores spread over 1 or more. wav2vec2 on raw audio agrees to 1e-6; log energies of a band that is 60 dB below the
# loudest of its frame lose digits in float32, whose order of adding up differs: 8e-4 was the most seen of whole
# windows, 2.1e-3 of blocks, which may hold nothing but the end of a word (the starter).
MOST_DIFFERENCE: Final = 5e-3
MOST_EER_DIFFERENCE: Final = 0.005
# In fp32 the largest difference over this many clips; the other precisions need an EER, so they take all of dev.
FP32_CLIPS: Final = 24


class Parity(msgspec.Struct, frozen=True):
    """What the gate found."""

    windows: int
    largest_difference: float
    """Of CM scores, |onnxruntime - torch|."""
    eer_torch: float | None
    eer_onnx: float | None
    """Of the clips compared; None where only differences were asked for."""


def check(
    detector: Detector, scorer: Scorer, manifest: Manifest, clips: Sequence[Clip], precision: Precision
) -> Parity:
    """Compare onnxruntime with torch.

    Raises:
        BundleError: they differ by more than the precision allows.
    """
    some = _spread(clips, FP32_CLIPS) if precision == "fp32" else clips
    ours, theirs = ((it.run, it.head) for it in (scorer, listener(detector)))
    onnx_trials = score_clips(some, manifest, lambda windows: score_windows(windows, manifest, *ours))
    torch_trials = score_clips(some, manifest, lambda windows: score_windows(windows, manifest, *theirs))
    found = _compare(torch_trials, onnx_trials, with_eer=precision != "fp32")
    if precision == "fp32" and not found.largest_difference <= MOST_DIFFERENCE:
        raise BundleError.of("parity: score difference", found.largest_difference, f"at most {MOST_DIFFERENCE}")
    if found.eer_torch is not None and found.eer_onnx is not None:
        difference = abs(found.eer_onnx - found.eer_torch)
        if not difference <= MOST_EER_DIFFERENCE:
            raise BundleError.of("parity: EER difference", difference, f"at most {MOST_EER_DIFFERENCE}")
    return found


def _compare(torch_trials: Sequence[Trial], onnx_trials: Sequence[Trial], *, with_eer: bool) -> Parity:
    ours = np.concatenate([trial.llrs for trial in onnx_trials])
    theirs = np.concatenate([trial.llrs for trial in torch_trials])
    if ours.size == 0:
        raise BundleError.of("parity: windows", 0, "clips with enough speech to compare on")
    difference = float(np.abs(ours - theirs).max())
    if not with_eer:
        return Parity(ours.size, difference, None, None)
    return Parity(ours.size, difference, metrics.eer(*by_class(torch_trials)), metrics.eer(*by_class(onnx_trials)))


def _spread(clips: Sequence[Clip], count: int) -> Sequence[Clip]:
    """Up to `count` clips from all over the list, which corpora sort by class."""
    return clips[:: max(1, len(clips) // count)][:count]
