"""Drift and heights of the change detector, for a stated rate of false alarms.

Alarms are counted as the daemon's tracker raises them, on simulated calls of a minute: a voice of whom there is less is
heard again from the beginning, since a sum that starts anew with every clip of seven seconds would never rise as it
does in a real call. The rate is that of these calls; its upper bound rests on the audio that there is.

What can be shown and what cannot: an hour of bona fide calls without an alarm bounds the rate at 3 an hour, not at 0.
Where the target lies beyond what was observed, the height comes from the exponential tail that the excursions of a
CUSUM have (D. Siegmund, "Sequential Analysis", 1985), and the bundle says `extrapolated`.
"""

from collections.abc import Iterable, Sequence
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from streamdet.bundle import Audio, Decision
from streamdet.errors import DataError
from streamdet.verdict import step
from streamdet_training.calls import CALL_MAX_S, Call
from streamdet_training.metrics import upper_95

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]

DRIFTS: Final = (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6)
# Heights are tried this far apart (nat): a hundredth of the evidence that a window can give.
STEP: Final = 0.05
# Above this quantile of the excursions their heights are taken to fall off exponentially.
TAIL: Final = 0.8
# A missed spoof counts as this many seconds of delay: whoever has not noticed by then has let the caller do his work.
MISSED_S: Final = 120.0
# Evidence of a whole window at twice the alarm height must raise the alarm: the promise that a certain model's verdict
# turns within one window of the change. With d = drift of the window's hops: alarm + d <= llr_clip and d <= alarm.
MARGIN: Final = 0.05


class Detection(msgspec.Struct, frozen=True):
    """What chosen heights do on spliced calls."""

    calls: int
    detected: float
    """Share with an alarm after the onset of spoof, before the call's end."""
    delay_median_s: float | None
    """Median time from onset to alarm of those (s); None where there is none."""


class Candidate(msgspec.Struct, frozen=True):
    """A drift, the height it needs, and what comes of it."""

    drift: float
    alarm: float
    rate: float
    """Expected false alarms an hour."""
    delay_s: float
    """Mean time from onset to alarm on spoof calls; a miss is `MISSED_S`."""


def decide(calls: Sequence[Call], decision: Decision, audio: Audio, target_per_hour: float) -> Decision:
    """Choose drift and alarm height on calls whose LLRs come from a calibration that has not seen their voices.

    Among the drifts whose height keeps the target, the one that finds spoof soonest is taken; where none keeps it, the
    one with the lowest rate, and the bundle states that rate. Without any spoof call the drift is left as it is.

    Raises:
        DataError: there is no bona fide call with a scored window.
    """
    bonafide = [call for call in calls if call.label == "bonafide" and any(llr is not None for _, llr in call.windows)]
    spoof = [call for call in calls if call.label == "spoof"]
    if not bonafide:
        raise DataError.of("simulated calls", len(calls), "some of bona fide voices, with speech in them")
    drifts = DRIFTS if spoof else (decision.drift,)
    steps = _minutes(bonafide, decision, audio)
    candidates = [_candidate(steps, spoof, decision, audio, drift, target_per_hour) for drift in drifts]
    kept = [it for it in candidates if it.rate <= target_per_hour * 1.001]
    best = min(kept, key=lambda it: it.delay_s) if kept else min(candidates, key=lambda it: it.rate)
    chosen = msgspec.structs.replace(decision, drift=best.drift, alarm=best.alarm, clear=best.alarm)
    alarms = count_alarms(bonafide, chosen, audio)
    hours = _hours(bonafide)
    return msgspec.structs.replace(
        chosen,
        false_alarms_per_hour=round(best.rate, 3),
        upper_95=round(upper_95(_rate(alarms) * hours, hours), 3),
        hours=round(hours, 4),
        speakers=len({call.voice for call in bonafide}),
        calls_with_alarm=round(float(np.mean(alarms > 0)), 4),
        extrapolated=best.rate * hours < 1,  # the audio is too short to show one alarm at that rate
    )


def count_alarms(bonafide: Sequence[Call], decision: Decision, audio: Audio) -> Counts:
    """Alarms that the tracker raises in a minute of each call: `(calls,)`."""
    steps = _minutes(bonafide, decision, audio)
    return _alarms(steps, decision.drift, np.array([decision.alarm]))[:, 0]


def detection(spoof: Sequence[Call], decision: Decision, audio: Audio) -> Detection | None:
    """How soon spliced calls are noticed; None without any."""
    if not spoof:
        return None
    delays = _delays_s(spoof, decision, audio, decision.drift, decision.alarm)
    found = delays[np.isfinite(delays)]
    return Detection(
        calls=len(spoof),
        detected=round(found.size / delays.size, 4),
        delay_median_s=round(float(np.median(found)), 2) if found.size else None,
    )


def _candidate(
    steps: Floats,
    spoof: Sequence[Call],
    decision: Decision,
    audio: Audio,
    drift: float,
    target_per_hour: float,
) -> Candidate:
    heights = _heights(decision, audio, drift)
    rates = _rates(steps, drift, heights)
    # The lowest height above which every height keeps the target: a rate need not fall evenly.
    broken = np.flatnonzero(rates > target_per_hour * 1.001)
    at = min(int(broken[-1]) + 1 if broken.size else 0, heights.size - 1)
    alarm = float(heights[at])
    delays = _delays_s(spoof, decision, audio, drift, alarm)
    delay_s = float(np.where(np.isfinite(delays), delays, MISSED_S).mean()) if spoof else 0.0
    return Candidate(drift, alarm, float(rates[at]), delay_s)


def _heights(decision: Decision, audio: Audio, drift: float) -> Floats:
    """Heights that keep the promise of `MARGIN`, ascending, in the digits that a manifest has."""
    hops = -(-audio.window_samples // audio.hop_samples)  # in a window
    lowest, highest = hops * drift + MARGIN, decision.llr_clip - hops * drift - MARGIN
    return np.round(np.arange(lowest, max(highest, lowest) + 1e-9, STEP), 4)


def _rates(steps: Floats, drift: float, heights: Floats) -> Floats:
    """Expected false alarms an hour at each height.

    One more alarm than was counted is expected at the least height that gives so few (Wilks, as above). Where none was
    counted the tail of the excursions may say less than that one.
    """
    counted = _alarms(steps, drift, heights).sum(axis=0)
    simulated_hours = steps.shape[0] * CALL_MAX_S / 3600
    seen = (counted + 1) / simulated_hours
    return np.asarray(np.where(counted > 0, seen, np.minimum(seen, _tail_rates(steps, drift, heights))))


def _tail_rates(steps: Floats, drift: float, heights: Floats) -> Floats:
    """Excursions above each height an hour, by the exponential tail of those that were seen."""
    peaks = np.concatenate([_peaks(row, drift) for row in steps])
    if peaks.size == 0:
        return np.full(heights.size, np.inf)  # nothing seen says nothing; what bounds the rate is the time heard
    base = float(np.quantile(peaks, TAIL))
    beyond = peaks[peaks >= base]
    excess = max(float((beyond - base).mean()), 1e-3)
    simulated_hours = steps.shape[0] * CALL_MAX_S / 3600
    return np.asarray(beyond.size / simulated_hours * np.exp(-np.maximum(0.0, heights - base) / excess))


def _rate(alarms: Counts) -> float:
    """Alarms an hour, of calls of a minute each."""
    return float(alarms.sum() / (alarms.size * CALL_MAX_S / 3600))


def _hours(calls: Iterable[Call]) -> float:
    return sum(call.seconds for call in calls) / 3600


# -- the tracker's sums, for many calls and heights at once ----------------------------------------------------------


def _minutes(calls: Sequence[Call], decision: Decision, audio: Audio) -> Floats:
    """What each window adds in a minute of each call, `(calls, windows, 2)` as of `_steps`; nan: gated, or over."""
    rows = []
    for call in calls:
        steps, ends_s = _steps(call, decision, audio), np.array([end_s for end_s, _ in call.windows])
        again = max(1, int(np.ceil(CALL_MAX_S / call.seconds)))
        at_s = np.concatenate([ends_s + number * call.seconds for number in range(again)])
        rows.append(np.tile(steps, (again, 1))[at_s <= CALL_MAX_S + 1e-6])
    return _padded(rows)


def _padded(rows: Sequence[Floats]) -> Floats:
    longest = max(len(row) for row in rows)
    return np.stack([np.pad(row, ((0, longest - len(row)), (0, 0)), constant_values=np.nan) for row in rows])


def _steps(call: Call, decision: Decision, audio: Audio) -> Floats:
    """Evidence for spoof that each window of a call adds, and the hops to pay drift for, `(windows, 2)`; nan: gated."""
    found, before_s = [], 0.0
    for end_s, llr in call.windows:
        new = None if llr is None else step(llr, end_s - before_s, decision, audio)
        found.append((np.nan, np.nan) if new is None else (-new.evidence, new.hops))
        before_s = end_s
    return np.array(found).reshape(-1, 2)


def _alarms(steps: Floats, drift: float, heights: Floats) -> Counts:
    """Times that the state turns to `spoof` in each call, at each height: `(calls, heights)`; alarm and clear alike."""
    shape = (steps.shape[0], heights.size)
    total, spoof, count = np.zeros(shape), np.zeros(shape, np.bool_), np.zeros(shape, np.int64)
    for evidence, hops in steps.transpose(1, 2, 0)[..., None]:
        # One sum serves: in `spoof` it is the end sum, otherwise the onset sum, and each crossing sets both to zero.
        moved = np.maximum(0.0, total + np.where(spoof, -evidence, evidence) - drift * hops)
        total = np.where(np.isnan(evidence), total, moved)
        crossed = total >= heights
        count += crossed & ~spoof
        spoof ^= crossed
        total[crossed] = 0.0
    return count


def _delays_s(calls: Sequence[Call], decision: Decision, audio: Audio, drift: float, alarm: float) -> Floats:
    """Time from each call's onset to the first alarm after it; infinite where there is none.

    An alarm that was raised before the onset was a false one: the sum starts anew after it.
    """
    found = []
    for call in calls:
        total, delay_s = 0.0, np.inf
        for (end_s, _), (evidence, hops) in zip(call.windows, _steps(call, decision, audio), strict=True):
            if not np.isnan(evidence):
                total = max(0.0, total + evidence - drift * hops)
            if total >= alarm and end_s > call.onset_s:
                delay_s = end_s - call.onset_s
                break
            total = 0.0 if total >= alarm else total
        found.append(delay_s)
    return np.array(found)


def _peaks(steps: Floats, drift: float) -> Floats:
    """The height of each excursion of the onset sum above zero."""
    peaks, total, peak = [], 0.0, 0.0
    for evidence, hops in steps[~np.isnan(steps[:, 0])]:
        total = max(0.0, total + evidence - drift * hops)
        if total == 0.0 and peak > 0.0:
            peaks.append(peak)
            peak = 0.0
        peak = max(peak, total)
    return np.array([*peaks, peak] if peak > 0 else peaks)
