"""Decoding, resampling, filling: the functions that training and the daemon share."""

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from streamdet import audio
from streamdet.errors import DataError, MissingError


def test_mulaw_and_alaw_agree_with_libsndfile(tmp_path):
    """All 256 codes of both laws, against libsndfile's own tables."""
    for encoding, subtype in (("mulaw", "ULAW"), ("alaw", "ALAW")):
        file = tmp_path / f"{encoding}.raw"
        file.write_bytes(bytes(range(256)))
        theirs, _ = soundfile.read(file, dtype="float32", samplerate=8000, channels=1, format="RAW", subtype=subtype)
        assert np.array_equal(audio.decode(bytes(range(256)), encoding), theirs)


def test_silence_decodes_to_almost_nothing():
    for encoding, code in audio.SILENCE.items():
        assert abs(audio.decode(code, encoding)).max() < 3e-4  # A-law's smallest step is 8 / 32768


@given(st.binary(min_size=4, max_size=64))
def test_any_bytes_decode_to_finite_samples_in_range(data):
    for encoding in audio.SILENCE:
        samples = audio.decode(data[: len(data) // 4 * 4], encoding)
        assert samples.dtype == np.float32
        assert np.isfinite(samples).all()
        assert abs(samples).max() <= 1


@given(arrays(np.float32, st.integers(1, 50), elements=st.floats(-1, 1, width=32)), st.integers(1, 120))
def test_fill_repeats_or_keeps_the_newest(samples, length):
    filled = audio.fill(samples, length)
    assert filled.shape == (length,)
    if samples.size >= length:
        assert np.array_equal(filled, samples[-length:])
    else:
        assert all(filled[at] == samples[at % samples.size] for at in range(length))


def test_fill_refuses_nothing():
    with pytest.raises(DataError, match="at least one sample"):
        audio.fill(np.empty(0, np.float32), 4)


def test_resample_keeps_a_tone_and_its_duration():
    tone = np.sin(2 * np.pi * 440 * np.arange(8000) / 8000).astype(np.float32)
    up = audio.resample(tone, 8000, 16000)
    assert up.shape == (16000,)
    assert abs(np.fft.rfft(up)).argmax() == 440
    assert audio.resample(tone, 8000, 8000) is tone


def test_read_recording_names_what_is_wrong(tmp_path):
    with pytest.raises(MissingError, match=r"nothing\.wav"):
        audio.read_recording(tmp_path / "nothing.wav")
    text = tmp_path / "text.wav"
    text.write_text("not audio")
    with pytest.raises(DataError, match="libsndfile"):
        audio.read_recording(text)
    empty = tmp_path / "empty.wav"
    soundfile.write(empty, np.empty((0, 1)), 8000)
    with pytest.raises(DataError, match="at least one sample"):
        audio.read_recording(empty)
