"""Audio stays in the process: no core dump of it, nothing on a disk."""

import ctypes
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from streamdet.audio import encode
from streamdet.records import AudioFormat
from tests.faults.bundles import RATE_HZ, ordinary
from tests.faults.lone import PATIENCE_S, Lone, folder, written_bytes

S16 = AudioFormat(RATE_HZ, "s16le")


LIBC = ctypes.CDLL(None)
PR_CAPBSET_DROP, CAP_SYS_PTRACE = 24, 19


def unprivileged() -> None:
    """Before an exec: be root without its privilege to trace others; nothing to do for anybody else."""
    LIBC.prctl(PR_CAPBSET_DROP, CAP_SYS_PTRACE, 0, 0, 0)


def with_core_dumps() -> None:
    """Before an exec: what lets the control leave a core file, and be read."""
    resource.setrlimit(resource.RLIMIT_CORE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    unprivileged()


@pytest.fixture
def start(tiny_bundle) -> Iterator[Callable[..., Lone]]:
    """Starts a daemon that the system would let dump core."""
    hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
    if hard != resource.RLIM_INFINITY and os.getuid() != 0:
        pytest.skip("core dumps are forbidden to this user: nothing to show")
    started = []
    with folder() as place:

        def begin(*args: str) -> Lone:
            started.append(Lone(place, f"--bundle={tiny_bundle.path}", *args, before=with_core_dumps))
            return started[-1]

        yield begin
        for lone in started:
            lone.close()


def call(lone: Lone, seconds: int = 3) -> None:
    """A call over ZeroMQ and one over PCM, each to its last verdict."""
    payload = encode(ordinary(seconds), "s16le")
    hop = len(payload) // seconds
    for at in range(seconds):
        lone.send(payload[at * hop : (at + 1) * hop], "a", S16, start=at * RATE_HZ, end=at == seconds - 1)
    lone.event("close", "a")
    with lone.pcm("b", S16) as connection:
        connection.sendall(payload)
    lone.event("close", "b")


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT])
def test_a_crash_leaves_no_core_dump(start, number):
    lone = start()
    call(lone)
    status = lone.end(number)
    assert os.WTERMSIG(status) == number
    assert not os.WCOREDUMP(status)
    assert lone.left_behind() == []


def test_control_without_secrecy_the_same_crash_leaves_one(start):
    lone = start("--set=daemon.dumpable=true")
    call(lone)
    assert os.WCOREDUMP(lone.end(signal.SIGSEGV))
    assert "core dumps and tracers can see" in lone.log.read_text()


def may_read_memory(pid: int) -> bool:
    """Whether a process of the same user, without root's privilege to trace, can open another's memory."""
    script = "import sys; open(f'/proc/{sys.argv[1]}/mem', 'rb')"
    command = [sys.executable, "-c", script, str(pid)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, preexec_fn=unprivileged)
    assert done.returncode == 0 or "PermissionError" in done.stderr, done.stderr
    return done.returncode == 0


def test_the_same_user_cannot_read_its_memory(start):
    assert not may_read_memory(start().pid)


def test_control_without_secrecy_the_same_user_can(start):
    assert may_read_memory(start("--set=daemon.dumpable=true").pid)


def test_calls_write_nothing_to_any_disk(start):
    lone = start()
    before = written_bytes(lone.pid)
    for _ in range(2):
        call(lone)
    assert lone.open_files() == [str(lone.log)]
    assert written_bytes(lone.pid) - before <= lone.log.stat().st_blocks * 512
    assert lone.left_behind() == []
    assert os.WEXITSTATUS(lone.end()) == 0
    assert lone.left_behind() == []
    assert len(lone.log.read_bytes()) < 4096  # and no sound in words either


def test_control_what_a_process_writes_is_counted(tmp_path: Path):
    script = "import sys; open(sys.argv[1], 'wb').write(bytes(1 << 20)); print(flush=True); input()"
    writer = subprocess.Popen(
        [sys.executable, "-c", script, tmp_path / "file"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    writer.stdout.readline()
    counted = written_bytes(writer.pid)
    writer.communicate(b"\n", PATIENCE_S)
    if counted == 0:
        pytest.skip("this file system counts no writes: what lies in the folders is all that is checked here")
    assert counted >= 1 << 20
