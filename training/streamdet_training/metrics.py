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
from scipy.stats import chi2

from streamdet.errors import DataError

Floats = NDArray[np.float64]

PRIOR_SPOOF: Final = 0.05
COST_MISS: Final = 1.0
COST_FALSE_ALARM: Final = 10.0
# -0.642: where calibrated LLRs would want the threshold, -ln(Cmiss (1 - P) / (Cfa P)).
BAYES_THRESHOLD: Final = -math.log(COST_MISS * (1 - PRIOR_SPOOF) / (COST_FALSE_ALARM * PRIOR_SPOOF))


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
    """Equal error rate: the mean of both rates where they are nearest, as the ASVspoof 5 evaluation package has it.

    Like there, tied scores are stepped through one by one, bona fide first, though no threshold can part them. So ties
    count against a system: where all scores are equal the EER is 1, not 0.5.
    """
    miss, false_alarm = rates(bonafide, spoof)
    at = nearest(miss, false_alarm)
    return float((miss[at] + false_alarm[at]) / 2)


def nearest(miss: Floats, false_alarm: Floats) -> NDArray[np.intp]:
    """Where both rates are nearest along the last axis; of places that are equally near, the first."""
    # Rates are fractions of trials: below a millionth of a millionth there is only rounding, which must not decide.
    return np.asarray(np.argmin(np.round(np.abs(miss - false_alarm), 12), axis=-1))


def min_dcf(bonafide: ArrayLike, spoof: ArrayLike) -> float:
    """Lowest normalised detection cost over all thresholds."""
    miss, false_alarm = rates(bonafide, spoof)
    return float(dcf(miss, false_alarm).min())


def act_dcf(bonafide: ArrayLike, spoof: ArrayLike) -> float:
    """Normalised detection cost at Bayes' threshold for LLRs."""
    bona, fake = checked(bonafide), checked(spoof)
    return float(dcf(np.mean(bona < BAYES_THRESHOLD), np.mean(fake >= BAYES_THRESHOLD)))


def cllr(bonafide: ArrayLike, spoof: ArrayLike) -> float:
    """Cost of log-likelihood ratios in bit (Brummer and du Preez, Computer Speech and Language 2006)."""
    bona, fake = checked(bonafide), checked(spoof)
    # logaddexp(0, x) = ln(1 + e^x), without the overflow
    return float((np.logaddexp(0, -bona).mean() + np.logaddexp(0, fake).mean()) / 2 / math.log(2))


def min_cllr(bonafide: ArrayLike, spoof: ArrayLike) -> float:
    """Cllr after the best monotonic map to LLRs, which pooling adjacent violators finds."""
    bona, fake = checked(bonafide), checked(spoof)
    levels, group = np.unique(np.concatenate([bona, fake]), return_inverse=True)  # equal scores get equal LLRs
    passed = np.bincount(group[: bona.size], minlength=levels.size).astype(np.float64)
    both = np.bincount(group, minlength=levels.size).astype(np.float64)
    return cllr_of_posteriors(isotonic_regression(passed / both, weights=both).x, passed, both - passed)


def cllr_of_posteriors(posterior: Floats, bonafide: Floats, spoof: Floats) -> float:
    """Cllr of posteriors `(levels,)` of bona fide at the trials' own prior; how many trials each level has."""
    total_bona, total_spoof = bonafide.sum(), spoof.sum()
    with np.errstate(divide="ignore"):  # 0 and 1 are LLRs of minus and plus infinity, and cost nothing on their side
        llr = np.log(posterior) - np.log1p(-posterior) - math.log(total_bona / total_spoof)
    # Where a level has no trial of a class its cost there, infinite or not, counts 0 times.
    cost_bona = np.logaddexp(0, -llr, where=bonafide > 0, out=np.zeros_like(llr)) @ bonafide / total_bona
    cost_spoof = np.logaddexp(0, llr, where=spoof > 0, out=np.zeros_like(llr)) @ spoof / total_spoof
    return float((cost_bona + cost_spoof) / 2 / math.log(2))


def rates(bonafide: ArrayLike, spoof: ArrayLike) -> tuple[Floats, Floats]:
    """Miss and false alarm rate `(trials + 1,)` as trials are rejected one by one, from none to all of them.

    The lowest score goes first, and of equal scores bona fide, as in the ASVspoof 5 evaluation package.
    """
    bona, fake = checked(bonafide), checked(spoof)
    is_bona = np.concatenate([np.ones(bona.size), np.zeros(fake.size)])
    order = np.argsort(np.concatenate([bona, fake]), kind="stable")
    passed = np.concatenate([[0.0], np.cumsum(is_bona[order])])
    return passed / bona.size, 1 - (np.arange(passed.size) - passed) / fake.size


def upper_95(count: float, hours: float) -> float:
    """Upper end of the exact one-sided 95 % interval of a Poisson rate (F. Garwood, Biometrika 1936).

    It also holds for a height that was chosen as the k-th largest of what was seen, with count = k - 1 (S. S. Wilks,
    "Determination of sample sizes for setting tolerance limits", 1941).
    """
    return float(chi2.ppf(0.95, 2 * (count + 1)) / 2 / hours)


def dcf(miss: Floats | np.floating, false_alarm: Floats | np.floating) -> Floats:
    """Normalised detection cost of rates: 1 is a system that does not listen."""
    cost = COST_MISS * (1 - PRIOR_SPOOF) * miss + COST_FALSE_ALARM * PRIOR_SPOOF * false_alarm
    return np.asarray(cost / min(COST_MISS * (1 - PRIOR_SPOOF), COST_FALSE_ALARM * PRIOR_SPOOF))


def checked(scores: ArrayLike) -> Floats:
    """Return scores as an array; raises DataError for none, or one that is not finite."""
    array = np.asarray(scores, dtype=np.float64)
    if array.size == 0:
        raise DataError.of("trials", 0, "at least one of either class")
    if not np.isfinite(array).all():
        raise DataError.of("score", float(array[~np.isfinite(array)][0]), "a finite number")
    return array
