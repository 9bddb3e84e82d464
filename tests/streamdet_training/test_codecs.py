"""Codecs: what comes out is the voice that went in, where it went in, with the marks of its codec."""

from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from streamdet.audio import decode, encode, resample
from streamdet_training import codecs
from streamdet_training.recipe import CodecName

RATE_HZ = 16_000
NAMES = get_args(CodecName)
NARROW = [name for name in NAMES if codecs.CODECS[name].rate_hz == 8000]
ALL_SETTINGS = [(name, number) for name in NAMES for number in range(len(codecs.CODECS[name].settings))]
CLIPS = arrays(np.float32, st.integers(1, 3000), elements=st.floats(-1, 1, width=32))


class Pick:
    """A generator that draws the setting it was told to."""

    def __init__(self, number):
        self.number = number

    def integers(self, _count):
        return self.number


def voice(samples: int = 2 * RATE_HZ, rate_hz: int = RATE_HZ) -> np.ndarray:
    """Something that speech coders are made for: pulses of a gliding pitch through three resonances, in syllables."""
    time_s = np.arange(samples) / rate_hz
    phase = np.cumsum(110 + 40 * np.sin(2 * np.pi * 0.7 * time_s)) / rate_hz
    pulses = np.diff(np.floor(phase), prepend=0.0) + 0.02 * np.random.default_rng(1).standard_normal(samples)
    hertz = np.fft.rfftfreq(samples, 1 / rate_hz)
    shape = sum(1 / (1 + ((hertz - centre) / width) ** 2) for centre, width in ((600, 90), (1500, 120), (2700, 160)))
    spoken = np.fft.irfft(np.fft.rfft(pulses) * shape, n=samples) * np.clip(np.sin(2 * np.pi * 3 * time_s), 0, 1)
    return (0.1 * spoken / spoken.std()).astype(np.float32)


def spectrum(samples: np.ndarray) -> np.ndarray:
    return np.square(abs(np.fft.rfft(samples)))


def lag(heard: np.ndarray, sent: np.ndarray) -> int:
    """Samples by which `heard` is late: where the correlation of the two is largest, low frequencies left out.

    Coders of speech shift the phases of what lies under 200 Hz, which says nothing of their delay.
    """
    size = heard.size + sent.size
    cross = np.fft.rfft(heard, size) * np.conj(np.fft.rfft(sent, size))
    cross[np.fft.rfftfreq(size, 1 / RATE_HZ) < 300] = 0
    at = int(np.argmax(np.fft.irfft(cross, size)))
    return at if at < heard.size else at - size


def likeness(heard: np.ndarray, sent: np.ndarray) -> float:
    """Correlation above 300 Hz."""
    low = int(300 * sent.size / RATE_HZ)
    one, two = (np.fft.rfft(samples)[low:] for samples in (heard, sent))
    return float((one * two.conj()).real.sum() / np.linalg.norm(one) / np.linalg.norm(two))


def test_every_name_of_the_recipe_has_its_codec():
    assert tuple(codecs.CODECS) == NAMES


@pytest.mark.parametrize(("name", "setting"), ALL_SETTINGS)
def test_what_comes_out_lies_where_it_went_in(name, setting):
    sent = voice()
    heard = codecs.through(sent, RATE_HZ, name, Pick(setting))
    assert heard.shape == sent.shape
    assert heard.dtype == np.float32
    # One sample of 16 kHz is half a sample of a narrow-band codec.
    assert abs(lag(heard, sent)) <= 1
    assert likeness(heard, sent) > 0.6
    assert not np.array_equal(heard, sent)
    assert 0.5 < heard.std() / sent.std() < 1.5


def test_a_delay_would_be_noticed():
    """The negative control: G.722 is 22 samples late by itself."""
    late = codecs._ffmpeg(voice(), RATE_HZ, "g722", "s16")
    assert lag(late[: voice().size], voice()) == 22


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=8, deadline=None)
@given(samples=CLIPS, rate_hz=st.sampled_from([8000, 11025, 16000, 44100]), seed=st.integers(0, 99))
def test_any_clip_at_any_rate_keeps_its_length_and_stays_finite(name, samples, rate_hz, seed):
    before = samples.copy()
    one, two = (codecs.through(samples, rate_hz, name, np.random.default_rng(seed)) for _ in range(2))
    assert one.shape == samples.shape
    assert one.dtype == np.float32
    assert np.isfinite(one).all()
    assert np.array_equal(one, two)
    assert np.array_equal(samples, before)


@pytest.mark.parametrize("name", NARROW)
def test_a_telephone_codec_leaves_a_telephone_band(name):
    noise = (0.1 * np.random.default_rng(1).standard_normal(RATE_HZ)).astype(np.float32)
    heard = spectrum(codecs.through(noise, RATE_HZ, name, np.random.default_rng(0)))
    assert heard[4300:].sum() < 1e-3 * heard.sum()


@pytest.mark.parametrize("name", ["g722", "msbc", "opus_wb"])
def test_a_wide_band_codec_keeps_what_lies_above_the_telephone_band(name):
    noise = (0.1 * np.random.default_rng(1).standard_normal(RATE_HZ)).astype(np.float32)
    last = len(codecs.CODECS[name].settings) - 1  # the highest bit rate
    heard = spectrum(codecs.through(noise, RATE_HZ, name, Pick(last)))
    assert heard[4500:6500].mean() > 0.3 * heard[1000:3000].mean()


@pytest.mark.parametrize("name", ["g726", "amr", "mp3", "vorbis"])
def test_settings_differ(name):
    heard = [codecs.through(voice(8000), RATE_HZ, name, Pick(n)) for n in range(len(codecs.CODECS[name].settings))]
    assert len({clip.tobytes() for clip in heard}) == len(heard)


@pytest.mark.parametrize("name", ["g726", "mp3", "aac"])
def test_fewer_bits_leave_more_noise(name):
    """The settings stand in the order of their bit rates, G.726 from the best."""
    likenesses = [
        likeness(codecs.through(voice(), RATE_HZ, name, Pick(n)), voice())
        for n in range(len(codecs.CODECS[name].settings))
    ]
    assert likenesses == sorted(likenesses, reverse=name == "g726")


@pytest.mark.parametrize("law", ["mulaw", "alaw"])
@settings(max_examples=30, deadline=None)
@given(samples=CLIPS)
def test_g711_at_its_own_rate_is_decode_of_codes(law, samples):
    heard = codecs.through(samples, 8000, law, np.random.default_rng(0))
    assert np.array_equal(heard, decode(encode(samples, law), law))


@pytest.mark.parametrize("law", ["mulaw", "alaw"])
def test_g711_at_another_rate_is_that_between_two_resamplings(law):
    codes = encode(resample(voice(), RATE_HZ, 8000), law)
    heard = codecs.through(voice(), RATE_HZ, law, np.random.default_rng(0))
    assert np.array_equal(heard, resample(decode(codes, law), 8000, RATE_HZ))


def test_two_in_a_row_are_worse_than_one():
    rng = np.random.default_rng(0)
    once = codecs.through(voice(), RATE_HZ, "gsm", rng)
    twice = codecs.through(once, RATE_HZ, "gsm", rng)
    assert abs(lag(twice, voice())) <= 1
    assert likeness(twice, voice()) < likeness(once, voice())


@pytest.mark.parametrize("length", [3, 8])
def test_a_fit_cuts_or_fills_with_silence(length):
    assert codecs.fit(np.ones(5, np.float32), length).tolist() == [1] * min(5, length) + [0] * (length - 5)
