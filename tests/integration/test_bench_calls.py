"""`streamdet bench calls` as people run it: a daemon, a caller and a bench, each a process of its own."""

import json
import subprocess
import sys

import pytest

QUICK = ("--warm-up-s", "0.2", "--hold-s", "2", "--limit-ms", "60000", "--budget-s", "1")


def bench(*words: object) -> list[dict]:
    command = [sys.executable, "-m", "streamdet", "bench", *map(str, words), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("over", ["zeromq", "tcp", "unix"])
def test_every_window_of_three_calls_is_heard_of(tiny_bundle, tmp_path, over):
    (row,) = bench("calls", "--bundle", tiny_bundle.path, "--calls", 3, "--over", over, *QUICK, "--out", tmp_path)
    assert (row["bench"], row["calls"]) == ("calls", 3)
    assert row["windows"] + row["missing"] >= 3 * 2  # a second each; a busy machine looks longer than it was asked to
    assert row["windows"] > 0
    assert row["frames_per_s"] > 0
    assert row["lag_ms_p50"] <= row["lag_ms_p99"] <= row["client_ms_p99"]
    assert (row["transit_ms_p99"] is None) == (over != "zeromq")
    assert row["ratio_lag_p99_to_pure"] > 0
    kept = json.loads((tmp_path / "bench-calls.json").read_text("utf-8"))
    assert kept["rows"] == [{name: value for name, value in row.items() if name != "bench"}]
    assert (tmp_path / "bench-calls.png").read_bytes().startswith(b"\x89PNG")


def test_a_running_daemon_is_used_and_left_running(serve, tiny_bundle):
    running = serve()
    sets = [f"--set=endpoints.{name}={running.addresses[name]}" for name in ("audio", "verdicts", "http")]
    (row,) = bench("calls", "--bundle", tiny_bundle.path, "--attach", "--calls", 2, *sets, *QUICK)
    assert row["calls"] == 2
    assert row["daemon_cores"] is None
    assert running.metric('streamdet_events_total{type="close"}') == 2
    assert running.http("/readyz")[0] == 200


def test_it_searches_no_further_than_asked(tiny_bundle):
    rows = bench("calls", "--bundle", tiny_bundle.path, "--start", 1, "--most", 2, *QUICK[:-1], "60")
    assert {row["calls"] for row in rows} <= {1, 2}


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("--over", "smoke"), "--over: 'smoke', expected one of zeromq, tcp, unix"),
        (("--frame-ms", "3"), "--frame-ms: 3, expected whole multiples of 2"),
        (("--pid", "1"), "--pid: 1, expected together with --attach"),
        (("--attach", "--set", "endpoints.http=127.0.0.1:1"), "expected a daemon that is ready"),
        (("--recording", "nowhere.flac"), "nowhere.flac"),
        (("--set", "scoring.batch_max=0"), "scoring.batch_max"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_line(words, complaint):
    command = [sys.executable, "-m", "streamdet", "bench", "calls", "--calls", "1", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode in (64, 66, 69, 78)
    assert complaint in done.stderr
    assert "Traceback" not in done.stderr
