"""From CM scores to LLRs, and from sums of LLRs over seconds to LLRs again.

Both fits are logistic regressions with classes weighted by a stated prior (N. Brummer and J. du Preez,
"Application-independent evaluation of speaker detection", Computer Speech and Language 2006), so that no offset carries
the prior of the fitting data. docs/calibration.md has the formulae and what was measured.
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
from streamdet.verdict import Step, step
from streamdet_training.calls import Call

log = logging.getLogger(__name__)

LABELS: Final = ("bonafide", "spoof")

Floats = NDArray[np.float64]

# Seconds of evidence at which the rolling sum gets a row; between rows the tracker interpolates.
ROLLING_S: Final = (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0, 10.0)
# How strongly the rolling fit is held to its prior, the mean LLR. A class of two voices can be separated by accident:
# then the likelihood alone would send the gain to infinity. 0.03 was better on voices left out than 0.01 or 0.001.
ROLLING_RIDGE: Final = 0.03
AFFINE_RIDGE: Final = 1e-4
# For scores of standard deviation 1.
LEAST_SLOPE: Final = 1e-3


class Fit(msgspec.Struct, frozen=True):
    """LLR = scale * value + offset."""

    scale: float
    offset: float


def affine(
    bonafide: Sequence[Sequence[float]],
    spoof: Sequence[Sequence[float]],
    prior_spoof: float = 0.5,
    *,
    quiet: bool = False,
) -> Fit:
    """Fit scale and offset on windows' CM scores; every clip weighs the same, however many windows it has.

    Args:
        bonafide: for each clip, its windows' scores.
        spoof: the same.
        prior_spoof: where decisions will be taken: P(spoof), after costs. LLRs near the threshold of that prior get the
            best fit; they do not contain the prior.
        quiet: do not warn of a model that is no better than chance.

    Raises:
        DataError: a class is empty.
    """
    values, labels, weights = _flat(bonafide, spoof, prior_spoof)
    centre = float(weights @ values)
    spread = float(np.sqrt(weights @ np.square(values - centre))) or 1.0
    prior = float(np.log(1 - prior_spoof) - np.log(prior_spoof))
    scaled = (values - centre) / spread

    def cost(p: Floats) -> float:
        return _entropy(p[0] * scaled + p[1] + prior, labels, weights) + AFFINE_RIDGE * float(p[0] ** 2)

    slope, offset = _least(cost, (1, 0))
    if slope < LEAST_SLOPE:
        # Worse than chance is no information, not information upside down: the LLRs of such a model are about 0.
        if not quiet:
            log.warning("bona fide clips do not score higher than spoof: the LLRs of this bundle will all be about 0")
        slope = LEAST_SLOPE
    return Fit(slope / spread, offset - slope * centre / spread)


def rolling(
    calls: Sequence[Call], manifest: Manifest, seconds: Sequence[float] = ROLLING_S
) -> tuple[tuple[float, float, float], ...]:
    """Fit the rows of `calibration.rolling` on calls of one voice each.

    What persists in a voice no second takes away, what scatters averages out: with s seconds of evidence the mean LLR
    is worth gain * s / (s + scatter_s) of itself. Three numbers for all rows, so evidence never counts less for being
    longer; held to gain 1, 1 s and offset 0, where few voices say otherwise.
    """
    bonafide, spoof = ([_evidence(call, manifest) for call in calls if call.label == label] for label in LABELS)
    gain, scatter_s, offset = 1.0, 1.0, 0.0
    if any(bonafide) and any(spoof):
        at_s, labels, weights = _flat(_column(bonafide, 0), _column(spoof, 0))
        sums, _, _ = _flat(_column(bonafide, 1), _column(spoof, 1))
        means = sums * manifest.audio.window_s / at_s

        def cost(p: Floats) -> float:
            llrs = np.exp(p[0]) * at_s / (at_s + np.exp(p[1])) * means + p[2]
            return _entropy(llrs, labels, weights) + ROLLING_RIDGE * float(p[0] ** 2 + p[1] ** 2 / 10 + p[2] ** 2)

        log_gain, log_scatter, offset = _least(cost, (0, 0, 0))
        gain, scatter_s = float(np.exp(log_gain)), float(np.exp(log_scatter))
    return tuple((s, gain * manifest.audio.window_s / (s + scatter_s), offset) for s in seconds)


def calibrated(manifest: Manifest, fit: Fit, rows: tuple[tuple[float, float, float], ...] | None = None) -> Manifest:
    """Put fits into a manifest."""
    rows = rows or ((0.0, 1.0, 0.0),)
    return msgspec.structs.replace(manifest, calibration=Calibration(fit.scale, fit.offset, rows))


def _evidence(call: Call, manifest: Manifest) -> list[tuple[float, float]]:
    """Seconds of evidence and the sum of it, as the tracker has them after each scored window."""
    found, held, before_s = [], list[tuple[float, Step]](), 0.0
    audio, decision = manifest.audio, manifest.decision
    for end_s, llr in call.windows:
        if llr is not None:
            held = [it for it in held if it[0] > end_s - decision.rolling_s]
            held.append((end_s, step(llr, end_s - before_s, decision, audio)))
            found.append((audio.window_s * sum(it.share for _, it in held), sum(it.evidence for _, it in held)))
        before_s = end_s
    return found


def _column(calls: Sequence[Sequence[tuple[float, float]]], at: int) -> list[list[float]]:
    return [[pair[at] for pair in call] for call in calls]


def _flat(
    bonafide: Sequence[Sequence[float]], spoof: Sequence[Sequence[float]], prior_spoof: float = 0.5
) -> tuple[Floats, Floats, Floats]:
    """Values, labels (+1 bona fide, -1 spoof) and weights: classes by the prior, the members of a class alike."""
    parts = []
    for groups, label, share in ((bonafide, 1.0, 1 - prior_spoof), (spoof, -1.0, prior_spoof)):
        filled = [group for group in groups if len(group)]
        if not filled:
            raise DataError.of("calibration clips", 0, "scored windows of bona fide and of spoof")
        for group in filled:
            weight = share / len(filled) / len(group)
            parts.append(np.array([group, [label] * len(group), [weight] * len(group)]))
    values, labels, weights = np.concatenate(parts, axis=1)
    return values, labels, weights


def _entropy(log_odds: Floats, labels: Floats, weights: Floats) -> float:
    """Weighted cross-entropy (nat) of log posterior odds."""
    return float((weights * np.logaddexp(0, -labels * log_odds)).sum())


def _least(cost: Callable[[Floats], float], start: ArrayLike) -> tuple[float, ...]:
    best = minimize(
        cost,
        np.asarray(start, np.float64),
        method="Nelder-Mead",
        options={"xatol": 1e-6, "fatol": 1e-10, "maxiter": 2000},
    )
    return tuple(float(value) for value in best.x)
