"""Simulated calls: what is strung together, when alarms count, and what the figures mean."""

import msgspec
import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from streamdet.audio import decode
from streamdet.bundle import Calibration, Decision
from streamdet.errors import DataError
from streamdet.records import Score
from streamdet.speech import speech_s
from streamdet_training import streaming
from streamdet_training.data import Clip
from streamdet_training.scores import score_clip

RATE_HZ = 16_000


def talk(seconds: float, *, bright: bool, seed: int) -> np.ndarray:
    """Noise that comes and goes as syllables do, brighter for spoof."""
    noise = np.random.default_rng(seed).standard_normal(round(seconds * RATE_HZ))
    if not bright:
        noise = np.convolve(noise, np.ones(8) / 8, "same")
    time_s = np.arange(noise.size) / RATE_HZ
    return (0.2 * np.clip(np.sin(2 * np.pi * 4 * time_s), 0, 1) * noise).astype(np.float32)


def brightness(windows):
    """A model that knows: sign changes are few in bona fide, many in spoof."""
    scores = []
    for window in windows:
        samples = decode(window.data, window.format.encoding)
        loud = samples[np.abs(samples) > 1e-3]
        changes = np.mean(np.sign(loud[1:]) != np.sign(loud[:-1])) if loud.size > 1 else 0.3
        seconds = speech_s(samples, window.format.rate_hz)
        scores.append(Score(float(20 * (0.3 - changes)) if seconds >= 0.1 else None, seconds))
    return scores


@pytest.fixture
def manifest(tiny):
    """Windows of 1 s every half second, and an alarm after a second or two of spoof."""
    decision = Decision(min_speech_s=0.1, rolling_s=4.0, drift=0.1, alarm=2.0, clear=2.0)
    draft = tiny.recipe(window={"window_s": 1.0, "hop_s": 0.5}).draft()
    return msgspec.structs.replace(draft, decision=decision, calibration=Calibration(rolling=((1.0, 0.5, 0.0),)))


@pytest.fixture
def clips(tmp_path) -> list[Clip]:
    """Two speakers and two systems on one channel, three clips of 4 s each; one speaker on a channel of their own."""
    made = []
    voices = [("bonafide", "ann", "gsm"), ("bonafide", "bob", "gsm"), ("spoof", "x", "gsm"), ("spoof", "y", "gsm")]
    for number, (label, name, channel) in enumerate([*voices, ("bonafide", "eve", "wide")]):
        for part in range(3):
            path = tmp_path / f"{name}{part}.wav"
            soundfile.write(path, talk(4, bright=label == "spoof", seed=10 * number + part), RATE_HZ)
            who = {"speaker": name} if label == "bonafide" else {"system": name}
            made.append(Clip(path=path, label=label, channel=channel, **who))
    return made


def test_a_model_that_knows_finds_every_change_and_raises_no_false_alarm(clips, manifest):
    found = streaming.evaluate(clips, manifest, brightness, resamples=50)
    own = found.operating
    assert (own.alarms, own.false_alarms_per_hour, own.early, own.calls) == (0, 0, 0, 2)
    assert own.height == manifest.decision.alarm
    assert 0 < own.mean_delay_s == own.median_delay_s < 3
    assert own.found == (1, 1, 1)
    assert (found.spoof.calls, found.spoof.found) == (2, (1, 1, 1))
    bona, fake = found.steadiness
    assert (bona.calls, bona.voices, bona.flips_per_hour, bona.shares["spoof"]) == (3, 3, 0, 0)
    assert bona.hours == pytest.approx(36 / 3600)
    assert sum(bona.shares.values()) == pytest.approx(1)
    assert fake.shares["spoof"] > 0.7
    assert [row.seconds for row in found.heard] == [0.5, 1, 2, 4, 8]
    assert found.heard[-1].eer == 0 == found.heard[-1].interval[1]
    # No alarm in some seconds of speech bounds the rate at ln 20 over these hours.
    assert own.upper_95 == pytest.approx(np.log(20) / bona.speech_hours)


def test_a_model_that_is_always_alarmed_has_early_alarms_and_a_rate(clips, manifest):
    found = streaming.evaluate(clips, manifest, lambda ws: [Score(-3.0, 1.0) for _ in ws], resamples=0)
    assert found.operating.early == 2
    assert found.operating.calls == 0
    assert found.operating.alarms == 3
    assert found.operating.false_alarms_per_hour == pytest.approx(3 / found.steadiness[0].speech_hours)
    assert found.heard[0].interval is None


def test_a_higher_alarm_has_fewer_false_alarms_and_a_longer_delay(clips, manifest):
    rng = np.random.default_rng(0)

    def unsure(windows):
        return [Score(score.llr and score.llr + rng.normal(0, 6), score.speech_s) for score in brightness(windows)]

    curve = streaming.evaluate(clips, manifest, unsure, resamples=0).curve
    assert [point.height for point in curve] == sorted(point.height for point in curve)
    assert curve[0].alarms > curve[-1].alarms == 0
    assert all((point.mean_delay_s is None) == (point.calls == 0) for point in curve)
    assert curve[0].early > curve[-1].early

    sure = streaming.evaluate(clips, manifest, brightness, resamples=0).curve
    delays = [point.mean_delay_s for point in sure]
    assert delays == sorted(delays)
    assert delays[0] < delays[-1]


def test_alarms_are_those_that_the_daemon_published(manifest):
    samples = np.concatenate(
        [talk(6, bright=False, seed=1), talk(6, bright=True, seed=2), talk(6, bright=False, seed=3)]
    )
    call = streaming.Call("turning", "a", "x", "-", 6.0, 18.0, ())
    heard = streaming.listen(call, samples, manifest, brightness)
    states = ["listening", *(verdict.state for verdict in heard.verdicts)]
    turned = [v.end_s for v, before in zip(heard.verdicts, states, strict=False) if v.state == "spoof" != before]
    assert streaming.alarms_s(heard, manifest) == turned
    assert len(turned) == 1
    assert 6 < turned[0] < 9
    assert heard.verdicts[-1].state != "spoof"
    assert streaming.alarms_s(heard, manifest, 1000) == []


def test_an_adaptive_hop_scores_fewer_windows_and_finds_the_same_changes(clips, manifest):
    fixed, adaptive = (
        streaming.evaluate(clips, manifest, brightness, adaptive=it, resamples=0) for it in (False, True)
    )
    assert adaptive.operating.found == fixed.operating.found == (1, 1, 1)
    assert adaptive.operating.alarms == 0
    assert fixed.steadiness[0].windows_per_minute == pytest.approx(23 * 5)  # in 12 s, the first ends at 1 s
    assert adaptive.steadiness[0].windows_per_minute < 0.9 * fixed.steadiness[0].windows_per_minute


def test_turning_calls_keep_to_one_channel_and_one_without_any_is_refused(clips, manifest):
    lonely = [clip for clip in clips if clip.channel == "wide" or clip.label == "spoof"]
    with pytest.raises(DataError, match="calls that turn"):
        streaming.evaluate(lonely, manifest, brightness)


def test_clips_of_nobody_in_particular_are_voices_of_their_own(clips, manifest):
    nameless = [Clip(path=clip.path, label=clip.label) for clip in clips]
    found = streaming.evaluate(nameless, manifest, brightness, resamples=0)
    assert (found.steadiness[0].calls, found.steadiness[1].calls, found.operating.calls) == (9, 6, 6)


def test_the_same_bytes_are_scored_once(clips, manifest):
    scored = []

    def counted(windows):
        scored.extend(window.data for window in windows)
        return brightness(windows)

    remembered = streaming.remember(counted)
    first = score_clip(clips[0], manifest, remembered)
    assert score_clip(clips[0], manifest, remembered) == first == score_clip(clips[0], manifest, brightness)
    assert len(scored) == len(set(scored)) == len(first.windows)


def test_speech_ends_where_the_gate_has_counted_enough():
    samples = np.concatenate([np.zeros(RATE_HZ, np.float32), talk(12, bright=False, seed=0)])
    ends = list(streaming.speech_ends(samples, RATE_HZ, (0.5, 2.0, 8.0, 100.0)))
    assert len(ends) == 3
    for end, wanted in zip(ends, (0.5, 2.0, 8.0), strict=True):
        assert wanted <= speech_s(samples[:end], RATE_HZ) < wanted + 0.5
    assert ends[0] > RATE_HZ


# -- survival --------------------------------------------------------------------------------------------------------


def test_kaplan_and_meier_by_hand():
    """Four calls: alarms at 1, 2 and 3 s, and one that ends at 2 s without. 3/4 are left after 1 s, 2/3 of those after
    2 s, none after 3 s: 1 + 0.75 + 0.5 s within four."""
    times, left = streaming.survival([1, 2, 2, 3], [True, True, False, True])
    assert times.tolist() == [1, 2, 3]
    assert left == pytest.approx([0.75, 0.5, 0])
    assert streaming.mean_within(times, left, 4) == pytest.approx(2.25)
    assert streaming.mean_within(times, left, 2.5) == pytest.approx(1 + 0.75 + 0.25)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=30))
def test_where_every_call_is_followed_to_its_alarm_the_estimate_is_the_plain_mean(times):
    found = streaming.survival(times, [True] * len(times))
    assert streaming.mean_within(*found, 20) == pytest.approx(np.minimum(times, 20).mean())


def test_without_an_alarm_the_delay_is_the_horizon():
    times, left = streaming.survival([3, 4], [False, False])
    assert streaming.mean_within(times, left, 20) == 20
