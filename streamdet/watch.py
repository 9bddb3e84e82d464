"""Notices a run that hangs, and ends the process: nothing else can end a thread that waits in a driver.

It looks from a thread of its own, so the event loop may hang too. What it cannot notice is somebody who keeps the
interpreter for himself; then no sign of life reaches systemd either, and WatchdogSec ends the process.
"""

import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Final, NoReturn, Self

import msgspec

from streamdet import logs
from streamdet.errors import DeviceError
from streamdet.logs import fields
from streamdet.notify import notify
from streamdet.pump import Call, Pump

log = logging.getLogger(__name__)

# Four looks a second: a deadline of 2 s is noticed within 2.5.
LOOK_S: Final = 0.25
# For subscribers to hear of the end: the loop publishes it, libzmq's own thread sends it.
LAST_WORDS_S: Final = 0.3
# For systemd to do what it does when a watchdog fires. It takes milliseconds, or does not listen.
TRIGGERED_S: Final = 1.0


class Overdue(msgspec.Struct, frozen=True):
    """A call that has taken too long."""

    call: Call
    age_s: float
    deadline_s: float


class Ages:
    """For how long calls have been under way, counting only time in which this process was running.

    Whoever was stopped (SIGSTOP, a debugger, a paused machine) finds the clock far ahead, and no call hangs for that:
    a look never adds more than two looks' time.
    """

    def __init__(self) -> None:
        """Know of none yet."""
        self._ages_s: dict[int, float] = {}
        self._looked_s: float | None = None

    def look(self, under_way: Iterable[int], now_s: float) -> Mapping[int, float]:
        """Return the age of each call that is under way now, by its number; one seen for the first time is 0 s old."""
        passed_s = 0.0 if self._looked_s is None else min(now_s - self._looked_s, 2 * LOOK_S)
        self._looked_s = now_s
        self._ages_s = {
            number: self._ages_s[number] + passed_s if number in self._ages_s else 0.0 for number in under_way
        }
        return self._ages_s


class Watch:
    """Looks while entered."""

    def __init__(self, pumps: Callable[[], Iterable[Pump]], hung: Callable[[Overdue], object]) -> None:
        """Look at these pumps, whichever they are; the first call that is overdue goes to `hung`, in this thread."""
        self._pumps: Final = pumps
        self._hung: Final = hung
        self._left: Final = threading.Event()
        self._thread: Final = threading.Thread(target=self._look, name="watch", daemon=True)
        self.noticed = False

    def __enter__(self) -> Self:
        """Begin to look."""
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Look no more."""
        self._left.set()
        if not self.noticed:
            self._thread.join()

    def _look(self) -> None:
        ages = Ages()
        while not self._left.wait(LOOK_S):
            if (found := overdue(self._pumps(), ages)) is not None:
                self.noticed = True
                self._hung(found)
                return


def overdue(pumps: Iterable[Pump], ages: Ages, now_s: float | None = None) -> Overdue | None:
    """Return a call that has been under way for longer than its pump allows."""
    calls = {number: (call, pump.deadline_s) for pump in pumps for number, call in pump.under_way.items()}
    for number, age_s in ages.look(calls, time.monotonic() if now_s is None else now_s).items():
        call, deadline_s = calls[number]
        if age_s > deadline_s:
            return Overdue(call, age_s, deadline_s)
    return None


def end_process(found: Overdue, last_words: Callable[[], object]) -> NoReturn:
    """Say why, and end: by systemd's watchdog where it listens, else with the exit code of DeviceError."""
    log.critical("a %s hangs", found.call.what, extra=fields(windows=found.call.windows, seconds=round(found.age_s, 2)))
    last_words()
    time.sleep(LAST_WORDS_S)
    logs.flush()
    if notify(WATCHDOG="trigger"):
        time.sleep(TRIGGERED_S)
    os._exit(DeviceError.exit_code)
