"""Drift and heights: what the manifest promises, the tracker keeps."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamdet.bundle import Audio, Calibration, Decision
from streamdet.errors import DataError
from streamdet.verdict import Tracker
from streamdet_export.decide import decide
from streamdet_training.calls import Call

AUDIO = Audio(16_000, 64_000, 16_000)


def calls(seed: int, mean: float = 1.0, count: int = 30, seconds: int = 40) -> list[Call]:
    rng = np.random.default_rng(seed)
    found = []
    for number in range(count):
        label, sign = (("bonafide", 1), ("spoof", -1))[number % 2]
        own = sign * mean + rng.normal(0, 0.5)
        windows = tuple((float(end), float(own + rng.normal(0, 1.5))) for end in range(1, seconds + 1))
        found.append(Call(label, f"v{number}", "-", windows))
    return found


def alarms(call: Call, decision: Decision) -> int:
    """Alarms of the daemon's own tracker on a call."""
    tracker, count, before_s, state = Tracker(decision, Calibration(), AUDIO.window_s), 0, 0.0, "listening"
    for end_s, llr in call.windows:
        standing = tracker.update(llr, end_s, end_s - before_s)
        count += standing.state == "spoof" != state
        before_s, state = end_s, standing.state
    return count


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.floats(0.2, 3), st.floats(0.5, 50))
def test_full_evidence_raises_the_alarm_within_a_window_and_the_tracker_alarms_as_counted(seed, mean, target):
    simulated = calls(seed, mean)
    made = decide(simulated, Decision(), AUDIO, target)
    assert made.alarm + 4 * made.drift < made.llr_clip
    assert 4 * made.drift < made.alarm
    bonafide = [call for call in simulated if call.label == "bonafide"]
    with_alarm = np.mean([alarms(call, made) > 0 for call in bonafide])
    assert with_alarm == pytest.approx(made.calls_with_alarm, abs=1e-4)

    tracker = Tracker(made, Calibration(), AUDIO.window_s)
    states = [tracker.update(-2 * made.alarm, float(end), 1.0).state for end in range(1, 5)]
    assert "spoof" in states


def test_without_an_alarm_the_bound_is_three_over_the_hours():
    made = decide(calls(0, mean=4.0), Decision(), AUDIO, 1.0)
    assert made.calls_with_alarm == 0
    assert made.upper_95 == pytest.approx(2.9957 / made.hours, rel=1e-3)
    assert made.extrapolated
    assert made.speakers == 15
    assert made.hours == pytest.approx(15 * 40 / 3600, abs=1e-4)


def test_a_target_that_was_observed_is_not_extrapolated():
    made = decide(calls(1, mean=0.3, count=60), Decision(), AUDIO, 60.0)
    assert not made.extrapolated
    assert made.false_alarms_per_hour <= 60.06


def test_a_stricter_target_finds_spoof_no_sooner():
    simulated = calls(2, mean=0.8, count=60)
    loose, strict = (decide(simulated, Decision(), AUDIO, target) for target in (60.0, 1.0))
    assert strict.false_alarms_per_hour <= loose.false_alarms_per_hour
    found = [sum(alarms(call, made) > 0 for call in simulated if call.label == "spoof") for made in (loose, strict)]
    assert found[0] >= found[1]


def test_calls_of_one_class_are_refused():
    bonafide = [call for call in calls(0) if call.label == "bonafide"]
    with pytest.raises(DataError, match="simulated calls"):
        decide(bonafide, Decision(), AUDIO, 1.0)
