"""How far a metric may be off: resampling of whole voices.

The clips of one speaker, or of one spoofing system, go right or wrong together; a bootstrap over clips would take them
for independent and give intervals that are far too narrow. So whole clusters are drawn with replacement: speakers for
bona fide speech, systems for spoof (N. Poh and S. Bengio, "Estimating the confidence interval of expected performance
curve in biometric authentication using joint bootstrap", ICASSP 2007, draw clients in the same way).

A clip that is drawn k times weighs k: all resamples are one weight matrix over scores that are sorted once.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Final

import msgspec
import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import isotonic_regression

from streamdet_training import metrics
from streamdet_training.metrics import Floats

RESAMPLES: Final = 1000
SEED: Final = 0
# Percentiles between which 95 % of the resamples lie.
BOUNDS: Final = (2.5, 97.5)
METRICS: Final = ("eer", "min_dcf", "act_dcf", "cllr", "min_cllr")
# Weights of one block of resamples: 32 MB an array, whatever the corpus.
BLOCK_WEIGHTS: Final = 4_000_000

Interval = tuple[float, float]


class Draws(msgspec.Struct, frozen=True):
    """How often each trial is drawn in each resample."""

    bonafide: NDArray[np.int32]
    """`(resamples, trials)`."""
    spoof: NDArray[np.int32]


class Difference(msgspec.Struct, frozen=True):
    """One entry's EER minus another's on the same trials, resampled together."""

    difference: float
    interval: Interval
    worse_share: float
    """Share of the resamples in which it is above zero."""


def draw(speakers: Sequence[str], systems: Sequence[str], resamples: int = RESAMPLES, seed: int = SEED) -> Draws:
    """Draw clusters with replacement.

    Args:
        speakers: of each bona fide trial; `-` is a speaker of its own.
        systems: of each spoof trial; the same.
        resamples: how many.
        seed: the same one gives the same draws for the same trials.
    """
    rng = np.random.default_rng(seed)
    return Draws(_times(speakers, resamples, rng), _times(systems, resamples, rng))


def resampled(
    bonafide: ArrayLike, spoof: ArrayLike, draws: Draws, wanted: Sequence[str] = METRICS
) -> dict[str, Floats]:
    """Compute metrics of every resample.

    Where ties are stepped through, and which comes first, is as in `metrics.rates`; a trial that was drawn several
    times is passed in one step.

    Args:
        bonafide: scores `(trials,)`.
        spoof: the same.
        draws: for these trials.
        wanted: of METRICS.

    Returns:
        metric -> `(resamples,)`.
    """
    bona, fake = metrics.checked(bonafide), metrics.checked(spoof)
    blocks = [
        {name: _COMPUTED[name](bona, fake, *weights) for name in wanted}
        for weights in _blocks(draws, bona.size + fake.size)
    ]
    return {name: np.concatenate([block[name] for block in blocks]) for name in wanted}


def intervals(
    bonafide: ArrayLike, spoof: ArrayLike, draws: Draws, wanted: Sequence[str] = METRICS
) -> dict[str, Interval]:
    """The 95 % interval of each metric: percentiles of its resamples."""
    return {name: interval(values) for name, values in resampled(bonafide, spoof, draws, wanted).items()}


def interval(values: ArrayLike) -> Interval:
    """Where 95 % of resampled values lie."""
    low, high = np.percentile(np.asarray(values), BOUNDS)
    return float(low), float(high)


def eer_difference(ours: tuple[ArrayLike, ArrayLike], theirs: tuple[ArrayLike, ArrayLike], draws: Draws) -> Difference:
    """Compare two entries' (bona fide, spoof) scores of the same trials: what is common to both cancels out."""
    apart = resampled(*ours, draws, ["eer"])["eer"] - resampled(*theirs, draws, ["eer"])["eer"]
    difference = metrics.eer(*ours) - metrics.eer(*theirs)
    return Difference(difference, interval(apart), float(np.mean(apart > 0)))


def _times(names: Sequence[str], resamples: int, rng: np.random.Generator) -> NDArray[np.int32]:
    """How often each member is drawn, `(resamples, members)`."""
    named = [name if name != "-" else f"- {at}" for at, name in enumerate(names)]
    if len(set(named)) == 1:  # one cluster alone would always be drawn once: its clips are all there is to draw
        named = [str(at) for at in range(len(names))]
    clusters, member_of = np.unique(named, return_inverse=True)
    times = rng.multinomial(clusters.size, np.full(clusters.size, 1 / clusters.size), size=resamples)
    return times.astype(np.int32)[:, member_of]


def _blocks(draws: Draws, trials: int) -> Iterator[tuple[Floats, Floats]]:
    """Weights `(block, trials)` of either class, as many resamples at once as memory likes."""
    step = max(1, BLOCK_WEIGHTS // trials)
    for at in range(0, draws.bonafide.shape[0], step):
        yield tuple(part[at : at + step].astype(np.float64) for part in (draws.bonafide, draws.spoof))  # type: ignore[misc]


def _rates(bona: Floats, fake: Floats, times_bona: Floats, times_fake: Floats) -> tuple[Floats, Floats]:
    """`metrics.rates` with weights: `(resamples, trials + 1)` each."""
    order = np.argsort(np.concatenate([bona, fake]), kind="stable")
    is_bona = order < bona.size
    times = np.concatenate([times_bona, times_fake], axis=1)[:, order]
    rejected = np.cumsum(np.pad(times * is_bona, ((0, 0), (1, 0))), axis=1)
    caught = np.cumsum(np.pad(times * ~is_bona, ((0, 0), (1, 0))), axis=1)
    return rejected / rejected[:, -1:], 1 - caught / caught[:, -1:]


def _eer(bona: Floats, fake: Floats, times_bona: Floats, times_fake: Floats) -> Floats:
    miss, false_alarm = _rates(bona, fake, times_bona, times_fake)
    at = metrics.nearest(miss, false_alarm)[:, None]
    both = np.take_along_axis(miss, at, 1) + np.take_along_axis(false_alarm, at, 1)
    return np.asarray(both[:, 0] / 2)


def _min_dcf(bona: Floats, fake: Floats, times_bona: Floats, times_fake: Floats) -> Floats:
    return np.asarray(metrics.dcf(*_rates(bona, fake, times_bona, times_fake)).min(axis=1))


def _act_dcf(bona: Floats, fake: Floats, times_bona: Floats, times_fake: Floats) -> Floats:
    miss = _mean((bona < metrics.BAYES_THRESHOLD).astype(np.float64), times_bona)
    return metrics.dcf(miss, _mean((fake >= metrics.BAYES_THRESHOLD).astype(np.float64), times_fake))


def _cllr(bona: Floats, fake: Floats, times_bona: Floats, times_fake: Floats) -> Floats:
    costs = _mean(np.logaddexp(0, -bona), times_bona) + _mean(np.logaddexp(0, fake), times_fake)
    return np.asarray(costs / 2 / math.log(2))


def _min_cllr(bona: Floats, fake: Floats, times_bona: Floats, times_fake: Floats) -> Floats:
    """Pooling adjacent violators has no vectorised form, but each takes some ten microseconds only."""
    levels, group = np.unique(np.concatenate([bona, fake]), return_inverse=True)
    of_bona, of_fake = group[: bona.size], group[bona.size :]
    costs = []
    for one_bona, one_fake in zip(times_bona, times_fake, strict=True):
        passed = np.asarray(np.bincount(of_bona, one_bona, levels.size), np.float64)
        both = passed + np.asarray(np.bincount(of_fake, one_fake, levels.size), np.float64)
        drawn = both > 0
        passed, both = passed[drawn], both[drawn]
        posterior = isotonic_regression(passed / both, weights=both).x
        costs.append(metrics.cllr_of_posteriors(posterior, passed, both - passed))
    return np.array(costs)


def _mean(costs: Floats, times: Floats) -> Floats:
    """Weighted mean of costs `(trials,)` in each resample."""
    return np.asarray(times @ costs / times.sum(axis=1))


_COMPUTED: Final = {"eer": _eer, "min_dcf": _min_dcf, "act_dcf": _act_dcf, "cllr": _cllr, "min_cllr": _min_cllr}
