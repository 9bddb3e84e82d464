"""What a call leaves in the daemon's memory: nothing, searched for in all of it."""

import os
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from streamdet.audio import encode
from streamdet.records import AudioFormat
from tests.faults import memory
from tests.faults.harness import figure
from tests.faults.lone import Lone, folder

SECONDS = 6
WINDOW_S = 4
MODEL_HZ = 16_000
FRAMES_A_SECOND = 50
NARROW, MULAW_STEREO = AudioFormat(8000, "s16le"), AudioFormat(8000, "mulaw", 2)
FORMATS = {"s16le": NARROW, "mulaw, two channels": MULAW_STEREO}


@pytest.fixture
def start() -> Iterator[Callable[..., Lone]]:
    """Starts daemons whose memory may be read; the starter's model, since a toy's would hold next to nothing."""
    started = []
    with folder() as place:

        def begin(*args: str) -> Lone:
            allowed = [] if os.getuid() == 0 else ["--set=daemon.dumpable=true"]
            started.append(Lone(place, *allowed, *args))
            return started[-1]

        yield begin
        for lone in started:
            lone.close()


def voice(form: AudioFormat) -> np.ndarray:
    """Sound that the gate takes for speech, of no other call: noise that comes and goes, `(T, channels)`."""
    length = form.rate_hz * SECONDS
    syllables = np.clip(np.sin(2 * np.pi * 4 * np.arange(length) / form.rate_hz), 0, 1)[:, None]
    noise = np.random.default_rng(int.from_bytes(os.urandom(8))).uniform(-1, 1, (length, form.channels))
    return (0.5 * syllables * noise).astype(np.float32)


def needles(sound: np.ndarray, form: AudioFormat) -> list[bytes]:
    """Pieces of all channels, in every form that they take on their way to the model."""
    windows_s = [(max(0, end_s - WINDOW_S), end_s) for end_s in (SECONDS // 2, SECONDS)]
    one = AudioFormat(form.rate_hz, form.encoding)
    found = [memory.needles(encode(channel, form.encoding), one, windows_s, MODEL_HZ) for channel in sound.T]
    assert len(found[0]) > 10
    return sorted(set().union(*found))


def play(lone: Lone, sound: np.ndarray, form: AudioFormat, stream: str = "a") -> None:
    """Send it a hop at a time in frames of 20 ms, and wait for each hop's verdict."""
    payload = encode(sound, form.encoding)
    size = form.rate_hz // FRAMES_A_SECOND * form.block_bytes
    for number in range(SECONDS * FRAMES_A_SECOND):
        at = number * size
        lone.send(payload[at : at + size], stream, form, start=at // form.block_bytes)
        if number % FRAMES_A_SECOND == FRAMES_A_SECOND - 1:
            end_s = (number + 1) // FRAMES_A_SECOND
            lone.until(lambda it, end_s=end_s: getattr(it, "end_s", None) == end_s)


def end(lone: Lone, form: AudioFormat, stream: str = "a") -> None:
    lone.send(b"", stream, form, end=True)
    lone.event("close", stream)
    lone.ask(op="status")  # so that the loop has turned since


@pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS)
def test_nothing_of_a_call_over_zeromq_is_left_when_it_has_ended(start, form):
    """Its sender stays connected: what the library keeps of a connection counts too."""
    lone, sound = start(), voice(form)
    wanted = needles(sound, form)
    play(lone, sound, form)
    during = memory.found(lone.pid, wanted)
    assert during, "control: the search finds what is in the ring"
    end(lone, form)
    after = memory.found(lone.pid, wanted)
    figure("memory-zeromq", pieces=len(wanted), during=len(during), after=len(after))
    assert after == {}


def test_what_comes_while_paused_is_nowhere(start):
    lone, open_, secret = start(), voice(NARROW), voice(NARROW)
    play(lone, open_, NARROW)
    lone.ask(op="pause", stream="a")
    payload = encode(secret, "s16le")
    hop, clock = len(payload) // SECONDS, len(open_)
    for number in range(SECONDS):
        lone.send(payload[number * hop : (number + 1) * hop], "a", NARROW, start=clock + number * hop // 2)
        lone.until(lambda it, end_s=SECONDS + number + 1: getattr(it, "end_s", None) == end_s)
    assert memory.found(lone.pid, needles(secret, NARROW)) == {}


def test_control_what_comes_after_a_pause_is_heard_again(start):
    lone, sound = start(), voice(NARROW)
    lone.send(b"", "a", NARROW, start=0)
    lone.event("open", "a")
    lone.ask(op="pause", stream="a")
    lone.ask(op="resume", stream="a")
    play(lone, sound, NARROW)
    assert memory.found(lone.pid, needles(sound, NARROW))


def test_nothing_of_a_call_over_raw_pcm_is_left_when_it_has_ended(start):
    lone, sound = start(), voice(NARROW)
    wanted, payload = needles(sound, NARROW), encode(sound, "s16le")
    with lone.pcm("a", NARROW) as connection:
        for at in range(0, len(payload), 320):  # as a recorder sends it; whatever meets in one read
            connection.sendall(payload[at : at + 320])
        lone.until(lambda it: getattr(it, "end_s", None) == SECONDS)
        during = memory.found(lone.pid, wanted)
    assert during, "control: the search finds what is in the ring"
    lone.event("close", "a")
    lone.ask(op="status")
    after = memory.found(lone.pid, wanted)
    figure("memory-pcm", pieces=len(wanted), during=len(during), after=len(after))
    assert after == {}
