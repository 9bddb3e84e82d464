"""Packages, and the settings that are in force."""

from collections.abc import Iterator
from typing import Final

from streamdet import providers
from streamdet.doctor.finding import Finding, Machine, fail, ok, warn

GPU_WHEEL: Final = "onnxruntime-gpu"
CPU_WHEEL: Final = "onnxruntime"


def runtime(machine: Machine) -> Iterator[Finding]:
    """One onnxruntime, and the one that fits: two overwrite each other's files, and CUDA goes without a word."""
    gpu, cpu = machine.version(GPU_WHEEL), machine.version(CPU_WHEEL)
    if gpu and cpu:
        mend = f"pip uninstall -y {CPU_WHEEL} {GPU_WHEEL} && pip install {GPU_WHEEL}"
        yield fail("runtime", f"{GPU_WHEEL} {gpu} and {CPU_WHEEL} {cpu} overwrite each other's files", mend)
    elif not gpu and not cpu:
        yield fail("runtime", "no onnxruntime is installed", f"pip install {GPU_WHEEL} (it runs on CPUs too)")
    elif not gpu and providers.on_card(wanted(machine)):
        mend = f"pip uninstall -y {CPU_WHEEL} && pip install '.[cuda]' in the checkout"
        yield fail("runtime", f"{CPU_WHEEL} {cpu} knows no CUDA, which scoring.provider asks for", mend)
    else:
        yield ok("runtime", f"{GPU_WHEEL if gpu else CPU_WHEEL} {gpu or cpu}")


def settings(machine: Machine) -> Iterator[Finding]:
    """What is not at its default, and where that was said."""
    where = machine.config_file or "no file"
    said = ", ".join(f"{name} ({origin})" for name, origin in machine.changed.items())
    yield ok("settings", f"{where}: {said or 'every key at its default'}")
    if machine.config.endpoints.insecure:
        yield warn(
            "settings",
            "endpoints.insecure: whoever reaches the addresses may send, read and control",
            "make keys (streamdet keys new, allow), set security.clients, and take endpoints.insecure out",
        )
    if machine.config.daemon.dumpable:
        yield warn(
            "settings",
            "daemon.dumpable: a crash may write audio of calls to the disk, and others of this user may read it",
            "take daemon.dumpable out when you have found what you look for",
        )


def wanted(machine: Machine) -> str:
    """Provider that the settings ask for, in onnxruntime's words, on this machine."""
    provider = machine.config.scoring.provider
    if provider == "auto":
        return providers.CUDA if machine.path("/dev/nvidiactl").exists() else providers.CPU
    return providers.wanted(provider)
