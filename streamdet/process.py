"""What this process has of its machine, under the names that every dashboard knows (`process_...`).

Our own, because prometheus_client's collector reads /proc/stat, which a unit with `ProcSubset=pid` does not have, and
then says nothing at all.
"""

import functools
import os
import platform
import resource
import time
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

import zmq
from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

SELF: Final = Path("/proc/self")
PAGE_BYTES: Final = resource.getpagesize()
ONNXRUNTIMES: Final = ("onnxruntime-gpu", "onnxruntime")


def cpu_s() -> float:
    """CPU time of all threads since the start (s)."""
    return time.process_time()


def resident_bytes(of: Path = SELF) -> int:
    """Memory that lies in RAM; 0 where the kernel does not tell."""
    try:
        return int((of / "statm").read_text("ascii").split()[1]) * PAGE_BYTES
    except (OSError, ValueError, IndexError):
        return 0


def open_fds(of: Path = SELF) -> int:
    """Descriptors that are open; 0 where the kernel does not tell."""
    try:
        return sum(1 for _ in (of / "fd").iterdir())
    except OSError:
        return 0


def max_fds() -> float:
    """Descriptors that may be open (RLIMIT_NOFILE), infinite without a limit."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return float("inf") if soft == resource.RLIM_INFINITY else float(soft)


def started_at_s(of: Path = SELF) -> float:
    """Unix time at which the process began (s); now, where the kernel does not tell."""
    try:
        ticks = int((of / "stat").read_text("utf-8", "replace").rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return time.time()
    return time.time() - (time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK"))


@functools.cache
def versions() -> dict[str, str]:
    """What decides how the daemon behaves, by name."""
    return {
        "version": version("streamdet"),
        "python": platform.python_version(),
        "onnxruntime": next(filter(None, map(_installed, ONNXRUNTIMES)), "none"),
        "libzmq": zmq.zmq_version(),
    }


def _installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


class ProcessCollector(Collector):
    """Reads all that whenever somebody asks for the metrics."""

    def __init__(self, registry: CollectorRegistry, of: Path = SELF) -> None:
        """Register."""
        self._of: Final = of
        # Once: a wall clock that jumps afterwards must not look like a restart.
        self._started_at_s: Final = started_at_s(of)
        registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """Give what there is."""
        yield CounterMetricFamily("process_cpu_seconds", "CPU time of all threads.", cpu_s())
        yield GaugeMetricFamily("process_resident_memory_bytes", "Memory that lies in RAM.", resident_bytes(self._of))
        yield GaugeMetricFamily("process_open_fds", "File descriptors that are open.", open_fds(self._of))
        yield GaugeMetricFamily("process_max_fds", "File descriptors that may be open.", max_fds())
        yield GaugeMetricFamily(
            "process_start_time_seconds", "Unix time at which the process began.", self._started_at_s
        )
