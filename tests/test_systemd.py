"""The unit files, as systemd itself reads them."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from streamdet.activation import NAMES
from streamdet.cli.install_service import BACKOFF_SINCE, OURS, newest, planned, write
from streamdet.config import Config, Daemon, Endpoints
from streamdet.errors import BundleError, ConfigError, MissingError, UsageError
from tests.faults.harness import figure

SYSTEMD = Path(__file__).parents[1] / "systemd"
SERVICE = (SYSTEMD / "streamdet.service").read_text("utf-8")
# What somebody asks `install-service` for, as `planned` takes it.
CPU = {"machine": "cpu", "unix": False}
GPU = {"machine": "gpu", "unix": False}
UNIX = {"machine": "cpu", "unix": True}
PLAIN = {"machine": None, "unix": False}
KINDS = [PLAIN, CPU, GPU, UNIX, {"machine": "gpu", "unix": True}]

needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")


def laid_out(folder: Path, kind: dict, add: str = "", backoff: bool = False) -> Path:
    """Install below a folder, with a program that exists on every machine; the folder of units."""
    for path, text in planned(OURS, "/bin/true", **kind, backoff=backoff).items():
        write(folder / path, text)
    if add:
        write(folder / OURS / "streamdet.service.d" / "zz.conf", add)
    return folder / OURS


def analyze(*args: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["systemd-analyze", "--no-pager", *args], capture_output=True, text=True, check=False)


def remarks(units: Path) -> str:
    """What `verify` has to say; it reports unknown keys in words and still exits with 0."""
    done = analyze("verify", *sorted(path for path in units.iterdir() if path.is_file()))
    return done.stdout + done.stderr + ("" if done.returncode == 0 else f"exit {done.returncode}")


def exposure(units: Path) -> float:
    """Systemd's own figure, 0 (closed) to 10 (open)."""
    said = analyze("security", "--offline=true", units / "streamdet.service").stdout
    found = re.search(r"Overall exposure level for streamdet\.service: ([\d.]+)", said)
    assert found, "systemd-analyze security printed no figure"
    return float(found[1])


def values(key: str, text: str) -> list[str]:
    return [line.partition("=")[2] for line in text.splitlines() if line.startswith(f"{key}=")]


def value(key: str, text: str) -> str:
    (found,) = values(key, text)
    return found


@needs_systemd
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_verify_is_clean(tmp_path, kind):
    assert remarks(laid_out(tmp_path, kind)) == ""


@needs_systemd
@pytest.mark.skipif(newest() < BACKOFF_SINCE, reason=f"systemd is older than {BACKOFF_SINCE}")
def test_verify_is_clean_with_the_backoff(tmp_path):
    assert remarks(laid_out(tmp_path, CPU, backoff=True)) == ""


@needs_systemd
@pytest.mark.skipif(newest() >= BACKOFF_SINCE, reason=f"systemd is {BACKOFF_SINCE} or newer")
def test_the_backoff_is_kept_from_a_systemd_that_does_not_know_it(tmp_path):
    assert "RestartSteps" in remarks(laid_out(tmp_path, CPU, backoff=True))


@needs_systemd
def test_verify_would_tell_an_unknown_key(tmp_path):
    assert "WatchdogSeconds" in remarks(laid_out(tmp_path, PLAIN, add="[Service]\nWatchdogSeconds=3\n"))


@needs_systemd
@pytest.mark.parametrize(("kind", "at_most"), [(PLAIN, 1.1), (CPU, 1.0), (GPU, 1.2), (UNIX, 0.4)], ids=str)
def test_exposure_is_as_low_as_measured(tmp_path, kind, at_most):
    """For scale, by the same measure: redis 1.2, hardened NATS 1.7, hardened Vector 2.2, chrony 3.7, most above 9."""
    found = exposure(laid_out(tmp_path, kind))
    figure("exposure", **kind, exposure=found)
    assert found <= at_most


@needs_systemd
@pytest.mark.parametrize(
    ("kind", "hole", "at_most"),
    [
        (CPU, "PrivateDevices=no", 1.0),
        (GPU, "DynamicUser=no", 1.2),
        (UNIX, "RestrictAddressFamilies=AF_INET\nPrivateNetwork=no", 0.4),
    ],
    ids=str,
)
def test_exposure_would_tell_a_hole(tmp_path, kind, hole, at_most):
    assert exposure(laid_out(tmp_path, kind, add=f"[Service]\n{hole}\n")) > at_most


def test_a_start_that_cannot_succeed_is_not_repeated():
    prevented = set(map(int, value("RestartPreventExitStatus", SERVICE).split()))
    assert prevented == {error.exit_code for error in (UsageError, MissingError, ConfigError, BundleError)}


def test_systemd_waits_longer_than_the_drain_takes():
    assert int(value("TimeoutStopSec", SERVICE)) >= 2 * Daemon().drain_timeout_s


@pytest.mark.parametrize("name", ["gpu", "cpu"])
def test_a_drop_in_sets_a_key_that_exists(name):
    (line,) = values("Environment", (SYSTEMD / f"{name}.conf").read_text("utf-8"))
    variable, _, provider = line.partition("=")
    section, key = variable.removeprefix("STREAMDET_").lower().split("__")
    assert Config.model_validate({section: {key: provider}}).scoring.provider in ("cuda", "cpu")


# -- sockets ---------------------------------------------------------------------------------------------------------

SOCKETS = {path.stem.removeprefix("streamdet-"): path.read_text("utf-8") for path in SYSTEMD.glob("*.socket")}


def test_every_endpoint_has_a_socket_by_its_name_at_its_default_address():
    assert SOCKETS.keys() == set(NAMES)
    for name, text in SOCKETS.items():
        default = getattr(Endpoints(), name)
        (address,) = default if isinstance(default, tuple) else (default,)
        assert value("FileDescriptorName", text) == name
        assert value("ListenStream", text) == address.removeprefix("tcp://")
        assert value("Service", text) == "streamdet.service"


@pytest.mark.parametrize("key", ["Sockets", "Also"])
def test_the_service_has_all_sockets(key):
    assert set(" ".join(values(key, SERVICE)).split()) == {f"streamdet-{name}.socket" for name in NAMES}


def test_what_is_refused_takes_all_sockets_down():
    """Or callers that wait in line would start it again and again."""
    refused = value("OnFailure", SERVICE)
    taken = " ".join(values("Conflicts", (SYSTEMD / refused).read_text("utf-8"))).split()
    assert set(taken) == {f"streamdet-{name}.socket" for name in NAMES}


def test_a_socket_admits_whom_the_service_admits():
    """An inherited socket is under the list of the unit that made it."""
    for text in (SERVICE, *SOCKETS.values()):
        assert (value("IPAddressDeny", text), value("IPAddressAllow", text)) == ("any", "localhost")
