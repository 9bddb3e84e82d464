"""Batches: what batch n holds depends on the seed and n, and on nothing else."""

import numpy as np
import pytest
import soundfile
import torch

from streamdet.audio import fill
from streamdet.errors import DataError
from streamdet_training.batches import Batches, batches
from streamdet_training.data import Clip

RATE_HZ = 16_000
ALL_CHANGES = {"room": 0.5, "equaliser": 0.5, "band_limit": 0.5, "noise": 0.5, "codec": 0.5}


def same(one, two) -> bool:
    return all(torch.equal(left, right) for left, right in zip(one, two, strict=True))


def test_a_batch_depends_on_the_seed_and_its_number_alone(tiny, tones):
    how = tiny.recipe(augment=ALL_CHANGES)
    alone = Batches(tones, how)[7]
    np.random.seed(5)  # the global state is what must not matter
    torch.manual_seed(5)
    batches = Batches(tones, how)
    in_order = [batches[number] for number in range(8)]
    assert same(alone, in_order[7])
    assert not any(same(alone, other) for other in in_order[:7])
    assert not same(alone, Batches(tones, how.model_copy(update={"seed": 2}))[7])


def test_half_of_a_batch_is_bona_fide_and_labels_fit_the_audio(tiny, tones):
    audio, labels = Batches(tones, tiny.recipe(train={"batch": 6}))[0]
    assert audio.dtype == labels.dtype == torch.float32
    assert labels.sum() == 3
    peaks_hz = abs(np.fft.rfft(audio.numpy())).argmax(1) * RATE_HZ / audio.shape[1]
    assert [{400: 1, 2000: 0}[round(hertz)] for hertz in peaks_hz] == labels.tolist()


def test_an_uneven_collection_still_gives_even_batches(tiny, tones):
    few = [clip for clip in tones if clip.label == "bonafide"][:1]
    audio, labels = Batches([*few, *(clip for clip in tones if clip.label == "spoof")], tiny.recipe())[0]
    assert labels.mean() == 0.5
    assert audio.shape[0] == 4


def test_a_batch_has_one_of_the_lengths_of_the_recipe(tiny, tones):
    batches = Batches(tones, tiny.recipe(train={"crop_s": [0.25, 0.5]}))
    assert {batches[number][0].shape[1] for number in range(20)} == {4000, 8000}


def test_a_batch_for_blocks_has_the_audio_before_them_too(tiny, tones):
    blocks = {"kind": "block", "window_s": 0.5, "hop_s": 0.25, "left_s": 0.125}
    batches = Batches(tones, tiny.recipe(train={"crop_s": [0.25, 0.5]}, window=blocks))
    assert {batches[number][0].shape[1] for number in range(20)} == {6000, 10000}


def test_a_clip_of_another_rate_is_resampled(tiny, tones):
    how = tiny.recipe(window={"rate_hz": 8000}, train={"crop_s": [0.5]})
    audio, labels = Batches(tones, how)[0]
    assert audio.shape == (4, 4000)
    peaks_hz = abs(np.fft.rfft(audio.numpy())).argmax(1) * 8000 / 4000
    assert [{400: 1, 2000: 0}[round(hertz)] for hertz in peaks_hz] == labels.tolist()


def test_a_short_clip_is_repeated_as_the_daemon_repeats_it(tiny, tmp_path):
    clips = []
    for label in ("bonafide", "spoof"):
        soundfile.write(tmp_path / f"{label}.wav", np.random.default_rng(1).uniform(-0.5, 0.5, 1500), RATE_HZ)
        clips.append(Clip(path=tmp_path / f"{label}.wav", label=label))
    audio, _ = Batches(clips, tiny.recipe(train={"crop_s": [0.25]}))[0]
    for heard in audio.numpy():
        assert heard[:1500].any()
        assert np.array_equal(heard, fill(heard[:1500], 4000))


def test_small_origins_are_heard_more_often_than_their_share(tiny, tones):
    """One clip of a system against nine of another: the square root gives it 1/4 of the draws, not 1/10."""
    bona, fake = tones[0], tones[1]
    spoof = [Clip(path=fake.path, label="spoof", system="large")] * 9
    rare = Clip(path=bona.path, label="spoof", system="small")  # a tone that tells them apart
    batches = Batches([bona, *spoof, rare], tiny.recipe(train={"batch": 100, "crop_s": [0.05]}))
    heard, of = 0, 0
    for number in range(10):
        audio, labels = batches[number]
        peaks_hz = abs(np.fft.rfft(audio[labels == 0].numpy())).argmax(1) * RATE_HZ / audio.shape[1]
        heard, of = heard + int((peaks_hz < 1000).sum()), of + len(peaks_hz)
    assert heard / of == pytest.approx(1 / 4, abs=0.06)


@pytest.mark.parametrize("label", ["bonafide", "spoof"])
def test_one_class_alone_is_refused(tiny, tones, label):
    with pytest.raises(DataError, match="some of either class"):
        Batches([clip for clip in tones if clip.label == label], tiny.recipe())


# -- lengths ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def hisses(tmp_path):
    """Clips of noise, which never repeats by itself: what repeats in a batch was filled."""
    clips = []
    for number, label in enumerate(("bonafide", "spoof")):
        samples = np.random.default_rng(number).uniform(-0.5, 0.5, 5 * RATE_HZ)
        soundfile.write(tmp_path / f"{label}.wav", samples, RATE_HZ)
        clips.append(Clip(path=tmp_path / f"{label}.wav", label=label))
    return clips


def periods(how, clips, numbers):
    """Seconds after which each clip of some batches starts again, by class; the batch's length where it does not."""
    found = {0: [], 1: []}
    for number in numbers:
        audio, labels = Batches(clips, how)[number]
        for samples, label in zip(audio.numpy(), labels.tolist(), strict=True):
            again = np.flatnonzero(samples[1:] == samples[0]) + 1
            starts = [at for at in again if np.array_equal(samples[at:], samples[: samples.size - at])]
            found[int(label)].append(min([*starts, samples.size]) / RATE_HZ)
    return found


def test_a_share_of_the_clips_is_cut_shorter_and_filled(tiny, hisses):
    train = {"crop_s": [4.0], "batch": 20, "fill": 0.5, "shortest_s": 0.5}
    found = np.concatenate(list(periods(tiny.recipe(train=train), hisses, range(10)).values()))
    assert found.min() >= 0.5
    assert (found < 1).any()
    assert np.mean(found < 4) == pytest.approx(0.5, abs=0.1)


def test_the_cuts_are_as_long_in_either_class(tiny, hisses):
    train = {"crop_s": [4.0], "batch": 40, "fill": 1.0}
    found = periods(tiny.recipe(train=train), hisses, range(10))
    assert np.mean(found[0]) == pytest.approx(2.25, abs=0.25)
    assert np.mean(found[1]) == pytest.approx(2.25, abs=0.25)


def test_a_batch_shorter_than_the_shortest_cut_is_cut_whole(tiny, hisses):
    train = {"crop_s": [0.25], "fill": 1.0, "shortest_s": 0.5}
    assert set(np.concatenate(list(periods(tiny.recipe(train=train), hisses, [0]).values()))) == {0.25}


def test_workers_change_nothing(tiny, tones):
    drawn = [list(batches(tones, tiny.recipe(train={"workers": workers}), range(3, 7))) for workers in (0, 2)]
    assert all(same(one, other) for one, other in zip(*drawn, strict=True))
