"""Score files: whose they are, and what is wrong with them."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from streamdet.errors import DataError, MissingError
from streamdet.records import Score
from streamdet_training import lines, scores
from streamdet_training.data import Clip

RATE_HZ = 16_000
CLIPS = [Clip(path=Path(f"c/{label}/{name}.wav"), label=label) for label in ("bonafide", "spoof") for name in "12"]


def scored(tmp_path, text, clips=CLIPS):
    file = tmp_path / "theirs.txt"
    file.write_text(text)
    return scores.read(file, clips)


def test_other_peoples_score_files_are_read(tmp_path):
    clips = [Clip(path=Path("b1.wav"), label="bonafide"), Clip(path=Path("s1.flac"), label="spoof")]
    assert scored(tmp_path, "b1 0.5\ns1.flac -1e-1\nnobody 3\n", clips) == {"theirs": [0.5, -0.1]}
    assert scored(tmp_path, "filename\tcm-score\ns1\t2\n\nb1.wav\t1\n", clips) == {"theirs": [1, 2]}


def test_folders_tell_files_of_one_name_apart(tmp_path):
    text = "bonafide/1.wav 1\nbonafide/2 2\n/elsewhere/c/spoof/1.wav 3\nspoof/2.wav 4\nother/2.wav 5\n"
    assert scored(tmp_path, text) == {"theirs": [1, 2, 3, 4]}
    with pytest.raises(DataError, match=r"theirs\.txt:1 filename: '1\.wav', expected a path that fits one clip"):
        scored(tmp_path, "1.wav 1\n")


def test_the_scores_of_a_report_are_read_with_all_its_bundles(tmp_path):
    rows = [f"dev,{clip.path},{bundle},{at + shift}" for shift, bundle in ((0, "old"), (10, "new"))
            for at, clip in enumerate(CLIPS)]  # fmt: skip
    text = "\n".join(["split,path,bundle,llr", *rows])
    assert scored(tmp_path, text) == {"old": [0, 1, 2, 3], "new": [10, 11, 12, 13]}
    with pytest.raises(DataError, match=r"1\.wav', expected a score for each of 4 clips"):
        scored(tmp_path, "\n".join(["split,path,bundle,llr", *rows[:6]]))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("bonafide/1 0.5\nbonafide/2 high\n", r"theirs\.txt:2: .*expected a filename and a score"),
        ("bonafide/1 0.5 0.6\n", r"theirs\.txt:1: .*expected a filename and a score"),
        ("bonafide/1 nan\n", r"theirs\.txt:1 score: 'nan', expected a finite number"),
        ("bonafide/1 inf\n", r"theirs\.txt:1 score: 'inf', expected a finite number"),
        ("bonafide/1 1\nbonafide/1 1\n", r"theirs\.txt:2 filename: .*expected one score a clip"),
        ("bonafide/9 0.5\n", r"filename: '1\.wav', expected a score for each of 4 clips"),
        ("", r"filename: '1\.wav', expected a score for each of 4 clips"),
        ("path,bundle,llr\nc/bonafide/1.wav,b,\n", r"theirs\.txt:2: .*expected a filename and a score"),
    ],
)
def test_a_broken_score_file_is_named_with_its_line(tmp_path, text, complaint):
    with pytest.raises(DataError, match=complaint):
        scored(tmp_path, text)


def test_a_score_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(MissingError, match=r"scores: .*expected a file that exists"):
        scores.read(tmp_path / "nothing.txt", CLIPS)


# -- lines -----------------------------------------------------------------------------------------------------------


def power_db(samples, rate_hz, low_hz, high_hz):
    spectrum = np.abs(np.fft.rfft(samples)) ** 2
    hertz = np.fft.rfftfreq(samples.size, 1 / rate_hz)
    return 10 * np.log10(spectrum[(hertz >= low_hz) & (hertz < high_hz)].sum() / samples.size**2 + 1e-20)


@pytest.mark.parametrize("name", lines.LINES)
def test_a_line_carries_a_voice_at_8_khz_and_adds_its_own_noise(name):
    time_s = np.arange(2 * RATE_HZ) / RATE_HZ
    tones = (0.2 * np.sin(2 * np.pi * 500 * time_s) + 0.2 * np.sin(2 * np.pi * 6000 * time_s)).astype(np.float32)
    heard, rate_hz = lines.through(tones, RATE_HZ, name)
    assert (rate_hz, heard.dtype, heard.size) == (8000, np.float32, 16_000)
    assert power_db(heard, rate_hz, 450, 550) == pytest.approx(power_db(tones, RATE_HZ, 450, 550), abs=1.5)
    noise = power_db(heard, rate_hz, 550, 4000) - power_db(heard, rate_hz, 450, 550)
    assert -45 < noise < -10  # 12 to 38 dB of signal to noise: it is there, and what is above 4 kHz is not


def test_a_clip_over_a_line_reaches_the_engine_as_a_call_of_8_khz(tmp_path, tiny):
    path = tmp_path / "a.wav"
    soundfile.write(path, 0.1 * np.random.default_rng(0).standard_normal(RATE_HZ), RATE_HZ)
    heard = []

    def score(windows):
        heard.extend(windows)
        return [Score(1.0, 1.0) for _ in windows]

    manifest = tiny.recipe(window={"window_s": 0.5, "hop_s": 0.5}).draft()
    trial = scores.score_clip(Clip(path=path, label="spoof"), manifest, score, "mulaw")
    assert {window.format.rate_hz for window in heard} == {8000}
    assert trial.windows == ((0.5, 1.0), (1.0, 1.0))
