"""Does a series grow? A robust slope with an interval that knows of autocorrelation.

Memory goes in steps and stays where it is for a while: neighbouring samples are not independent, and the textbook
interval of a slope is far too narrow. The slope is Theil and Sen's, the median over all pairs. Its interval counts as
many samples as are worth something: n (1 - r - d) / (1 + r + d), with r the correlation of neighbouring residuals and
d = 0.68 / sqrt(n) because r is itself estimated, too low as a rule (Nychka et al. 2000, as in Santer et al. 2008,
International Journal of Climatology 28, for trends of temperature). With less than three such samples it says nothing.
"""

import math
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

Series = NDArray[np.float64]

# All pairs of so many points are 80,000 slopes; longer series are cut into as many bins, whose medians stand for them.
MOST_POINTS: Final = 400
FEWEST_POINTS: Final = 8
# Two-sided 95 % of the normal distribution.
NORMAL_95: Final = 1.959964


class Slope(NamedTuple):
    """Growth a unit of x, with its two-sided 95 % interval."""

    value: float
    low: float
    high: float

    def grows(self, noise: float = 0.0) -> bool:
        """Whether growth is beyond doubt, and more than `noise` a unit of x: otherwise it is within noise."""
        return self.low > 0 and self.value > noise


def slope(x: Series, y: Series) -> Slope:
    """Fit a line through a series, oldest first.

    Args:
        x: what is counted, seconds or opens, `(T,)`, never falling.
        y: what may grow, `(T,)`.
    """
    assert x.size >= FEWEST_POINTS, f"{x.size} samples, expected {FEWEST_POINTS} at least"
    x, y = _binned(np.asarray(x, np.float64)), _binned(np.asarray(y, np.float64))
    value = theil_sen(x, y)
    residuals = y - value * x
    residuals -= residuals.mean()
    worth = independent(residuals)
    if worth <= 3:
        return Slope(value, -math.inf, math.inf)
    error = math.sqrt(float(residuals @ residuals) / (worth - 2) / float(np.sum((x - x.mean()) ** 2)))
    reach = student_95(worth - 2) * error
    return Slope(value, value - reach, value + reach)


def theil_sen(x: Series, y: Series) -> float:
    """Return the median slope of all pairs of points."""
    first, second = np.triu_indices(x.size, 1)
    apart = x[second] > x[first]
    return float(np.median((y[second] - y[first])[apart] / (x[second] - x[first])[apart]))


def independent(residuals: Series) -> float:
    """Say how many independent samples a series of residuals is worth."""
    power = float(residuals @ residuals)
    if power < 1e-12:
        return float(residuals.size)
    remembered = max(0.0, float(residuals[1:] @ residuals[:-1]) / power) + 0.68 / math.sqrt(residuals.size)
    return residuals.size * max(0.0, 1 - remembered) / (1 + remembered)


def student_95(freedom: float) -> float:
    """Two-sided 95 % of Student's distribution, by Cornish and Fisher's series (within 2 % from 3 degrees on)."""
    z = NORMAL_95
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / freedom + second / freedom**2 + third / freedom**3


def _binned(series: Series) -> Series:
    if series.size <= MOST_POINTS:
        return series
    return np.array([np.median(part) for part in np.array_split(series, MOST_POINTS)])
