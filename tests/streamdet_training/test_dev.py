"""Measuring in training: the daemon's own path, in batches over clips."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamdet.window import score_windows
from streamdet_training import dev
from streamdet_training.data import Clip
from streamdet_training.listener import Listener
from streamdet_training.scores import score_clips


def loudness(audio):
    return np.abs(audio).mean(1)


@pytest.mark.parametrize(("most", "expected_sizes"), [(5, {4}), (1, {1}), (100, {16})])
def test_batches_over_clips_give_what_single_clips_do(tiny, tones, monkeypatch, most, expected_sizes):
    """Clips of two windows: two clips fit into a batch of five, and none into one of a single window."""
    manifest, sizes = tiny.recipe().draft(), []
    monkeypatch.setattr(dev, "BATCH", most)

    def run(audio):
        sizes.append(len(audio))
        return loudness(audio)

    expected = score_clips(tones, manifest, lambda windows: score_windows(windows, manifest, loudness))
    assert list(dev.score(tones, manifest, Listener(run))) == expected
    assert set(sizes) == expected_sizes
    assert sum(sizes) == sum(len(trial.llrs) for trial in expected) == 16


def test_measures_are_those_of_the_scores(tiny, tones):
    manifest = tiny.recipe().draft()
    assert dev.measure(tones, manifest, Listener(lambda audio: np.abs(np.diff(audio)).mean(1))) == (
        1.0,
        1.0,
    )  # spoof is higher
    assert dev.measure(tones, manifest, Listener(lambda audio: -np.abs(np.diff(audio)).mean(1)))[0] == 0


@given(bona_fide=st.integers(1, 30), spoof=st.integers(1, 30), count=st.integers(0, 70))
def test_a_part_of_dev_is_as_large_as_asked_and_balanced(bona_fide, spoof, count):
    clips = [Clip(path=f"{n}", label="bonafide" if n < bona_fide else "spoof") for n in range(bona_fide + spoof)]
    some = dev.some(clips, count)
    if not 0 < count < len(clips):
        assert some == clips
        return
    assert len(some) == len(set(some)) == max(2, count) if count > 1 else len(some) <= 2
    found = sum(clip.label == "bonafide" for clip in some)
    assert found >= min(bona_fide, max(1, count // 2))
    assert len(some) - found >= min(spoof, max(1, count // 2))
    assert dev.some(clips, count) == some


@pytest.mark.parametrize("count", [1, 2, 3])
def test_either_class_is_there(count):
    clips = [Clip(path=f"{n}", label="bonafide" if n else "spoof") for n in range(10)]
    assert {clip.label for clip in dev.some(clips, count)} == {"bonafide", "spoof"}
