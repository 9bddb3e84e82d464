"""Calls of our own making at a daemon, and what comes of them: who was heard when, how late, at what cost.

Three processes: the daemon, a caller (`bench/caller.py`), and this one, which orders the calls and listens to verdicts.
A window counts in the stretch of time in which its last frame was due to be sent, whether its verdict came or not.
"""

import itertools
import math
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Literal, NamedTuple

import msgspec
import numpy as np
import zmq

from streamdet.audio import encode
from streamdet.bench.caller import MOST_SOCKETS, TICK_S, Order, Play, Sent
from streamdet.bench.processes import usage
from streamdet.bench.recordings import strung
from streamdet.bench.served import Daemon, Over
from streamdet.bench.steady import percentiles
from streamdet.errors import StreamdetError, UsageError

Encoding = Literal["mulaw", "alaw"]

RATE_HZ: Final = 8000
# A caller that is later than this for one frame in a hundred measures itself.
LATE_MS: Final = 20.0
# Audio that is played round: long enough that calls which begin apart in it stay different.
AUDIO_S: Final = 120
# People take turns: with --half-duplex a leg talks and is silent for this long, in turn.
TURN_S: Final = 5.0
# Orders travel through a pipe and a busy machine; calls begin this much later.
AHEAD_S: Final = 0.3
# For the last words of calls that were ended.
GOODBYE_S: Final = 30.0
# Between two looks at the daemon's memory.
MEMORY_S: Final = 0.5
# Spreads any number of calls evenly over a hop, and stays even when some are added: multiples of the golden ratio.
GOLDEN: Final = (math.sqrt(5) - 1) / 2


class Heard(msgspec.Struct, frozen=True, tag_field="type", tag="verdict"):
    """What is read of a verdict."""

    stream: str
    end_s: float
    llr: float | None
    skipped: int
    lag_ms: float
    snapshot: bool
    transit_ms: float | None = None


class Window(NamedTuple):
    """A verdict that came, with the clock of whoever waited for it."""

    call: int
    hop: int
    lag_ms: float
    """As the daemon says."""
    whole_ms: float
    """From the time at which its last frame was due to be sent until its verdict was here."""
    transit_ms: float | None
    skipped: int
    gated: bool


class Held(msgspec.Struct, frozen=True):
    """What became of a number of calls over a stretch of time."""

    calls: int
    seconds: float
    expected: int
    """Windows whose last frame was due."""
    windows: tuple[Window, ...]
    """Those that were heard of."""
    sent: Sent
    daemon_cores: float | None
    """CPU time over time."""
    client_cores: float
    """The caller and this process."""
    rss: tuple[tuple[float, int], ...]
    """Resident bytes of the daemon every so often, with the time (monotonic s)."""
    mean_batch: float
    batch_ms: float
    """Mean time of a batch in the scoring thread."""

    @property
    def missing(self) -> int:
        """Windows that nobody ever heard of: skipped, or not scored in time."""
        return self.expected - len(self.windows)

    @property
    def void(self) -> bool:
        """Whether the caller could not keep its own deadlines."""
        return self.sent.late_ms_p99 > LATE_MS

    def lag_ms(self, *at: float) -> list[float]:
        """Percentiles of the lag."""
        return percentiles([window.lag_ms for window in self.windows], *at)

    def whole_ms(self, *at: float) -> list[float]:
        """Percentiles from frame due to verdict received."""
        return percentiles([window.whole_ms for window in self.windows], *at)

    def transit_ms(self, *at: float) -> list[float | None]:
        """Percentiles of the transit; PCM has no stamps."""
        found = [window.transit_ms for window in self.windows if window.transit_ms is not None]
        return list(percentiles(found, *at)) if found else [None] * len(at)


class Load:
    """Calls that are open, in order of their numbers."""

    def __init__(self, daemon: Daemon, caller: "subprocess.Popen[bytes]", play: Play, hop_s: float) -> None:
        """Use `load`."""
        self.daemon: Final = daemon
        self.hop_s: Final = hop_s
        self._hop_ticks: Final = round(hop_s / TICK_S)
        self._caller: Final = caller
        self._play: Final = play
        self._numbers: Final = itertools.count()
        self._open: Final[list[tuple[int, int]]] = []  # (number, first tick), the oldest first
        self._first: Final[dict[int, int]] = {}  # of every call that ever was
        self._ending: set[int] = set()
        self._ears: Final = Ears(daemon.verdicts, play.prefix)

    @property
    def calls(self) -> int:
        """How many are open."""
        return len(self._open)

    @property
    def ears(self) -> "Ears":
        """What was heard."""
        return self._ears

    def set_calls(self, calls: int) -> float:
        """Open more calls or end the newest, each at its own place in the hop.

        Returns:
            when all of that will have happened (monotonic s).
        """
        places = [self._place(at) for at in range(min(calls, self.calls), max(calls, self.calls))]
        if calls > self.calls:
            new = [(next(self._numbers), place) for place in places]
            self._open.extend(new)
            self._first.update(new)
            self._order("open", new)
        elif places:
            ended, self._open[calls:] = self._open[calls:], []
            self._order("close", [(number, place) for (number, _), place in zip(ended, places, strict=True)])
            self._ending = {number for number, _ in ended}
        return max(places, default=0) * TICK_S

    @property
    def numbers(self) -> list[int]:
        """Of the calls that are open."""
        return [number for number, _ in self._open]

    def await_closed(self) -> bool:
        """Wait until the calls that were ended have had their last words; False when that takes too long."""
        return self._ears.await_closed(self._ending, GOODBYE_S)

    def hold(self, seconds: float, grace_s: float) -> Held:
        """Watch the calls that are open.

        Args:
            seconds: for how long.
            grace_s: how long after that a verdict may still come.
        """
        before, metrics, _ = usage(self._caller.pid).cpu_s + time.process_time(), self.daemon.metrics(), self._report()
        began, busy_s = time.monotonic(), self._daemon_cpu_s()
        rss = self._watch_memory(began + seconds)
        ended, spent_s = time.monotonic(), self._daemon_cpu_s()
        sent = self._report()
        client_s = usage(self._caller.pid).cpu_s + time.process_time() - before
        time.sleep(grace_s)
        late = self.daemon.metrics()
        batches = late["streamdet_batch_windows_count"] - metrics["streamdet_batch_windows_count"]
        windows = late["streamdet_batch_windows_sum"] - metrics["streamdet_batch_windows_sum"]
        run_s = late["streamdet_batch_seconds_sum"] - metrics["streamdet_batch_seconds_sum"]
        length_s = ended - began
        return Held(
            calls=self.calls,
            seconds=length_s,
            expected=sum(len(self.hops(first, began, ended)) for _, first in self._open),
            windows=tuple(self.heard(began, ended)),
            sent=sent,
            daemon_cores=None if busy_s is None or spent_s is None else (spent_s - busy_s) / length_s,
            client_cores=client_s / length_s,
            rss=rss,
            mean_batch=windows / max(1.0, batches),
            batch_ms=1e3 * run_s / max(1.0, batches),
        )

    def heard(self, began_s: float, ended_s: float) -> Iterator[Window]:
        """Verdicts so far on windows of open calls that were due between two times."""
        due = {number: self.hops(first, began_s, ended_s) for number, first in self._open}
        for at_s, verdict in self._ears.verdicts:
            call = int(verdict.stream.removeprefix(self._play.prefix))
            hop = round(verdict.end_s / self.hop_s)
            whole = abs(hop * self.hop_s - verdict.end_s) < 1e-6  # and no rest at a stream's end
            if whole and call in due and hop in due[call]:
                whole_ms = 1e3 * (at_s - self.due_s(call, hop))
                gated = verdict.llr is None
                yield Window(call, hop, verdict.lag_ms, whole_ms, verdict.transit_ms, verdict.skipped, gated)

    def hops(self, first_tick: int, began_s: float, ended_s: float) -> range:
        """Return which hops of a call end between two times."""

        def after(at_s: float) -> int:
            """Return the first hop whose last frame is due at or after a time."""
            frame = math.ceil((at_s / TICK_S - first_tick) / self._play.frame_ticks)
            return max(1, frame * self._play.frame_ticks // self._hop_ticks + 1)

        return range(after(began_s), after(ended_s))

    def due_s(self, call: int, hop: int) -> float:
        """Say when the last frame of a call's hop is due to be sent."""
        frame = -(-hop * self._hop_ticks // self._play.frame_ticks) - 1
        return TICK_S * (self._first[call] + frame * self._play.frame_ticks)

    def close(self) -> None:
        """End all calls and the caller."""
        if self._caller.stdin is not None:
            self._caller.stdin.close()
        self._caller.wait(GOODBYE_S)
        self._ears.close()

    def _place(self, at: int) -> int:
        """Return the tick within the next hop that belongs to the call at this place of all."""
        base = math.ceil((time.monotonic() + AHEAD_S) / self.hop_s) * self._hop_ticks
        return base + int(at * GOLDEN % 1 * self._hop_ticks)

    def _order(self, do: Literal["open", "close", "report"], calls: Sequence[tuple[int, int]] = ()) -> None:
        if self._caller.stdin is None or self._caller.poll() is not None:
            raise StreamdetError.of("exit code of the caller", self._caller.poll(), "a process that plays calls")
        self._caller.stdin.write(msgspec.json.encode(Order(do, list(calls))) + b"\n")
        self._caller.stdin.flush()

    def _report(self) -> Sent:
        self._order("report")
        line = self._caller.stdout.readline() if self._caller.stdout is not None else b""
        if not line:
            raise StreamdetError.of("exit code of the caller", self._caller.wait(), "a process that plays calls")
        return msgspec.json.decode(line, type=Sent)

    def _watch_memory(self, until_s: float) -> tuple[tuple[float, int], ...]:
        """Wait, and look at the daemon's memory meanwhile."""
        seen = []
        while (left_s := until_s - time.monotonic()) > 0:
            used = self.daemon.usage()
            if used is not None:
                seen.append((time.monotonic(), used.rss_bytes))
            time.sleep(min(MEMORY_S, left_s))
        return tuple(seen)

    def _daemon_cpu_s(self) -> float | None:
        used = self.daemon.usage()
        return None if used is None else used.cpu_s


class Ears(threading.Thread):
    """Listens to the verdicts of one load, with the time at which each came."""

    def __init__(self, address: str, prefix: str) -> None:
        """Subscribe and begin."""
        super().__init__(name="ears", daemon=True)
        self.verdicts: Final[list[tuple[float, Heard]]] = []
        self._prefix: Final = prefix
        self._closed: Final[set[int]] = set()
        self._done: Final = threading.Event()
        self._socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.SUB)
        self._socket.setsockopt(zmq.RCVHWM, 1_000_000)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.subscribe(f"v.{prefix}")
        self._socket.subscribe(f"e.{prefix}")
        self._socket.connect(address)
        self.start()

    def run(self) -> None:
        """Take messages until closed."""
        decode = msgspec.json.Decoder(Heard).decode
        while not self._done.is_set():
            if not self._socket.poll(100):
                continue
            topic, body = self._socket.recv_multipart()
            if topic.startswith(b"v."):
                verdict, at_s = decode(body), time.monotonic()
                if not verdict.snapshot:
                    self.verdicts.append((at_s, verdict))
            else:
                self._event(msgspec.json.decode(body))
        self._socket.close()

    def await_closed(self, calls: Iterable[int], patience_s: float) -> bool:
        """Wait until the daemon has closed these calls; False when it did not in time."""
        deadline_s, wanted = time.monotonic() + patience_s, set(calls)
        while not wanted <= self._closed:
            if time.monotonic() > deadline_s:
                return False
            time.sleep(0.05)
        return True

    def close(self) -> None:
        """Stop listening."""
        self._done.set()
        self.join()

    def _event(self, event: dict[str, object]) -> None:
        if event["type"] == "close":
            self._closed.add(int(str(event["stream"]).removeprefix(self._prefix)))


@contextmanager
def load(
    daemon: Daemon,
    recordings: Sequence[Path],
    *,
    over: Over,
    hop_s: float,
    frame_ms: int,
    folder: Path,
    half_duplex: bool = False,
    sockets: int = MOST_SOCKETS,
) -> Iterator[Load]:
    """Start a caller, without a call yet.

    Args:
        daemon: where the calls go.
        recordings: what is said in them.
        over: which of the daemon's ways in they take.
        hop_s: the bundle's.
        frame_ms: of a frame.
        folder: for the audio.
        half_duplex: each call is silent half of the time.
        sockets: ZeroMQ connections at the most; PCM has one a call.

    Raises:
        UsageError: the frames do not fit.
        MissingError: a recording is not there.
        DataError: there is none, or one is not audio.
    """
    if not math.isclose(hop_s / TICK_S, round(hop_s / TICK_S)):
        raise UsageError.of("hop of the bundle (s)", hop_s, f"whole multiples of {TICK_S:g}")
    if frame_ms % (1e3 * TICK_S) or not 0 < frame_ms <= 1e3 * hop_s:
        raise UsageError.of("--frame-ms", frame_ms, f"whole multiples of {1e3 * TICK_S:g}, a hop at the most")
    audio = folder / "audio.raw"
    audio.write_bytes(said(recordings, half_duplex=half_duplex))
    play = Play(
        transport="zeromq" if over == "zeromq" else "pcm",
        address=daemon.audio,
        prefix=f"bench-{secrets.token_hex(3)}-",
        audio=str(audio),
        rate_hz=RATE_HZ,
        encoding="mulaw",
        frame_bytes=RATE_HZ * frame_ms // 1000,
        frame_ticks=round(frame_ms / 1e3 / TICK_S),
        sockets=sockets,
    )
    command = [sys.executable, "-P", "-m", "streamdet.bench.caller"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as caller:  # noqa: S603
        assert caller.stdin is not None
        caller.stdin.write(msgspec.json.encode(play) + b"\n")
        made = Load(daemon, caller, play, hop_s)
        try:
            yield made
        finally:
            made.close()


def said(recordings: Sequence[Path], *, half_duplex: bool = False) -> bytes:
    """Recordings one after the other, and again, as AUDIO_S of mu-law at RATE_HZ.

    Raises:
        MissingError: one is not there.
        DataError: there is none, or one is not audio.
    """
    whole = np.resize(strung(recordings, RATE_HZ), AUDIO_S * RATE_HZ)
    if half_duplex:
        turns = whole.reshape(-1, round(TURN_S * RATE_HZ))
        turns[1::2] = 0
    return encode(whole, "mulaw")
