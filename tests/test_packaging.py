"""What a wheel holds: the three packages with their data, and nothing else."""

import email.message
import email.parser
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
SOURCES = {
    "streamdet": ROOT / "streamdet",
    "streamdet/units": ROOT / "systemd",
    "streamdet_export": ROOT / "export" / "streamdet_export",
    "streamdet_training": ROOT / "training" / "streamdet_training",
    "streamdet_training/recipes": ROOT / "training" / "recipes",
}
TORCH_AND_FRIENDS = {"torch", "torchaudio", "transformers", "peft", "accelerate", "onnx", "onnxscript", "matplotlib"}
MACHINES = [
    {"sys_platform": "linux", "platform_machine": "x86_64"},
    {"sys_platform": "linux", "platform_machine": "aarch64"},
    {"sys_platform": "darwin", "platform_machine": "arm64"},
    {"sys_platform": "win32", "platform_machine": "AMD64"},
]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Build from a copy, so that no build folder of an earlier state lends its files."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("streamdet", "export", "training", "systemd", "tests"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    # Without isolation: the installed setuptools builds, and the test needs no network.
    pip = [sys.executable, "-m", "pip", "wheel", "-qq", "--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run([*pip, "-w", out, source], check=True, stdin=subprocess.DEVNULL)
    (built,) = out.iterdir()
    return built


@pytest.fixture(scope="module")
def names(wheel) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


@pytest.fixture(scope="module")
def metadata(wheel) -> email.message.Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        return email.parser.Parser().parsestr(archive.read(name).decode())


@pytest.fixture(scope="module")
def requirements(metadata) -> list[Requirement]:
    return [Requirement(line) for line in metadata.get_all("Requires-Dist")]


def needed(requirements: list[Requirement], machine: dict[str, str], extra: str = "") -> set[str]:
    return {each.name for each in requirements if not each.marker or each.marker.evaluate({**machine, "extra": extra})}


def test_it_holds_the_three_packages_and_nothing_else(wheel, names):
    metadata_folder = "-".join(wheel.name.split("-")[:2]) + ".dist-info"
    tops = {name.split("/")[0] for name in names}
    assert tops == {"streamdet", "streamdet_export", "streamdet_training", metadata_folder}


def test_it_holds_every_module_and_every_data_file(names):
    """A new sub-package that pyproject.toml does not list, or a new kind of data file, shows here."""
    expected = {
        f"{prefix}/{path.relative_to(folder).as_posix()}"
        for prefix, folder in SOURCES.items()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {"streamdet/py.typed", "streamdet/starter/__init__.py"} <= expected
    assert {name for name in names if ".dist-info/" not in name} == expected


def test_its_metadata_names_licence_and_python(metadata, names):
    assert metadata["License-Expression"] == "Apache-2.0"
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    assert metadata["Requires-Python"] == "<3.14,>=3.11"
    assert set(metadata.get_all("Provides-Extra")) == {
        "bench",
        "calibration",
        "cuda",
        "dev",
        "export",
        "signing",
        "training",
    }


def test_the_base_asks_for_no_torch(requirements):
    assert not needed(requirements, MACHINES[0]) & TORCH_AND_FRIENDS
    assert not needed(requirements, MACHINES[0], "calibration") & TORCH_AND_FRIENDS
    assert needed(requirements, MACHINES[0], "training") & TORCH_AND_FRIENDS


@pytest.mark.parametrize("machine", MACHINES, ids=lambda machine: "-".join(machine.values()))
@pytest.mark.parametrize("extra", ["", "cuda"])
def test_there_is_one_onnxruntime_on_every_machine(requirements, machine, extra):
    """The two distributions share one import name: together they overwrite each other's files."""
    runtimes = {name for name in needed(requirements, machine, extra) if name.startswith("onnxruntime")}
    gpu = machine == MACHINES[0]
    assert runtimes == ({"onnxruntime-gpu"} if gpu else {"onnxruntime"})


def test_its_entry_points_resolve(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    load = (
        "import importlib.metadata as m, sys; d = next(iter(m.distributions(path=[sys.argv[1]])));"
        "print(*sorted(p.name for p in d.entry_points if callable(p.load())));"
        "import streamdet; print(streamdet.__file__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", load, tmp_path],
        env={"PYTHONPATH": str(tmp_path), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    found, file = done.stdout.splitlines()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    declared = [project["scripts"], *project["entry-points"].values()]
    assert found.split() == sorted(name for group in declared for name in group)
    assert Path(file).is_relative_to(tmp_path)
