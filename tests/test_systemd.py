"""The unit files, as systemd itself reads them."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from streamdet.config import Config, Daemon
from streamdet.errors import BundleError, ConfigError, MissingError, UsageError

SYSTEMD = Path(__file__).parents[1] / "systemd"
PROGRAM = "/opt/streamdet/bin/streamdet"

needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")


def unit(folder: Path, *dropins: str, add: str = "") -> Path:
    """Lay out streamdet.service with drop-ins, its program replaced by one that exists on every machine."""
    path = folder / "streamdet.service"
    path.write_text((SYSTEMD / "streamdet.service").read_text("utf-8").replace(PROGRAM, "/bin/true") + add, "utf-8")
    beside = folder / "streamdet.service.d"
    beside.mkdir()
    for name in dropins:
        shutil.copy(SYSTEMD / name, beside)
    return path


def analyze(*args: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["systemd-analyze", "--no-pager", *args], capture_output=True, text=True, check=False)


def remarks(path: Path) -> str:
    """What `verify` has to say; it reports unknown keys in words and still exits with 0."""
    done = analyze("verify", path)
    return done.stdout + done.stderr + ("" if done.returncode == 0 else f"exit {done.returncode}")


def exposure(path: Path) -> float:
    """Systemd's own figure, 0 (closed) to 10 (open)."""
    found = re.search(
        r"Overall exposure level for streamdet\.service: ([\d.]+)", analyze("security", "--offline=true", path).stdout
    )
    assert found, "systemd-analyze security printed no figure"
    return float(found[1])


def value(key: str, text: str) -> str:
    (line,) = [line for line in text.splitlines() if line.startswith(f"{key}=")]
    return line.partition("=")[2]


@needs_systemd
@pytest.mark.parametrize("dropins", [(), ("gpu.conf",)])
def test_verify_is_clean(tmp_path, dropins):
    assert remarks(unit(tmp_path, *dropins)) == ""


@needs_systemd
def test_verify_would_tell_an_unknown_key(tmp_path):
    assert "WatchdogSeconds" in remarks(unit(tmp_path, add="\n[Service]\nWatchdogSeconds=3\n"))


@needs_systemd
@pytest.mark.parametrize(("dropins", "at_most"), [((), 1.0), (("gpu.conf",), 1.2)])
def test_exposure_is_as_low_as_measured(tmp_path, dropins, at_most):
    """For scale, by the same measure: redis 1.2, hardened NATS 1.7, chrony 3.7, most daemons above 9."""
    assert exposure(unit(tmp_path, *dropins)) <= at_most


@needs_systemd
def test_exposure_would_tell_a_hole(tmp_path):
    assert exposure(unit(tmp_path, add="\n[Service]\nNoNewPrivileges=no\nProtectSystem=no\nDynamicUser=no\n")) > 1.2


def test_a_start_that_cannot_succeed_is_not_repeated():
    prevented = set(
        map(int, value("RestartPreventExitStatus", (SYSTEMD / "streamdet.service").read_text("utf-8")).split())
    )
    assert prevented == {error.exit_code for error in (UsageError, MissingError, ConfigError, BundleError)}


def test_systemd_waits_longer_than_the_drain_takes():
    assert (
        int(value("TimeoutStopSec", (SYSTEMD / "streamdet.service").read_text("utf-8"))) >= 2 * Daemon().drain_timeout_s
    )


def test_the_gpu_drop_in_sets_a_key_that_exists():
    variable, _, provider = value("Environment", (SYSTEMD / "gpu.conf").read_text("utf-8")).partition("=")
    section, key = variable.removeprefix("STREAMDET_").lower().split("__")
    assert Config.model_validate({section: {key: provider}}).scoring.provider == "cuda"
