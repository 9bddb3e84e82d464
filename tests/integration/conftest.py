"""A daemon in a thread, and somebody who talks to it."""

import asyncio
import contextlib
import itertools
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import zmq

from streamdet.bundle import Bundle
from streamdet.config import Config
from streamdet.daemon import Daemon
from streamdet.records import AudioFormat, Event, Frame, Heartbeat, Verdict
from streamdet.wire import frames, verdicts
from tests import pages

# Only a daemon that hangs takes this long.
PATIENCE_S = 30.0
LOCAL = {
    "audio": "tcp://127.0.0.1:0",
    "verdicts": "tcp://127.0.0.1:0",
    "control": "tcp://127.0.0.1:0",
    "http": "127.0.0.1:0",
    "pcm": ["tcp://127.0.0.1:0"],
}
S16 = AudioFormat(8000, "s16le")


def settings(bundle: Bundle, **sections: dict[str, Any]) -> Config:
    """A config for this machine, on free ports, with `sections` laid over it."""
    tree = {
        "bundle": {"path": bundle.path},
        "endpoints": LOCAL,
        # Tests make threads wait, and a watch that noticed would end pytest.
        "scoring": {"threads": 1, "provider": "cpu", "batch_max": 4, "deadline_s": 3600},
        "daemon": {"drain_timeout_s": PATIENCE_S},
    }
    return Config.model_validate({**tree, **{name: {**tree.get(name, {}), **new} for name, new in sections.items()}})


class Running(threading.Thread):
    """A daemon in a thread of its own."""

    def __init__(self, config: Config) -> None:
        super().__init__(name="daemon", daemon=True)
        self.daemon_ = Daemon(config)
        self.ready = threading.Event()
        self.failure: BaseException | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:
            self.failure = error
        self.ready.set()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        await self.daemon_.serve(self.ready.set)

    def started(self) -> "Running":
        self.start()
        assert self.ready.wait(PATIENCE_S)
        if self.failure is not None:
            raise self.failure
        return self

    def ask_to_stop(self) -> None:
        with contextlib.suppress(RuntimeError):  # its loop has ended already
            assert self._loop is not None
            self._loop.call_soon_threadsafe(self.daemon_.stop)

    def stop(self) -> None:
        self.ask_to_stop()
        self.join(PATIENCE_S)
        assert not self.is_alive()
        if self.failure is not None:
            raise self.failure

    @property
    def addresses(self) -> dict[str, str]:
        return self.daemon_.addresses

    def http(self, path: str) -> tuple[int, str]:
        return pages.get(self.addresses["http"], path, PATIENCE_S)

    def metric(self, name: str) -> float:
        """The sample of this name and labels; 0 where there is none yet."""
        return pages.sample(self.http("/metrics"), name)


class Client:
    """Sends audio, asks, and hears everything that the daemon publishes of streams."""

    def __init__(self, addresses: dict[str, str], topics: tuple[str, ...] = ("v.", "e.")) -> None:
        self._zmq = zmq.Context()
        self._addresses = addresses
        self.push = self.socket(zmq.PUSH, "audio")
        self.sub = self.socket(zmq.SUB, "verdicts")
        for topic in topics:
            self.sub.subscribe(topic)
        self.heard: list[Verdict | Event | Heartbeat] = []
        self._read = 0

    def socket(self, kind: int, endpoint: str) -> zmq.Socket:
        made = self._zmq.socket(kind)
        made.setsockopt(zmq.LINGER, 0)
        made.setsockopt(zmq.RCVHWM, 10)  # so that what nobody reads stays with the daemon
        made.setsockopt(zmq.RCVTIMEO, int(1000 * PATIENCE_S))
        made.setsockopt(zmq.SNDTIMEO, int(1000 * PATIENCE_S))
        made.connect(self._addresses[endpoint])
        return made

    def close(self) -> None:
        self._zmq.destroy(linger=0)

    # -- what is heard -----------------------------------------------------------------------------------------------

    def listen(self, timeout_s: float) -> bool:
        """Take one message; False when none comes."""
        if not self.sub.poll(int(1000 * timeout_s)):
            return False
        record = verdicts.parse(self.sub.recv_multipart())
        if getattr(record, "stream", "").partition("-")[0] != "sync":
            self.heard.append(record)
        return True

    def until(self, wanted: Callable[[Any], bool]) -> Any:
        """The first record like this that was not passed by an earlier `until`."""
        deadline_s = time.monotonic() + PATIENCE_S
        while True:
            while self._read < len(self.heard):
                record = self.heard[self._read]
                self._read += 1
                if wanted(record):
                    return record
            left_s = deadline_s - time.monotonic()
            assert self.listen(max(0.0, left_s)), f"not heard, but {self.heard[-5:]}"

    def event(self, kind: str, stream: str = "a") -> Event:
        return self.until(lambda it: isinstance(it, Event) and (it.type, it.stream) == (kind, stream))

    def verdict(self, end_s: float, stream: str = "a", channel: int = 0) -> Verdict:
        where = (stream, channel, end_s)
        return self.until(lambda it: isinstance(it, Verdict) and (it.stream, it.channel, it.end_s) == where)

    def events(self, stream: str = "a") -> list[Event]:
        return [it for it in self.heard if isinstance(it, Event) and it.stream == stream]

    def llrs(self, stream: str = "a", channel: int = 0) -> dict[float, float | None]:
        return scores([it for it in self.heard if getattr(it, "stream", None) == stream], channel)

    def await_subscription(self) -> None:
        """Open streams that nobody wants until the daemon publishes their events to us."""
        deadline_s = time.monotonic() + PATIENCE_S
        for number in itertools.count():
            with pcm_connection(self._addresses["pcm.0"]) as connection:
                connection.sendall(json.dumps({"stream": f"sync-{number}"}).encode().join((b"STREAMDET ", b"\n")))
            if self.listen(0.05):
                break
            assert time.monotonic() < deadline_s
        self.quiet(f"sync-{number}")

    def quiet(self, stream: str) -> None:
        """Wait until a stream is closed."""
        deadline_s = time.monotonic() + PATIENCE_S
        while stream in {track["stream"] for track in self.ask(op="status")["tracks"]}:
            assert time.monotonic() < deadline_s

    # -- what is said ------------------------------------------------------------------------------------------------

    def send(self, payload: bytes, stream: str = "a", form: AudioFormat = S16, **fields: Any) -> None:
        self.push.send_multipart(frames.build(Frame(stream, form, payload, **fields)))

    def ask(self, **request: Any) -> dict[str, Any]:
        with self.socket(zmq.REQ, "control") as req:
            req.send_json(request)
            return req.recv_json()


def pcm_connection(address: str) -> socket.socket:
    """Connect to `tcp://host:port` or `unix:/path`."""
    if address.startswith("unix:"):
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(address.removeprefix("unix:"))
        return connection
    host, _, port = address.removeprefix("tcp://").rpartition(":")
    return socket.create_connection((host, int(port)), PATIENCE_S)


def scores(records: list[Any], channel: int = 0) -> dict[float, float | None]:
    """LLRs of a channel by the end of their windows."""
    return {it.end_s: it.llr for it in records if isinstance(it, Verdict) and it.channel == channel}


@pytest.fixture
def make(tiny_bundle: Bundle) -> Iterator[Callable[..., Running]]:
    """Makes daemons that are not started yet, and ends them with the test."""
    made: list[Running] = []

    def one(**sections: dict[str, Any]) -> Running:
        made.append(Running(settings(tiny_bundle, **sections)))
        return made[-1]

    yield one
    for running in made:
        if running.is_alive():
            running.stop()


@pytest.fixture
def serve(make: Callable[..., Running]) -> Callable[..., Running]:
    """Starts daemons."""
    return lambda **sections: make(**sections).started()


@pytest.fixture
def meet() -> Iterator[Callable[..., Client]]:
    """Connects clients to the addresses of a daemon; with no topics they hear verdicts and events from here on."""
    clients: list[Client] = []

    def connect(addresses: dict[str, str], *topics: str) -> Client:
        clients.append(Client(addresses, topics or ("v.", "e.")))
        if not topics:
            clients[-1].await_subscription()
        return clients[-1]

    yield connect
    for one in clients:
        one.close()


class Dial:
    """Opens PCM connections, and remembers which are open."""

    def __init__(self) -> None:
        self.made: list[socket.socket] = []

    def __call__(self, address: str) -> socket.socket:
        self.made.append(pcm_connection(address))
        return self.made[-1]

    @property
    def open(self) -> list[socket.socket]:
        return [connection for connection in self.made if connection.fileno() >= 0]


@pytest.fixture
def dial() -> Iterator[Dial]:
    phone = Dial()
    yield phone
    for connection in phone.open:
        connection.close()


@pytest.fixture
def by_end() -> Callable[..., dict[float, float | None]]:
    return scores
