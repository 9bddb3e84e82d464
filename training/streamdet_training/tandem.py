"""min t-DCF: what a countermeasure costs in front of a speaker verification system (ASV).

There are two forms, and their values cannot be compared: the legacy one of ASVspoof 2019 (T. Kinnunen et al., "t-DCF: a
detection cost function for the tandem assessment of spoofing countermeasures and automatic speaker verification",
Odyssey 2018, as its evaluation package computes it) and the ASV-constrained one of ASVspoof 2021 and 5 (T. Kinnunen et
al., "Tandem assessment of spoofing countermeasures and automatic speaker verification", IEEE/ACM TASLP 2020). Each has
its own function and its own name wherever it is shown.
"""

from pathlib import Path
from typing import Final, Literal, get_args

import msgspec
import numpy as np
from numpy.typing import ArrayLike

from streamdet.errors import DataError, MissingError
from streamdet_training import metrics
from streamdet_training.metrics import Floats

Form = Literal["2019", "2021"]
FORMS: Final[tuple[Form, ...]] = get_args(Form)

PRIOR_SPOOF: Final = 0.05
PRIOR_TARGET: Final = (1 - PRIOR_SPOOF) * 0.99
PRIOR_NONTARGET: Final = (1 - PRIOR_SPOOF) * 0.01
# The same numbers in both forms; 2019 names the last one the countermeasure's, 2021 the spoof's.
COST_MISS: Final = 1.0
COST_FALSE_ALARM: Final = 10.0
COST_SPOOF: Final = 10.0

KEYS: Final = ("target", "nontarget", "spoof")


class AsvRates(msgspec.Struct, frozen=True):
    """Error rates (shares) of the ASV at its own EER threshold."""

    threshold: float
    miss: float
    """Targets rejected."""
    false_alarm: float
    """Non-targets accepted."""
    spoof_false_alarm: float
    """Spoof accepted, had the countermeasure let it through."""


def read_asv(path: Path) -> AsvRates:
    """Read an ASV's scores and measure it.

    Each line holds one of the words target, nontarget and spoof in some column, and the score in its last: the score
    files of ASVspoof 2019 as they are, and the key of 2021 with its score file pasted on the right.

    Raises:
        MissingError: no such file.
        DataError: a line has no such word, more than one or no score, or one of the words never comes.
    """
    if not path.is_file():
        raise MissingError.of("ASV scores", str(path), "a file that exists")
    found: dict[str, list[float]] = {key: [] for key in KEYS}
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        columns = line.split()
        if not columns:
            continue
        where = f"{path}:{number}"
        keys = [column for column in columns[:-1] if column in KEYS]
        if len(keys) != 1:
            raise DataError.of(where, line, f"one of {', '.join(KEYS)} in one column, and a score in the last")
        found[keys[0]].append(_number(columns[-1], where))
    for key, scores in found.items():
        if not scores:
            raise DataError.of(f"{path} {key} scores", 0, "at least one")
    return asv_rates(found["target"], found["nontarget"], found["spoof"])


def asv_rates(target: ArrayLike, nontarget: ArrayLike, spoof: ArrayLike) -> AsvRates:
    """Error rates where those on targets and on non-targets are nearest; a score at the threshold is accepted."""
    targets, others, fakes = (metrics.checked(scores) for scores in (target, nontarget, spoof))
    miss, false_alarm = metrics.rates(targets, others)
    at = int(metrics.nearest(miss, false_alarm))
    scores = np.sort(np.concatenate([targets, others]))
    # As the packages have it: below all scores, then at each of them.
    threshold = float(scores[at - 1] if at else scores[0] - 0.001)
    return AsvRates(
        threshold,
        float(np.mean(targets < threshold)),
        float(np.mean(others >= threshold)),
        float(np.mean(fakes >= threshold)),
    )


def min_tdcf(form: Form, bonafide: ArrayLike, spoof: ArrayLike, asv: AsvRates) -> float:
    """Compute the form that is asked for."""
    return {"2019": min_tdcf_2019, "2021": min_tdcf_2021}[form](bonafide, spoof, asv)


def min_tdcf_2019(bonafide: ArrayLike, spoof: ArrayLike, asv: AsvRates) -> float:
    """Legacy form: (C1 Pmiss + C2 Pfa) / min(C1, C2), at its lowest over the countermeasure's thresholds.

    Raises:
        DataError: the ASV is so bad that a cost is negative.
    """
    c1 = PRIOR_TARGET * (COST_MISS - COST_MISS * asv.miss) - PRIOR_NONTARGET * COST_FALSE_ALARM * asv.false_alarm
    c2 = COST_SPOOF * PRIOR_SPOOF * asv.spoof_false_alarm
    _check(c1, c2)
    miss, false_alarm = metrics.rates(bonafide, spoof)
    return float(((c1 * miss + c2 * false_alarm) / min(c1, c2)).min())


def min_tdcf_2021(bonafide: ArrayLike, spoof: ArrayLike, asv: AsvRates) -> float:
    """ASV-constrained form: (C0 + C1 Pmiss + C2 Pfa) / (C0 + min(C1, C2)); C0 is what the ASV alone costs.

    Raises:
        DataError: the ASV is so bad that a cost is negative.
    """
    c0 = PRIOR_TARGET * COST_MISS * asv.miss + PRIOR_NONTARGET * COST_FALSE_ALARM * asv.false_alarm
    c1 = PRIOR_TARGET * COST_MISS - c0
    c2 = PRIOR_SPOOF * COST_SPOOF * asv.spoof_false_alarm
    _check(c1, c2)
    miss, false_alarm = metrics.rates(bonafide, spoof)
    curve: Floats = (c0 + c1 * miss + c2 * false_alarm) / (c0 + min(c1, c2))
    return float(curve.min())


def _check(c1: float, c2: float) -> None:
    # With C2 = 0 the ASV lets no spoof pass: there is nothing to divide by, and nothing to defend.
    for name, cost in (("C1", c1), ("C2", c2)):
        if cost <= 0:
            raise DataError.of(f"t-DCF {name}", cost, "more than 0: an ASV that works and that spoof can pass")


def _number(text: str, where: str) -> float:
    try:
        score = float(text)
    except ValueError:
        raise DataError.of(f"{where} score", text, "a number") from None
    if not np.isfinite(score):
        raise DataError.of(f"{where} score", text, "a finite number")
    return score
