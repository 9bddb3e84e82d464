"""Two daemons that want the same address: the second one says so and leaves, and the first does not notice."""

import signal
import socket
from pathlib import Path

import pytest

from tests.faults.recorder import account

UNREACHABLE = 69
DOORS = ("audio", "verdicts", "control", "http", "pcm")


@pytest.fixture
def under_way(serve, record, dial):
    """A daemon with calls over ZeroMQ and a unix socket."""
    served = serve()
    recorder = record(served)
    callers = [dial(served.endpoints["audio"], prefix="z-"), dial(served.endpoints["pcm"][1], prefix="u-")]
    streams = [calls.stream(number) for calls in callers for number in calls.open(4)]
    recorder.await_verdicts(streams)
    return served, recorder, callers, streams


@pytest.mark.parametrize("same", [*DOORS, "unix"])
def test_the_second_daemon_at_an_address_leaves_and_the_first_goes_on(same, under_way, prepare):
    served, recorder, callers, streams = under_way
    address = served.endpoints["pcm"][1:] if same == "unix" else served.endpoints[same]
    second = prepare(endpoints={"pcm" if same == "unix" else same: address}).start()
    assert second.wait() == UNREACHABLE, second.said()
    shown = address[0] if isinstance(address, list) else address
    assert shown[-20:] in second.said()  # a long path is shown by its ends
    assert "another process listens there" in second.said()
    assert "Traceback" not in second.said()
    count = len(recorder.verdicts())
    recorder.await_verdicts(streams, 1, since_s=recorder.heard[-1].at_s)
    assert len(recorder.verdicts()) > count
    for calls in callers:
        calls.end()
    recorder.await_closed(streams)
    counted = account(recorder.histories().values())
    assert (counted.tracks, counted.openings) == (8, 8)
    assert counted[4:] == (0, 0, 0, 0)


def test_daemons_at_addresses_of_their_own_do_not_mind_each_other(under_way, serve):
    """The control: nothing but the address kept the second one away."""
    served, *_ = under_way
    assert serve().ready
    assert served.ready


def test_a_socket_file_that_a_dead_daemon_left_is_no_daemon(serve):
    served = serve()
    path = Path(served.endpoints["pcm"][1].removeprefix("unix:"))
    served.signal(signal.SIGKILL)
    served.wait()
    assert path.is_socket()
    served.started()
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(path))
