"""Augmentation: any clip stays a clip, and each change does what it says."""

import re
import tomllib
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from streamdet_training import augment
from streamdet_training.recipe import Augment

RATE_HZ = 16_000
CHANGES = (
    "speed",
    "room",
    "noise",
    "rawboost",
    "equaliser",
    "handset",
    "clipping",
    "resampling",
    "band_limit",
    "codec",
    "tandem",
    "packet_loss",
    "jitter",
)
EVERYTHING = Augment(rawboost_algorithms=range(1, 9), **dict.fromkeys(CHANGES, 1.0))
NOW_AND_THEN = Augment(**dict.fromkeys(CHANGES, 0.5))

CLIPS = arrays(np.float32, st.integers(1, 3000), elements=st.floats(-1, 1, width=32))


def noise(samples: int, seed: int = 1) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal(samples)).astype(np.float32)


def power(samples: np.ndarray) -> float:
    return float(np.square(samples, dtype=np.float64).mean())


@pytest.mark.parametrize("how", [EVERYTHING, NOW_AND_THEN, Augment()], ids=["everything", "now and then", "level"])
@settings(max_examples=30, deadline=None)
@given(samples=CLIPS, seed=st.integers(0, 2**32))
def test_any_clip_stays_a_clip_and_a_seed_gives_it_again(how, samples, seed):
    before = samples.copy()
    heard = augment.augment(samples, RATE_HZ, how, np.random.default_rng(seed))
    assert heard.shape == samples.shape
    assert heard.dtype == np.float32
    assert np.isfinite(heard).all()
    assert abs(heard).max() <= 1
    assert np.array_equal(heard, augment.augment(samples, RATE_HZ, how, np.random.default_rng(seed)))
    assert np.array_equal(samples, before)  # clips are kept in memory and heard again


def test_an_empty_section_sets_the_level_and_nothing_else():
    samples = noise(4000)
    heard = augment.augment(samples, RATE_HZ, Augment(gain_dbfs=(-20, -20)), np.random.default_rng(0))
    assert np.array_equal(heard, augment.set_level(samples, -20))
    assert all(getattr(Augment(), change) == 0 for change in CHANGES)


@pytest.mark.parametrize("change", [name for name in CHANGES if name != "tandem"])
def test_each_share_turns_on_its_change_and_no_other(change):
    """Another chain is another clip; a share of 0 of everything else leaves one change."""
    alone = {"gain_dbfs": (-20, -20), "packet_loss_share": (0.2, 0.2), "speed_by": (1.05, 1.05)}
    samples = noise(2 * RATE_HZ)
    plain = augment.augment(samples, RATE_HZ, Augment(**alone), np.random.default_rng(2))
    heard = augment.augment(samples, RATE_HZ, Augment(**alone, **{change: 1}), np.random.default_rng(2))
    assert not np.array_equal(plain, heard)


def test_a_call_meets_changes_in_their_order(monkeypatch):
    """Voice, room, noise, device, level, codecs, network."""
    met = []
    for name in (
        "change_speed", "add_room", "add_noise", "rawboost", "equalise", "through_handset", "overdrive", "through_rate",
        "limit_band", "set_level", "through", "lose_packets", "jitter",
    ):  # fmt: skip
        original = getattr(augment, name)

        def spy(*args, _name=name, _original=original, **kwargs):
            met.append(_name)
            return _original(*args, **kwargs)

        monkeypatch.setattr(augment, name, spy)
    augment.augment(noise(4000), RATE_HZ, EVERYTHING, np.random.default_rng(0))
    assert met == [
        "change_speed", "add_room", "add_noise", "rawboost", "equalise", "through_handset", "overdrive", "through_rate",
        "limit_band", "set_level", "through", "through", "lose_packets", "jitter",
    ]  # fmt: skip


def test_nothing_is_drawn_from_elsewhere():
    """Not even the choice of a law, which hypothesis' own seeding of numpy would hide."""
    for seed in range(20):
        one, two = (augment.augment(noise(400), RATE_HZ, EVERYTHING, np.random.default_rng(seed)) for _ in range(2))
        assert np.array_equal(one, two)


def spectrum(samples: np.ndarray) -> np.ndarray:
    return np.square(abs(np.fft.rfft(samples)))


def test_another_seed_gives_another_clip():
    one, two = (augment.augment(noise(4000), RATE_HZ, EVERYTHING, np.random.default_rng(seed)) for seed in (1, 2))
    assert not np.array_equal(one, two)


def test_shares_are_kept():
    """Level alone has no choice to make; with noise on half of the clips, half of them differ from that."""
    samples, how = noise(400), {"gain_dbfs": (-20, -20), "noise_snr_db": (10, 10)}
    plain = augment.augment(samples, RATE_HZ, Augment(**how), np.random.default_rng(0))
    rng = np.random.default_rng(3)
    noisy = [augment.augment(samples, RATE_HZ, Augment(**how, noise=0.5), rng) for _ in range(400)]
    assert 160 < sum(not np.array_equal(plain, heard) for heard in noisy) < 240


@settings(deadline=None)
@given(samples=CLIPS, length=st.integers(1, 4000), seed=st.integers(0, 99))
def test_a_crop_is_a_stretch_of_the_clip(samples, length, seed):
    cut = augment.crop(samples, length, np.random.default_rng(seed))
    assert cut.size == min(length, samples.size)
    assert any(np.array_equal(cut, samples[at : at + cut.size]) for at in range(samples.size - cut.size + 1))


def test_crops_reach_both_ends():
    clip, rng = np.arange(10, dtype=np.float32), np.random.default_rng(0)
    assert {augment.crop(clip, 8, rng)[0] for _ in range(100)} == {0, 1, 2}


def test_a_band_limit_takes_away_what_lies_above_it():
    before = np.square(abs(np.fft.rfft(noise(RATE_HZ))))
    after = np.square(abs(np.fft.rfft(augment.limit_band(noise(RATE_HZ), RATE_HZ, 3500))))
    assert after[4000:].sum() < 1e-6 * before[4000:].sum()
    assert after[:3000].sum() == pytest.approx(before[:3000].sum(), rel=1e-3)


@pytest.mark.parametrize("dbfs", [-35, -12])
def test_a_level_is_set(dbfs):
    assert 10 * np.log10(power(augment.set_level(noise(4000), dbfs))) == pytest.approx(dbfs, abs=0.01)
    assert not augment.set_level(np.zeros(100, np.float32), dbfs).any()


def test_an_equaliser_tilts_and_bumps_by_no_more_than_it_says():
    before = abs(np.fft.rfft(noise(RATE_HZ)))
    for seed in range(10):
        after = abs(np.fft.rfft(augment.equalise(noise(RATE_HZ), RATE_HZ, np.random.default_rng(seed))))
        change_db = 20 * np.log10(after[200:7000] / before[200:7000])
        assert np.ptp(change_db) > 0.5
        assert abs(change_db).max() < 4 * np.log2(7.1) + 8 + 0.1


@pytest.mark.parametrize("faster", [0.9, 1.1])
def test_speed_moves_the_pitch_and_keeps_the_length(faster):
    tone = np.sin(2 * np.pi * 1000 * np.arange(RATE_HZ) / RATE_HZ).astype(np.float32)
    heard = augment.change_speed(tone, RATE_HZ, faster)
    assert heard.shape == tone.shape
    assert spectrum(heard).argmax() == pytest.approx(1000 * faster, abs=2)


def test_what_is_missing_after_speeding_up_is_filled_from_the_start():
    heard = augment.change_speed(noise(1000), 1000, 1.25)
    assert np.array_equal(heard[800:], heard[:200])


def test_a_handset_passes_the_telephone_band_and_shuts_out_the_rest():
    for seed in range(20):
        heard = augment.through_handset(noise(RATE_HZ), RATE_HZ, np.random.default_rng(seed))
        gain_db = 10 * np.log10(spectrum(heard) / spectrum(noise(RATE_HZ)))
        passed = gain_db[1000]
        assert gain_db[50:100].max() < passed - 14
        assert gain_db[5500:].max() < passed - 20
        assert gain_db[500:3000].min() > passed - 8
        assert gain_db[2500] > passed - 1  # it rises, as telephones do


@pytest.mark.parametrize("share", [0.001, 0.05])
def test_hard_clipping_cuts_off_the_share_asked_for(share):
    heard = augment.overdrive(noise(RATE_HZ), share, soft=False)
    limit = abs(heard).max()
    assert np.mean(abs(heard) == limit) == pytest.approx(share, rel=0.1)
    below = abs(noise(RATE_HZ)) < limit
    assert np.array_equal(heard[below], noise(RATE_HZ)[below])


@pytest.mark.parametrize("soft", [True, False])
def test_clipping_adds_odd_harmonics(soft):
    tone = (0.3 * np.sin(2 * np.pi * 500 * np.arange(RATE_HZ) / RATE_HZ)).astype(np.float32)
    heard = spectrum(augment.overdrive(tone, 0.4, soft=soft))
    assert heard[1500] > 1e-4 * heard[500]
    assert heard[1000] < 1e-6 * heard[500]
    assert spectrum(tone)[1500] < 1e-6 * spectrum(tone)[500]  # the negative control


def test_soft_clipping_has_no_corner():
    bent = augment.overdrive(noise(RATE_HZ), 0.05, soft=True)
    assert np.mean(abs(bent) == abs(bent).max()) < 0.001
    assert np.array_equal(np.argsort(bent), np.argsort(noise(RATE_HZ)))


@pytest.mark.parametrize("via_hz", [8000, 11025, 12000])
def test_another_rate_takes_away_what_it_cannot_hold(via_hz):
    heard = spectrum(augment.through_rate(noise(RATE_HZ), RATE_HZ, via_hz, "HQ"))
    assert heard[via_hz // 2 + 200 :].sum() < 1e-4 * heard.sum()
    assert heard[:3000].sum() == pytest.approx(spectrum(noise(RATE_HZ))[:3000].sum(), rel=0.01)


def test_a_poor_converter_lets_images_through():
    poor, good = (spectrum(augment.through_rate(noise(RATE_HZ), RATE_HZ, 8000, how)) for how in ("QQ", "HQ"))
    assert poor[4500:].sum() > 100 * good[4500:].sum()


def test_noise_comes_from_the_folder_half_of_the_time(tmp_path):
    tone = 0.3 * np.sin(2 * np.pi * 3000 * np.arange(RATE_HZ) / RATE_HZ)
    soundfile.write(tmp_path / "tone.wav", tone, RATE_HZ)
    how, rng, clip = (
        Augment(noise=1, noise_folder=tmp_path, noise_kinds=["hum"]),
        np.random.default_rng(4),
        noise(RATE_HZ),
    )
    tones = 0
    for _ in range(60):
        heard = spectrum(augment.add_noise(clip, RATE_HZ, how, rng) - clip)
        tones += heard[2990:3010].sum() > 0.9 * heard.sum()
    assert 15 < tones < 45


def test_the_page_has_a_section_that_is_taken():
    page = (Path(__file__).parents[2] / "docs" / "training.md").read_text("utf-8")
    (section,) = re.findall(r"^```toml\n(\[augment\]\n.*?)^```", page, re.MULTILINE | re.DOTALL)
    how = Augment.model_validate(tomllib.loads(section)["augment"])
    assert sum(getattr(how, change) > 0 for change in CHANGES) == len(CHANGES)
    heard = augment.augment(noise(8000), RATE_HZ, how, np.random.default_rng(0))
    assert heard.shape == (8000,)


def test_a_tandem_is_two_codecs(monkeypatch):
    names = []
    monkeypatch.setattr(augment, "through", lambda samples, _rate_hz, name, _rng: names.append(name) or samples)
    rng = np.random.default_rng(0)
    for _ in range(200):
        augment.augment(noise(400), RATE_HZ, Augment(codec=0.5, tandem=0.5, codecs=["gsm", "alaw"]), rng)
    assert 120 < len(names) < 180  # 200 * 0.5 * 1.5
    assert set(names) == {"gsm", "alaw"}
