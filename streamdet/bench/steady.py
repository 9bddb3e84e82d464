"""Repeat until three measurements agree: what a shared machine gives instead of quiet.

What is compared takes turns within one run, so that a machine that slows down slows all of it. Ratios of one run mean
something; absolute figures carry the machine's name.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Final, TypeVar

import msgspec

AGREE: Final = 1.1
"""Three values agree when the largest is at most this many times the smallest."""

Name = TypeVar("Name", bound=str)


class Steady(msgspec.Struct, frozen=True):
    """What was measured, round by round."""

    values: tuple[float, ...]

    @property
    def agreed(self) -> bool:
        """Whether any three values are within 10 % of each other."""
        return agree(self.values)

    @property
    def median(self) -> float:
        """Of all values."""
        return statistics.median(self.values)


def agree(values: Sequence[float]) -> bool:
    """Say whether any three of the (positive) values are within 10 % of each other."""
    ascending = sorted(values)
    return any(high <= AGREE * low for low, high in zip(ascending, ascending[2:], strict=False))


def take_turns(
    measures: Mapping[Name, Callable[[], float | None]], *, warm_up: int = 1, rounds: int = 12
) -> dict[Name, Steady]:
    """Measure each thing once a round until the values of every one agree.

    Args:
        measures: name -> a call that does the work once and returns its figure (a rate, seconds, bytes; positive), or
            None when it cannot: it gets no further turns, and keeps the figures that it has.
        warm_up: rounds that are thrown away.
        rounds: at the most; `Steady.agreed` says who had not come to rest by then.
    """
    for _ in range(warm_up):
        for measure in measures.values():
            measure()
    found: dict[Name, list[float]] = {name: [] for name in measures}
    able = dict(measures)
    for _ in range(rounds):
        for name, measure in list(able.items()):
            if (value := measure()) is None:
                del able[name]
            else:
                found[name].append(value)
        if all(agree(found[name]) for name in able):
            break
    return {name: Steady(tuple(values)) for name, values in found.items()}


def percentiles(values: Sequence[float], *at: float) -> list[float]:
    """Percentiles by linear interpolation, as numpy has them; empty values give NaN.

    Args:
        values: in any order.
        at: which, 0 to 100.
    """
    import numpy as np

    return [float(value) for value in np.percentile(values, at)] if len(values) else [float("nan")] * len(at)
