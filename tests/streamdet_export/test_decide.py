"""Drift and heights: what the manifest promises, the tracker keeps."""

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamdet.bundle import Audio, Calibration, Decision
from streamdet.errors import DataError
from streamdet.verdict import Tracker
from streamdet_export import decide as module
from streamdet_export.decide import count_alarms, decide, detection
from streamdet_training.calls import Call
from streamdet_training.metrics import upper_95

AUDIO = Audio(16_000, 64_000, 16_000)


def calls(seed: int, mean: float = 1.0, count: int = 30, seconds: int = 40) -> list[Call]:
    """Bona fide and spoof voices in turn, each with an LLR of its own and windows that scatter around it."""
    rng = np.random.default_rng(seed)
    found = []
    for number in range(count):
        label, sign = (("bonafide", 1), ("spoof", -1))[number % 2]
        own = sign * mean + rng.normal(0, 0.5)
        windows = tuple((float(end), float(own + rng.normal(0, 1.5))) for end in range(1, seconds + 1))
        found.append(Call(label, f"v{number}", "-", windows))
    return found


def bona_fide(seed: int, **how: float) -> list[Call]:
    return [call for call in calls(seed, **how) if call.label == "bonafide"]


def spliced(before: float, after: float, onset: int = 8, seconds: int = 28) -> Call:
    llrs = [before if end <= onset else after for end in range(1, seconds + 1)]
    windows = tuple((float(end), llr) for end, llr in enumerate(llrs, 1))
    return Call("spoof", "s", "-", windows, onset_s=float(onset), before="b")


def alarms(call: Call, decision: Decision, seconds: float | None = None) -> int:
    """Alarms of the daemon's own tracker on a call, heard again from the beginning until `seconds` are over."""
    tracker, count, state = Tracker(decision, Calibration(), AUDIO), 0, "listening"
    began_s, seconds = 0.0, seconds or call.seconds
    while began_s < seconds:
        before_s = 0.0
        for end_s, llr in call.windows:
            if began_s + end_s > seconds:
                return count
            standing = tracker.update(llr, began_s + end_s, end_s - before_s)
            count += standing.state == "spoof" != state
            before_s, state = end_s, standing.state
        began_s += call.seconds
    return count


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.floats(0.2, 3), st.floats(0.5, 50))
def test_full_evidence_raises_the_alarm_within_a_window(seed, mean, target):
    made = decide(calls(seed, mean), Decision(), AUDIO, target)
    assert made.alarm + 4 * made.drift < made.llr_clip
    assert 4 * made.drift < made.alarm
    tracker = Tracker(made, Calibration(), AUDIO)
    assert "spoof" in [tracker.update(-2 * made.alarm, float(end), 1.0).state for end in range(1, 5)]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.floats(-1, 1), st.integers(5, 70), st.floats(0, 0.6), st.floats(0.1, 4))
def test_alarms_are_counted_as_the_tracker_raises_them(seed, mean, seconds, drift, height):
    rng = np.random.default_rng(seed)
    simulated = [
        msgspec.structs.replace(
            call, windows=tuple((end, None if rng.random() < 0.2 else llr) for end, llr in call.windows)
        )
        for call in bona_fide(seed, mean=mean, count=12, seconds=seconds)
    ]
    decision = Decision(drift=drift, alarm=height, clear=height)
    assert count_alarms(simulated, decision, AUDIO).tolist() == [alarms(call, decision, 60.0) for call in simulated]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.floats(0, 2), st.floats(0, 0.5))
def test_llrs_that_are_more_bona_fide_raise_the_first_alarm_no_sooner(seed, shift, drift):
    decision = Decision(drift=drift, alarm=1.5, clear=1.5)
    plain = bona_fide(seed, mean=0.0)
    shifted = [
        msgspec.structs.replace(call, windows=tuple((end, llr + shift) for end, llr in call.windows)) for call in plain
    ]
    before, after = (count_alarms(part, decision, AUDIO) > 0 for part in (plain, shifted))
    assert not (after & ~before).any()


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.floats(0, 0.5), st.floats(0.2, 2), st.floats(0, 2))
def test_fewer_calls_have_an_alarm_at_a_greater_height(seed, drift, height, more):
    simulated = bona_fide(seed, mean=0.0)
    low, high = (
        count_alarms(simulated, Decision(drift=drift, alarm=it, clear=it), AUDIO) > 0 for it in (height, height + more)
    )
    assert not (high & ~low).any()


def test_a_height_for_a_rate_gives_that_rate():
    simulated = calls(1, mean=0.2, count=60)
    for target in (20.0, 60.0):
        made = decide(simulated, Decision(), AUDIO, target)
        counted = count_alarms([call for call in simulated if call.label == "bonafide"], made, AUDIO)
        assert made.false_alarms_per_hour <= target * 1.001
        # Thirty calls of a minute; one more alarm than was counted is expected.
        assert made.false_alarms_per_hour == pytest.approx((counted.sum() + 1) / 0.5, abs=1e-3)
        assert made.calls_with_alarm == pytest.approx((counted > 0).mean(), abs=1e-4)
        assert not made.extrapolated


def test_the_promise_holds_for_other_voices():
    """Chosen on sixty voices, counted on five hundred others: the mean over draws is near the target.

    It is a little above it, since the drift is the best of eleven for the same sixty.
    """
    others = bona_fide(999, mean=0.4, count=1000)
    rates, bounds = [], []
    for seed in range(12):
        made = decide(calls(seed, mean=0.4, count=120), Decision(), AUDIO, 12.0)
        rates.append(count_alarms(others, made, AUDIO).sum() / (500 / 60))
        bounds.append(rates[-1] <= made.upper_95)
    assert 6.0 < np.mean(rates) < 15.0
    assert np.mean(bounds) > 0.9


def test_a_short_call_counts_as_a_minute_of_its_voice():
    """Seven seconds of a voice that always looks like spoof would never raise an alarm by themselves."""
    call = Call("bonafide", "a", "-", tuple((float(end), -1.0) for end in range(1, 8)))
    decision = Decision(drift=0.0, alarm=2.5, clear=2.5)
    assert alarms(call, decision) == 0
    assert count_alarms([call], decision, AUDIO).tolist() == [1]


def test_without_an_alarm_the_bound_is_three_over_the_hours():
    made = decide(calls(0, mean=4.0), Decision(), AUDIO, 1.0)
    assert made.calls_with_alarm == 0
    assert made.upper_95 == pytest.approx(2.9957 / made.hours, rel=1e-3)
    assert made.extrapolated
    assert made.speakers == 15
    assert made.hours == pytest.approx(15 * 40 / 3600, abs=1e-4)


@pytest.mark.parametrize(("count", "bound"), [(0, 2.996), (1, 4.744), (5, 10.513), (10, 16.962)])
def test_the_bound_is_the_exact_one_of_a_poisson_count(count, bound):
    """Values of Garwood's table."""
    assert upper_95(count, 2.0) == pytest.approx(bound / 2, abs=1e-3)


def test_a_rate_below_one_alarm_in_all_the_audio_is_extrapolated_by_the_tail():
    strict, loose = (decide(calls(3, mean=0.8, count=200), Decision(), AUDIO, target) for target in (0.2, 30.0))
    assert strict.extrapolated
    assert strict.false_alarms_per_hour <= 0.2002
    assert strict.upper_95 > strict.false_alarms_per_hour
    assert not loose.extrapolated


def test_a_target_out_of_reach_gives_the_lowest_rate_and_says_it():
    made = decide(calls(4, mean=-4.0), Decision(), AUDIO, 0.1)
    assert made.false_alarms_per_hour > 0.1


def test_a_stricter_target_finds_spoof_no_sooner():
    simulated = calls(2, mean=0.8, count=60)
    loose, strict = (decide(simulated, Decision(), AUDIO, target) for target in (60.0, 1.0))
    assert strict.false_alarms_per_hour <= loose.false_alarms_per_hour
    found = [sum(alarms(call, made) > 0 for call in simulated if call.label == "spoof") for made in (loose, strict)]
    assert found[0] >= found[1]


# -- calls that turn to spoof ----------------------------------------------------------------------------------------


def test_delay_counts_from_the_onset():
    decision = Decision(drift=0.0, alarm=1.0, clear=1.0)
    found = detection([spliced(2.0, -2.0)], decision, AUDIO)
    assert found == module.Detection(calls=1, detected=1.0, delay_median_s=2.0)


def test_an_alarm_before_the_onset_is_no_detection():
    decision = Decision(drift=0.0, alarm=1.0, clear=1.0)
    assert detection([spliced(-2.0, 2.0)], decision, AUDIO) == module.Detection(1, 0.0, None)


def test_what_is_never_noticed_has_no_delay():
    decision = Decision(drift=0.0, alarm=1.0, clear=1.0)
    found = detection([spliced(2.0, 1.0), spliced(2.0, -4.0)], decision, AUDIO)
    assert found == module.Detection(calls=2, detected=0.5, delay_median_s=1.0)
    assert detection([], decision, AUDIO) is None


def test_the_drift_is_the_one_that_finds_spoof_soonest():
    """Weak evidence for spoof that a large drift would swallow."""
    safe = [Call("bonafide", f"b{at}", "-", tuple((float(end), 3.0) for end in range(1, 61))) for at in range(20)]
    made = decide([*safe, spliced(3.0, -0.8)], Decision(), AUDIO, 60.0)
    assert made.drift < 0.2
    assert detection([spliced(3.0, -0.8)], made, AUDIO).detected == 1.0


def test_without_spoof_the_height_is_chosen_and_the_drift_stays():
    made = decide(bona_fide(1, mean=0.2, count=60), Decision(drift=0.3), AUDIO, 20.0)
    assert made.drift == 0.3
    assert 0 < made.false_alarms_per_hour <= 20.02


# -- bad cases -------------------------------------------------------------------------------------------------------


def test_calls_without_bona_fide_speech_are_refused():
    spoof = [call for call in calls(0) if call.label == "spoof"]
    gated = Call("bonafide", "a", "-", ((1.0, None), (2.0, None)))
    for some in (spoof, [*spoof, gated]):
        with pytest.raises(DataError, match="simulated calls"):
            decide(some, Decision(), AUDIO, 1.0)


def test_equal_llrs_and_one_speaker_give_a_height():
    call = Call("bonafide", "a", "-", tuple((float(end), 0.0) for end in range(1, 31)))
    made = decide([call, spliced(0.0, 0.0)], Decision(), AUDIO, 1.0)
    assert made.speakers == 1
    assert np.isfinite([made.alarm, made.upper_95, made.false_alarms_per_hour]).all()
    assert made.extrapolated
