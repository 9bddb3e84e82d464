"""A sender that is as fast as it can be: many streams from one process, the next frame as soon as it fits.

    python -m streamdet.bench.flood '{"over": "tcp", "address": "tcp://127.0.0.1:5563", "streams": 100, "frame_ms": 20}'

`bench/caller.py` plays calls as they are; this one shows what the daemon can take. It says `sending` on stdout once
every stream is open, and ends them all on SIGTERM.
"""

import itertools
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

import msgspec
import zmq

from streamdet.bench.caller import connected
from streamdet.errors import StreamdetError

RATE_HZ: Final = 8000
# Only a daemon that hangs takes this long to read what was sent.
PATIENCE_S: Final = 30.0


class Flood(msgspec.Struct, frozen=True):
    """What to send: 8 kHz mu-law, as telephones bring it."""

    over: str
    """`zeromq`, `tcp` or `unix`."""
    address: str
    streams: int
    frame_ms: int
    frames: int | None = None
    """Of each stream, which then stays open; None: without end."""
    name: str = "flood"
    """Streams are called `NAME-0`, `NAME-1`, ..."""

    @property
    def frame_samples(self) -> int:
        """Samples, and with mu-law bytes, of a frame."""
        return self.frame_ms * RATE_HZ // 1000


class ZmqLines:
    """All streams over one PUSH socket."""

    def __init__(self, flood: Flood) -> None:
        """Connect."""
        self._socket: Final[zmq.Socket[bytes]] = zmq.Context.instance().socket(zmq.PUSH)
        self._socket.setsockopt(zmq.SNDHWM, 10_000)
        self._socket.setsockopt(zmq.LINGER, int(1000 * PATIENCE_S))
        self._socket.connect(flood.address)
        self._ids: Final = [f"{flood.name}-{stream}".encode() for stream in range(flood.streams)]
        self._samples: Final = flood.frame_samples
        self._sent = [0] * flood.streams
        self._more: Final = int(zmq.SNDMORE)  # a plain int: pyzmq's enum costs as much as the call

    def send(self, stream: int, number: int, payload: bytes) -> None:
        """Send a frame with all that a header may carry."""
        self._sent[stream] = number + 1
        header = b'{"rate":8000,"encoding":"mulaw","channels":1,"seq":%d,"start":%d,"sent_at":%.6f}' % (
            number,
            number * self._samples,
            time.time(),
        )
        send = self._socket.send
        send(self._ids[stream], self._more)
        send(header, self._more)
        send(payload)

    def close(self) -> None:
        """End all streams; what was sent leaves first."""
        for name, number in zip(self._ids, self._sent, strict=True):
            header = b'{"rate":8000,"encoding":"mulaw","start":%d,"event":"end"}' % (number * self._samples)
            self._socket.send_multipart([name, header, b""])
        self._socket.close()
        zmq.Context.instance().term()


class PcmLines:
    """A connection for each stream. Writing waits where the daemon does not read."""

    def __init__(self, flood: Flood) -> None:
        """Connect and greet."""
        self._sockets: Final = [connected(flood.address) for _ in range(flood.streams)]
        for stream, each in enumerate(self._sockets):
            greeting = {"stream": f"{flood.name}-{stream}", "rate": RATE_HZ, "encoding": "mulaw"}
            each.sendall(b"STREAMDET " + json.dumps(greeting).encode() + b"\n")

    def send(self, stream: int, number: int, payload: bytes) -> None:  # noqa: ARG002 - PCM has no counter
        """Write a frame, in a call of its own as a live sender would."""
        self._sockets[stream].sendall(payload)

    def close(self) -> None:
        """Hang up."""
        for each in self._sockets:
            each.close()


def send(flood: Flood, say: Callable[[], None]) -> None:
    """Send until SIGTERM; `say` is called when every stream has sent a frame, or all of its frames."""
    stopped: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - a signal handler's signature
        stopped.append(number)

    signal.signal(signal.SIGTERM, stop)
    # A second of bytes like noise, the same in every run.
    noise = bytes(number * 2_654_435_761 >> 13 & 0xFF for number in range(RATE_HZ))
    payloads = [noise[at : at + flood.frame_samples] for at in range(0, RATE_HZ, flood.frame_samples)]
    lines = ZmqLines(flood) if flood.over == "zeromq" else PcmLines(flood)
    for number in range(flood.frames) if flood.frames else itertools.count():
        for stream in range(flood.streams):
            if stopped:
                return lines.close()
            lines.send(stream, number, payloads[number % len(payloads)])
        if number == (flood.frames or 1) - 1:
            say()
    while not stopped:
        time.sleep(0.05)
    return lines.close()


@contextmanager
def flooding(flood: Flood) -> Iterator[int]:
    """Send from a process of its own while entered; gives its id.

    Raises:
        StreamdetError: it ended before it was sending; why is on stderr.
    """
    command = [sys.executable, "-P", "-m", "streamdet.bench.flood", msgspec.json.encode(flood).decode()]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:  # noqa: S603 - our own interpreter and module
        try:
            if process.stdout is None or process.stdout.readline() != b"sending\n":
                raise StreamdetError.of("exit code of the sender", process.wait(), "a process that sends")
            yield process.pid
        finally:
            process.terminate()
            try:
                process.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                process.kill()


def main() -> None:
    """Send what the command line says."""

    def say() -> None:
        sys.stdout.write("sending\n")
        sys.stdout.flush()

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the bench ends this with SIGTERM
    send(msgspec.json.decode(sys.argv[1], type=Flood), say)


if __name__ == "__main__":
    main()
