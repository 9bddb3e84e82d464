"""onnxruntime says nothing about this machine to anybody."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

# Imports the daemon, as `streamdet run` does, and runs a model.
SCORE = """
import sys
from pathlib import Path
from streamdet import bundle, daemon
from streamdet.scorer import Scorer
Scorer(bundle.load(Path(sys.argv[1])), provider="cpu", threads=1, batch_max=1).warm_up()
"""


def noted(home: Path, bundle: Path, **variables: str) -> list[Path]:
    """What a process that scores leaves behind in its user's home."""
    home.mkdir()
    names = {"XDG_CACHE_HOME", "XDG_STATE_HOME", "ORT_DISABLE_TELEMETRY"}
    environment = {name: value for name, value in os.environ.items() if name not in names}
    command = [sys.executable, "-B", "-c", SCORE, bundle]
    subprocess.run(command, env={**environment, "HOME": str(home), "CI": "", **variables}, check=True)
    return [path for path in home.rglob("*") if path.is_file()]


def test_a_run_leaves_nothing_behind(tmp_path, tiny_bundle):
    assert noted(tmp_path / "home", tiny_bundle.path) == []


def test_telemetry_would_be_noticed(tmp_path, tiny_bundle):
    """The negative control, behind a proxy that is not there; versions before 1.29 have no telemetry on Linux."""
    found = noted(tmp_path / "home", tiny_bundle.path, ORT_DISABLE_TELEMETRY="0", https_proxy="http://127.0.0.1:9")
    if not found:
        pytest.skip("this onnxruntime collects nothing")
    assert any("onnxruntime" in str(path) for path in found)
