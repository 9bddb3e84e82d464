"""What has reached the machine when SIGTERM comes has its verdict, also what the daemon has not read yet."""

import json
import signal
import socket

import pytest
import zmq

from streamdet.audio import encode
from streamdet.records import AudioFormat, Frame
from streamdet.wire import frames
from tests.faults import bundles
from tests.faults.harness import stopped, wait_for

FORM = AudioFormat(bundles.RATE_HZ, "s16le")
SECONDS = [encode(bundles.ordinary(1.0), "s16le")] * 4
CALLS = 10


@pytest.fixture
def callers(ends):
    """Send a whole second of each of some calls, by one way or the other."""

    def make(served, way):
        if way == "zeromq":
            context = ends.enter_context(zmq.Context())
            push = ends.enter_context(context.socket(zmq.PUSH))
            push.setsockopt(zmq.LINGER, 0)
            push.connect(served.endpoints["audio"])

            def say(number, at):
                frame = Frame(f"call-{number}", FORM, SECONDS[at], start=at * bundles.RATE_HZ)
                push.send_multipart(frames.build(frame))

            return say
        lines = []
        for number in range(CALLS):
            line = ends.enter_context(socket.socket(socket.AF_UNIX))
            line.connect(served.endpoints["pcm"][1].removeprefix("unix:"))
            head = {"stream": f"call-{number}", "rate": FORM.rate_hz, "encoding": FORM.encoding}
            line.sendall(b"STREAMDET " + json.dumps(head).encode() + b"\n")
            lines.append(line)
        return lambda number, at: lines[number].sendall(SECONDS[at])

    return make


@pytest.mark.parametrize(("way", "seconds"), [("zeromq", 1), ("pcm", 3)])
def test_what_waits_in_the_kernel_and_in_libzmq_is_scored_too(way, seconds, serve, record, callers):
    """Audio comes while the daemon is stopped, and SIGTERM right behind it.

    Over ZeroMQ one window of each call: of more at once a live call skips all but the newest, whenever they come.
    """
    served = serve()
    recorder, say = record(served), callers(served, way)
    names = [f"call-{number}" for number in range(CALLS)]
    for number in range(CALLS):
        say(number, 0)
    recorder.await_verdicts(names)
    with stopped(served.process):
        for at in range(1, 1 + seconds):
            for number in range(CALLS):
                say(number, at)
        served.signal(signal.SIGTERM)
    assert served.wait() == 0
    wait_for(lambda: len(recorder.events("close")) == CALLS)
    for name in names:
        heard = [(it.end_s, it.skipped) for it in recorder.verdicts(name) if it.stream == name]
        assert heard == [(end_s, 0) for end_s in range(1, 2 + seconds)]
    assert {event.detail["reason"] for event in recorder.events("close")} == {"drain"}
