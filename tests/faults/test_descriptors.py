"""A process that may open no more files: calls that are open go on, nothing spins, nothing floods the log."""

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.faults.calls import Calls
from tests.faults.harness import Served, figure, wait_for
from tests.faults.recorder import Recorder
from tests.faults.slow import connect

BROKEN = str(Path(__file__).with_name("broken.py"))
CALLS, CLIENTS = 5, 80
# Descriptors that are left for those who come, fewer than they are, and of which ZeroMQ's may have some.
SPARE = 40
# How long the shortage is watched: so many verdicts of each call.
VERDICTS = 4
# With waits of 10 ms, doubled up to a second, and a try for each connection that ends.
TRIES_MAX = 10 * VERDICTS + CLIENTS
# Time for which ZeroMQ's threads are watched, and how much of a core they may take.
WATCHED_S, SHARE_MAX = 3.0, 0.1
# Nobody is cut off for saying nothing: who is served is a question of descriptors alone.
PATIENT = {"handshake_s": 3600}


class Short(NamedTuple):
    """A daemon without a descriptor to spare."""

    served: Served
    recorder: Recorder
    calls: Calls
    clients: list
    streams: list[str]

    def watch(self) -> float:
        """Watch it for a while: CPU seconds that it took, for each verdict of a call."""
        before_s, count = self.served.cpu_s(), len(self.recorder.verdicts(self.calls.prefix))
        wait_for(lambda: len(self.recorder.verdicts(self.calls.prefix)) >= count + CALLS * VERDICTS)
        return (self.served.cpu_s() - before_s) / VERDICTS


def allow(served: Served, files: int) -> None:
    """Set how many files the process may have open, as an administrator or a leak would."""
    subprocess.run(["prlimit", f"--pid={served.pid}", f"--nofile={files}:{files}"], check=True)


@pytest.fixture
def short(serve, record, dial):
    @contextlib.contextmanager
    def make(**options) -> Iterator[Short]:
        served = serve(limits=PATIENT, **options)
        recorder, calls = record(served), dial(served.endpoints["audio"], sockets=CALLS)
        streams = [calls.stream(number) for number in calls.open(CALLS)]
        recorder.await_verdicts(streams)
        highest = max(int(path.name) for path in Path(f"/proc/{served.pid}/fd").iterdir())
        allow(served, highest + 1 + SPARE)
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(connect(served.endpoints["pcm"][0])) for _ in range(CLIENTS)]
            wait_for(lambda: "connections wait" in served.said())
            yield Short(served, recorder, calls, clients, streams)

    return make


def test_calls_go_on_callers_wait_and_each_is_served_when_another_ends(short):
    with short() as daemon:
        served, recorder = daemon.served, daemon.recorder
        cpu_s = daemon.watch()
        for number, client in enumerate(daemon.clients):
            client.sendall(b'STREAMDET {"stream": "late-%d"}\n' % number + b"\0\0" * 8000)
        for number, client in enumerate(daemon.clients):
            recorder.await_verdicts([f"late-{number}"])
            client.close()
        assert recorder.events("close", daemon.calls.prefix) == []
        daemon.calls.end()
        recorder.await_closed(daemon.streams)
        tries = served.metric('streamdet_accepts_failed_total{endpoint="pcm"}')
        lines = served.said().count("connections wait")
        figure("descriptors", clients=CLIENTS, spare=SPARE, tries=tries, lines=lines, cpu_s_per_s=cpu_s)
        assert 0 < tries < TRIES_MAX
        assert lines <= 2
        missing = [history.missing for history in recorder.histories(daemon.calls.prefix).values()]
        assert missing == [[]] * CALLS


def test_trying_again_at_once_is_found_out(short):
    """The control."""
    with short(program=[BROKEN, "insists"]) as daemon:
        cpu_s = daemon.watch()
        for client in daemon.clients:
            client.close()
        tries = wait_for(lambda: daemon.served.metric('streamdet_accepts_failed_total{endpoint="pcm"}'))
        figure("descriptors_control", tries=tries, cpu_s_per_s=cpu_s)
        assert tries > TRIES_MAX


# -- ZeroMQ, whose library tries again at once -------------------------------------------------------------------------


def zeromq_cpu_s(pid: int) -> float:
    """CPU time of the library's own threads so far (s)."""
    ticks = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        name, _, rest = (task / "stat").read_text("utf-8").partition("(")[2].rpartition(")")
        if name.startswith("ZMQbg"):
            user, system = rest.split()[11:13]
            ticks += int(user) + int(system)
    return ticks / os.sysconf("SC_CLK_TCK")


def share(served: Served) -> float:
    """Part of a core that the library's threads take while somebody comes to a ZeroMQ socket."""
    with connect(served.endpoints["verdicts"]):
        before_s, began_s = zeromq_cpu_s(served.pid), time.monotonic()
        time.sleep(WATCHED_S)
        return (zeromq_cpu_s(served.pid) - before_s) / (time.monotonic() - began_s)


def test_a_reader_is_let_in_where_raw_pcm_has_taken_all_that_it_may(short, record):
    with short() as daemon:
        taken = share(daemon.served)
        record(daemon.served).await_beat()
        figure("descriptors_zeromq", clients=CLIENTS, spare=SPARE, threads_cores=taken)
        assert taken < SHARE_MAX


def test_raw_pcm_that_leaves_none_makes_the_library_spin(short):
    """The control."""
    with short(program=[BROKEN, "spends"]) as daemon:
        taken = share(daemon.served)
        figure("descriptors_zeromq_control", threads_cores=taken)
        assert taken > SHARE_MAX
