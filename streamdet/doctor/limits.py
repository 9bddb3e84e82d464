"""What the system lets a process have: clocks, files, memory."""

import resource
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Final

from streamdet import bundle
from streamdet.doctor.finding import Finding, Machine, fail, ok, warn
from streamdet.errors import StreamdetError

TIME_ERROR: Final = 5  # adjtimex(2)
FAST_CLOCKS: Final = {"tsc", "kvm-clock", "hyperv_clocksource_tsc_page", "arch_sys_counter"}
# This program is from then: an earlier clock is wrong, and certificates are not valid yet.
EARLIEST: Final = datetime(2026, 1, 1, tzinfo=UTC)
# For two clocks to be compared over (s), and by how much they may differ: a scheduler's turn.
COMPARED_S: Final = 0.05
APART_S: Final = 0.02
# Beside connections of calls: libraries, devices, epoll, and what raw PCM leaves to ZeroMQ (`connections.kept_free`)...
FILES_BESIDE: Final = 300
# ...which is a fifth of all, too.
FILES_TIMES: Final = 1.25
# docs/operations.md, Memory.
BASE_BYTES: Final = 150 << 20
MODEL_TIMES: Final = 3
TRACK_BYTES: Final = 50_000


def clock(machine: Machine) -> Iterator[Finding]:
    """Is the wall clock right, and does the other one run evenly?"""
    now = datetime.fromtimestamp(machine.wall_s(), UTC)
    if now < EARLIEST:
        yield fail("clock", f"it is not {now:%Y-%m-%d}", "timedatectl set-ntp true")
    elif machine.clock_state() == TIME_ERROR:
        mend = "timedatectl set-ntp true, or install chrony"
        yield warn("clock", "not synchronised: transit times and wall stamps mean little", mend)
    else:
        yield ok("clock", "synchronised")
    if "faketime" in machine.environment.get("LD_PRELOAD", ""):
        yield warn("clock", "LD_PRELOAD has libfaketime in it", "unset LD_PRELOAD where the daemon runs")
    source = machine.text("/sys/devices/system/clocksource/clocksource0/current_clocksource").strip()
    if source and source not in FAST_CLOCKS:
        mend = "see dmesg for why the kernel gave up tsc; clocksource=tsc on its command line"
        yield warn("clock", f"the kernel reads its clock from {source}, which costs microseconds a frame", mend)
    wall_s, monotonic_s = machine.wall_s(), machine.monotonic_s()
    time.sleep(COMPARED_S)
    apart_s = (machine.wall_s() - wall_s) - (machine.monotonic_s() - monotonic_s)
    if abs(apart_s) > APART_S:
        why = f"wall and monotonic clock differ by {1e3 * apart_s:.0f} ms in {1e3 * COMPARED_S:.0f}"
        yield warn("clock", why, "something sets the clock by jumps; let chrony slew it")


def files(machine: Machine) -> Iterator[Finding]:
    """May as many connections be open as there may be streams?"""
    hard = machine.limit(resource.RLIMIT_NOFILE)[1]
    needed = int(FILES_TIMES * machine.config.streams.max_streams) + FILES_BESIDE
    if hard != resource.RLIM_INFINITY and hard < needed:
        why = f"at most {hard} open files, but {needed} for streams.max_streams with a connection each"
        yield fail("files", why, f"LimitNOFILE={needed} in the unit, or ulimit -Hn {needed}")
    else:
        yield ok("files", f"{'unlimited' if hard == resource.RLIM_INFINITY else hard} open files, {needed} needed")
    core = machine.limit(resource.RLIMIT_CORE)[1]
    if core != 0 and machine.config.daemon.dumpable:
        yield warn("files", "core dumps are on and daemon.dumpable allows them", "LimitCORE=0 in the unit")


def memory(machine: Machine) -> Iterator[Finding]:
    """Is there room for the model and all tracks, and does nothing of it go to a disk?"""
    known = dict(line.split(":", 1) for line in machine.text("/proc/meminfo").splitlines() if ":" in line)
    available = _kib(known.get("MemAvailable", ""))
    limit = _cgroup_limit(machine)
    needed = _needed(machine)
    room = min(each for each in (available, limit) if each is not None) if available or limit else None
    if room is not None and room < needed:
        what = "the cgroup allows" if limit == room else "available"
        mend = "raise MemoryMax=" if limit == room else "lower streams.max_streams, or add memory"
        yield warn("memory", f"{room >> 20} MB {what}, {needed >> 20} for streams.max_streams", mend)
    else:
        yield ok("memory", f"{'unknown' if room is None else f'{room >> 20} MB'}, {needed >> 20} needed at most")
    if _kib(known.get("SwapTotal", "")):
        mend = "swapoff -a, or MemorySwapMax=0 in the unit (streamdet.service has it if it is ours)"
        yield warn("memory", "there is swap: audio of calls may reach its disk, and lag has no limit", mend)


def _kib(text: str) -> int | None:
    number = text.split()
    return int(number[0]) << 10 if number and number[0].isdigit() else None


def _cgroup_limit(machine: Machine) -> int | None:
    text = machine.cgroup("memory.max")
    return int(text) if text.isdigit() else None


def _needed(machine: Machine) -> int:
    """Bytes at the most: docs/operations.md has the formula."""
    try:
        entries = bundle.chosen(machine.config.bundle).manifest.files.values()
    except StreamdetError:
        return BASE_BYTES  # `model` tells of the bundle
    return (
        BASE_BYTES
        + MODEL_TIMES * sum(entry.bytes for entry in entries)
        + (machine.config.streams.max_streams * TRACK_BYTES)
    )
