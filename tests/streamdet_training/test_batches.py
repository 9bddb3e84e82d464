"""Batches: what batch n holds depends on the seed and n, and on nothing else."""

import numpy as np
import pytest
import soundfile
import torch

from streamdet.audio import fill
from streamdet.errors import DataError
from streamdet_training.batches import Batches
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
