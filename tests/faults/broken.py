"""`streamdet run` with one promise broken, for the controls: `python broken.py HOW[,NUMBER...] run --config ...`.

A test that finds nothing wrong with these would find nothing wrong with anything.
"""

import logging
import os
import runpy
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

from streamdet import window  # isort: skip - first, since others take what stands in it
from streamdet import acceptor, daemon, foreground, guard, logs, publish, ring, sockets
from streamdet.bench import free
from streamdet.engine import Engine
from streamdet.records import Verdict


def no_drain() -> None:
    """SIGTERM ends the process where it stands, with exit code 0."""
    begin = foreground._run

    async def run(*given: Any) -> bool:
        import asyncio

        loop = asyncio.get_running_loop()
        task = asyncio.ensure_future(begin(*given))
        await asyncio.sleep(0)
        loop.add_signal_handler(signal.SIGTERM, os._exit, 0)
        return await task

    foreground._run = run


def forgets() -> None:
    """Every 50th verdict is not published."""
    tell = publish.Publisher.publish
    count = 0

    def publish_most(self: Any, record: Any) -> None:
        nonlocal count
        count += isinstance(record, Verdict)
        if not (isinstance(record, Verdict) and count % 50 == 0):
            tell(self, record)

    publish.Publisher.publish = publish_most  # type: ignore[method-assign]


def leaks(size_bytes: int, descriptors_in: int) -> None:
    """Each stream that opens leaves so many bytes behind, and one of so many an open descriptor."""
    open_stream = Engine.open
    kept: list[object] = []

    def open_and_keep(self: Engine, *args: Any, **options: Any) -> str:
        kept.append(os.urandom(size_bytes))
        if descriptors_in and len(kept) % descriptors_in == 0:
            kept.append(open(os.devnull))  # noqa: PTH123, SIM115 - that it stays open is the point
        return open_stream(self, *args, **options)

    Engine.open = open_and_keep  # type: ignore[method-assign]


def impatient() -> None:
    """Whoever was not heard of is idle, even if it was the daemon that did not listen."""
    daemon.AWAY_S = 1e9  # type: ignore[misc]


def boundless() -> None:
    """What a subscriber does not take is kept for ever; windows cost nothing, as in `streamdet.bench.free`."""
    window.make_ready = free.gated
    sockets.UNANSWERED_MS = 10**9  # type: ignore[misc]
    publish.SEND_HWM = 0  # type: ignore[misc]


def waits_for_the_log() -> None:
    """Each line is written where it is said, and whoever says it waits."""
    logs.start = lambda form, level: logging.basicConfig(level=level.upper(), force=True)  # type: ignore[assignment]  # noqa: ARG005


def wall() -> None:
    """Time-outs go by the wall clock."""
    time.monotonic = time.time
    impatient()


def spares() -> None:
    """Nobody is pushed out to make room."""
    acceptor.SPARED_S = 1e9  # type: ignore[misc]


def insists() -> None:
    """Where there is no descriptor for a connection, it tries again at once."""
    acceptor.FIRST_WAIT_S = acceptor.LONGEST_WAIT_S = 0.0  # type: ignore[misc]


def spends() -> None:
    """Raw PCM and HTTP leave no descriptor to ZeroMQ."""
    acceptor.kept_free = lambda _limit, _soft: 0  # type: ignore[assignment]


def admits() -> None:
    """Any key may do anything, and subscribe without end."""
    guard.Guard.client = lambda _self, _domain, key: key  # type: ignore[method-assign]
    collects()


def forgives() -> None:
    """Whoever is connected stays: the clients file counts for those who come."""
    sockets.ZmqSocket.recheck = lambda _: None  # type: ignore[method-assign]
    sockets.ZmqSocket._may_speak = lambda _self, _gate: True  # type: ignore[method-assign]


def collects() -> None:
    """A connection, and all of them together, may have any number of subscriptions."""
    publish.TOPICS_MAX = sys.maxsize  # type: ignore[misc]
    limited = publish.Publisher.limited
    most = {"subscriptions": sys.maxsize}

    def boundless_limits(self: Any, limits: Any, *args: Any) -> Any:
        return limited(self, limits.model_copy(update=most), *args)

    publish.Publisher.limited = boundless_limits  # type: ignore[method-assign]


def greedy() -> None:
    """Every track gets all the memory that a call may need before it has any audio."""
    ring.FIRST_SAMPLES = 1 << 30  # type: ignore[misc]


WAYS: dict[str, Callable[..., None]] = {
    "no-drain": no_drain,
    "forgets": forgets,
    "admits": admits,
    "forgives": forgives,
    "collects": collects,
    "spares": spares,
    "insists": insists,
    "spends": spends,
    "leaks": leaks,
    "impatient": impatient,
    "boundless": boundless,
    "wall": wall,
    "waits-for-the-log": waits_for_the_log,
    "greedy": greedy,
}

if __name__ == "__main__":
    how, *numbers = sys.argv.pop(1).split(",")
    WAYS[how](*map(int, numbers))
    runpy.run_module("streamdet", run_name="__main__")
