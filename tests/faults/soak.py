"""Hours of calls that open and close, and whether anything of them stays behind in the daemon.

    python tests/faults/soak.py --minutes 30                     10,000 opens beside steady calls; exit 1 if it grows
    python tests/faults/soak.py --minutes 480 --opens 160000     the nightly form
    python tests/faults/soak.py --minutes 5 --leak 2000          the control: a daemon that loses 2,000 bytes an open

Calls come over ZeroMQ, TCP and a unix socket, some over a connection of their own for a single second; some are paused
and closed from outside. Subscribers come, take a few messages and go. /metrics, /livez and the control socket are asked
all along. Memory (anonymous, RSS) and descriptors of the daemon are looked at every few seconds; after a warm-up their
slopes are fitted (`slope.py`). Exit code 0 says that they are within noise; 1 that something grows, or that the run was
too short to tell.
"""

import argparse
import contextlib
import itertools
import math
import random
import sys
import tempfile
import threading
import time
from collections import Counter, deque
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

import msgspec
import numpy as np
import zmq

if __name__ == "__main__":  # as a script; pytest knows the way itself
    sys.path.insert(0, str(Path(__file__).parents[2]))

from streamdet.records import AudioFormat, Event, Frame, Verdict
from streamdet.wire import frames, verdicts
from tests.faults.calls import Calls
from tests.faults.harness import Served, figure, wait_for
from tests.faults.slope import Slope, slope, theil_sen

BROKEN: Final = Path(__file__).with_name("broken.py")
# 10,000 opens in 30 minutes, as the promise has it.
OPENS_A_MINUTE: Final = 10_000 / 30
STEADY: Final = 12
# Seconds that a call lasts: long enough for two or three windows, short enough for 10,000.
LASTS_S: Final = (1.5, 4.0)
# Of the churning calls, by transport.
SHARES: Final = {"zeromq": 0.4, "tcp": 0.3, "unix": 0.2, "once": 0.1}
# Allocators settle, queues reach their usual length, ZeroMQ's 64 connections of callers are made.
WARM_UP: Final = 0.25
# What a run of an hour cannot tell from nothing: an arena more or less of glibc's is 1 MB.
NOISE_BYTES_PER_OPEN: Final = 20.0
NOISE_DESCRIPTORS_PER_OPEN: Final = 0.001
SECOND: Final = b"\xff\x10" * 4000
MULAW: Final = AudioFormat(8000, "mulaw")


class Sample(NamedTuple):
    """The daemon at one time."""

    at_s: float
    opened: int
    """Streams so far."""
    rss: int
    own: int
    """Anonymous memory. PSS is no measure here: it rises when another process that maps our libraries ends."""
    descriptors: int
    cpu_s: float


class Growth(NamedTuple):
    """What a soak found, each per open."""

    samples: list[Sample]
    """After the warm-up."""
    own: Slope
    rss: Slope
    descriptors: Slope
    late: float
    """Of `own`, in the newer half."""

    @property
    def grows(self) -> bool:
        """Whether the daemon keeps something of its calls.

        An allocator takes more whenever more is in use at once than ever before: a few steps, further and further
        apart. What is lost with each open is lost in the newer half too.
        """
        own = self.own.grows(NOISE_BYTES_PER_OPEN) and self.late > NOISE_BYTES_PER_OPEN
        return own or self.descriptors.grows(NOISE_DESCRIPTORS_PER_OPEN)

    @property
    def verdict(self) -> str:
        """In words."""
        if self.grows:
            return "grows"
        return "within noise" if math.isfinite(self.own.low + self.descriptors.low) else "too short to tell"


def growth(samples: list[Sample], warm_up: float = WARM_UP) -> Growth:
    """Fit what comes after the warm-up, a share of the time."""
    begun_s = samples[0].at_s + warm_up * (samples[-1].at_s - samples[0].at_s)
    kept = [sample for sample in samples if sample.at_s >= begun_s]
    opened = np.array([sample.opened for sample in kept], float)
    fits = [
        slope(opened, np.array([getattr(each, of) for each in kept], float)) for of in ("own", "rss", "descriptors")
    ]
    newer = slice(len(kept) // 2, None)
    late = theil_sen(opened[newer], np.array([each.own for each in kept[newer]], float))
    return Growth(kept, *fits, late)


class Ledger(threading.Thread):
    """Hears every verdict and keeps only what is open, so that it can go on for days. While entered."""

    def __init__(self, address: str) -> None:
        super().__init__(name="ledger", daemon=True)
        self.counts: Final[Counter[str]] = Counter()
        self._address: Final = address
        self._next: Final[dict[tuple[str, int], int]] = {}
        self._done: Final = threading.Event()

    def __enter__(self) -> Self:
        self.start()
        wait_for(lambda: self.counts["beats"], why="for a heartbeat")
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self.join()

    def run(self) -> None:
        """Take messages until left."""
        with zmq.Context() as context, context.socket(zmq.SUB) as socket:
            socket.setsockopt(zmq.LINGER, 0)
            socket.setsockopt(zmq.RCVHWM, 0)
            for topic in ("v.", "e.", "hb"):
                socket.subscribe(topic)
            socket.connect(self._address)
            while not self._done.is_set():
                if socket.poll(100):
                    self._enter(verdicts.parse(socket.recv_multipart()))

    def _enter(self, record: object) -> None:
        if isinstance(record, Verdict):
            if not record.snapshot:
                key = (record.opened, record.channel)
                self.counts["verdicts"] += 1
                self.counts["skipped"] += record.skipped
                self.counts["holes"] += record.seq != self._next.get(key, 0)
                self._next[key] = record.seq + 1
        elif isinstance(record, Event):
            self.counts[record.type] += 1
            if record.type == "close":
                for channel in record.detail["channels"]:
                    heard = self._next.pop((record.detail["opened"], channel["channel"]), 0)
                    self.counts["holes"] += heard != channel["windows"]
        else:
            self.counts["beats"] += 1


class Churn:
    """Calls that open and close, over every way in, beside steady ones."""

    def __init__(self, served: Served, stack: contextlib.ExitStack, folder: Path, seed: int) -> None:
        self.served: Final = served
        endpoints = served.endpoints
        ways = {
            "zeromq": Calls(endpoints["audio"], folder, prefix="z-", sockets=32),
            "tcp": Calls(f"pcm+{endpoints['pcm'][0]}", folder, prefix="t-"),
            "unix": Calls(endpoints["pcm"][1], folder, prefix="u-"),
        }
        self.ways: Final = {name: stack.enter_context(calls) for name, calls in ways.items()}
        self.ordered = 0
        """Calls ordered so far."""
        self._context: Final = stack.enter_context(zmq.Context())
        self._random: Final = random.Random(seed)
        self._ending: Final[deque[tuple[float, str, int]]] = deque()
        self._once: Final = itertools.count()
        self._owed = 0.0

    def steady(self, count: int) -> None:
        """Open calls that last as long as the soak, over all ways."""
        for place, calls in enumerate(self.ways.values()):
            share = len(range(place, count, len(self.ways)))
            calls.open(share)
            self.ordered += share

    def second(self, opens: float) -> None:
        """Open as many calls as a second wants, and end those whose time has come."""
        self._owed += opens
        for way in self._random.choices(list(SHARES), list(SHARES.values()), k=int(self._owed)):
            self.ordered += 1
            if way == "once":
                self.once()
            else:
                (number,) = self.ways[way].open(1, at_s=time.monotonic() + 0.3 + self._random.random())
                self._ending.append((time.monotonic() + 1 + self._random.uniform(*LASTS_S), way, number))
        self._owed -= int(self._owed)
        for _ in range(len(self._ending)):
            end_s, way, number = self._ending.popleft()
            if end_s > time.monotonic():
                self._ending.append((end_s, way, number))
            else:
                self.ways[way].end([number])

    def once(self) -> None:
        """Connect anew over ZeroMQ, say one second in one frame, and leave."""
        with self._context.socket(zmq.PUSH) as push:
            push.setsockopt(zmq.LINGER, 2000)
            push.connect(self.served.endpoints["audio"])
            frame = Frame(f"o-{next(self._once)}", MULAW, SECOND, start=0, end=True)
            push.send_multipart(frames.build(frame))

    def interfere(self) -> None:
        """Pause one call, resume another, close a third, from outside."""
        for op in ("pause", "resume", "close"):
            if self._ending:
                _, way, number = self._random.choice(self._ending)
                self.served.ask(op=op, stream=self.ways[way].stream(number))

    def visit(self) -> None:
        """Subscribe, take what comes within a moment, and leave."""
        with self._context.socket(zmq.SUB) as sub:
            sub.setsockopt(zmq.LINGER, 0)
            sub.subscribe(self._random.choice(["v.z-", "v.", "e.", "hb"]))
            sub.connect(self.served.endpoints["verdicts"])
            for _ in range(3):
                if sub.poll(100):
                    sub.recv_multipart()

    def ask(self) -> None:
        """Look at every page, as probes and scrapers do."""
        self.served.http("/metrics")
        self.served.http("/livez")
        self.served.ask(op="snapshot")

    def end(self) -> None:
        """End all calls."""
        for calls in self.ways.values():
            calls.end()


def sample(served: Served) -> Sample:
    """Look at the daemon."""
    used = served.memory()
    opened = served.ask(op="status")["counts"]["opened"]
    return Sample(time.monotonic(), opened, used.rss, used.own + used.swap, served.descriptors(), served.cpu_s())


def last_words(served: Served) -> None:
    """Show what a daemon said that has not ended well: its log goes with the folder."""
    if served.process is not None and served.code:
        print(f"the daemon ended with {served.code}: {served.said()[-4000:]}", file=sys.stderr)  # noqa: T201


def soak(
    minutes: float,
    opens: int,
    *,
    steady: int = STEADY,
    leak: str = "",
    bundle: Path | None = None,
    seed: int = 7,
    out: Path | None = None,
) -> tuple[Growth, Counter[str], int]:
    """Serve calls for so long; return what grew, what was heard, and how many calls were ordered."""
    program = [str(BROKEN), f"leaks,{leak}"] if leak else ["-m", "streamdet"]
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="streamdet-soak-")))
        served = Served(folder / "daemon", bundle, program=program, daemon={"log_level": "warning"})
        stack.callback(served.close)
        stack.callback(last_words, served)
        served.started()
        ledger = stack.enter_context(Ledger(served.endpoints["verdicts"]))
        churn = Churn(served, stack, folder, seed)
        churn.steady(steady)
        samples = [sample(served)]
        began_s, every_s = time.monotonic(), min(5.0, max(1.0, 60 * minutes / 40))
        a_second = (opens - steady) / (60 * minutes)
        for second in itertools.count():
            if time.monotonic() - began_s >= 60 * minutes:
                break
            churn.second(a_second)
            churn.visit()
            if second % 3 == 0:
                churn.ask()
            if second % 10 == 5:
                churn.interfere()
            if time.monotonic() - samples[-1].at_s >= every_s:
                samples.append(sample(served))
                if out is not None:
                    _append(out, samples[-1])
            time.sleep(max(0.0, began_s + second + 1 - time.monotonic()))
        churn.end()
        wait_for(lambda: served.ask(op="status")["counts"]["streams"] == 0, why="for the calls to end")
        assert served.terminate() == 0, served.said()
        wait_for(lambda: ledger.counts["close"] >= ledger.counts["open"], why="for the last close events")
        return growth(samples), ledger.counts, churn.ordered


def show(found: Growth, heard: Counter[str], ordered: int) -> None:
    """Print what a soak found."""
    first, last = found.samples[0], found.samples[-1]
    figure(
        "soak",
        seconds=round(last.at_s - first.at_s),
        opens=last.opened,
        ordered=ordered,
        measured_opens=last.opened - first.opened,
        own_mb=f"{first.own / 1e6:.1f}..{last.own / 1e6:.1f}",
        rss_mb=f"{first.rss / 1e6:.1f}..{last.rss / 1e6:.1f}",
        own_bytes_per_open=_interval(found.own),
        late_own_bytes_per_open=f"{found.late:.3g}",
        rss_bytes_per_open=_interval(found.rss),
        fds=f"{first.descriptors}..{last.descriptors}",
        fds_per_open=_interval(found.descriptors),
        cores=(last.cpu_s - first.cpu_s) / (last.at_s - first.at_s),
        **{name: heard[name] for name in ("verdicts", "skipped", "holes", "open", "close", "error")},
        verdict=found.verdict.replace(" ", "-"),
    )


def _interval(of: Slope) -> str:
    return f"{of.value:.3g}[{of.low:.3g},{of.high:.3g}]"


def _append(out: Path, line: Sample) -> None:
    with out.open("ab") as file:
        file.write(msgspec.json.encode(line._asdict()) + b"\n")


def main(arguments: list[str] | None = None) -> int:
    """Soak as the command line says; 1 if the daemon grows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--opens", type=int, help=f"default {OPENS_A_MINUTE:.0f} a minute")
    parser.add_argument("--steady", type=int, default=STEADY, help="calls that last all the time (default %(default)s)")
    parser.add_argument(
        "--leak", default="", metavar="BYTES[,OPENS]", help="control: lose bytes an open, and 1 fd in OPENS"
    )
    parser.add_argument("--bundle", type=Path, help="default the starter")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--out", type=Path, help="append each sample as a JSON line")
    given: Any = parser.parse_args(arguments)
    leak = given.leak if not given.leak or "," in given.leak else f"{given.leak},0"
    opens = given.opens or round(OPENS_A_MINUTE * given.minutes)
    found, heard, ordered = soak(
        given.minutes, opens, steady=given.steady, leak=leak, bundle=given.bundle, seed=given.seed, out=given.out
    )
    show(found, heard, ordered)
    print(found.verdict)  # noqa: T201
    return int(found.verdict != "within noise")


if __name__ == "__main__":
    sys.exit(main())
