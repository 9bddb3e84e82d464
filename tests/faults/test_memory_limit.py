"""A daemon that gets no more memory: it ends with a code that has it started again, and the calls go on."""

import contextlib
import os
import resource
import signal
import time
from pathlib import Path

import pytest
import zmq

from tests.faults.harness import PATIENCE_S, figure, wait_for
from tests.faults.recorder import account

CALLS = 4
# What the limit leaves above what it has: less than the tracks of the flood want.
SPARE_BYTES = 8 << 20
MORE_STREAMS = 900
GROUPS = Path("/sys/fs/cgroup/memory")


def open_many(served, seconds: float) -> None:
    """Open streams of 48 kHz, float and 8 channels, a ring of 7.7 MB each, until the daemon has gone or time is up."""
    with zmq.Context() as context, context.socket(zmq.PUSH) as push:
        push.setsockopt(zmq.LINGER, 0)
        push.setsockopt(zmq.SNDTIMEO, 200)
        push.connect(served.endpoints["audio"])
        until_s, pid = time.monotonic() + seconds, served.pid
        for number in range(MORE_STREAMS):
            if served.pid != pid or time.monotonic() > until_s:
                return
            header = b'{"rate":48000,"encoding":"f32le","channels":8,"start":0}'
            with contextlib.suppress(zmq.Again):
                push.send_multipart([b"large-%d" % number, header, b"\\0" * 32 * 480])
            time.sleep(0.005)


def limit_addresses(served) -> None:
    pages = int(Path(f"/proc/{served.pid}/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + SPARE_BYTES
    resource.prlimit(served.pid, resource.RLIMIT_AS, (most, most))


@pytest.fixture
def group():
    """A memory cgroup of our own; what is in it is ended when it has too much."""
    made = GROUPS / f"streamdet-faults-{os.getpid()}"
    try:
        made.mkdir()
        (made / "memory.limit_in_bytes").write_text(str(1 << 30))
    except OSError as error:
        pytest.skip(f"no memory cgroup of our own: {error}")
    yield made
    wait_for(lambda: not (made / "cgroup.procs").read_text(), why="for an empty cgroup")
    made.rmdir()


def limit_group(group, served) -> None:
    (group / "cgroup.procs").write_text(str(served.pid))
    (group / "memory.limit_in_bytes").write_text(str(served.memory().rss // 4 + SPARE_BYTES))


@pytest.mark.parametrize("how", ["addresses", "group"])
def test_a_daemon_without_memory_ends_and_its_calls_go_on_with_the_next(how, serve, supervise, record, dial, request):
    served = serve()
    recorder, supervisor = record(served), supervise(served)
    calls = dial(served.endpoints["audio"])
    streams = [calls.stream(number) for number in calls.open(CALLS)]
    recorder.await_verdicts(streams)
    if how == "addresses":
        limit_addresses(served)
    else:
        limit_group(request.getfixturevalue("group"), served)
    open_many(served, PATIENCE_S)
    life = supervisor.restarted(1)
    recorder.await_verdicts(streams, 2, since_s=life.ready_s)
    calls.end()
    recorder.await_closed(streams)
    counted = account(recorder.histories(calls.prefix).values())
    figure("memory-limit", how=how, code=life.code, **counted._asdict())
    # libzmq, for its own buffers, knows nothing better than abort(3). systemd restarts after each of these.
    assert life.code in ((-signal.SIGKILL,) if how == "group" else (71, -signal.SIGABRT))
    assert "Traceback" not in served.said()
    assert (counted.tracks, counted.openings) == (CALLS, 2 * CALLS)
    assert (counted.missing, counted.duplicates, counted.holes) == (0, 0, 0)
