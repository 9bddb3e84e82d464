"""`streamdet bench overload` as people run it."""

import json
import subprocess
import sys

import pytest


def bench(*words: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "streamdet", "bench", "overload", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)


def test_each_load_has_its_row_and_then_the_drop(tiny_bundle, tmp_path):
    words = ("--calls", 2, "--factors", "1,2", "--hold-s", 2, "--limit-ms", 60_000)
    done = bench("--bundle", tiny_bundle.path, *words, "--json", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(row["load"], row["calls"]) for row in rows] == [("1x", 2), ("2x", 4), ("drop", 2)]
    for row in rows[:2]:
        assert row["windows"] > 0
        assert row["frames_per_s"] > 0
    assert rows[2]["ended_calls_closed"]
    kept = json.loads((tmp_path / "bench-overload.json").read_text("utf-8"))
    times = [at_s for at_s, _ in kept["rows"][-1]["rss_over_time"]]
    assert times == sorted(times)
    assert len(times) > 10
    assert (tmp_path / "bench-overload.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("--factors", "2,1"), "--factors: '2,1', expected ascending loads"),
        (("--factors", "many"), "--factors: 'many'"),
        (("--slow-ms", 10, "--attach"), "--slow-ms: 10.0, expected neither --bundle nor --attach"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_line(words, complaint):
    done = bench(*words)
    assert done.returncode == 64
    assert complaint in done.stderr
