"""The rolling verdict of one track: two questions, two answers.

How likely is it now? The LLRs of the last `rolling_s` seconds are summed, each weighted by the share of its window that
was new (overlapping windows must not count a second twice), and the sum is recalibrated for the seconds behind it: the
errors of one voice on one line persist, so a plain sum is far too sure of itself. The prior enters once, here.

Did it just change? Page's cumulative sum (E. S. Page, "Continuous inspection schemes", Biometrika 1954), the quickest
test for a change at an unknown time. The onset sum collects evidence for spoof and cannot fall below zero, so an hour
of bona fide talk does not have to be paid back before a voice that turns synthetic is noticed. Above `alarm` the state
is `spoof`; from then on only the mirrored sum runs, until it passes `clear`. Each crossing resets both.

Both work on LLRs clipped to `llr_clip`, so no single window decides, and both count a second once: evidence is weighted
by the share of a window that was new, and the drift is paid for each hop that was.
"""

import math
from collections import deque
from typing import Final, Literal

import msgspec
import numpy as np

from streamdet.bundle import Audio, Calibration, Decision
from streamdet.records import State

Pace = Literal["settled", "usual", "doubtful"]

# Settled: bona fide for this long, and the onset sum at most this share of the alarm. Doubtful: above the other share.
SETTLED_S: Final = 4.0
SETTLED_SHARE: Final = 0.25
DOUBTFUL_SHARE: Final = 0.5


class Step(msgspec.Struct, frozen=True):
    """What a window adds to the sums."""

    share: float
    """Of the window, that was new."""
    hops: float
    """How many were new: the drift is paid for each."""
    evidence: float
    """For bona fide (nat): the clipped LLR, as much of it as the share."""


def step(llr: float, advance_s: float, decision: Decision, audio: Audio) -> Step:
    """Weigh a window's LLR (nat) by `advance_s`: new audio since the last window that was scored or gated (s)."""
    new_s = min(advance_s, audio.window_s)
    share = new_s / audio.window_s
    clipped = max(-decision.llr_clip, min(decision.llr_clip, llr))
    return Step(share, new_s / audio.hop_s, share * clipped)


class Standing(msgspec.Struct, frozen=True):
    """Where a track stands after an update."""

    rolling_llr: float
    """Evidence of the last `rolling_s` seconds (nat), not yet recalibrated."""
    p_spoof: float | None
    """None while listening."""
    state: State
    state_since_s: float


class Tracker:
    """Turns the LLRs of a track's windows into its state."""

    def __init__(
        self,
        decision: Decision,
        calibration: Calibration,
        audio: Audio,
        prior_spoof: float | None = None,
    ) -> None:
        """Start with no evidence; `prior_spoof` overrides the bundle's."""
        prior = decision.prior_spoof if prior_spoof is None else prior_spoof
        self._decision: Final = decision
        self._audio: Final = audio
        self._prior_logit: Final = math.log(prior / (1 - prior))
        self._rows: Final = np.array(calibration.rolling, dtype=np.float64).T  # (3, rows)
        self._evidence: deque[tuple[float, float, float]] = deque()  # (end_s, weight, weight * llr)
        self._onset = 0.0
        self._end = 0.0
        self._end_s = 0.0
        self._standing = Standing(0.0, None, "listening", 0.0)

    def continued(
        self,
        decision: Decision,
        calibration: Calibration,
        audio: Audio,
        prior_spoof: float | None = None,
    ) -> "Tracker":
        """Return a tracker with another bundle's thresholds that knows what this one knows.

        LLRs are calibrated, so the evidence counts on: seconds of it stay seconds, in windows of the other length, and
        what was collected for an alarm stays collected.
        """
        other = Tracker(decision, calibration, audio, prior_spoof)
        longer = self._audio.window_s / audio.window_s
        other._evidence.extend((end_s, share * longer, evidence * longer) for end_s, share, evidence in self._evidence)
        other._onset, other._end, other._end_s = self._onset * longer, self._end * longer, self._end_s
        other._standing = self._standing
        return other

    @property
    def standing(self) -> Standing:
        """The result of the last update."""
        return self._standing

    def update(self, llr: float | None, end_s: float, advance_s: float) -> Standing:
        """Take one window.

        Args:
            llr: its calibrated LLR (nat), or None when it was gated: time passes, evidence does not change.
            end_s: audio time of its end (s).
            advance_s: new audio since the previous window that was scored or gated (s).
        """
        if llr is not None:
            self._add(step(llr, advance_s, self._decision, self._audio), end_s)
        self._end_s = end_s
        while self._evidence and self._evidence[0][0] <= end_s - self._decision.rolling_s:
            self._evidence.popleft()
        rolling = sum(row[2] for row in self._evidence)
        p_spoof = self._p_spoof(rolling) if self._evidence or self._standing.state == "spoof" else None
        state = self._state(p_spoof)
        since = self._standing.state_since_s if state == self._standing.state else end_s
        self._standing = Standing(rolling, p_spoof, state, since)
        return self._standing

    @property
    def pace(self) -> Pace:
        """How soon another window is wanted, where the hop is adaptive."""
        state, onset, alarm = self._standing.state, self._onset, self._decision.alarm
        if state == "uncertain" or (state == "bonafide" and onset > DOUBTFUL_SHARE * alarm):
            return "doubtful"
        settled = state == "bonafide" and onset <= SETTLED_SHARE * alarm
        return "settled" if settled and self._end_s - self._standing.state_since_s >= SETTLED_S else "usual"

    def _add(self, new: Step, end_s: float) -> None:
        self._evidence.append((end_s, new.share, new.evidence))
        drift = new.hops * self._decision.drift
        if self._standing.state == "spoof":
            self._end = max(0.0, self._end + new.evidence - drift)
        else:
            self._onset = max(0.0, self._onset - new.evidence - drift)

    def _p_spoof(self, rolling: float) -> float:
        seconds = sum(row[1] for row in self._evidence) * self._audio.window_s
        at, scales, offsets = self._rows
        llr = float(np.interp(seconds, at, scales)) * rolling + float(np.interp(seconds, at, offsets))
        return float(0.5 * (1 + math.tanh((self._prior_logit - llr) / 2)))  # the logistic function, without overflow

    def _state(self, p_spoof: float | None) -> State:
        was_spoof = self._standing.state == "spoof"
        if (self._end >= self._decision.clear) if was_spoof else (self._onset >= self._decision.alarm):
            self._onset = self._end = 0.0
            was_spoof = not was_spoof
        if was_spoof:
            return "spoof"
        if p_spoof is None:
            return "listening"
        return "bonafide" if p_spoof < self._decision.bonafide_below else "uncertain"
