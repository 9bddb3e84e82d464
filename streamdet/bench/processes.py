"""What Linux says of a process and its children: time on a CPU, memory. Read from /proc, so from outside of it."""

import contextlib
import os
from pathlib import Path
from typing import Final, NamedTuple

_PROC: Final = Path("/proc")
_TICK_S: Final = 1 / os.sysconf("SC_CLK_TCK")
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")


class Usage(NamedTuple):
    """Of a process and of all that it started."""

    cpu_s: float
    """User and system, all threads."""
    rss_bytes: int
    """Resident; what several processes share counts in each of them."""


def usage(pid: int) -> Usage:
    """Say what a process tree has used so far; zeros for one that has gone."""
    cpu_s, rss_bytes = 0.0, 0
    for each in tree(pid):
        with contextlib.suppress(OSError):
            # Behind the command's name, which may hold anything: user and system time are fields 14 and 15 of proc(5).
            fields = (_PROC / str(each) / "stat").read_text("utf-8").rpartition(")")[2].split()
            cpu_s += _TICK_S * (int(fields[11]) + int(fields[12]))
            rss_bytes += _PAGE_BYTES * int(fields[21])
    return Usage(cpu_s, rss_bytes)


def threads(pid: int) -> dict[str, float]:
    """Return the CPU seconds of a process's own threads so far, by their names; its first is `main`."""
    found: dict[str, float] = {}
    for task in (_PROC / str(pid) / "task").iterdir():
        with contextlib.suppress(OSError):
            name = "main" if task.name == str(pid) else (task / "comm").read_text("utf-8").strip()
            # Nanoseconds on a CPU: `stat` counts in hundredths of a second, longer than a small bench.
            spent_ns = int((task / "schedstat").read_text("utf-8").split()[0])
            found[name] = found.get(name, 0.0) + spent_ns / 1e9
    return found


def tree(pid: int) -> list[int]:
    """Return the process and its children's children."""
    found = [pid]
    for each in found:  # grows on the way
        with contextlib.suppress(OSError):
            for task in (_PROC / str(each) / "task").iterdir():
                found += map(int, (task / "children").read_text("utf-8").split())
    return found
