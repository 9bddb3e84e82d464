"""Show line 6 of what training promises: SIGKILL at any moment, resume, and the weights are bit by bit the same."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from streamdet_training import run

COMMAND = [sys.executable, "-c", "from streamdet.cli import main; main()", "train"]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}
RESULT = ("adapter/adapter_model.safetensors", "head.safetensors", "backbone/model.safetensors")


def toml(tables, head=""):
    """Tables as TOML; their values read the same in JSON."""
    lines = [f"{key} = {json.dumps(value)}" for key, value in tables.items() if not isinstance(value, dict)]
    inner = {f"{head}{key}": value for key, value in tables.items() if isinstance(value, dict)}
    return "\n".join([*lines, *(f"[{key}]\n{toml(value, key + '.')}" for key, value in inner.items()), ""])


@pytest.fixture
def recipe_toml(tiny, tmp_path):
    """With all that hangs on chance: dropout, masks, augmentation; and averages of both kinds."""

    def write(**changes):
        train = {"average": 0.5, "average_best": 2, "lr": 0.01, **changes}
        tables = tiny.tables(train=train, augment={"mask_frames": 0.3, "noise": 0.5}, head={"dropout": 0.3})
        tables["backbone"] = {"config": {**tables["backbone"]["config"], "hidden_dropout": 0.1}}
        path = tmp_path / "recipe.toml"
        path.write_text(toml(tables))
        return path

    return write


def killed_when(args: list[str], moment: str) -> None:
    """Run `streamdet train`, and kill it from outside as soon as it says `moment`."""
    process = subprocess.Popen([*COMMAND, *args], stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
    said = []
    for line in process.stderr:
        said.append(line)
        if re.search(moment, line):
            process.send_signal(signal.SIGKILL)
            break
    process.stderr.close()
    assert process.wait() == -signal.SIGKILL, said


@pytest.mark.slow
def test_a_killed_command_resumes_to_the_very_same_weights(recipe_toml, manifest_csv, tmp_path):
    """One worker. Killed before the first checkpoint, while the first is written or just was, and further on."""
    args = [str(recipe_toml(steps=60, check_every=20, workers=1)), "--data", str(manifest_csv)]
    outs = {name: tmp_path / name for name in ("whole", "killed")}
    subprocess.run([*COMMAND, *args, "--out", str(outs["whole"])], check=True, env=ENVIRONMENT, capture_output=True)
    killed = [*args, "--out", str(outs["killed"])]
    killed_when(killed, "trainable")
    begun = (outs["killed"] / run.RECIPE).is_file()
    killed_when([*killed, *(["--resume"] if begun else [])], "step 20 of 60")
    killed_when([*killed, "--resume"], "step 40 of 60")
    assert not (outs["killed"] / run.METRICS).exists()
    subprocess.run([*COMMAND, *killed, "--resume"], check=True, env=ENVIRONMENT, capture_output=True)
    for name in RESULT:
        assert (outs["killed"] / name).read_bytes() == (outs["whole"] / name).read_bytes(), name
    last = [load_file(out / run.CHECKPOINT) for out in outs.values()]
    assert last[0].keys() == last[1].keys()
    assert all(value.equal(last[1][name]) for name, value in last[0].items())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_kill_at_any_change_of_the_disk_leaves_nothing_by_halves(recipe_toml, manifest_csv, tmp_path):
    """Torn checkpoints among them; each time what is there loads, and resumes to the same weights."""
    program = Path(__file__).with_name("kills.py")
    command = [sys.executable, str(program), str(recipe_toml()), str(manifest_csv), str(tmp_path / "runs")]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout) > 30
