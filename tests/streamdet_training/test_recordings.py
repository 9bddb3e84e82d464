"""Recordings: what is no speech to learn from, line by line, and the cache that must never hand out anything else."""

import logging
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import soundfile

from streamdet.audio import encode
from streamdet.bundle import Bundle
from streamdet.errors import DataError, MissingError, StreamdetError, UsageError
from streamdet.scorer import Scorer
from streamdet_training import recordings
from streamdet_training.batches import Batches, batches
from streamdet_training.clips import Clip
from streamdet_training.recordings import Recordings
from streamdet_training.scores import score_clip

RATE_HZ = 16_000


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes a recording; paths are relative, since messages cut long ones."""
    monkeypatch.chdir(tmp_path)

    def write(samples, rate_hz: int = RATE_HZ, name: str = "a.wav", subtype: str = "PCM_16") -> Path:
        soundfile.write(name, samples, rate_hz, subtype=subtype)
        return Path(name)

    return write


def noise(seconds: float = 1.0, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-0.5, 0.5, round(seconds * RATE_HZ))


# -- bad input -------------------------------------------------------------------------------------------------------


def gone(_) -> Path:
    return Path("a.wav")


def unreadable(_) -> Path:
    Path("a.wav").write_bytes(b"RIFF, or so it seems")
    return Path("a.wav")


def with_value(value: float):
    def make(write) -> Path:
        samples = noise()
        samples[7] = value
        return write(samples, subtype="FLOAT")

    return make


BAD = [
    (gone, MissingError, r"^recording: 'a\.wav', expected a file that exists$"),
    (unreadable, DataError, r"^recording: 'a\.wav', expected audio that libsndfile can read"),
    (lambda write: write(np.zeros(0)), DataError, r"^recording: 'a\.wav', expected at least one sample$"),
    (lambda write: write(noise(), 7), DataError, r"^rate of a\.wav: 7, expected 8000 to 192000 Hz$"),
    (lambda write: write(noise(), 384_000), DataError, r"^rate of a\.wav: 384000, expected 8000 to 192000 Hz$"),
    (with_value(np.nan), DataError, r"^sample 7 of a\.wav: nan, expected a finite number$"),
    (with_value(-np.inf), DataError, r"^sample 7 of a\.wav: -inf, expected a finite number$"),
]


@pytest.mark.parametrize(("make", "error", "words"), BAD)
@pytest.mark.parametrize("cache", [None, Path("cache")])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_recording_is_one_line_in_training(write, tiny, make, error, words, cache, workers):
    clips = [Clip(path=make(write), label="bonafide"), Clip(path=write(noise(), name="b.wav"), label="spoof")]
    how = tiny.recipe(data={"cache": cache}, train={"workers": workers})
    with pytest.raises(error, match=words) as caught:
        next(batches(clips, how, [0]))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("make", "error", "words"), BAD)
def test_a_bad_recording_is_one_line_in_evaluation(write, tiny_bundle: Bundle, make, error, words):
    scorer = Scorer(tiny_bundle)
    with pytest.raises(error, match=words):
        score_clip(Clip(path=make(write), label="spoof"), scorer.manifest, scorer.score)


def test_only_the_first_channel_counts(write):
    samples = np.stack([noise(seed=seed) for seed in range(3)], 1)
    heard, rate_hz = recordings.read(write(samples, subtype="FLOAT"))
    assert rate_hz == RATE_HZ
    assert np.array_equal(heard, samples[:, 0].astype(np.float32))


def test_what_is_beyond_full_scale_is_clipped_as_the_daemon_clips_it(write):
    samples = 4 * noise()
    heard, _ = recordings.read(write(samples, subtype="FLOAT"))
    assert np.array_equal(heard, np.frombuffer(encode(samples.astype(np.float32), "f32le"), "<f4"))


def test_a_clipped_recording_is_used(write, tiny):
    clips = [Clip(path=write(np.sign(noise())), label=label) for label in ("bonafide", "spoof")]
    audio, _ = Batches(clips, tiny.recipe())[0]
    assert audio.abs().sum() > 0


def test_silent_clips_are_passed_over_and_counted_once(write, tiny, caplog):
    caplog.set_level(logging.WARNING)
    dither = np.random.default_rng(1).integers(-1, 2, RATE_HZ) / 32768
    clips = [
        Clip(path=write(np.zeros(RATE_HZ), name="zero.wav"), label="spoof"),
        Clip(path=write(dither, name="dither.wav"), label="spoof"),
        Clip(path=write(noise(), name="b.wav"), label="spoof"),
        Clip(path=write(noise(), name="c.wav"), label="bonafide"),
    ]
    drawn = Batches(clips, tiny.recipe(augment={"gain_dbfs": [-20, -20]}))
    for number in range(10):
        audio, _ = drawn[number]
        assert audio.square().mean(1).sqrt().min() > 0.05
    said = [record.getMessage() for record in caplog.records]
    assert sorted(line.partition(" is silent and passed over")[0] for line in said) == ["dither.wav", "zero.wav"]
    assert said[-1].endswith("(2 so far)")


def test_nothing_but_silence_is_refused(write, tiny):
    clips = [Clip(path=write(np.zeros(RATE_HZ)), label=label) for label in ("bonafide", "spoof")]
    with pytest.raises(DataError, match="train clips: '100 silent ones in a row', expected speech"):
        Batches(clips, tiny.recipe())[0]


def test_a_silent_clip_has_no_score_in_evaluation(write, tiny_bundle):
    scorer = Scorer(tiny_bundle)
    trial = score_clip(Clip(path=write(np.zeros(5 * RATE_HZ)), label="spoof"), scorer.manifest, scorer.score)
    assert trial.windows
    assert trial.llrs == []
    assert trial.llr == 0


@pytest.mark.parametrize("rate_hz", [9600, 96_000])
def test_a_rate_that_no_call_has_is_scored_as_the_models_own(write, tiny_bundle, babble, rate_hz):
    scorer = Scorer(tiny_bundle)
    path = write(np.repeat(babble, 6)[:: 96_000 // rate_hz], rate_hz)
    trial = score_clip(Clip(path=path, label="spoof"), scorer.manifest, scorer.score)
    assert trial.llrs
    assert trial.windows[-1][0] <= 10.1


# -- the cache -------------------------------------------------------------------------------------------------------


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def decodings(monkeypatch):
    """Paths that were really decoded."""
    seen, read = [], recordings.read_recording

    def spy(path):
        seen.append(path)
        return read(path)

    monkeypatch.setattr(recordings, "read_recording", spy)
    return seen


@pytest.mark.parametrize("rate_hz", [8000, 44_100])
def test_a_recording_is_decoded_once_for_all_processes(write, decodings, rate_hz):
    path, cache = write(noise(), rate_hz), Path("cache")
    one, rate_one = Recordings(cache).read(path)
    other, rate_other = pickle.loads(pickle.dumps(Recordings(cache))).read(path)
    plain, _ = recordings.read(path)
    assert rate_one == rate_other == rate_hz
    assert np.array_equal(one, plain.astype(np.float16))
    assert np.array_equal(one, other)
    assert isinstance(other, np.memmap)
    assert len(decodings) == 2  # by the cache, and by this test
    assert len(files(cache)) == 1  # and nothing half-written


def test_without_a_cache_memory_keeps_it(write, decodings):
    path, reader = write(noise()), Recordings()
    assert reader.read(path)[0] is reader.read(path)[0]
    assert len(decodings) == 1


def test_a_recording_that_changes_is_decoded_anew(write, decodings):
    path, reader = write(noise()), Recordings(Path("cache"))
    before, _ = reader.read(path)
    state = path.stat()
    write(noise(seed=2))
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns + 1))  # as long, and a moment younger
    after, _ = reader.read(path)
    assert not np.array_equal(before, after)
    assert len(decodings) == 2


DAMAGES = [
    lambda content: content[:-1],
    lambda content: content + b"x",
    lambda content: content[:10],
    lambda content: content[:0],
    lambda content: b"another format!!" + content[16:],
    lambda content: content[:500] + bytes([content[500] ^ 1]) + content[501:],
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_never_heard(write, damage):
    path, cache = write(noise()), Path("cache")
    before = np.array(Recordings(cache).read(path)[0])
    (kept,) = files(cache)
    whole = kept.read_bytes()
    kept.write_bytes(damage(whole))
    after, rate_hz = Recordings(cache).read(path)
    assert np.array_equal(before, after)
    assert rate_hz == RATE_HZ
    assert kept.read_bytes() == whole


def test_a_batch_is_the_same_with_a_cache(tiny, tones, tmp_path):
    plain = Batches(tones, tiny.recipe())
    for _ in range(2):  # filled, then used
        cached = Batches(tones, tiny.recipe(data={"cache": tmp_path / "cache"}))
        assert all(np.array_equal(plain[number][0], cached[number][0]) for number in range(4))


def test_a_cache_that_cannot_be_written_is_named(write):
    Path("cache").write_bytes(b"")
    with pytest.raises(UsageError, match=r"data\.cache: 'cache', expected a folder to write in \("):
        Recordings(Path("cache")).read(write(noise()))


def test_every_error_here_is_ours():
    assert all(issubclass(error, StreamdetError) for _, error, _ in BAD)
