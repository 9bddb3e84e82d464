"""What the speech gate lets through and what it turns away."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamdet import speech
from streamdet.speech import activity, seconds, speech_s, starts

RATE_HZ = 8000
T = np.arange(4 * RATE_HZ) / RATE_HZ


def tones(*frequencies_hz: float) -> np.ndarray:
    return sum(0.1 * np.sin(2 * np.pi * hz * T) for hz in frequencies_hz).astype(np.float32)


def noise(level_db: float) -> np.ndarray:
    return (np.random.default_rng(0).standard_normal(T.size) * 10 ** (level_db / 20)).astype(np.float32)


def babble() -> np.ndarray:
    """A stand-in for a voice: a harmonic buzz whose pitch glides, in syllables of 200 ms with pauses between."""
    pitch_hz = 120 + 30 * np.sin(2 * np.pi * 0.7 * T)
    phase = 2 * np.pi * np.cumsum(pitch_hz) / RATE_HZ
    buzz = sum(np.sin(k * phase) / k for k in range(2, 20))
    return (0.1 * buzz * ((T % 0.35) < 0.2)).astype(np.float32)


@pytest.mark.parametrize(
    "samples",
    [
        np.zeros_like(T, dtype=np.float32),
        noise(-60),
        noise(-20),
        tones(1000),
        tones(350, 440),  # North American dial tone
        tones(440, 480) * ((T % 3) < 1),  # ringing
    ],
    ids=["silence", "comfort noise", "loud noise", "test tone", "dial tone", "ringing"],
)
def test_what_is_not_speech_stays_below_the_gate(samples):
    assert speech_s(samples.astype(np.float32), RATE_HZ) < 0.5


@pytest.mark.parametrize("level", [1.0, 0.1, 0.05])
def test_syllables_pass_at_any_usual_level(level):
    assert speech_s(babble() * np.float32(level), RATE_HZ) > 2


def test_half_the_speech_is_about_half_the_seconds():
    half = babble() * (T < 2)
    assert speech_s(half.astype(np.float32), RATE_HZ) == pytest.approx(speech_s(babble(), RATE_HZ) / 2, rel=0.2)


@given(st.integers(0, 3000), st.sampled_from([8000, 16000, 44100]), st.integers(0, 5))
def test_never_more_than_there_is(size, rate_hz, seed):
    samples = np.random.default_rng(seed).uniform(-1, 1, size).astype(np.float32)
    assert 0 <= speech_s(samples, rate_hz) <= size / rate_hz


def test_activity_tells_where_the_speech_is():
    samples = (babble() * (T >= 2)).astype(np.float32)
    active = activity(samples, RATE_HZ)
    begins = starts(active.size, RATE_HZ)
    assert not active[begins < 1.9 * RATE_HZ].any()
    assert active[begins >= 2 * RATE_HZ].mean() > 0.5
    assert begins[-1] < samples.size
    assert seconds(active, 4.0) == speech_s(samples, RATE_HZ)
    assert activity(samples[:10], RATE_HZ).shape == (0,)


def test_activity_of_a_few_frames_has_as_many():
    assert activity(tones(1000)[: RATE_HZ // 20] + noise(-10)[: RATE_HZ // 20], RATE_HZ).shape == (2,)


@given(st.integers(256, 9000), st.floats(-70, 0), st.integers(0, 5))
def test_what_saves_time_changes_nothing(size, level_db, seed):
    """Spectra in blocks, three peaks in a flat array, a quantile by partition: against the plain way to say each."""
    rng = np.random.default_rng(seed)
    samples = (rng.standard_normal(size) * 10 ** (level_db / 20) * (rng.uniform(size=size) < 0.5)).astype(np.float32)
    frames = speech._framed(samples, RATE_HZ)
    power = speech._spectra(frames, RATE_HZ)
    shape = np.hanning(256)
    plain = np.abs(np.fft.rfft(frames * shape))[:, 5:123] ** 2 * (2 / (256 * np.square(shape).sum()))
    assert power == pytest.approx(plain, rel=1e-4, abs=1e-9)
    share = speech._peak_share(power)
    for row, found in zip(power, share, strict=True):
        rest = row.astype(np.float64)
        for _ in range(3):
            peak = int(rest.argmax())
            rest[max(0, peak - 2) : peak + 3] = 0
        assert found == pytest.approx(1 - rest.sum() / row.sum(), abs=1e-4)
    level_db = 10 * np.log10(power.sum(axis=1))
    assert speech._quiet(level_db) == pytest.approx(np.percentile(level_db, speech.QUIET_PERCENTILE), abs=1e-4)
    loudest = max(samples.max(), -samples.min())
    assert level_db.max() <= 20 * np.log10(loudest)  # what lets silence pass without spectra
