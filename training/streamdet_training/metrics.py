"""Detection and calibration metrics of anti-spoofing.

Convention: a score is higher when the trial looks more bona fide. A miss is a bona fide trial that is rejected, a false
alarm a spoof trial that is accepted. Costs and prior are those of ASVspoof 5, track 1 (X. Wang et al., "ASVspoof 5:
crowdsourced speech data, deepfakes, and adversarial attacks at scale", 2024, and its evaluation plan).
"""

import math
from typing import Final

import msgspec
import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import isotonic_regression

from streamdet.errors import DataError

Floats = NDArray[np.float64]

PRIOR_SPOOF: Final = 0.05
COST_MISS: Final = 1.0
COST_FALSE_ALARM: Final = 10.0


class Report(msgspec.Struct, frozen=True):
    """What `streamdet evaluate` says of one set of trials."""

    bonafide: int
    """Trials."""
    spoof: int
    """Trials."""
    eer: float
    """Equal error rate (share)."""
    min_dcf: float
    """Normalised detection cost at the best threshold for these trials."""
    act_dcf: float
    """The same at the threshold that calibrated LLRs would want; above 1 a system is worse than none."""
    cllr: float
    """Cost of the LLRs (bit); 0 = perfect, 1 = no information."""
    min_cllr: float
    """The same after the best monotonic recalibration: what discrimination alone costs."""


def report(bonafide: ArrayLike, spoof: ArrayLike) -> Report:
    """Compute every metric of two sets of LLRs."""
    return Report(
        bonafide=np.size(bonafide),
        spoof=np.size(spoof),
        eer=eer(bonafide, spoof),
        min_dcf=min_dcf(bonafide, spoof),
        act_dcf=act_dcf(bonafide, spoof),
        cllr=cllr(bonafide, spoof),
        min_cllr=min_cllr(bonafide, spoof),
    )


def eer(bonafide: ArrayLike, spoof: ArrayLike) -> float:
    """Equal error rate: the mean of both rates where they are nearest, as the ASVspoof 5 evaluation package has it."""
    miss, false_alarm = rates(bonafide, spoof)
    at = np.argmin(np.abs(miss - false_alarm))
    return float((miss[at] + false_alarm[at]) / 2)


def min_dcf(bonafide: ArrayLike, spoof: ArrayLike) -> float:
    """Lowest normalised detection cost over all thresholds."""
    miss, false_alarm = rates(bonafide, spoof)
    return float(_dcf(miss, false_alarm).min())


def act_dcf(bonafide: ArrayLike, spoof: ArrayLike) -> float:
    """Normalised detection cost at Bayes' threshold for LLRs: -ln(Cmiss (1 - P) / (Cfa P)) = -0.642."""
    bona, fake = _checked(bonafide), _checked(spoof)
    threshold = -math.log(COST_MISS * (1 - PRIOR_SPOOF) / (COST_FALSE_ALARM * PRIOR_SPOOF))
    return float(_dcf(np.mean(bona < threshold), np.mean(fake >= threshold)))


def cllr(bonafide: ArrayLike, spoof: ArrayLike) -> float:
    """Cost of log-likelihood ratios in bit (Brummer and du Preez, Computer Speech and Language 2006)."""
    bona, fake = _checked(bonafide), _checked(spoof)
    return _cllr(bona, fake)


def min_cllr(bonafide: ArrayLike, spoof: ArrayLike) -> float:
    """Cllr after the best monotonic map to LLRs, which pooling adjacent violators finds."""
    bona, fake = _checked(bonafide), _checked(spoof)
    scores = np.concatenate([bona, fake])
    is_bona = np.concatenate([np.ones(bona.size), np.zeros(fake.size)])
    levels, group = np.unique(scores, return_inverse=True)  # equal scores must get equal LLRs
    trials = np.bincount(group).astype(np.float64)
    share = np.bincount(group, is_bona, minlength=levels.size) / trials
    posterior = isotonic_regression(share, weights=trials).x[group]
    with np.errstate(divide="ignore"):  # 0 and 1 are LLRs of minus and plus infinity, and cost nothing on their side
        llr = np.log(posterior) - np.log1p(-posterior) - math.log(bona.size / fake.size)
    return _cllr(llr[: bona.size], llr[bona.size :])


def _cllr(bonafide: Floats, spoof: Floats) -> float:
    """Cllr of LLRs that may be infinite on their own side."""
    # logaddexp(0, x) = ln(1 + e^x), without the overflow
    return float((np.logaddexp(0, -bonafide).mean() + np.logaddexp(0, spoof).mean()) / 2 / math.log(2))


def rates(bonafide: ArrayLike, spoof: ArrayLike) -> tuple[Floats, Floats]:
    """Miss and false alarm rate at every threshold, from below all scores to above all of them."""
    bona, fake = _checked(bonafide), _checked(spoof)
    is_bona = np.concatenate([np.ones(bona.size), np.zeros(fake.size)])
    order = np.argsort(np.concatenate([bona, fake]), kind="stable")
    passed = np.concatenate([[0.0], np.cumsum(is_bona[order])])
    return passed / bona.size, 1 - (np.arange(passed.size) - passed) / fake.size


def _dcf(miss: Floats | np.floating, false_alarm: Floats | np.floating) -> Floats:
    cost = COST_MISS * (1 - PRIOR_SPOOF) * miss + COST_FALSE_ALARM * PRIOR_SPOOF * false_alarm
    return np.asarray(cost / min(COST_MISS * (1 - PRIOR_SPOOF), COST_FALSE_ALARM * PRIOR_SPOOF))


def _checked(scores: ArrayLike) -> Floats:
    array = np.asarray(scores, dtype=np.float64)
    if array.size == 0:
        raise DataError.of("trials", 0, "at least one of either class")
    if not np.isfinite(array).all():
        raise DataError.of("score", float(array[~np.isfinite(array)][0]), "a finite number")
    return array
