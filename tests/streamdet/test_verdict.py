"""The rolling verdict's promises, as properties."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamdet.bundle import Audio, Calibration, Decision
from streamdet.verdict import Tracker

DECISION = Decision(prior_spoof=0.05, rolling_s=10, llr_clip=5, drift=0.1, alarm=2.0, clear=2.0, bonafide_below=0.2)
AUDIO = Audio(rate_hz=16000, window_samples=64000, hop_samples=16000)
WINDOW_S = AUDIO.window_s
llrs = st.one_of(st.none(), st.floats(-20, 20))


def tracker(**changes: object) -> Tracker:
    return Tracker(DECISION, Calibration(), AUDIO, **changes)


def states(sequence, advance_s=1.0, start_s=0.0, tracker_=None):
    tracker_ = tracker_ or tracker()
    return [tracker_.update(llr, start_s + (at + 1) * advance_s, advance_s).state for at, llr in enumerate(sequence)]


def first_alarm(sequence) -> float:
    found = states(sequence)
    return found.index("spoof") if "spoof" in found else math.inf


@given(st.lists(llrs, max_size=20))
def test_an_hour_of_bonafide_speech_does_not_delay_the_alarm(spoof_part):
    """A voice that turns synthetic in mid-call is noticed as soon as one that was so from the start."""
    alone = states(spoof_part)
    after = tracker()
    for second in range(3600):
        after.update(4.0, second + 1.0, 1.0)
    later = states(spoof_part, start_s=3600.0, tracker_=after)
    onset = alone.index("spoof") if "spoof" in alone else None
    assert (later.index("spoof") if "spoof" in later else None) == onset


@given(st.lists(st.tuples(st.floats(-20, 20), st.floats(0, 10)), max_size=40))
def test_more_spoof_evidence_never_delays_the_alarm(pairs):
    """Lowering any of a call's LLRs can only bring its first alarm forward."""
    assert first_alarm([llr - less for llr, less in pairs]) <= first_alarm([llr for llr, _ in pairs])


@given(st.lists(llrs, max_size=30))
def test_a_gated_window_changes_no_evidence(sequence):
    with_gates = [item for llr in sequence for item in (llr, None)]
    bare, gated = tracker(), tracker()
    for at, llr in enumerate(sequence):
        bare.update(llr, at * 0.01, 1.0)
    for at, llr in enumerate(with_gates):
        gated.update(llr, at * 0.005, 1.0)
    assert gated.standing.rolling_llr == pytest.approx(bare.standing.rolling_llr)
    assert (gated.standing.state == "spoof") == (bare.standing.state == "spoof")


@given(st.floats(-5, 5), st.sampled_from([1, 2, 4]))
def test_overlap_does_not_count_a_second_twice(llr, per_window):
    """Eight seconds of the same evidence weigh the same whatever the hop."""
    track = tracker()
    for at in range(2 * per_window):
        track.update(llr, (at + 1) * WINDOW_S / per_window, WINDOW_S / per_window)
    assert track.standing.rolling_llr == pytest.approx(2 * llr)


@given(st.lists(llrs, max_size=30))
def test_listening_means_no_probability(sequence):
    track = tracker()
    for at, llr in enumerate(sequence):
        standing = track.update(llr, at + 1.0, 1.0)
        assert (standing.p_spoof is None) == (standing.state == "listening")
        assert standing.p_spoof is None or 0 <= standing.p_spoof <= 1


def test_one_window_cannot_decide():
    """Clipping bounds what a single absurd score can do."""
    assert "spoof" not in states([-1e9, 4, 4, 4])
    assert states([-5.0] * 3)[-1] == "spoof"


def test_hysteresis_needs_as_much_evidence_back():
    track = tracker()
    assert states([-5.0] * 3, tracker_=track)[-1] == "spoof"
    back = states([5.0] * 4, start_s=3.0, tracker_=track)
    assert back[0] == "spoof"
    assert back[-1] != "spoof"


def test_silence_for_long_enough_means_listening_again():
    track = tracker()
    states([4.0] * 3, tracker_=track)
    assert states([None] * 10, start_s=3.0, tracker_=track)[-1] == "listening"


def test_alarm_outlasts_silence():
    track = tracker()
    states([-5.0] * 3, tracker_=track)
    assert states([None] * 60, start_s=3.0, tracker_=track)[-1] == "spoof"


def test_p_spoof_is_bayes_with_the_recalibrated_sum():
    """By hand: one window of 4 s, sum 2; at 4 s of evidence scale 0.5, offset 0.25; prior 0.2."""
    calibration = Calibration(rolling=((2.0, 1.0, 0.0), (6.0, 0.0, 0.5)))
    track = Tracker(DECISION, calibration, AUDIO, prior_spoof=0.2)
    standing = track.update(2.0, 4.0, 4.0)
    log_odds = math.log(0.2 / 0.8) - (0.5 * 2.0 + 0.25)
    assert standing.p_spoof == pytest.approx(1 / (1 + math.exp(-log_odds)))


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=20), st.sampled_from([0.5, 0.25, 0.125]))
def test_the_drift_is_paid_by_the_second(sequence, shorter_s):
    """Evidence that comes in smaller parts raises the sums no further and no less."""
    whole, parts = tracker(), tracker()
    each = round(1 / shorter_s)
    for at, llr in enumerate(sequence):
        whole.update(llr, at + 1.0, 1.0)
        for part in range(each):
            parts.update(llr, at + (part + 1) * shorter_s, shorter_s)
        if "spoof" in (whole.standing.state, parts.standing.state):
            break  # a part of the window was enough
        assert parts._onset == pytest.approx(whole._onset, abs=1e-9)
        assert parts.standing.rolling_llr == pytest.approx(whole.standing.rolling_llr, abs=1e-9)


def test_a_voice_is_settled_after_a_while_and_doubtful_before_an_alarm():
    track = tracker()
    assert track.pace == "usual"
    paces = []
    for second in range(1, 9):
        track.update(4.0, float(second), 1.0)
        paces.append(track.pace)
    assert paces == ["usual"] * 4 + ["settled"] * 4
    for second, pace in ((9, "usual"), (10, "doubtful")):
        track.update(-3.0, float(second), 1.0)
        assert (track.standing.state, track.pace) == ("bonafide", pace)
    for second in range(11, 14):
        track.update(-5.0, float(second), 1.0)
    assert (track.standing.state, track.pace) == ("spoof", "usual")
    track = tracker(prior_spoof=0.5)
    track.update(0.0, 1.0, 1.0)
    assert (track.standing.state, track.pace) == ("uncertain", "doubtful")
