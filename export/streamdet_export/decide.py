"""Drift and heights of the change detector, for a stated rate of false alarms.

What can be shown and what cannot: an hour of bona fide calls without an alarm bounds the rate at 3 an hour, not at 0.
Where the target lies beyond what was observed, the height comes from the exponential tail that the excursions of a
CUSUM have (D. Siegmund, "Sequential Analysis", 1985), and the bundle says `extrapolated`.
"""

from collections.abc import Sequence
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray
from scipy.stats import chi2

from streamdet.bundle import Audio, Decision
from streamdet.errors import DataError
from streamdet_training.calls import Call

Floats = NDArray[np.float64]

DRIFTS: Final = (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6)
# Above this quantile of the excursions their heights are taken to fall off exponentially.
TAIL: Final = 0.8
# A missed spoof counts as this many seconds of delay, beyond any call here.
MISSED_S: Final = 120.0
# Evidence of a whole window at twice the alarm height must raise the alarm: the promise that a certain model's verdict
# turns within one window of the change. With d = drift of the window's hops: alarm + d <= llr_clip and d <= alarm.
MARGIN: Final = 0.05


class Candidate(msgspec.Struct, frozen=True):
    """A drift, the height it needs, and what comes of it."""

    drift: float
    alarm: float
    rate: float
    """Expected false alarms an hour."""
    extrapolated: bool
    delay_s: float
    """Mean time to the alarm on spoof calls."""


def decide(calls: Sequence[Call], decision: Decision, audio: Audio, target_per_hour: float) -> Decision:
    """Choose drift and alarm height on calls whose LLRs come from a calibration that has not seen their voices.

    Among the drifts whose height keeps the target, the one that finds spoof soonest is taken; where none keeps it, the
    one with the lowest rate, and the bundle states that rate.

    Raises:
        DataError: there is no bona fide or no spoof call.
    """
    bonafide = [call for call in calls if call.label == "bonafide"]
    spoof = [call for call in calls if call.label == "spoof"]
    if not bonafide or not spoof:
        raise DataError.of("simulated calls", len(calls), "some of bona fide and some of spoof voices")
    candidates = [_candidate(bonafide, spoof, decision, audio, drift, target_per_hour) for drift in DRIFTS]
    kept = [it for it in candidates if it.rate <= target_per_hour * 1.001]
    best = min(kept, key=lambda it: it.delay_s) if kept else min(candidates, key=lambda it: it.rate)
    hours = sum(call.seconds for call in bonafide) / 3600
    alarms = [_alarms(_steps(call, decision, audio.window_s), best.drift, best.alarm) for call in bonafide]
    return msgspec.structs.replace(
        decision,
        drift=best.drift,
        alarm=best.alarm,
        clear=best.alarm,
        false_alarms_per_hour=round(best.rate, 3),
        upper_95=round(float(chi2.ppf(0.95, 2 * (sum(alarms) + 1)) / 2 / hours), 3),
        hours=round(hours, 4),
        speakers=len({call.voice for call in bonafide}),
        calls_with_alarm=round(float(np.mean([count > 0 for count in alarms])), 4),
        extrapolated=best.extrapolated,
    )


def _candidate(
    bonafide: Sequence[Call],
    spoof: Sequence[Call],
    decision: Decision,
    audio: Audio,
    drift: float,
    target_per_hour: float,
) -> Candidate:
    steps = [_steps(call, decision, audio.window_s) for call in bonafide]
    hours = sum(call.seconds for call in bonafide) / 3600
    wanted = _height(np.concatenate([_peaks(part, drift) for part in steps]), hours, target_per_hour)
    hops = -(-audio.window_samples // audio.hop_samples)  # in a window
    alarm = float(np.clip(wanted, hops * drift + MARGIN, decision.llr_clip - hops * drift - MARGIN))
    # In the digits that the manifest has, and above the excursion that the height was taken from.
    alarm = float(np.floor(alarm * 1e4 + 1) / 1e4)
    rate, beyond = _rate(steps, drift, alarm, hours)
    delays = [_delay_s(call, _steps(call, decision, audio.window_s), drift, alarm) for call in spoof]
    return Candidate(drift, alarm, rate, beyond, float(np.mean(delays)))


def _steps(call: Call, decision: Decision, window_s: float) -> Floats:
    """Evidence for spoof that each window adds, before the drift; nan where it was gated."""
    found, before_s = [], 0.0
    for end_s, llr in call.windows:
        share = min(end_s - before_s, window_s) / window_s
        found.append(np.nan if llr is None else -share * min(max(llr, -decision.llr_clip), decision.llr_clip))
        before_s = end_s
    return np.array(found)


def _peaks(steps: Floats, drift: float) -> Floats:
    """The height of each excursion of the onset sum above zero."""
    peaks, total, peak = [], 0.0, 0.0
    for step in steps[~np.isnan(steps)]:
        total = max(0.0, total + step - drift)
        if total == 0.0 and peak > 0.0:
            peaks.append(peak)
            peak = 0.0
        peak = max(peak, total)
    return np.array([*peaks, peak] if peak > 0 else peaks)


def _alarms(steps: Floats, drift: float, alarm: float) -> int:
    """Alarms on a bona fide call, the sum starting anew after each."""
    count, total = 0, 0.0
    for step in steps[~np.isnan(steps)]:
        total = max(0.0, total + step - drift)
        if total >= alarm:
            count, total = count + 1, 0.0
    return count


def _height(peaks: Floats, hours: float, target_per_hour: float) -> float:
    """The height that excursions pass `target_per_hour` times an hour; beyond what was seen, by the tail."""
    if peaks.size == 0:
        return 0.0
    allowed = target_per_hour * hours
    if allowed >= 1:
        return float(np.sort(peaks)[::-1][min(peaks.size, int(allowed)) - 1])
    base, count, excess = _tail(peaks)
    return base + excess * float(np.log(count / allowed))


def _rate(steps: Sequence[Floats], drift: float, alarm: float, hours: float) -> tuple[float, bool]:
    """Expected alarms an hour at a height: counted where there are some, else by the tail; True for the latter."""
    counted = sum(_alarms(part, drift, alarm) for part in steps)
    if counted:
        return counted / hours, False
    peaks = np.concatenate([_peaks(part, drift) for part in steps])
    if peaks.size == 0:
        return 0.0, True
    base, count, excess = _tail(peaks)
    return float(count / hours * np.exp(-max(0.0, alarm - base) / excess)), True


def _tail(peaks: Floats) -> tuple[float, int, float]:
    """Where the tail of the excursions begins, how many reach it, and their mean excess over that."""
    base = float(np.quantile(peaks, TAIL))
    beyond = peaks[peaks >= base]
    return base, beyond.size, max(float((beyond - base).mean()), 1e-3)


def _delay_s(call: Call, steps: Floats, drift: float, alarm: float) -> float:
    total = 0.0
    for (end_s, _), step in zip(call.windows, steps, strict=True):
        if not np.isnan(step):
            total = max(0.0, total + step - drift)
            if total >= alarm:
                return end_s
    return MISSED_S
