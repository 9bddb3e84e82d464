"""From CM scores to LLRs, and from sums of LLRs over seconds to LLRs again.

Both fits are logistic regressions with the two classes weighted alike (Brummer and du Preez, Computer Speech and
Language 2006), as the evaluation of LLRs wants them, so that the offset carries no prior of the fitting data.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Final

import msgspec
import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize

from streamdet.bundle import Calibration, Manifest
from streamdet.errors import DataError
from streamdet.verdict import Tracker
from streamdet_training.calls import Call

log = logging.getLogger(__name__)

Floats = NDArray[np.float64]

# Seconds of evidence at which the rolling sum gets a row; between rows the tracker interpolates.
ROLLING_S: Final = (1.0, 2.0, 4.0, 7.0, 10.0)
# How strongly a row is held to its prior. One class of two voices can be separated by accident: then the likelihood
# alone would send the scale to infinity.
ROLLING_RIDGE: Final = 0.02
AFFINE_RIDGE: Final = 1e-4
# For scores of standard deviation 1.
LEAST_SLOPE: Final = 1e-3


class Fit(msgspec.Struct, frozen=True):
    """LLR = scale * value + offset."""

    scale: float
    offset: float


def affine(bonafide: Sequence[Sequence[float]], spoof: Sequence[Sequence[float]]) -> Fit:
    """Fit scale and offset on windows' CM scores; every clip weighs the same, however many windows it has.

    Args:
        bonafide: for each clip, its windows' scores.
        spoof: the same.

    Raises:
        DataError: a class is empty.
    """
    values, labels, weights = _flat(bonafide, spoof)
    centre = float(weights @ values)
    spread = float(np.sqrt(weights @ np.square(values - centre))) or 1.0
    slope, offset = _logistic(
        (values - centre) / spread, labels, weights, lambda p: AFFINE_RIDGE * float(p[0] ** 2), (1, 0)
    )
    if slope < LEAST_SLOPE:
        # Worse than chance is no information, not information upside down: the LLRs of such a model are about 0.
        log.warning("dev: bona fide clips do not score higher than spoof; this bundle's LLRs will all be about 0")
        slope = LEAST_SLOPE
    return Fit(slope / spread, offset - slope * centre / spread)


def rolling(
    calls: Sequence[Call], manifest: Manifest, seconds: Sequence[float] = ROLLING_S
) -> tuple[tuple[float, float, float], ...]:
    """Fit the rows of `calibration.rolling` on calls of one voice each.

    The prior of a row is `window / seconds`, 0: it makes the sum the mean LLR, which is what it would be worth if
    everything heard were one piece of evidence.
    """
    rows = []
    for length_s in seconds:
        sums = [(call, _sums(call, manifest, length_s)) for call in calls]
        bonafide = [found for call, found in sums if call.label == "bonafide" and found]
        spoof = [found for call, found in sums if call.label == "spoof" and found]
        prior = manifest.audio.window_s / length_s
        if bonafide and spoof:
            values, labels, weights = _flat(bonafide, spoof)
            # The scale is prior * exp(u): positive, and u = 0 is the prior.
            u, offset = _logistic(
                values * prior, labels, weights, lambda p: ROLLING_RIDGE * float(p @ p), (0, 0), exp=True
            )
            rows.append((length_s, prior * float(np.exp(u)), offset))
        else:
            rows.append((length_s, prior, 0.0))
    return tuple(rows)


def calibrated(manifest: Manifest, fit: Fit, rows: tuple[tuple[float, float, float], ...] | None = None) -> Manifest:
    """Put fits into a manifest."""
    rows = rows or ((0.0, 1.0, 0.0),)
    return msgspec.structs.replace(manifest, calibration=Calibration(fit.scale, fit.offset, rows))


def _sums(call: Call, manifest: Manifest, length_s: float) -> list[float]:
    """The tracker's rolling sums whenever `length_s` of evidence are behind them."""
    decision = msgspec.structs.replace(manifest.decision, rolling_s=length_s)
    tracker = Tracker(msgspec.structs.replace(decision, alarm=np.inf), Calibration(), manifest.audio.window_s)
    found, before_s = [], 0.0
    for end_s, llr in call.windows:
        standing = tracker.update(llr, end_s, end_s - before_s)
        before_s = end_s
        if llr is not None and end_s >= length_s:
            found.append(standing.rolling_llr)
    return found


def _flat(bonafide: Sequence[Sequence[float]], spoof: Sequence[Sequence[float]]) -> tuple[Floats, Floats, Floats]:
    """Values, labels (+1 bona fide, -1 spoof) and weights: classes alike, and within a class its members."""
    parts = []
    for groups, label in ((bonafide, 1.0), (spoof, -1.0)):
        filled = [group for group in groups if len(group)]
        if not filled:
            raise DataError.of("calibration clips", 0, "scored windows of bona fide and of spoof")
        for group in filled:
            weight = 0.5 / len(filled) / len(group)
            parts.append(np.array([group, [label] * len(group), [weight] * len(group)]))
    values, labels, weights = np.concatenate(parts, axis=1)
    return values, labels, weights


def _logistic(
    values: Floats,
    labels: Floats,
    weights: Floats,
    penalty: Callable[[Floats], float],
    start: ArrayLike,
    *,
    exp: bool = False,
) -> tuple[float, float]:
    """Minimise the weighted cross-entropy of `scale * value + offset`, the scale being e^p or p."""

    def cost(p: Floats) -> float:
        scale = np.exp(p[0]) if exp else p[0]
        return float((weights * np.logaddexp(0, -labels * (scale * values + p[1]))).sum() + penalty(p))

    best = minimize(
        cost, np.asarray(start, dtype=np.float64), method="Nelder-Mead", options={"xatol": 1e-6, "fatol": 1e-10}
    )
    return float(best.x[0]), float(best.x[1])
