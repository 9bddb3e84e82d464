"""Each check of the doctor, made to find what it is for on a machine that is made of files in a folder."""

import os
import resource
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from streamdet.bundle import Bundle
from streamdet.config import Config
from streamdet.doctor import device, examine, files, limits, network, service, software
from streamdet.doctor.finding import Check, Finding, Machine

NOW_S = 1_800_000_000.0
LIMITS = {resource.RLIMIT_NOFILE: (1024, 65_536), resource.RLIMIT_CORE: (0, 0)}


def machine(root: Path, **changes: Any) -> Machine:
    """A machine on which all is well."""
    settings = changes.pop("settings", {})
    known = {
        "config": Config.model_validate({"scoring": {"provider": "cpu", "threads": 1, "batch_max": 2}, **settings}),
        "root": root,
        "environment": {},
        "version": {"onnxruntime-gpu": "1.31"}.get,
        "output": lambda *_: None,
        "limit": LIMITS.__getitem__,
        "clock_state": lambda: 0,
        "wall_s": Clock(NOW_S, 0.05),
        "monotonic_s": Clock(5.0, 0.05),
        "cores": lambda: 4,
        "may": lambda *_: True,
    }
    return Machine(**{**known, **changes})


class Clock:
    """Goes on by `step_s` with each look."""

    def __init__(self, now_s: float, step_s: float) -> None:
        self.now_s, self.step_s = now_s, step_s

    def __call__(self) -> float:
        self.now_s += self.step_s
        return self.now_s


def put(root: Path, name: str, text: str = "") -> Path:
    path = root / name.lstrip("/")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "ascii")
    return path


def found(check: Check, on: Machine) -> list[Finding]:
    made = list(check(on))
    assert made  # it always says something
    for each in made:
        assert bool(each.mend) == (each.status != "ok"), each
        assert "\n" not in each.why + each.mend
    return made


def the(status: str, check: Check, on: Machine) -> Finding:
    """The one finding of this status; the others are no worse than ok."""
    (one,) = [each for each in found(check, on) if each.status != "ok"]
    assert one.status == status, one
    return one


def well(check: Check, on: Machine) -> Finding:
    made = found(check, on)
    assert {each.status for each in made} == {"ok"}, made
    return made[0]


# -- software and settings -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("installed", "words"),
    [
        ({"onnxruntime-gpu": "1.31", "onnxruntime": "1.30"}, "overwrite each other"),
        ({}, "no onnxruntime"),
    ],
)
def test_two_runtimes_or_none(tmp_path: Path, installed: dict[str, str], words: str):
    one = the("fail", software.runtime, machine(tmp_path, version=installed.get))
    assert words in one.why
    assert "pip install onnxruntime-gpu" in one.mend
    well(software.runtime, machine(tmp_path))


def test_a_runtime_without_cuda_where_cuda_is_asked_for(tmp_path: Path):
    cpu = {"onnxruntime": "1.31"}.get
    well(software.runtime, machine(tmp_path, version=cpu))
    put(tmp_path, "/dev/nvidiactl")
    on = machine(tmp_path, version=cpu, settings={"scoring": {"provider": "auto"}})
    assert "knows no CUDA" in the("fail", software.runtime, on).why


def test_settings_tell_what_is_not_at_its_default_and_what_is_dangerous(tmp_path: Path):
    on = machine(tmp_path, changed={"scoring.threads": "STREAMDET_SCORING__THREADS"})
    assert "scoring.threads (STREAMDET_SCORING__THREADS)" in well(software.settings, on).why
    on = machine(tmp_path, settings={"endpoints": {"insecure": True}})
    assert "endpoints.insecure" in the("warn", software.settings, on).why
    on = machine(tmp_path, settings={"daemon": {"dumpable": True}})
    assert "daemon.dumpable" in the("warn", software.settings, on).why


def test_where_settings_come_from(tmp_path: Path):
    file = put(tmp_path, "x.toml", "[scoring]\nthreads = 2\nbatch_max = 8\n[pcm]\nrate = 8000\n")
    environment = {"STREAMDET_SCORING__BATCH_MAX": "4", "STREAMDET_IDENTITY": "x"}
    assert examine.origins(file, {"pcm.rate": ""}, environment) == {
        "pcm.rate": "--set",
        "scoring.threads": str(file),
        "scoring.batch_max": "STREAMDET_SCORING__BATCH_MAX",
    }


# -- card and processor ----------------------------------------------------------------------------------------------


def with_card(root: Path) -> None:
    put(root, "/sys/bus/pci/devices/0000:01:00.0/vendor", "0x10de\n")
    put(root, "/sys/bus/pci/devices/0000:01:00.0/class", "0x030200\n")


CUDA = {"scoring": {"provider": "cuda"}}


def test_cuda_without_a_driver(tmp_path: Path):
    assert "no driver" in the("fail", device.card, machine(tmp_path, settings=CUDA)).why


def test_cuda_without_the_module_for_memory(tmp_path: Path):
    with_card(tmp_path)
    for name in ("/dev/nvidiactl", "/dev/nvidia0"):
        put(tmp_path, name)
    one = the("fail", device.card, machine(tmp_path, settings=CUDA))
    assert "/dev/nvidia-uvm" in one.why
    assert "modprobe nvidia-uvm" in one.mend


def test_a_card_that_is_not_for_this_user(tmp_path: Path):
    for name in device.DEVICES:
        put(tmp_path, name)
    assert "not for this user" in the("fail", device.card, machine(tmp_path, settings=CUDA, may=lambda *_: False)).why
    put(tmp_path, "/proc/driver/nvidia/version", "NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.1  Mon\n")
    assert "driver 570.1" in well(device.card, machine(tmp_path, settings=CUDA)).why


def test_a_card_that_nobody_uses(tmp_path: Path):
    well(device.card, machine(tmp_path))
    with_card(tmp_path)
    assert "does not use" in the("warn", device.card, machine(tmp_path)).why


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("/proc/cpuinfo", "flags\t\t: fpu sse2\n", "no AVX2"),
        ("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", "powersave\n", "save power"),
        ("/sys/fs/cgroup/cpu.max", "150000 100000\n", "1.5 cores of 4"),
    ],
)
def test_a_processor_that_is_held_down(tmp_path: Path, name: str, text: str, words: str):
    put(tmp_path, name, text)
    assert words in the("warn", device.processor, machine(tmp_path)).why


def test_a_processor_that_is_well(tmp_path: Path):
    put(tmp_path, "/proc/cpuinfo", "flags\t\t: fpu avx2 avx512f avx512_vnni\n")
    put(tmp_path, "/sys/fs/cgroup/cpu.max", "max 100000\n")
    assert "avx512_vnni" in well(device.processor, machine(tmp_path)).why
    on = machine(tmp_path, settings={"scoring": {"provider": "cpu", "threads": 9}})
    assert "9 on 4" in the("warn", device.processor, on).why


# -- files -----------------------------------------------------------------------------------------------------------


def with_bundle(bundle: Bundle, **settings: Any) -> dict[str, Any]:
    return {"bundle": {"path": bundle.path}, "scoring": {"provider": "cpu", "threads": 1, "batch_max": 2}, **settings}


def test_a_bundle_is_verified_and_timed(tmp_path: Path, tiny_bundle: Bundle):
    on = machine(tmp_path, settings=with_bundle(tiny_bundle))
    assert "about" in well(files.model, on).why
    (tiny_bundle.path / "model.onnx").write_bytes(b"swapped")
    assert "model.onnx" in the("fail", files.model, on).why


def test_a_bundle_that_is_too_slow(tmp_path: Path, tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(files.Scorer, "warm_up", lambda _: {1: 5000.0, 2: 9000.0})
    on = machine(tmp_path, settings=with_bundle(tiny_bundle))
    assert "more than this machine can score" in the("fail", files.model, on).why
    monkeypatch.setattr(files.Scorer, "warm_up", lambda _: {1: 50.0, 2: 90.0})
    assert "about 15 calls" in well(files.model, on).why
    on = msgspec.structs.replace(on, changed={"streams.max_streams": "x.toml"})
    assert "max_streams to 15" in the("warn", files.model, on).mend


@pytest.mark.parametrize(("mode", "status"), [(0o602, "fail"), (0o620, "warn")])
def test_files_that_others_may_change(tmp_path: Path, mode: int, status: str):
    file = put(tmp_path, "streamdet.toml")
    file.chmod(mode)
    assert "may change it" in the(status, files.permissions, machine(tmp_path, config_file=file)).why
    file.chmod(0o644)
    well(files.permissions, machine(tmp_path, config_file=file))


def test_a_secret_that_others_may_read(tmp_path: Path):
    secret = put(tmp_path, "server.key")
    secret.chmod(0o640)
    on = machine(tmp_path, settings={"security": {"server_key": secret}})
    assert the("fail", files.permissions, on).mend == f"chmod 600 {secret}"
    secret.chmod(0o600)
    well(files.permissions, on)
    secret.unlink()
    the("fail", files.permissions, on)


def test_a_clients_file_that_is_not_there(tmp_path: Path):
    on = machine(tmp_path, settings={"security": {"clients": tmp_path / "clients.toml"}})
    assert "clients file" in the("fail", files.permissions, on).why


# -- addresses -------------------------------------------------------------------------------------------------------

ONE_PORT = {"audio": "tcp://127.0.0.1:5560", "verdicts": "", "control": "", "http": "", "pcm": []}


def listening(root: Path, port: int, command: str) -> None:
    row = f"   0: 0100007F:{port:04X} 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1"
    put(root, "/proc/net/tcp", f"  sl  local_address ...\n{row}\n")
    put(root, "/proc/77/cmdline", command)
    (root / "proc/77/fd").mkdir()
    (root / "proc/77/fd/5").symlink_to("socket:[4711]")


def test_a_port_that_somebody_has(tmp_path: Path):
    on = machine(tmp_path, settings={"endpoints": ONE_PORT})
    well(network.addresses, on)
    listening(tmp_path, 5560, "/usr/sbin/nginx\0-g")
    one = the("fail", network.addresses, on)
    assert "nginx (pid 77)" in one.why
    assert "endpoints.audio" in one.mend


def test_a_port_that_the_daemon_itself_has(tmp_path: Path):
    listening(tmp_path, 5560, "/opt/streamdet/bin/python\0/opt/streamdet/bin/streamdet\0run")
    assert "streamdet (pid 77)" in well(network.addresses, machine(tmp_path, settings={"endpoints": ONE_PORT})).why


def test_a_real_listener_is_found_by_its_name():
    with socket.create_server(("127.0.0.1", 0)) as here:
        port = here.getsockname()[1]
        on = machine(Path("/"), settings={"endpoints": ONE_PORT | {"audio": f"tcp://127.0.0.1:{port}"}})
        assert f"(pid {os.getpid()})" in the("fail", network.addresses, on).why


def test_an_address_that_others_reach(tmp_path: Path):
    on = machine(tmp_path, settings={"endpoints": ONE_PORT | {"audio": "tcp://0.0.0.0:5560"}})
    assert "endpoints.audio" in the("fail", network.addresses, on).why


@pytest.mark.parametrize("address", ["unix:/run/s/pcm.sock", "ipc:///run/s/pcm.sock"])
def test_paths_of_sockets(tmp_path: Path, address: str):
    on = machine(tmp_path, settings={"endpoints": ONE_PORT | {"audio": "", "http": address}})
    assert "no folder /run/s" in the("warn", network.addresses, on).why
    (tmp_path / "run/s").mkdir(parents=True)
    well(network.addresses, on)
    closed = msgspec.structs.replace(on, may=lambda *_: False)
    assert "may not write" in the("warn", network.addresses, closed).why
    put(tmp_path, "/run/s/pcm.sock")
    assert "no socket" in the("fail", network.addresses, on).why


# -- limits ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "status", "words"),
    [
        ({"wall_s": Clock(0.0, 0.05)}, "fail", "it is not 1970"),
        ({"clock_state": lambda: 5}, "warn", "not synchronised"),
        ({"environment": {"LD_PRELOAD": "/usr/lib/libfaketime.so.1"}}, "warn", "libfaketime"),
        ({"wall_s": Clock(NOW_S, 3600.0)}, "warn", "differ by"),
    ],
)
def test_clocks_that_are_wrong(tmp_path: Path, changes: dict[str, Any], status: str, words: str):
    assert words in the(status, limits.clock, machine(tmp_path, **changes)).why


def test_a_slow_source_of_time(tmp_path: Path):
    well(limits.clock, machine(tmp_path))
    put(tmp_path, "/sys/devices/system/clocksource/clocksource0/current_clocksource", "hpet\n")
    assert "hpet" in the("warn", limits.clock, machine(tmp_path)).why


def test_too_few_files(tmp_path: Path):
    few = {resource.RLIMIT_NOFILE: (256, 1024), resource.RLIMIT_CORE: (0, 0)}
    assert "1024 open files, but 1550" in the("fail", limits.files, machine(tmp_path, limit=few.__getitem__)).why
    free = {resource.RLIMIT_NOFILE: (-1, -1), resource.RLIMIT_CORE: (0, 0)}
    well(limits.files, machine(tmp_path, limit=free.__getitem__))


def test_core_dumps_that_are_allowed(tmp_path: Path):
    cores = {resource.RLIMIT_NOFILE: (-1, -1), resource.RLIMIT_CORE: (0, -1)}.__getitem__
    well(limits.files, machine(tmp_path, limit=cores))  # the daemon forbids its own
    on = machine(tmp_path, limit=cores, settings={"daemon": {"dumpable": True}})
    assert "core dumps" in the("warn", limits.files, on).why


def test_too_little_memory(tmp_path: Path):
    put(tmp_path, "/proc/meminfo", "MemTotal: 9999999 kB\nMemAvailable: 100000 kB\nSwapTotal: 0 kB\n")
    assert "97 MB available" in the("warn", limits.memory, machine(tmp_path)).why
    put(tmp_path, "/proc/meminfo", "MemAvailable: 9999999 kB\nSwapTotal: 0 kB\n")
    well(limits.memory, machine(tmp_path))
    put(tmp_path, "/proc/self/cgroup", "0::/system.slice/streamdet.service\n")
    put(tmp_path, "/sys/fs/cgroup/system.slice/streamdet.service/memory.max", f"{64 << 20}\n")
    assert "MemoryMax" in the("warn", limits.memory, machine(tmp_path)).mend


def test_swap(tmp_path: Path):
    put(tmp_path, "/proc/meminfo", "MemAvailable: 9999999 kB\nSwapTotal: 1000 kB\n")
    assert "swap" in the("warn", limits.memory, machine(tmp_path)).why


# -- the service -----------------------------------------------------------------------------------------------------


def systemctl(**known: str) -> Callable[..., str]:
    state = {"LoadState": "loaded", "ActiveState": "active", "SubState": "running", "NRestarts": "0"} | known
    return lambda *_: "".join(f"{name}={value}\n" for name, value in state.items())


@pytest.mark.parametrize(
    ("known", "status", "words"),
    [
        ({"LoadState": "not-found"}, "warn", "not installed"),
        ({"ActiveState": "failed", "SubState": "failed", "Result": "watchdog"}, "fail", "watchdog"),
        ({"NRestarts": "3"}, "warn", "restarted 3 times"),
        ({"ActiveState": "inactive", "SubState": "dead"}, "warn", "inactive"),
    ],
)
def test_units_that_are_not_well(tmp_path: Path, known: dict[str, str], status: str, words: str):
    (tmp_path / "run/systemd/system").mkdir(parents=True)
    assert words in the(status, service.unit, machine(tmp_path, output=systemctl(**known))).why


def test_units_that_are(tmp_path: Path):
    well(service.unit, machine(tmp_path))  # no systemd
    (tmp_path / "run/systemd/system").mkdir(parents=True)
    assert "active (running)" in well(service.unit, machine(tmp_path, output=systemctl())).why


def answer(**changes: Any) -> dict[str, Any]:
    health = {
        "ready": True,
        "overload": False,
        "load": 0.1,
        "loop_late_ms": 1.0,
        "streams_max": 10,
        "reload": None,
        "log_lines_lost": 0,
        "provider": "CPUExecutionProvider",
        "pid": 7,
    }
    return {"model": "level@0", "counts": {"streams": 1, "skipped": 4}, "health": {**health, **changes}}


@pytest.mark.parametrize(
    ("changes", "status", "words"),
    [
        ({"ready": False}, "fail", "takes no calls"),
        ({"load": 0.9}, "warn", "90 % busy"),
        ({"overload": True}, "warn", "4 windows were skipped"),
        ({"loop_late_ms": 300.0}, "warn", "300 ms late"),
        ({"streams_max": 1}, "warn", "1 streams of 1"),
        ({"reload": {"at": "now", "ok": False, "error": "bad"}}, "warn", "bad"),
        ({"log_lines_lost": 2}, "warn", "2 log lines"),
    ],
)
def test_daemons_that_are_not_well(tmp_path: Path, changes: dict[str, Any], status: str, words: str):
    assert words in the(status, service.daemon, machine(tmp_path, ask=lambda: answer(**changes))).why


def test_daemons_that_are_and_none(tmp_path: Path):
    assert "level@0" in well(service.daemon, machine(tmp_path, ask=answer)).why
    assert "none answers" in well(service.daemon, machine(tmp_path)).why


def test_a_daemon_that_does_not_answer(tmp_path: Path):
    """It hangs, or we have no key: in both cases somebody listens, and that is not well."""
    port = int(Config().endpoints.control.rpartition(":")[2])
    listening(tmp_path, port, "/opt/streamdet/bin/streamdet\0run")
    finding = the("warn", service.daemon, machine(tmp_path))
    assert "does not answer" in finding.why
    assert "--identity" in finding.mend


# -- all of them -----------------------------------------------------------------------------------------------------


def test_a_check_that_breaks_is_a_finding_and_the_others_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def broken(_: Machine) -> Any:
        raise ZeroDivisionError("x")

    monkeypatch.setattr(examine, "CHECKS", (broken, software.runtime))
    first, second = examine.examine(machine(tmp_path))
    assert (first.check, first.status) == ("broken", "fail")
    assert second.check == "runtime"


def test_this_very_machine_can_be_examined(tiny_bundle: Bundle):
    made = list(examine.examine(Machine(config=Config.model_validate(with_bundle(tiny_bundle)))))
    assert {each.check for each in made} >= {"runtime", "model", "addresses", "clock", "memory", "daemon"}
    assert not any("the check itself failed" in each.why for each in made), made
