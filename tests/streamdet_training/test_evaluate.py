"""Reports by group, score files, and trials that were never heard."""

import json

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner

from streamdet.cli import application
from streamdet.errors import DataError, MissingError
from streamdet.records import Score
from streamdet_training import evaluate, scores
from streamdet_training.data import Clip, read_manifest
from streamdet_training.evaluate import Scored
from streamdet_training.scores import Trial

RATE_HZ = 16_000


def clip(name: str, label: str, **fields: str) -> Clip:
    return Clip(path=evaluate.Path(f"{name}.wav"), label=label, **fields)


SCORED = [
    Scored(clip("b1", "bonafide", channel="gsm"), 2.0),
    Scored(clip("b2", "bonafide", channel="wide"), 1.0),
    Scored(clip("s1", "spoof", system="A", channel="gsm"), -1.0),
    Scored(clip("s2", "spoof", system="A", channel="wide"), -2.0),
    Scored(clip("s3", "spoof", system="B", channel="wide"), 3.0),
]


def rows(found: evaluate.Evaluation) -> dict[tuple[str, str], tuple[int, int, float]]:
    return {(r.group, r.name): (r.report.bonafide, r.report.spoof, r.report.eer) for r in found.rows}


def test_each_system_meets_all_bona_fide_and_each_channel_its_own():
    assert rows(evaluate.evaluate(SCORED)) == {
        ("pooled", "all"): (2, 3, pytest.approx(1 / 3, abs=0.1)),
        ("system", "A"): (2, 2, 0.0),
        ("system", "B"): (2, 1, 1.0),
        ("channel", "gsm"): (1, 1, 0.0),
        ("channel", "wide"): (1, 2, 0.25),
    }


def test_a_clip_that_was_never_heard_counts_as_nothing_and_is_listed():
    trials = [
        Trial(clip("b1", "bonafide"), ((1.0, 2.0), (2.0, 4.0))),
        Trial(clip("b2", "bonafide"), ((1.0, None),)),
        Trial(clip("s1", "spoof"), ((1.0, -1.0), (2.0, None))),
    ]
    assert [trial.llr for trial in trials] == [3.0, 0.0, -1.0]
    found = evaluate.of_trials(trials)
    assert found.unscored == ["b2.wav"]
    assert rows(found)["pooled", "all"][:2] == (2, 1)
    assert rows(found)["pooled", "with enough speech"][:2] == (1, 1)


def test_a_clip_is_scored_over_the_daemons_own_windows(tmp_path, tiny):
    manifest = tiny.recipe(window={"window_s": 1.0, "hop_s": 0.5}).draft()
    path = tmp_path / "a.wav"
    soundfile.write(path, np.ones((2 * RATE_HZ, 2)) * 0.1, RATE_HZ)
    heard = []

    def score(windows):
        heard.extend(windows)
        return [Score(float(at), 1.0) for at, _ in enumerate(windows)]

    trial = scores.score_clip(Clip(path=path, label="spoof"), manifest, score)
    assert trial.windows == ((1.0, 0.0), (1.5, 1.0), (2.0, 2.0))
    assert [(window.start_sample, window.end_sample) for window in heard] == [(0, 16000), (8000, 24000), (16000, 32000)]
    assert heard[0].format.channels == 1  # the first of two


def test_scores_survive_their_file(tmp_path):
    trials = [Trial(it.clip, ((1.0, it.llr),)) for it in SCORED]
    scores.write(tmp_path / "scores.tsv", trials)
    assert (tmp_path / "scores.tsv").read_text().startswith("filename\tcm-score\n")
    assert evaluate.read_scores(tmp_path / "scores.tsv", [it.clip for it in SCORED]) == SCORED


def test_other_peoples_score_files_are_read(tmp_path):
    file = tmp_path / "scores.txt"
    file.write_text("b1 0.5\ns1.wav -1e-1\n")
    found = evaluate.read_scores(file, [SCORED[0].clip, SCORED[2].clip])
    assert [it.llr for it in found] == [0.5, -0.1]


def test_a_broken_score_file_is_named_with_its_line(tmp_path):
    file, clips = tmp_path / "scores.txt", [SCORED[0].clip]
    with pytest.raises(MissingError, match="scores"):
        evaluate.read_scores(file, clips)
    file.write_text("b1 0.5\nb2 high\n")
    with pytest.raises(DataError, match=r"scores\.txt:2"):
        evaluate.read_scores(file, clips)
    file.write_text("b9 0.5\n")
    with pytest.raises(DataError, match=r"b1\.wav"):
        evaluate.read_scores(file, clips)


def test_the_command_reports_scores_draws_and_refuses(manifest_csv, tmp_path):
    clips = read_manifest(manifest_csv, "dev")
    lines = [f"{it.path.name} {1 if it.label == 'bonafide' else -1}" for it in clips]
    (tmp_path / "scores.txt").write_text("\n".join(lines))
    given = ["evaluate", "--manifest", str(manifest_csv), "--split", "dev", "--scores", str(tmp_path / "scores.txt")]
    done = CliRunner().invoke(application(), [*given, "--json", "--plot", str(tmp_path / "det.png")])
    assert done.exit_code == 0, done.output
    pooled = json.loads(done.stdout.splitlines()[0])
    assert (pooled["group"], pooled["report"]["eer"], pooled["report"]["bonafide"]) == ("pooled", 0.0, 2)
    assert (tmp_path / "det.png").read_bytes().startswith(b"\x89PNG")

    shown = CliRunner().invoke(application(), given)
    assert "EER %" in shown.stdout
    assert CliRunner().invoke(application(), ["evaluate"]).exit_code != 0
