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


def babble(*, regular: bool = True) -> np.ndarray:
    """A stand-in for a voice: a harmonic buzz whose pitch glides, in syllables of 200 ms with pauses between.

    `regular` ones follow each other like a metronome's, which nobody's do.
    """
    pitch_hz = 120 + 30 * np.sin(2 * np.pi * 0.7 * T)
    phase = 2 * np.pi * np.cumsum(pitch_hz) / RATE_HZ
    buzz = sum(np.sin(k * phase) / k for k in range(2, 20))
    begins_s = np.arange(0, 4, 0.35) + (0 if regular else np.random.default_rng(4).uniform(-0.15, 0.15, 12))
    return (0.1 * buzz * sum((at <= T) & (at + 0.2 > T) for at in begins_s).clip(0, 1)).astype(np.float32)


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
    assert activity(noise(-10)[: RATE_HZ // 10], RATE_HZ).shape == (3,)


@given(st.integers(256, 9000), st.floats(-70, 0), st.integers(0, 5))
def test_what_saves_time_changes_nothing(size, level_db, seed):
    """Spectra in blocks and three peaks in a flat array, against the plain way to say each."""
    rng = np.random.default_rng(seed)
    samples = (rng.standard_normal(size) * 10 ** (level_db / 20) * (rng.uniform(size=size) < 0.5)).astype(np.float32)
    frames = samples[: size // 256 * 256].reshape(-1, 256)
    power = speech._spectra(frames, RATE_HZ)
    shape = np.hanning(256)
    plain = np.abs(np.fft.rfft(frames * shape))[:, 5:123] ** 2 * (2 / (256 * np.square(shape).sum()))
    assert power == pytest.approx(plain, rel=1e-4, abs=1e-9)
    share, strongest = speech._peaks(power)
    for row, found, loudest in zip(power, share, strongest, strict=True):
        rest = row.astype(np.float64)
        assert loudest == rest.argmax()
        for _ in range(3):
            peak = int(rest.argmax())
            rest[max(0, peak - 2) : peak + 3] = 0
        assert found == pytest.approx(1 - rest.sum() / row.sum(), abs=1e-4)
    # What lets silence pass without spectra: no frame is louder than the loudest sample.
    assert power.sum(axis=1).max() <= np.square(samples).max() * 1.0001


# -- music -----------------------------------------------------------------------------------------------------------


def note(hertz: float, seconds: float, partials: int = 12) -> np.ndarray:
    """A plucked string."""
    t = np.arange(round(seconds * RATE_HZ)) / RATE_HZ
    string = sum(np.sin(2 * np.pi * k * hertz * t) / k for k in range(1, partials) if k * hertz < RATE_HZ / 2)
    return 0.1 * string * np.exp(-3 * t)


def strings() -> np.ndarray:
    """Four seconds of them, three a second, each a chord of two."""
    rng = np.random.default_rng(1)
    chords = 220 * 2 ** (rng.integers(0, 18, (12, 2)) / 12)
    played = np.concatenate([sum(note(hertz, 1 / 3) for hertz in chord) for chord in chords])
    return played[: T.size].astype(np.float32)


def drum(every_s: float, jitter_s: float = 0.0) -> np.ndarray:
    """Bursts of noise, over a hiss."""
    rng = np.random.default_rng(2)
    hits_s = np.arange(0, 4, every_s) + rng.uniform(-jitter_s, jitter_s, int(np.ceil(4 / every_s)))
    beat = sum(np.exp(-np.maximum(0, T - at) / 0.04) * (at <= T) for at in hits_s)
    return (rng.standard_normal(T.size) * (0.2 * beat + 0.01)).astype(np.float32)


def power_of(samples: np.ndarray) -> np.ndarray:
    return speech._spectra(samples[: samples.size // 256 * 256].reshape(-1, 256), RATE_HZ)


def test_held_notes_are_music():
    assert speech.steady_share(power_of(strings())) > speech.STEADY_SHARE
    assert speech_s(strings(), RATE_HZ) == 0


def test_gliding_harmonics_are_not():
    assert speech.steady_share(power_of(babble())) < 0.3
    noisy = babble(regular=False) + noise(-40)
    assert speech_s(noisy, RATE_HZ) > 1.5


@pytest.mark.parametrize("every_s", [0.25, 0.4, 0.7])
def test_a_beat_is_music(every_s):
    assert speech.beat_share(power_of(drum(every_s))) > speech.BEAT_SHARE
    assert speech_s(drum(every_s), RATE_HZ) == 0


def test_blows_without_a_beat_are_not():
    assert speech.beat_share(power_of(drum(0.4, jitter_s=0.2))) < speech.BEAT_SHARE
    assert speech_s(drum(0.4, jitter_s=0.2), RATE_HZ) > 1


def test_faint_music_behind_a_voice_does_not_silence_it():
    assert speech_s(babble(regular=False) + np.float32(0.05) * strings(), RATE_HZ) > 1.5


def test_music_is_not_looked_for_in_less_than_it_takes_to_hear_any():
    least = round(speech.MUSIC_FROM_S * RATE_HZ)
    assert speech_s(drum(0.4)[: least - 1], RATE_HZ) > 1
    assert speech_s(drum(0.4)[:least], RATE_HZ) == 0


@pytest.mark.parametrize(("on_s", "every_s"), [(0.1, 1.0), (0.1, 0.2), (0.05, 0.1)])
def test_dialled_keys_are_not_speech(on_s, every_s):
    rng = np.random.default_rng(3)
    rows, columns = (697, 770, 852, 941), (1209, 1336, 1477, 1633)
    dialled = np.zeros_like(T)
    for at in np.arange(0.013, 4, every_s):
        key = np.sin(2 * np.pi * rng.choice(rows) * T) + np.sin(2 * np.pi * rng.choice(columns) * T)
        dialled += 0.15 * key * ((at <= T) & (at + on_s > T))
    assert speech_s(dialled.astype(np.float32), RATE_HZ) < 0.3


@pytest.mark.parametrize("rate_hz", [8000, 11025, 16000, 44100, 48000])
def test_the_rate_of_the_audio_does_not_matter(rate_hz):
    """Tones and talk at any rate, since bins are as wide at each."""
    t = np.arange(4 * rate_hz) / rate_hz
    pitch = 2 * np.pi * np.cumsum(120 + 30 * np.sin(2 * np.pi * 0.7 * t)) / rate_hz
    talk = 0.1 * sum(np.sin(k * pitch) / k for k in range(2, 20)) * ((t % 0.35) < 0.2)
    assert speech_s(talk.astype(np.float32), rate_hz) == pytest.approx(speech_s(babble(), RATE_HZ), abs=0.3)
    held = sum(np.sin(2 * np.pi * k * 440 * t) / k for k in (1, 2, 3, 4, 5)) * (0.2 + 0.8 * ((t % 0.5) < 0.4))
    assert speech_s((0.1 * held).astype(np.float32), rate_hz) == 0
