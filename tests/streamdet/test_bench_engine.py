"""`bench engine` at a tiny size: it counts what it says, on the daemon's own path. Nothing here asserts a speed."""

import asyncio
import json

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner

from streamdet import bundle
from streamdet.audio import encode
from streamdet.bench import engine as bench
from streamdet.cli import application
from streamdet.errors import DataError
from streamdet.records import AudioFormat

MULAW = AudioFormat(8000, "mulaw")


@pytest.fixture
def ask(tiny_bundle, babble):
    return bench.Ask(bundle=tiny_bundle, audio=encode(babble, "mulaw"), form=MULAW, windows=24, rounds=3, lag_s=2.2)


def test_both_sides_are_compared_and_cpu_is_counted(ask):
    row = bench.throughput(ask, 4, 2)
    assert row["ratio_engine_to_bare"] == pytest.approx(row["engine_windows_per_s"] / row["bare_windows_per_s"])
    assert (row["batch"], row["threads"]) == (4, 2)
    assert row["engine_cpu_ms"] > 0


def test_the_line_scores_in_full_batches_what_the_calls_bring(ask):
    scorer = ask.scorer(4, 1)
    line = bench.Line(scorer, 4, ask)
    spent = asyncio.run(line.served(24))
    assert spent.windows >= 24
    assert spent.rate == pytest.approx(spent.windows / spent.wall_s)
    assert sum(line.batches) > spent.windows
    assert max(line.batches) == 4


def test_silence_is_refused_as_no_load(ask):
    silent = bench.Ask(bundle=ask.bundle, audio=b"\xff" * 80_000, form=MULAW, windows=8, rounds=3)
    with pytest.raises(DataError, match="windows with speech: 0"):
        bench.throughput(silent, 4, 1)


def test_every_stage_of_a_window_is_timed(ask):
    rows = bench.stages(ask, 4, 1)
    assert [row["stage"] for row in rows] == [
        "ring", "cut", "decode", "gate", "decode to fill", "stack", "run", "settle", "encode",
    ]  # fmt: skip
    assert all(row["cpu_us"] > 0 for row in rows)


def test_calls_at_half_load_come_at_their_own_pace(ask):
    few = bench.Ask(bundle=ask.bundle, audio=ask.audio, form=MULAW, windows=24, rounds=3, lag_s=2.2)
    scorer = few.scorer(2, 1)
    lags_ms = asyncio.run(bench.Line(scorer, 2, few).at_real_time(3, few.lag_s))
    assert len(lags_ms) == 6  # two whole seconds each


def test_a_batch_of_the_toy_changes_no_llr(ask):
    rows = bench.parity(ask, 4, 1)
    assert [row["batch"] for row in rows] == [1, 2, 4]
    assert max(row["llr_difference"] for row in rows) < 1e-5


def test_a_batch_changes_no_llr_of_the_starter():
    """Same audio, same LLR whatever the batch it rode in: within 1e-4 in fp32."""
    starter = bundle.load(bundle.starter_path())
    rows = bench.parity(bench.Ask(bundle=starter, audio=bench.speech([], MULAW), form=MULAW), 8, 1)
    assert {row["precision"] for row in rows} == {"fp32"}
    assert [row["batch"] for row in rows] == [1, 2, 4, 8]
    assert max(row["llr_difference"] for row in rows) < 1e-4


def test_the_command_prints_plays_recordings_and_writes(tiny_bundle, babble, tmp_path):
    speech = tmp_path / "speech.wav"
    soundfile.write(speech, np.asarray(babble), 16_000)
    small = ["--batches", "2", "--threads", "1", "--windows", "8", "--rounds", "3", "--lag-s", "1"]
    args = ["bench", "engine", "--bundle", str(tiny_bundle.path), "--recording", str(speech), *small]
    done = CliRunner().invoke(application(), [*args, "--json", "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert {row["row"] for row in rows} == {"throughput", "stage", "half load"}
    assert (tmp_path / "out" / "bench-engine.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "out" / "bench-engine.json").read_text("utf-8"))["rows"] == [
        {key: value for key, value in row.items() if key != "bench"} for row in rows
    ]


@pytest.mark.parametrize("option", [("--batches", "4,4"), ("--batches", "0"), ("--threads", "x"), ("--rate", "8001")])
def test_nonsense_is_refused_before_anything_runs(option):
    done = CliRunner().invoke(application(), ["bench", "engine", *option])
    assert type(done.exception).__name__ == "UsageError"
