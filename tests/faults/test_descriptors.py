"""A process that may open no more files: calls that are open go on, nothing spins, nothing floods the log."""

import contextlib
import subprocess
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
# Descriptors that are left for those who come, fewer than they are.
SPARE = 20
# How long the shortage is watched: so many verdicts of each call.
VERDICTS = 4
# With waits of 10 ms, doubled up to a second, and a try for each connection that ends.
TRIES_MAX = 10 * VERDICTS + CLIENTS
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
