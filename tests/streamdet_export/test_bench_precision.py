"""One model in every precision: all are made of one float32 bundle, and held against it."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from streamdet import bundle
from streamdet.bundle import Bundle
from streamdet.cli import application
from streamdet.errors import UsageError
from streamdet_export import bench_precision as bench
from streamdet_export import bench_precision_cli as cli
from streamdet_export.bench_precision import FORMS
from streamdet_training.data import load


@pytest.fixture
def clips(manifest_csv):
    return load("csv", [manifest_csv], "dev")


def rows_of(source: Bundle, clips, folder, **how) -> list[dict]:
    made = {form: bench.make(source, form, clips, folder / form) for form in FORMS}
    return bench.bench(made, clips, batches=(1, 3), threads=1, rounds=3, **how)


@pytest.fixture
def exact(finished, tmp_path) -> Bundle:
    return cli._float32(finished, tmp_path / "source")


def test_every_form_is_held_against_float32(exact, clips, tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "TURN_S", 0.0)
    monkeypatch.setattr(bench, "_rate", lambda run, audio: float(len(run(audio))))
    rows = rows_of(exact, clips, tmp_path)
    found = {(row["form"], row["batch"]): row for row in rows}
    # Dynamic int8 never runs more than one window.
    assert found.keys() == {(form, batch) for form in FORMS for batch in (1, 3)} - {("int8-dynamic", 3)}
    assert found["fp32", 3]["largest_difference"] == 0
    assert all(row["largest_difference"] > 0 for row in rows if row["form"] != "fp32")
    assert all(row["largest_difference_in_batch"] < 1e-4 for row in rows)
    assert all(0 <= row["eer"] <= 1 for row in rows)
    assert found["int8-static", 3]["ratio_speed_to_fp32"] == 1
    assert found["fp16", 1]["bytes"] < found["fp32", 1]["bytes"]


def test_what_is_not_float32_is_refused(exact, clips, tmp_path):
    made = bench.make(exact, "fp16", clips, tmp_path / "half")
    assert made.manifest.model.precision == "fp16"
    with pytest.raises(UsageError, match="fp16"):
        bench.make(made, "int8-static", clips, tmp_path / "int8")


def test_a_form_has_the_files_and_the_fit_of_its_source(exact, clips, tmp_path):
    for form in FORMS:
        made = bundle.load(bench.make(exact, form, clips, tmp_path / form).path)
        assert made.manifest.files.keys() == exact.manifest.files.keys()
        assert made.manifest.calibration == exact.manifest.calibration
        assert not (tmp_path / f"{form}.work").exists()


def test_clips_are_taken_from_all_over_each_class(clips):
    some = bench.spread(clips, 2)
    assert [clip.label for clip in some] == ["bonafide", "bonafide", "spoof", "spoof"]
    assert bench.spread(clips, 100) == sorted(clips, key=lambda clip: clip.label)


def test_the_command_prints_a_row_a_form_and_leaves_the_bundles(tmp_path, monkeypatch):
    """The starter and its own recordings, without a manifest: no EER of one class."""
    monkeypatch.setattr(bench, "TURN_S", 0.0)
    arguments = ["bench", "precision", "--forms", "int8-static", "--batches", "2", "--json"]
    arguments += ["--keep", str(tmp_path / "forms"), "--out", str(tmp_path / "out"), "--rounds", "3"]
    done = CliRunner().invoke(application(), arguments)
    assert done.exit_code == 0, done.output
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(row["form"], row["batch"], row["eer"]) for row in rows] == [("fp32", 2, None), ("int8-static", 2, None)]
    assert bundle.load(tmp_path / "forms" / "int8-static").manifest.model.quantization == "static"
    kept = json.loads((tmp_path / "out" / "bench-precision.json").read_text())["rows"]
    assert [{"bench": "precision", **row} for row in kept] == rows
    assert (tmp_path / "out" / "bench-precision.png").is_file()


@pytest.mark.parametrize("wrong", [["--forms", "int4"], ["--batches", "0"], ["--batches", "two"]])
def test_a_wrong_option_is_named(wrong):
    done = CliRunner().invoke(application(), ["bench", "precision", *wrong])
    assert isinstance(done.exception, UsageError)
    assert wrong[0] in str(done.exception)


def test_scores_of_all_windows_are_compared(tiny_bundle):
    exact = bench.Quality(0.1, np.float32([1, 2, 3]), 0.0)
    other = bench.Quality(0.2, np.float32([1, 2.5, 3]), 0.25)

    speeds = {"fp32 1": bench.Steady((2.0,)), "fp16 1": bench.Steady((5.0,))}
    rows = bench.summary({"fp32": tiny_bundle, "fp16": tiny_bundle}, speeds, {"fp32": exact, "fp16": other})
    assert [row["largest_difference"] for row in rows] == [0, 0.5]
    assert [row["largest_difference_in_batch"] for row in rows] == [0, 0.25]
    assert rows[1]["ratio_speed_to_fp32"] == 2.5
