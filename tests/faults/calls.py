"""Live calls, paced in real time by a process that does nothing else (`streamdet.bench.caller`)."""

import itertools
import math
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Self

import msgspec

from streamdet.bench.caller import TICK_S, Order, Play, Sent
from streamdet.bench.load import RATE_HZ, said
from streamdet.bundle import starter_path
from streamdet.records import AudioFormat, Window

FRAME_MS: Final = 20
FRAME_BYTES: Final = RATE_HZ * FRAME_MS // 1000
FRAME_TICKS: Final = round(FRAME_MS / 1e3 / TICK_S)
HOP_S: Final = 1.0
# Orders travel through a pipe and a busy machine; calls begin this much later.
AHEAD_S: Final = 0.3
# Spreads any number of calls evenly over a hop.
GOLDEN: Final = (math.sqrt(5) - 1) / 2


class Calls:
    """Calls of one transport: mu-law, 8 kHz, frames of 20 ms, each with its `start`. While entered, they go on."""

    def __init__(self, address: str, folder: Path, *, prefix: str = "call-", sockets: int = 256) -> None:
        """Call nobody yet.

        Args:
            address: the daemon's `audio` (ZeroMQ) or, `unix:...` or `pcm+tcp://...`, a raw PCM endpoint.
            folder: for the audio.
            prefix: call number 7 is stream `prefix`7.
            sockets: ZeroMQ connections at the most; a call each until then.
        """
        pcm = address.startswith(("unix:", "pcm+"))
        audio = folder / "said.raw"
        if not audio.exists():
            folder.mkdir(parents=True, exist_ok=True)
            audio.write_bytes(said(sorted(starter_path().glob("*.flac"))))
        self.prefix: Final = prefix
        self.first: Final[dict[int, int]] = {}
        """Number -> tick of its first frame; ticks are of TICK_S on the monotonic clock."""
        self.ended: Final[dict[int, int]] = {}
        """Number -> tick from which it has no frames."""
        self._audio: Final = audio.read_bytes()
        self._play: Final = Play(
            transport="pcm" if pcm else "zeromq",
            address=address.removeprefix("pcm+"),
            prefix=prefix,
            audio=str(audio),
            rate_hz=RATE_HZ,
            encoding="mulaw",
            frame_bytes=FRAME_BYTES,
            frame_ticks=FRAME_TICKS,
            sockets=sockets,
        )
        self._numbers: Final = itertools.count()

    def __enter__(self) -> Self:
        command = [sys.executable, "-P", "-m", "streamdet.bench.caller"]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._write(self._play)
        return self

    def __exit__(self, *error: object) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()

    def open(self, count: int, *, over_s: float = HOP_S, at_s: float | None = None) -> list[int]:
        """Begin calls, spread over a stretch of time; return their numbers."""
        begin_s = time.monotonic() + AHEAD_S if at_s is None else at_s
        new = [next(self._numbers) for _ in range(count)]
        ticks = {number: round((begin_s + over_s * (place * GOLDEN % 1)) / TICK_S) for place, number in enumerate(new)}
        self.first.update(ticks)
        self._write(Order("open", list(ticks.items())))
        return new

    def end(self, numbers: Sequence[int] | None = None) -> None:
        """End calls with their next frame; all that are open where none are named."""
        ending = [number for number in (self.first if numbers is None else numbers) if number not in self.ended]
        tick = round((time.monotonic() + AHEAD_S) / TICK_S)
        self.ended.update(dict.fromkeys(ending, tick))
        self._write(Order("close", [(number, tick) for number in ending]))

    def report(self) -> Sent:
        """Ask what was sent since the last report."""
        self._write(Order("report"))
        assert self.process.stdout is not None
        return msgspec.json.decode(self.process.stdout.readline(), type=Sent)

    # -- what a call is ----------------------------------------------------------------------------------------------

    def stream(self, number: int) -> str:
        """Return a call's stream id."""
        return f"{self.prefix}{number}"

    def clock_s(self, number: int, at_s: float) -> float:
        """Say how much of a call was due to have been sent at a time (monotonic s)."""
        until = min(round(at_s / TICK_S), self.ended.get(number, sys.maxsize))
        frames = (until - self.first[number]) // FRAME_TICKS + 1
        return max(0, frames) * FRAME_MS / 1e3

    def due_s(self, number: int, end_s: float) -> float:
        """Say when (monotonic s) the frame was due that completes a call's audio up to `end_s`."""
        frame = math.ceil(round(end_s * 1e3 / FRAME_MS, 6)) - 1
        return TICK_S * (self.first[number] + frame * FRAME_TICKS)

    def window(self, number: int, start_s: float, end_s: float) -> Window:
        """Return what a window of a call should hold; its score says whether a daemon heard the same."""
        whole = len(self._audio) // FRAME_BYTES
        first, last = round(start_s * RATE_HZ), round(end_s * RATE_HZ)
        frames = range(first // FRAME_BYTES, -(-last // FRAME_BYTES))
        # As the caller does: calls a prime apart, so that no two say the same at the same time.
        places = [(frame + 37 * number) % whole * FRAME_BYTES for frame in frames]
        data = b"".join(self._audio[at : at + FRAME_BYTES] for at in places)
        skip = first - frames.start * FRAME_BYTES
        return Window(AudioFormat(RATE_HZ, "mulaw"), data[skip : skip + last - first], first, last, 0.0)

    def _write(self, line: Play | Order) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(msgspec.json.encode(line) + b"\n")
        self.process.stdin.flush()
