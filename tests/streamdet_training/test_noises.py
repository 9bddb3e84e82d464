"""Noises: each kind is what its name says, and as strong as asked."""

from typing import get_args

import numpy as np
import pytest
import soundfile

from streamdet.errors import DataError
from streamdet_training import noises
from streamdet_training.recipe import NoiseName

RATE_HZ = 16_000
KINDS = get_args(NoiseName)


def voice(samples: int = RATE_HZ) -> np.ndarray:
    return (0.1 * np.random.default_rng(1).standard_normal(samples)).astype(np.float32)


def power(samples) -> float:
    return float(np.square(samples, dtype=np.float64).mean())


def spectrum(samples) -> np.ndarray:
    return np.square(abs(np.fft.rfft(samples)))


def test_every_kind_of_the_recipe_is_made():
    assert tuple(noises.MAKERS) == KINDS


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("snr_db", [5, 20, 40])
def test_noise_is_as_strong_as_asked(kind, snr_db):
    made = noises.make(kind, RATE_HZ, RATE_HZ, np.random.default_rng(5))
    added = noises.add(voice(), made, snr_db) - voice()
    assert 10 * np.log10(power(voice()) / power(added)) == pytest.approx(snr_db, abs=0.5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", [1, 2, 777])
def test_any_length_at_any_rate_is_made_and_made_again(kind, length):
    for rate_hz in (8000, 44_100):
        one, two = (noises.make(kind, length, rate_hz, np.random.default_rng(2)) for _ in range(2))
        assert one.shape == (length,)
        assert np.isfinite(one).all()
        assert np.array_equal(one, two)


def test_silence_on_either_side_changes_nothing():
    silence = np.zeros(100, np.float32)
    assert np.array_equal(noises.add(voice(100), silence, 10), voice(100))
    assert np.array_equal(noises.add(silence, voice(100), 10), silence)


@pytest.mark.parametrize(("slope", "fall_db"), [(0, 0), (1, 9), (2, 18)])
def test_coloured_noise_falls_with_frequency_as_asked(slope, fall_db):
    """From 500 Hz to 4 kHz are three octaves: 9 dB of pink noise."""
    heard = spectrum(noises.coloured(4 * RATE_HZ, RATE_HZ, slope, np.random.default_rng(5)))
    low, high = heard[4 * 450 : 4 * 550].mean(), heard[4 * 3950 : 4 * 4050].mean()
    assert 10 * np.log10(low / high) == pytest.approx(fall_db, abs=1.5)


def test_hum_is_at_the_mains_frequency_and_its_multiples():
    bases = set()
    for seed in range(10):
        heard = spectrum(noises.hum(10 * RATE_HZ, RATE_HZ, np.random.default_rng(seed)) * np.hanning(10 * RATE_HZ))
        hertz = np.arange(heard.size) / 10
        shares = {}
        for base in (50, 60):
            near = abs(hertz - base * np.maximum(np.round(hertz / base), 1)) <= 0.001 * hertz + 0.5
            shares[base] = heard[near].sum() / heard.sum()
        bases.add(max(shares, key=shares.get))
        assert max(shares.values()) > 0.99
    assert bases == {50, 60}


def test_babble_has_the_spectrum_and_the_syllables_of_speech():
    made = noises.babble(8 * RATE_HZ, RATE_HZ, np.random.default_rng(3))
    heard = spectrum(made)
    hertz = np.arange(heard.size) / 8
    assert heard[(hertz > 80) & (hertz < 4000)].sum() > 0.9 * heard.sum()
    loudness = np.sqrt(np.square(made.reshape(-1, 160)).mean(1))  # of each 10 ms
    assert loudness.std() / loudness.mean() > 0.25
    modulation = spectrum(loudness - loudness.mean())
    rate = np.arange(modulation.size) / 8
    assert modulation[(rate > 0.5) & (rate < 12)].sum() > 0.6 * modulation[rate < 45].sum()


def test_clicks_are_short_and_far_apart():
    for seed in range(10):
        made = noises.clicks(4 * RATE_HZ, RATE_HZ, np.random.default_rng(seed))
        loudest = np.sort(np.square(made))[::-1]
        assert loudest[: made.size // 10].sum() > 0.95 * loudest.sum()
        assert abs(made).max() > 8 * np.sqrt(power(made))


def write(path, samples, rate_hz=RATE_HZ):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate_hz)


def test_a_folder_gives_stretches_of_all_its_recordings(tmp_path):
    for number, hertz in enumerate((440, 1000)):
        tone = 0.3 * np.sin(2 * np.pi * hertz * np.arange(3 * 8000) / 8000)
        write(tmp_path / str(number) / "tone.flac", tone, 8000)
    (tmp_path / "LICENCE.txt").write_text("free", "utf-8")
    rng, peaks = np.random.default_rng(1), set()
    for _ in range(20):
        made = noises.from_folder(tmp_path, RATE_HZ, RATE_HZ, rng)
        assert made.shape == (RATE_HZ,)
        peaks.add(int(spectrum(made).argmax()))
    assert peaks == {440, 1000}


def test_a_short_recording_is_repeated(tmp_path):
    write(tmp_path / "a.wav", [0.1, 0.2, 0.3])
    made = noises.from_folder(tmp_path, 7, RATE_HZ, np.random.default_rng(0))
    assert np.allclose(made, [0.1, 0.2, 0.3, 0.1, 0.2, 0.3, 0.1], atol=1e-4)


def test_a_folder_without_recordings_and_a_broken_one_are_refused(tmp_path):
    with pytest.raises(DataError, match="noise_folder"):
        noises.from_folder(tmp_path, 10, RATE_HZ, np.random.default_rng(0))
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "broken.wav").write_bytes(b"not audio")
    with pytest.raises(DataError, match=r"broken\.wav"):
        noises.from_folder(tmp_path / "below", 10, RATE_HZ, np.random.default_rng(0))
