"""`streamdet bench gpu`: every part has its time, a failure is a row, and one table comes last."""

import inspect
import json
import signal
import subprocess
import sys
import time
from importlib.metadata import entry_points
from pathlib import Path

import pytest
import typer.main

from streamdet.cli import application
from streamdet.errors import UsageError
from streamdet_export import bench_gpu, bench_gpu_cli
from streamdet_export.bench_gpu import Ask, Outcome, Part


@pytest.fixture(autouse=True)
def sigterm_as_it_was():
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


ASK = Ask(config="xlsr-300m", layers=0, provider="cuda", batches=(16, 64), folder="/models")


def part(name, code, seconds=60.0, **rest):
    return Part(name=name, command=("-c", code), seconds=seconds, **rest)


def test_a_parts_rows_are_the_json_objects_that_it_says():
    code = """print('{"batch": 4, "ratio_x": 0.9}'); print('a line for people'); print('{"batch": 8}')"""
    outcome = bench_gpu.run(part("x", code), 60)
    assert outcome.rows == [{"batch": 4, "ratio_x": 0.9}, {"batch": 8}]
    assert outcome.reason is None


def test_a_part_that_fails_is_its_last_line_on_stderr_and_what_it_said_counts():
    code = """import sys; print('{"batch": 4}'); sys.exit('streamdet: provider: gone')"""
    outcome = bench_gpu.run(part("x", code), 60)
    assert (outcome.rows, outcome.reason) == ([{"batch": 4}], "streamdet: provider: gone")
    assert bench_gpu.run(part("x", "raise SystemExit(3)"), 60).reason == "exit code 3"


def test_a_part_is_ended_with_all_that_it_started_when_its_time_is_up(tmp_path):
    child = tmp_path / "child"
    code = f"""
import subprocess, sys, time
process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
open({str(child)!r}, "w").write(str(process.pid))
print('{{"batch": 4}}', flush=True)
time.sleep(600)
"""
    # Until it is up: how long an interpreter takes to start on a busy machine is no business of this test.
    for seconds in (2, 20, 60):
        outcome = bench_gpu.run(part("x", code), seconds)
        assert outcome.reason == f"its time was up after {seconds} s"
        if outcome.rows:
            break
    assert outcome.rows == [{"batch": 4}]
    for _ in range(200):
        if not running(int(child.read_text())):
            return
        time.sleep(0.05)
    pytest.fail("the child lives on")


def test_when_the_bench_itself_is_ended_so_is_its_part(tmp_path):
    pid = tmp_path / "pid"
    inner = f"import os, time; open({str(pid)!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    outer = f"""
from streamdet_export import bench_gpu
bench_gpu.run(bench_gpu.Part(name="x", command=("-c", {inner!r}), seconds=600), 600)
"""
    process = subprocess.Popen([sys.executable, "-c", outer])
    try:
        for _ in range(1200):
            if pid.exists() and pid.read_text():
                break
            time.sleep(0.05)
        process.terminate()
        assert process.wait(60) == 128 + signal.SIGTERM
        assert not running(int(pid.read_text()))
    finally:
        process.kill()


def running(pid: int) -> bool:
    """Whether there is such a process that is more than an entry in a table."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_parts_get_what_is_left_and_those_for_whom_nothing_is_get_a_row(monkeypatch):
    now_s = iter([0.0, 10.0, 70.0, 98.0])
    monkeypatch.setattr(bench_gpu.time, "monotonic", lambda: next(now_s))
    given = []

    def run(asked, seconds):
        given.append((asked.name, seconds))
        return Outcome([], 1.0)

    monkeypatch.setattr(bench_gpu, "run", run)
    kept = []
    some = [part(name, "", seconds=50) for name in "abc"]
    found = bench_gpu.bench(some, 100, lambda _: None, lambda so_far: kept.append(list(so_far)))
    assert given == [("a", 50), ("b", pytest.approx(27))]
    assert found["c"].reason == "no time left of 100 s"
    assert kept == [["a"], ["a", "b"], ["a", "b", "c"]]


def test_the_table_has_a_row_a_figure_and_a_row_for_every_reason():
    some = [
        part("engine", "", label=("batch",), figures=("ratio_engine_to_bare", "absent")),
        part("models", ""),
        part("TensorRT", "", label=("batch",), figures=("ratio_engine_to_bare",)),
    ]
    found = {
        "engine": Outcome([{"batch": 4, "ratio_engine_to_bare": 0.97}], 3.0),
        "models": Outcome([], 20.0),
        "TensorRT": Outcome([], 1.0, "no such provider"),
    }
    assert bench_gpu.laid_out(some, found, bench_gpu.TARGETS) == [
        {"part": "engine", "of": "4", "figure": "ratio_engine_to_bare", "value": 0.97, "target": 0.9},
        {"part": "models", "of": "", "figure": "seconds", "value": 20.0},
        {"part": "TensorRT", "of": "", "figure": "not measured", "note": "no such provider"},
    ]
    assert bench_gpu.raw(found)[0] == {"batch": 4, "ratio_engine_to_bare": 0.97, "part": "engine"}
    assert bench_gpu.raw(found)[-1]["reason"] == "no such provider"


def test_every_part_is_a_bench_that_there_is_with_options_that_it_has():
    benches = typer.main.get_group(application()).commands["bench"].commands
    assert set(benches) == {found.name for found in entry_points(group="streamdet.bench")}
    for each in bench_gpu.parts(ASK):
        if each.name == "models":
            continue
        module, program, bench, name, *words = each.command
        assert (module, program, bench) == ("-m", "streamdet", "bench")
        options = {option for param in benches[name].params for option in (*param.opts, *param.secondary_opts)}
        assert {word for word in words if word.startswith("--")} <= options, each.name


def test_every_part_can_be_asked_for_in_a_list():
    assert not [each.name for each in bench_gpu.parts(ASK) if "," in each.name]


def test_parts_stay_within_eight_minutes_together():
    """Each has an end of its own, and the whole has one: even a card on which everything hangs gives its table."""
    assert all(each.seconds <= 300 for each in bench_gpu.parts(ASK))
    assert inspect.signature(bench_gpu_cli.gpu).parameters["total_s"].default + bench_gpu.GRACE_S <= 480


def test_a_bench_shows_one_table_last_and_keeps_json(monkeypatch, tmp_path, capsys):
    rows = [{"batch": 16, "engine_windows_per_s": 2100.0, "ratio_engine_to_bare": 0.95}]
    monkeypatch.setattr(bench_gpu, "run", lambda asked, _: Outcome(rows if asked.name == "engine" else [], 1.0, None))
    bench_gpu_cli.gpu(parts="engine,starter", out=tmp_path)
    captured = capsys.readouterr()
    assert "engine_windows_per_s" in captured.out
    assert "2,100" in captured.out
    assert "2,000" in captured.out  # the target
    assert "engine: " in captured.err
    kept = json.loads((tmp_path / "bench-gpu.json").read_text())
    assert [row["part"] for row in kept["rows"]] == ["engine", "engine", "starter"]

    bench_gpu_cli.gpu(parts="engine", provider="cpu", as_json=True)
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert said[0] == {"bench": "gpu", **rows[0], "part": "engine"}


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"parts": "engine,half"}, "--parts: 'half'"),
        ({"provider": "tpu"}, "--provider: 'tpu'"),
        ({"batches": "16,0"}, "--batches: '16,0'"),
    ],
)
def test_a_word_that_is_none_of_them_is_named(options, named):
    with pytest.raises(UsageError, match=named):
        bench_gpu_cli.gpu(**options)
