"""Packet loss and jitter: frames are missing as in networks, and in their place is what receivers make up."""

from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from streamdet_training import network

RATE_HZ = 16_000
FRAME = 320  # 20 ms
CLIPS = arrays(np.float32, st.integers(1, 3000), elements=st.floats(-1, 1, width=32))
WAYS = get_args(network.Concealment)


def hum(samples: int = RATE_HZ, period: int = 130) -> np.ndarray:
    """A voice of one note: a pulse every `period` samples, ringing."""
    pulses = np.zeros(samples)
    pulses[::period] = 1
    ringing = np.exp(-np.arange(400) / 40) * np.cos(0.25 * np.arange(400))
    return (0.3 * np.convolve(pulses, ringing)[:samples]).astype(np.float32)


def lost_at(*frames: int, of: int = 50) -> np.ndarray:
    lost = np.zeros(of, bool)
    lost[list(frames)] = True
    return lost


def conceal(samples, lost, how, seed=0):
    return network.conceal(samples, RATE_HZ, lost, FRAME, how, np.random.default_rng(seed))


def power(samples) -> float:
    return float(np.square(samples, dtype=np.float64).mean())


@settings(max_examples=60, deadline=None)
@given(
    samples=CLIPS,
    rate_hz=st.sampled_from([8000, 16000, 44100]),
    share=st.floats(0, 1),
    seed=st.integers(0, 2**32),
    change=st.sampled_from(["loss", "jitter"]),
)
def test_any_clip_keeps_its_length_and_stays_finite(samples, rate_hz, share, seed, change):
    before, heard = samples.copy(), []
    for _ in range(2):
        rng = np.random.default_rng(seed)
        if change == "loss":
            heard.append(network.lose_packets(samples, rate_hz, share, rng))
        else:
            heard.append(network.jitter(samples, rate_hz, rng))
    assert heard[0].shape == samples.shape
    assert heard[0].dtype == np.float32
    assert np.isfinite(heard[0]).all()
    assert abs(heard[0]).max() <= 4  # comfort noise has peaks; the chain cuts what lies beyond 1
    assert np.array_equal(*heard)
    assert np.array_equal(samples, before)


@pytest.mark.parametrize("share", [0.02, 0.1, 0.3])
@pytest.mark.parametrize("burst", [1, 4])
def test_as_many_frames_are_lost_as_asked(share, burst):
    lost = network.gilbert_elliott(100_000, share, burst, np.random.default_rng(1))
    assert lost.mean() == pytest.approx(share, rel=0.1)


def test_losses_come_in_bursts():
    """After a lost frame the next is lost with 0.8 * (1 - 1 / 4) and a little; alone, with the share."""
    lost = network.gilbert_elliott(100_000, 0.1, 4, np.random.default_rng(1))
    assert lost[1:][lost[:-1]].mean() == pytest.approx(0.62, abs=0.04)


def test_nothing_is_lost_at_a_share_of_zero():
    assert not network.gilbert_elliott(1000, 0.0, 2, np.random.default_rng(1)).any()
    clip = hum()
    assert np.array_equal(network.lose_packets(clip, RATE_HZ, 0.0, np.random.default_rng(1)), clip)


@pytest.mark.parametrize("how", WAYS)
def test_only_lost_frames_and_the_blends_around_them_change(how):
    clip, lost = (hum() * np.linspace(0.5, 1, RATE_HZ)).astype(np.float32), lost_at(20, 21)
    changed = np.flatnonzero(conceal(clip, lost, how) != clip)
    late = 60 if how == "period" else 0  # 3.75 ms, as in Appendix I
    assert 20 * FRAME - late <= changed.min() <= 20 * FRAME + 1
    assert 22 * FRAME - 2 <= changed.max() < 22 * FRAME + network.BLEND_S * RATE_HZ


@pytest.mark.parametrize("how", WAYS)
def test_what_was_lost_is_not_heard(how):
    """The negative control of concealment: another content of the lost frames changes nothing."""
    clip, lost = hum(), lost_at(20, 21)
    other = clip.copy()
    other[20 * FRAME : 22 * FRAME] = 0.5
    assert np.array_equal(conceal(clip, lost, how), conceal(other, lost, how))


@pytest.mark.parametrize("how", WAYS)
def test_a_loss_before_anything_was_heard_is_silent(how):
    assert not conceal(hum(), lost_at(0), how)[:FRAME].any()


def test_a_repeated_period_goes_on_with_the_note():
    clip = hum()
    heard, flat = (conceal(clip, lost_at(20), how) for how in ("period", "silence"))
    gap = slice(20 * FRAME, 21 * FRAME)
    assert power(heard[gap] - clip[gap]) < 0.1 * power(clip[gap])
    assert not flat[gap].any()
    frame = conceal(clip, lost_at(20), "frame")  # 320 samples are no multiple of a period of 130
    assert power(frame[gap] - clip[gap]) > 0.5 * power(clip[gap])


def test_a_long_loss_fades_to_silence():
    heard = conceal(hum(), lost_at(20, 21, 22, 23, 24), "period")
    parts = [power(heard[number * FRAME : (number + 1) * FRAME]) for number in range(20, 25)]
    assert parts == sorted(parts, reverse=True)
    assert parts[0] > 0.5 * power(hum())
    assert parts[3] == parts[4] == 0


def test_comfort_noise_has_the_colour_of_what_came_before_and_half_its_level():
    rng = np.random.default_rng(3)
    low = np.convolve(rng.standard_normal(2 * RATE_HZ), np.ones(16) / 16, "same").astype(np.float32)
    lost = lost_at(*range(20, 60), of=100)
    gap = conceal(low, lost, "noise")[20 * FRAME : 60 * FRAME]
    spectrum = np.square(abs(np.fft.rfft(gap)))
    assert spectrum[: spectrum.size // 8].sum() > 0.7 * spectrum.sum()
    assert power(gap) == pytest.approx(power(low[19 * FRAME : 20 * FRAME]) / 4, rel=0.3)


def test_a_repeated_period_clicks_neither_where_it_starts_nor_where_frames_come_back():
    """A smooth gliding note: what changes fast in it is a click. The last frame, put on as it is, has one."""
    clip = np.sin(np.cumsum(np.linspace(0.04, 0.06, RATE_HZ))).astype(np.float32)
    lost = lost_at(20, 26, 33, 41)
    smooth, rough = (np.square(np.diff(conceal(clip, lost, how), n=3)).sum() for how in ("period", "frame"))
    assert smooth < 2e-5 * rough  # without the blend in front of it 7e-5


@pytest.mark.parametrize("period", [90, 130, 200])
def test_the_pitch_period_is_found(period):
    assert network.pitch_period(hum(period=period), RATE_HZ) == pytest.approx(period, abs=1)


def test_a_jitter_buffer_may_change_at_any_time(monkeypatch):
    clip = hum(1200)
    for time in range(clip.size):
        monkeypatch.setattr(network, "_change_times", lambda *_args, time=time: [time])
        assert network.jitter(clip, RATE_HZ, np.random.default_rng(0)).shape == clip.shape


def test_a_jitter_buffer_stretches_and_shrinks_and_never_runs_ahead():
    """Where a chirp stands tells how late it is: its frequency is its time."""
    time_s = np.arange(4 * RATE_HZ) / RATE_HZ
    chirp = np.sin(2 * np.pi * (500 * time_s + 250 * time_s**2)).astype(np.float32)  # 500 Hz + 500 Hz a second
    deepest, moves = 0.0, 0
    for seed in range(10):
        heard = network.jitter(chirp, RATE_HZ, np.random.default_rng(seed))
        assert heard.shape == chirp.shape
        late = []
        for start in range(0, heard.size - 1600, 1600):
            part = heard[start : start + 1600] * np.hanning(1600)
            hertz = np.argmax(abs(np.fft.rfft(part, 1 << 16))) * RATE_HZ / (1 << 16)
            late.append((start + 800) / RATE_HZ - (hertz - 500) / 500)
        deepest = max(deepest, *late)
        moves += int((abs(np.diff(late)) > 0.004).sum())
        assert min(late) > -0.02
        assert max(late) < network.DEPTH_S + 0.02
    assert deepest > 0.01
    assert moves > 10


def test_a_jitter_buffer_keeps_the_note_without_clicks():
    """A held note comes out as it went in, whole periods more or less; one that swells shows that it is late."""
    held = hum(4 * RATE_HZ)
    swelling = (held * np.linspace(0.1, 1, held.size)).astype(np.float32)
    heard = network.jitter(swelling, RATE_HZ, np.random.default_rng(2))
    assert np.allclose(network.jitter(held, RATE_HZ, np.random.default_rng(2)), held, atol=0.01)
    assert not np.allclose(heard, swelling, atol=1e-3)
    assert abs(np.diff(heard)).max() <= abs(np.diff(swelling)).max()
