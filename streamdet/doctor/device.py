"""NVIDIA's card, driver and device files, and the CPU."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from streamdet import providers
from streamdet.doctor.finding import Finding, Machine, fail, ok, warn
from streamdet.doctor.software import wanted

NVIDIA_VENDOR: Final = "0x10de"
# PCI's class of what draws or computes.
DISPLAY_CLASS: Final = "0x03"
DEVICES: Final = ("/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia0")
MODULES: Final = "printf 'nvidia\\nnvidia-uvm\\n' > /etc/modules-load.d/nvidia.conf && modprobe nvidia-uvm"


def card(machine: Machine) -> Iterator[Finding]:
    """Is there a card, and is all there that CUDA opens?"""
    cards = [
        path.parent.name
        for path in machine.glob("/sys/bus/pci/devices/*/vendor")
        if path.read_text("ascii").strip() == NVIDIA_VENDOR
        and (path.parent / "class").read_text("ascii").startswith(DISPLAY_CLASS)
    ]
    driver = re.search(r"Kernel Module\S*\s+([\d.]+)", machine.text("/proc/driver/nvidia/version"))
    missing = [name for name in DEVICES if not machine.path(name).exists()]
    closed = [name for name in DEVICES if name not in missing and not _open(machine, name)]
    asked = providers.on_card(wanted(machine))
    if not asked:
        if cards:
            mend = (
                "install NVIDIA's driver and, in the checkout, '.[cuda]'"
                if missing
                else "set scoring.provider to cuda or auto"
            )
            yield warn("card", f"an NVIDIA card ({cards[0]}) that scoring does not use", mend)
        else:
            yield ok("card", "none, and none is asked for")
    elif "/dev/nvidiactl" in missing:
        mend = "install NVIDIA's driver, or set scoring.provider to cpu"
        yield fail("card", f"scoring.provider is {machine.config.scoring.provider}, but there is no driver", mend)
    elif missing:
        yield fail("card", f"no {', '.join(missing)}: CUDA falls back to the CPU", MODULES)
    elif closed:
        yield fail("card", f"{', '.join(closed)}: not for this user", "usermod -aG video USER, or the unit's gpu.conf")
    else:
        yield ok("card", f"driver {driver[1] if driver else 'unknown'}, {', '.join(cards) or 'card not on PCI'}")


def processor(machine: Machine) -> Iterator[Finding]:
    """Has the CPU what makes models fast, and is it allowed to be?"""
    flags = set(re.findall(r"\w+", machine.text("/proc/cpuinfo").partition("flags")[2].partition("\n")[0]))
    cores, threads = machine.cores(), machine.config.scoring.threads
    best = next((name for name in ("avx512_vnni", "avx512f", "avx2") if name in flags), None)
    if flags and best is None:
        yield warn("processor", "no AVX2: models run several times as slow", "use a machine from the last ten years")
    if threads > cores:
        yield warn("processor", f"scoring.threads is {threads} on {cores} cores", f"set it to 0, or to {cores}")
    slow = [path for path in machine.glob("/sys/devices/system/cpu/cpu*/cpufreq/scaling_governor") if _saves(path)]
    if slow:
        yield warn("processor", f"{len(slow)} cores save power: lag is uneven", "cpupower frequency-set -g performance")
    quota = _quota_cores(machine)
    if quota is not None and quota < cores:
        yield warn(
            "processor",
            f"a cgroup allows {quota:g} cores of {cores}: runs are held up in the middle",
            f"raise CPUQuota=, or set scoring.threads to {max(1, int(quota))}",
        )
    yield ok("processor", f"{cores} cores, {best or 'features unknown'}")


def _open(machine: Machine, name: str) -> bool:
    return machine.may(machine.path(name), os.R_OK | os.W_OK)


def _saves(path: Path) -> bool:
    return path.read_text("ascii").strip() == "powersave"


def _quota_cores(machine: Machine) -> float | None:
    """Cores that our cgroup (v2) may use; None without a limit."""
    quota, _, period = machine.cgroup("cpu.max").partition(" ")
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() else None
