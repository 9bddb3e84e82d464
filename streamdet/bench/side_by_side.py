"""Recordings as so many calls at once, through engine and pump as in the daemon, as fast as they are taken."""

import asyncio
from collections.abc import Iterator

import uvloop

from streamdet.audio import Samples
from streamdet.bench.recordings import Recordings
from streamdet.engine import Engine
from streamdet.pump import Pump
from streamdet.records import AudioFormat, Event, Frame, Verdict
from streamdet.scorer import Scorer


def play(recordings: Recordings, scorer: Scorer, batch_max: int) -> list[Verdict | Event]:
    """Play all of them at once, each as a lossless connection would.

    Returns:
        what the daemon would have published, in order.

    Raises:
        StreamdetError: the model broke; whatever else a scoring thread raises.
    """
    return uvloop.run(_play(recordings, scorer, batch_max))


async def _play(recordings: Recordings, scorer: Scorer, batch_max: int) -> list[Verdict | Event]:
    said: list[Verdict | Event] = []
    closed, over = 0, asyncio.Event()

    def emit(record: Verdict | Event) -> None:
        nonlocal closed
        said.append(record)
        closed += isinstance(record, Event) and record.type == "close"
        if closed == len(recordings):
            over.set()

    with Pump(scorer, batch_max, lambda *_: None) as pump:
        engine = Engine(scorer.manifest, emit, max_streams=len(recordings), wake=pump.wake)
        pumping = asyncio.ensure_future(pump.run(engine))
        playing = asyncio.ensure_future(_play_all(engine, recordings, over))
        await asyncio.wait([pumping, playing], return_when=asyncio.FIRST_COMPLETED)
        if not playing.done():
            playing.cancel()
            await pumping  # it never ends by itself: raise what it ended with
        pumping.cancel()
        playing.result()
    return said


async def _play_all(engine: Engine, recordings: Recordings, over: asyncio.Event) -> None:
    await asyncio.gather(*(_play_one(engine, name, *each) for name, each in recordings.items()))
    await over.wait()  # the last windows are on their way


async def _play_one(engine: Engine, name: str, samples: Samples, rate_hz: int) -> None:
    """Feed one recording, and wait wherever the engine says so."""
    form, room = AudioFormat(rate_hz, "f32le", 1), asyncio.Event()
    engine.open(name, form, 0.0, resume=room.set)
    for payload in _hops(samples, engine.hop_bytes(form)):
        room.clear()
        if not engine.feed(Frame(name, form, payload), 0.0, lossless=True):
            await room.wait()
    engine.close(name, "end", 0.0)


def _hops(samples: Samples, hop_bytes: int) -> Iterator[bytes]:
    data = samples.astype("<f4").tobytes()
    return (data[at : at + hop_bytes] for at in range(0, len(data), hop_bytes))
