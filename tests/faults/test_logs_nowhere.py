"""Logs that nobody takes: a full disk, a pipe that is not read, a terminal that has gone. The calls do not notice."""

import contextlib
import fcntl
import os
import platform
import shutil
import subprocess
from pathlib import Path

import pytest
import zmq

from tests.faults.harness import figure, wait_for
from tests.faults.recorder import account

BROKEN = str(Path(__file__).with_name("broken.py"))
CALLS = 5
# More than any pipe or small disk takes: each is a warning with 100 bytes at least.
REFUSED = 3000
DISK_BYTES = 64 << 10
MOST_BYTES = 16 << 20
# write(2) by its number: x86-64, and all others that we know of.
WRITE = 1 if platform.machine() == "x86_64" else 64


@contextlib.contextmanager
def dev_full(_):
    with Path("/dev/full").open("wb") as full:
        yield full


@contextlib.contextmanager
def full_disk(folder):
    """A file on a file system of 64 kB that is full."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("not root: no small file system")
    place = folder / "disk"
    place.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "none", place], capture_output=True)
    if made.returncode:
        pytest.skip(f"no small file system here: {made.stderr.decode()}")
    try:
        with (place / "log").open("wb", buffering=0) as log:
            with contextlib.suppress(OSError):
                while True:
                    log.write(b"." * 4096)
            yield log
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)


@contextlib.contextmanager
def unread_pipe(_):
    """A pipe that is full, and whose reader does not read."""
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETFL, os.O_NONBLOCK)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writer, b"." * 512)
    fcntl.fcntl(writer, fcntl.F_SETFL, 0)  # as a daemon gets it: writing waits
    try:
        yield writer
    finally:
        os.close(reader)
        os.close(writer)


@contextlib.contextmanager
def closed_pipe(_):
    """A pipe whose reader has gone."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        yield writer
    finally:
        os.close(writer)


NOWHERE = {each.__name__: each for each in (dev_full, full_disk, unread_pipe, closed_pipe)}


def refuse_much(served) -> None:
    """Give it much to log: streams with a wrong rate, each with an id of its own."""
    with zmq.Context() as context, context.socket(zmq.PUSH) as push:
        push.setsockopt(zmq.LINGER, 30_000)
        push.setsockopt(zmq.SNDHWM, 0)
        push.connect(served.endpoints["audio"])
        for number in range(REFUSED):
            push.send_multipart([b"wrong-%d" % number, b'{"rate":8001,"encoding":"mulaw"}', b"\xff" * 160])


@pytest.mark.parametrize("where", NOWHERE)
def test_calls_do_not_notice_that_nobody_takes_the_log(where, serve, record, dial, ends, tmp_path):
    log = ends.enter_context(NOWHERE[where](tmp_path))
    served = serve(stderr=log, daemon={"log_level": "debug"})
    recorder = record(served)
    calls = dial(served.endpoints["audio"])
    streams = [calls.stream(number) for number in calls.open(CALLS)]
    recorder.await_verdicts(streams)
    before = served.memory().rss
    refuse_much(served)
    wait_for(lambda: served.metric('streamdet_refused_total{transport="zeromq"}') >= REFUSED)
    grown = served.memory().rss - before
    recorder.await_verdicts(streams, 3)
    calls.end()
    recorder.await_closed(streams)
    counted = account(recorder.histories("call-").values())
    figure("log-nowhere", where=where, refused=REFUSED, grown_mb=grown / 1e6, **counted._asdict())
    assert (counted.tracks, counted.openings, *counted[4:]) == (CALLS, CALLS, 0, 0, 0, 0)
    assert grown < MOST_BYTES
    assert served.terminate() == 0


def test_a_daemon_that_waits_for_its_log_is_found_out(prepare, ends, tmp_path):
    log = ends.enter_context(unread_pipe(tmp_path))
    served = prepare(stderr=log, program=[BROKEN, "waits-for-the-log"]).start()
    wait_for(lambda: writes_to_stderr(served.pid))
    assert not served.ready


def writes_to_stderr(pid: int) -> bool:
    """Whether a thread stands in write(2, ...): its number and first argument, as /proc has them."""
    tasks = Path(f"/proc/{pid}/task").glob("*/syscall")
    calls = [task.read_text().split()[:2] for task in tasks]
    return [str(WRITE), "0x2"] in calls
