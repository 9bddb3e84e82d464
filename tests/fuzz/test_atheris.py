"""A few seconds of coverage-guided fuzzing of every parser, and of the same parsers with a bug that must be found.

Longer: `python -m tests.fuzz.atheris_all TARGET --seconds 3600`, or all of them with FUZZ_SECONDS=60 before pytest.
"""

import importlib.util
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.faults.harness import figure
from tests.fuzz import targets

# For each target, two at once. On two cores that nobody else uses all of them take half a minute, start-up included.
SECONDS = int(os.environ.get("FUZZ_SECONDS", "2"))
# A planted bug is found within two seconds, on a busy machine too.
CONTROL_SECONDS = 60
AT_ONCE = 2
ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("atheris") is None, reason="no atheris, which has wheels for Linux on x86_64 alone"
)


def run(target: str, found: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.fuzz.atheris_all", target, "--found", str(found), *options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, errors="replace")


def run_all(folder: Path, *options: str) -> dict[str, subprocess.CompletedProcess[str]]:
    with ThreadPoolExecutor(AT_ONCE) as pool:
        results = pool.map(lambda target: run(target, folder / target, *options), targets.TARGETS)
        return dict(zip(targets.TARGETS, results, strict=True))


def test_fuzzing_finds_nothing(tmp_path):
    for target, done in run_all(tmp_path, f"--seconds={SECONDS}").items():
        assert done.returncode == 0, f"{target}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        tries, covered = tries_of(done), re.findall(r" cov: (\d+)", done.stderr)
        figure("fuzz", target=target, seconds=SECONDS, tries=tries, branches=covered[-1])
        assert tries > len(targets.small_seeds()[target])


def test_a_planted_bug_is_found_by_each_fuzzer(tmp_path):
    for target, done in run_all(tmp_path, "--planted", f"--seconds={CONTROL_SECONDS}").items():
        assert done.returncode != 0, target
        assert "PlantedError" in done.stdout + done.stderr, done.stderr[-3000:]
        (crash,) = (tmp_path / target).glob("crash-*")
        assert b"~BUG" in crash.read_bytes()
        figure("planted", target=target, tries=tries_of(done), by_chance="2^32")


def tries_of(done: subprocess.CompletedProcess[str]) -> int:
    return int(re.findall(r"stat::number_of_executed_units:\s+(\d+)", done.stderr)[-1])
