"""Rows by group, trials that were never heard, what is left out, and the command."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner

from streamdet.cli import application
from streamdet.errors import BundleError, DataError, MissingError, UsageError
from streamdet.records import Score
from streamdet_training import evaluate, scores, tandem
from streamdet_training.bootstrap import METRICS
from streamdet_training.data import Clip, read_manifest
from streamdet_training.evaluate import Scored, Wanted
from streamdet_training.scores import Trial
from streamdet_training.tandem import FORMS, AsvRates

RATE_HZ = 16_000


def clip(name: str, label: str, **fields: str) -> Clip:
    return Clip(path=Path(f"{name}.wav"), label=label, **fields)


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
    found = evaluate.evaluate(evaluate.of_trials(trials))
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


# -- views, intervals, comparisons -----------------------------------------------------------------------------------


def test_pooled_rows_have_intervals_of_every_metric_and_the_others_of_the_eer():
    found = evaluate.evaluate(SCORED, Wanted(resamples=50))
    assert {row.name: set(row.intervals) for row in found.rows if row.group == "pooled"} == {"all": set(METRICS)}
    assert all(set(row.intervals) == {"eer"} for row in found.rows if row.group != "pooled")
    assert all(row.intervals == {} for row in evaluate.evaluate(SCORED).rows)


def test_without_leaves_out_all_that_is_named_in_one_row():
    clips = [it.clip for it in SCORED]
    views = evaluate.without(["system:B", "channel:gsm"], clips)
    found = rows(evaluate.evaluate(SCORED, Wanted(views=views)))
    assert found["pooled", "without B, gsm"] == (1, 1, 0)
    assert evaluate.without([], clips) == []


@pytest.mark.parametrize("given", ["system", "colour:red", "system:Z"])
def test_without_what_is_not_there_is_refused(given):
    with pytest.raises(UsageError, match="--without"):
        evaluate.without([given], [it.clip for it in SCORED])


def test_without_a_whole_label_is_refused():
    with pytest.raises(DataError, match="spoof clips without system:A, system:B: 0"):
        evaluate.without(["system:A", "system:B"], [it.clip for it in SCORED])


def test_sources_that_train_has_not_met_are_a_row_where_some_are_shared():
    train = [clip("t", "bonafide", source="shared")]
    sourced = [
        Scored(clip("b1", "bonafide", source="shared"), 1.0),
        Scored(clip("b2", "bonafide", source="own"), 2.0),
        Scored(clip("s1", "spoof", source="other"), -1.0),
        Scored(clip("s2", "spoof"), 5.0),
    ]
    views = evaluate.new_sources([it.clip for it in sourced], train)
    found = rows(evaluate.evaluate(sourced, Wanted(views=views)))
    assert found["pooled", "sources not in train"] == (1, 1, 0)
    assert evaluate.new_sources([it.clip for it in sourced], []) == []
    # Where a label is not left, there is no row.
    some = sourced[:1] + sourced[2:]
    assert ("pooled", "sources not in train") not in rows(evaluate.evaluate(some, Wanted(views=views)))


def test_the_form_of_the_tdcf_that_was_asked_for_is_the_one_that_is_told():
    asv = AsvRates(0.0, 0.02, 0.03, 0.5)
    for form in FORMS:
        row = evaluate.evaluate(SCORED, Wanted(asv=asv, tdcf=form)).rows[0]
        told = {"2019": row.min_tdcf_2019, "2021": row.min_tdcf_2021}
        assert {name for name, value in told.items() if value is not None} == {form}
        assert told[form] == tandem.min_tdcf(form, *evaluate.by_class(SCORED), asv)


def test_entries_are_compared_in_pairs():
    better = [Scored(it.clip, 5.0 if it.clip.label == "bonafide" else -5.0) for it in SCORED]
    entries = [evaluate.Entry("old", SCORED), evaluate.Entry("new", better)]
    section = evaluate.compare("dev", entries, Wanted(resamples=20))
    ((first, second, found),) = section.differences
    assert (first, second) == ("old", "new")
    assert found.difference == -section.evaluations[0].rows[0].report.eer < 0
    assert evaluate.compare("dev", entries, Wanted()).differences == []


# -- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def given(manifest_csv, tmp_path):
    """A command line that measures a score file on the dev split; `ours` gets every clip right."""
    clips = read_manifest(manifest_csv, "dev")
    lines = [f"{it.path.name} {1 if it.label == 'bonafide' else -1}" for it in clips]
    (tmp_path / "ours.txt").write_text("\n".join(lines))
    return [
        "evaluate", "--manifest", str(manifest_csv), "--split", "dev", "--scores", str(tmp_path / "ours.txt"),
        "--resamples", "20",
    ]  # fmt: skip


def ran(*args):
    return CliRunner().invoke(application(), [str(arg) for arg in args])


def test_the_command_prints_a_table_or_a_row_a_line(given):
    done = ran(*given, "--json")
    assert done.exit_code == 0, done.output
    pooled = json.loads(done.stdout.splitlines()[0])
    assert (pooled["split"], pooled["entry"], pooled["group"]) == ("dev", "ours", "pooled")
    assert (pooled["report"]["eer"], pooled["report"]["bonafide"]) == (0.0, 2)
    assert "EER %" in ran(*given).stdout


def test_the_command_measures_a_bundle_a_line_and_calls_beside_each_other(manifest_csv, tiny_bundle):
    common = ["evaluate", tiny_bundle.path, "--manifest", manifest_csv, "--split", "dev", "--resamples", "0"]
    done = ran(*common, "--through", "alaw", "--json")
    assert done.exit_code == 0, done.output
    assert {json.loads(line)["entry"] for line in done.stdout.splitlines()} == {"level", "level through alaw"}
    # Clips of one second: no two voices have the four seconds that a call that turns wants.
    refused = ran(*common, "--streaming")
    assert isinstance(refused.exception, DataError)
    assert "calls that turn" in str(refused.exception)


@pytest.mark.parametrize(
    ("extra", "error", "complaint"),
    [
        (["--split", "eval"], UsageError, "--split: 'eval'"),
        (["--through", "fax"], UsageError, "--through: 'fax', expected one of mulaw"),
        (["--through", "gsm"], UsageError, "--through: 'only score files', expected a bundle"),
        (["--streaming"], UsageError, "--streaming: 'only score files', expected a bundle"),
        (["--tdcf", "2019"], UsageError, "--asv-scores: None"),
        (["--tdcf", "2015"], UsageError, "--tdcf: '2015', expected one of 2019, 2021"),
        (["--asv-scores", "x"], UsageError, "--tdcf: None, expected one of 2019, 2021"),
        (["--asv-scores", "nowhere.txt", "--tdcf", "2021"], MissingError, "ASV scores"),
        (["--without", "system:nobody"], UsageError, "--without"),
        (["--scores", "nowhere.txt"], MissingError, "scores"),
        (["nowhere"], BundleError, "bundle: 'nowhere'"),
    ],
)
def test_what_does_not_fit_together_is_refused_in_one_line_and_leaves_nothing(given, tmp_path, extra, error, complaint):
    done = ran(*given, *extra, "--out", tmp_path / "report")
    assert isinstance(done.exception, error), done.output
    assert complaint in str(done.exception)
    assert "\n" not in str(done.exception)
    assert not [path for path in tmp_path.iterdir() if "report" in path.name]


def test_a_split_without_one_of_the_labels_is_refused(tmp_path, tones):
    path = tmp_path / "manifest.csv"
    path.write_text(f"path,label,split\n{tones[0].path.name},bonafide,test\n")
    done = ran("evaluate", "--manifest", path, "--out", tmp_path / "report")
    assert isinstance(done.exception, DataError)
    assert "spoof" in str(done.exception)
    assert not (tmp_path / "report").exists()


def test_an_entry_comes_once(given, tmp_path):
    done = ran(*given, "--scores", tmp_path / "ours.txt")
    assert isinstance(done.exception, UsageError)
    assert "'ours'" in str(done.exception)
