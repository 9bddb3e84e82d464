"""What the process has, as the kernel tells it: held against other ways to ask."""

import os
import time
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from streamdet import process


def test_memory_and_descriptors_are_the_kernels():
    status = Path("/proc/self/status").read_text("ascii")
    (line,) = [line for line in status.splitlines() if line.startswith("VmRSS:")]
    assert process.resident_bytes() == pytest.approx(1024 * int(line.split()[1]), rel=0.2)
    before = process.open_fds()
    descriptor = os.open("/dev/null", os.O_RDONLY)
    assert process.open_fds() == before + 1
    os.close(descriptor)


def test_the_start_is_before_now_and_after_the_boot():
    began_s = process.started_at_s()
    up_s = float(Path("/proc/uptime").read_text("ascii").split()[0])
    assert time.time() - up_s - 1 < began_s <= time.time()


def test_a_kernel_that_tells_nothing_is_no_error(tmp_path: Path):
    registry = CollectorRegistry()
    process.ProcessCollector(registry, of=tmp_path)
    assert registry.get_sample_value("process_resident_memory_bytes") == 0
    assert registry.get_sample_value("process_open_fds") == 0
    assert registry.get_sample_value("process_start_time_seconds") == pytest.approx(time.time(), abs=60)


def test_one_of_the_two_runtimes_is_told_whatever_its_name():
    assert process.versions()["onnxruntime"][:1].isdigit()
