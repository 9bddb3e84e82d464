"""Calls at real time, many in one process that does nothing else: the load of `bench calls` and `bench overload`.

    python -m streamdet.bench.caller

Reads what to play and then orders from stdin, one JSON object a line; answers `report` on stdout. Time is cut into
ticks of TICK_S on the monotonic clock, which all processes of a machine share: whoever orders a call at a tick knows
when each of its frames is due, and need not be told when it was sent. A call's frames are due every so many ticks; all
calls that are due at one tick are served in one wake-up. Ticks are absolute: what is late makes nothing else late.
"""

import gc
import resource
import signal
import socket
import sys
import threading
import time
from array import array
from collections import deque
from collections.abc import Callable
from typing import Final, Literal, Protocol

import msgspec
import zmq

from streamdet.addresses import host_and_port
from streamdet.bench.steady import percentiles

TICK_S: Final = 0.002
"""Ten wake-ups a 20 ms frame at the most, however many calls there are."""
# A connection each costs its two descriptors; beyond this many, calls share those that there are.
MOST_SOCKETS: Final = 256
# Unsent bytes of one PCM call that are kept: half a minute of mu-law. What comes on top is counted as blocked.
HELD_BYTES: Final = 256 << 10

Transport = Literal["zeromq", "pcm"]


class Play(msgspec.Struct, frozen=True):
    """What to play, and where: the first line on stdin."""

    transport: Transport
    address: str
    prefix: str
    """Call number 7 is stream `prefix`7."""
    audio: str
    """File of raw mono samples, played round and round; each call begins elsewhere in it."""
    rate_hz: int
    encoding: str
    frame_bytes: int
    frame_ticks: int
    sockets: int = MOST_SOCKETS


class Order(msgspec.Struct, frozen=True):
    """A later line: what to do, with the ticks of its calls' first frames or of their ends."""

    do: Literal["open", "close", "report"]
    calls: list[tuple[int, int]] = []
    """(number, tick)"""


class Sent(msgspec.Struct, frozen=True):
    """What the caller did since the report before."""

    frames: int
    blocked: int
    """Frames that the transport would not take: the daemon does not read them."""
    late_ms_p50: float
    """From a tick to the sending of its last frame."""
    late_ms_p99: float
    late_ms_max: float
    cpu_s: float


class Line(Protocol):
    """One call's way to the daemon."""

    def send(self, number: int, payload: bytes) -> bool:
        """Send frame `number`; False when there is no room for it."""

    def end(self, number: int) -> None:
        """Say that frame `number` will not come."""


class ZmqLine:
    """A call on a PUSH socket, which it may share."""

    def __init__(self, push: "zmq.Socket[bytes]", stream: str, play: Play, frame_samples: int) -> None:
        """Send as `stream`."""
        self._push: Final = push
        self._stream: Final = stream.encode()
        self._samples: Final = frame_samples
        # The one thing that changes is written into the rest, a fifth of the cost of a JSON encoder.
        self._head: Final = f'{{"rate":{play.rate_hz},"encoding":"{play.encoding}","start":%d,"sent_at":%.6f}}'.encode()

    def send(self, number: int, payload: bytes) -> bool:
        """Send a frame without waiting."""
        head = self._head % (number * self._samples, time.time())
        try:
            self._push.send_multipart((self._stream, head, payload), zmq.NOBLOCK)
        except zmq.Again:
            return False
        return True

    def end(self, number: int) -> None:
        """Send the empty last frame."""
        head = self._head[:-1] % (number * self._samples, time.time()) + b',"event":"end"}'
        try:
            self._push.send_multipart((self._stream, head, b""), zmq.NOBLOCK)
        except zmq.Again:
            return  # it is closed as idle, later


class PcmLine:
    """A call on a connection of its own."""

    def __init__(self, stream: str, play: Play) -> None:
        """Connect, and say what comes."""
        self._socket: Final = connected(play.address)
        self._socket.setblocking(False)
        greeting = {"stream": stream, "rate": play.rate_hz, "encoding": play.encoding}
        self._held = bytearray(b"STREAMDET " + msgspec.json.encode(greeting) + b"\n")

    def send(self, number: int, payload: bytes) -> bool:  # noqa: ARG002 - PCM has no counter
        """Send what fits, and keep the rest for the next time."""
        if len(self._held) + len(payload) > HELD_BYTES:
            return False
        self._held += payload
        self._flush()
        return True

    def end(self, number: int) -> None:  # noqa: ARG002 - PCM has no counter
        """Hang up."""
        self._flush()
        self._socket.close()

    def _flush(self) -> None:
        try:
            del self._held[: self._socket.send(self._held)]
        except OSError:
            return  # no room, or nobody there any more: what is kept fills up, and is counted


class Caller:
    """All calls, tick by tick."""

    def __init__(self, play: Play, audio: bytes) -> None:
        """Cut `audio` into frames."""
        size = play.frame_bytes
        self._play: Final = play
        self._frames: Final = [audio[at : at + size] for at in range(0, len(audio) - size + 1, size)]
        self._dial: Final = dialler(play)
        self._lines: Final[dict[int, Line]] = {}
        self._turns: Final[list[dict[int, int]]] = [{} for _ in range(play.frame_ticks)]
        """For each tick modulo a frame's length, number -> first tick of the calls that are due then."""
        self._ends: Final[dict[int, int]] = {}
        self._late_s = array("d")
        self._sent = self._blocked = 0
        self._cpu_s = time.process_time()

    def obey(self, order: Order) -> Sent | None:
        """Open or close calls, or report."""
        if order.do == "report":
            return self._report()
        if order.do == "open":
            for number, tick in order.calls:
                self._turns[tick % self._play.frame_ticks][number] = tick
        else:
            self._ends.update(order.calls)
        return None

    def serve(self, tick: int) -> bool:
        """Send every frame that is due at `tick`; False when there is none."""
        turn = self._turns[tick % self._play.frame_ticks]
        if self._ends:
            for number in [number for number in turn if tick >= self._ends.get(number, tick + 1)]:
                self._end(number, tick, turn)
        served = 0
        for number, first in turn.items():
            if tick >= first:
                self._send(number, (tick - first) // self._play.frame_ticks)
                served += 1
        return served > 0

    def was_late(self, seconds: float) -> None:
        """Remember how late a tick's last frame was."""
        self._late_s.append(seconds)

    def end_all(self, tick: int) -> None:
        """End every call."""
        for turn in self._turns:
            for number in list(turn):
                self._end(number, tick, turn)

    def _send(self, number: int, frame: int) -> None:
        line = self._lines.get(number)
        if line is None:
            line = self._lines[number] = self._dial(number)
        # Calls a prime apart, so that no two say the same at the same time.
        payload = self._frames[(frame + 37 * number) % len(self._frames)]
        if line.send(frame, payload):
            self._sent += 1
        else:
            self._blocked += 1

    def _end(self, number: int, tick: int, turn: dict[int, int]) -> None:
        first = turn.pop(number)
        self._ends.pop(number, None)
        line = self._lines.pop(number, None)
        if line is not None:
            line.end(max(0, -(-(tick - first) // self._play.frame_ticks)))

    def _report(self) -> Sent:
        late_ms = [1e3 * each for each in self._late_s] or [0.0]
        p50, p99, most = percentiles(late_ms, 50, 99, 100)
        cpu_s = time.process_time()
        sent = Sent(self._sent, self._blocked, p50, p99, most, cpu_s - self._cpu_s)
        self._late_s = array("d")
        self._sent = self._blocked = 0
        self._cpu_s = cpu_s
        return sent


def dialler(play: Play) -> Callable[[int], Line]:
    """Return what makes a call's way to the daemon, when its first frame is due."""
    if play.transport == "pcm":
        return lambda number: PcmLine(f"{play.prefix}{number}", play)
    context = zmq.Context()
    context.set(zmq.MAX_SOCKETS, play.sockets + 8)
    pushes: dict[int, zmq.Socket[bytes]] = {}
    samples = play.frame_bytes  # mu-law and A-law: a byte a sample

    def dial(number: int) -> Line:
        which = number % play.sockets
        if which not in pushes:
            pushes[which] = push = context.socket(zmq.PUSH)
            push.setsockopt(zmq.LINGER, 1000)
            push.connect(play.address)
        return ZmqLine(pushes[which], f"{play.prefix}{number}", play, samples)

    return dial


def connected(address: str) -> socket.socket:
    """Connect to `tcp://host:port` or `unix:/path`."""
    if address.startswith("unix:"):
        line = socket.socket(socket.AF_UNIX)
        line.connect(address.removeprefix("unix:").removeprefix("//"))
        return line
    line = socket.create_connection(host_and_port("pcm", address))
    line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return line


def run(caller: Caller, orders: deque[Order | None], answer: Callable[[Sent], None]) -> None:
    """Serve one tick after the other until the orders end."""
    tick = int(time.monotonic() / TICK_S)
    while True:
        while orders:
            order = orders.popleft()
            if order is None:
                caller.end_all(tick)
                return
            if (sent := caller.obey(order)) is not None:
                answer(sent)
        tick += 1
        if (ahead_s := tick * TICK_S - time.monotonic()) > 0:
            time.sleep(ahead_s)
        if caller.serve(tick):
            caller.was_late(time.monotonic() - tick * TICK_S)


def main() -> None:
    """Play until stdin ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the bench closes stdin
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    play = msgspec.json.decode(sys.stdin.buffer.readline(), type=Play)
    with open(play.audio, "rb") as file:  # noqa: PTH123 - a path is not worth the import
        caller = Caller(play, file.read())
    orders: deque[Order | None] = deque()

    def listen() -> None:
        for line in sys.stdin.buffer:
            orders.append(msgspec.json.decode(line, type=Order))
        orders.append(None)

    def answer(sent: Sent) -> None:
        sys.stdout.buffer.write(msgspec.json.encode(sent) + b"\n")
        sys.stdout.buffer.flush()

    threading.Thread(target=listen, daemon=True).start()
    percentiles([0.0], 50)  # imports numpy now, and not in the middle of calls
    gc.freeze()  # nothing here makes cycles, and a collection would be a late tick
    gc.disable()
    run(caller, orders, answer)


if __name__ == "__main__":
    main()
