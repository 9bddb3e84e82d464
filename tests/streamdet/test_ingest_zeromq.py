"""The ZeroMQ way in, where what matters is not on the wire."""

import asyncio
import itertools

import pytest
import zmq

from streamdet.ingest import zeromq
from streamdet.ingest.zeromq import AudioSocket
from streamdet.metrics import Metrics
from streamdet.records import AudioFormat, Frame
from streamdet.wire import frames

# Without a thread between: what was sent is there to be read at once. A name is free again only after a while.
AT_ONCE = (f"inproc://audio-{number}" for number in itertools.count())
FORM = AudioFormat(8000, "mulaw")


class Taking:
    """Stands for an engine and keeps the frames."""

    def __init__(self) -> None:
        self.fed: list[Frame] = []

    def feed(self, frame: Frame, *_: object, **__: object) -> bool:
        self.fed.append(frame)
        return True


async def sent_at_the_end(frames_sent: int) -> list[Frame]:
    """What an engine hears of frames that are there when the socket is left, before the loop has had a turn."""
    engine, address = Taking(), next(AT_ONCE)
    async with AudioSocket(address, engine, Metrics()):
        with zmq.Context.instance().socket(zmq.PUSH) as push:
            push.set(zmq.SNDHWM, 0)
            push.connect(address)
            for seq in range(frames_sent):
                push.send_multipart(frames.build(Frame("a", FORM, b"\xff" * 160, seq=seq)))
    return engine.fed


def test_what_has_arrived_when_the_end_comes_is_still_taken():
    fed = asyncio.run(sent_at_the_end(700))
    assert [frame.seq for frame in fed] == list(range(700))


def test_a_sender_that_never_stops_does_not_keep_the_daemon(monkeypatch):
    clock = itertools.count()
    monkeypatch.setattr(zeromq.time, "monotonic", lambda: next(clock) / 100)
    assert 0 < len(asyncio.run(sent_at_the_end(700))) < 100


@pytest.mark.parametrize("count", [0, 1])
def test_an_end_without_audio_is_an_end(count):
    assert len(asyncio.run(sent_at_the_end(count))) == count
