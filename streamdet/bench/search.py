"""How many calls are too many: by doubling, then by bisection, each answer given twice where it matters."""

from collections import Counter
from collections.abc import Callable
from typing import Final, Literal

import msgspec

Outcome = Literal["kept", "broken", "void"]
"""The limit was kept; it was broken; the load was not what it should have been, which says nothing of the daemon."""
Why = Literal["daemon", "generator", "most", "budget"]

# How close is close enough: one more call in twenty is within what a shared machine does by itself.
RESOLUTION: Final = 0.05


class Found(msgspec.Struct, frozen=True):
    """Where the search ended."""

    calls: int
    """The most that were kept; 0 when one is too many."""
    above: int | None
    """The fewest that were not; None when none was."""
    why: Why
    """What stopped it there: more are too many for the daemon, for the generator, for the search, for its time."""


def search(hold: Callable[[int], Outcome], *, start: int, most: int, time_left: Callable[[], bool]) -> Found:
    """Find the most calls that are kept.

    Args:
        hold: holds a number of calls once and says how it went.
        start: the first number.
        most: no more than this.
        time_left: whether there is time for another.
    """
    kept = [0]
    high: int | None = None
    beyond: Outcome = "broken"
    count = min(start, most)
    while high is None and kept[-1] < most and time_left():
        # On the way up one good answer will do: the next number asks for more of the same.
        said = twice(hold, count, time_left, enough_if="kept")
        if said == "kept":
            kept.append(count)
        else:
            high, beyond = count, said
        count = min(2 * count, most)
    sure = {0}
    while time_left():
        if wide(kept[-1], high):
            count = (kept[-1] + (high or 0)) // 2
            said = twice(hold, count, time_left)
        elif kept[-1] not in sure:
            said = twice(hold, count := kept[-1], time_left, enough_if="kept")  # for the second time
        else:
            break
        if said == "kept":
            kept.append(count)
            sure.add(count)
        else:
            kept = [each for each in kept if each < count]
            high, beyond = count, said
    if wide(kept[-1], high) or kept[-1] not in sure:
        return Found(kept[-1], high, "budget")
    if high is None:
        return Found(kept[-1], None, "most" if kept[-1] == most else "budget")
    return Found(kept[-1], high, "generator" if beyond == "void" else "daemon")


def wide(low: int, high: int | None) -> bool:
    """Whether there is anything worth knowing between what was kept and what was not."""
    return high is not None and high - low > max(1, RESOLUTION * high)


def twice(
    hold: Callable[[int], Outcome],
    calls: int,
    time_left: Callable[[], bool],
    *,
    enough_if: Outcome | None = None,
) -> Outcome:
    """Hold until an answer came twice, since a shared machine has bad seconds; `enough_if` needs no second time."""
    said: Counter[Outcome] = Counter()
    while True:
        outcome = hold(calls)
        said[outcome] += 1
        if outcome == enough_if or said[outcome] == 2 or not time_left():
            return outcome
