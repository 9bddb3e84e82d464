"""Connections: who gets a place, who is pushed out, who waits, and what happens where none can be accepted."""

import asyncio
import contextlib
import errno
import socket
import time
from collections.abc import Awaitable, Callable, Coroutine

import pytest
import uvloop

from streamdet import acceptor
from streamdet.acceptor import Acceptor, Arrival, Trouble
from streamdet.config import Limits
from streamdet.connections import kept_free
from streamdet.doors import Door
from streamdet.errors import ConfigError, UnreachableError
from streamdet.metrics import Metrics

LOCAL = "tcp://127.0.0.1:0"
PATIENCE_S = 30.0


@pytest.fixture(params=[asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def run(request) -> Callable[[Coroutine[None, None, None]], None]:
    """Each loop that the daemon may run in."""
    return request.param


class Serving:
    """An acceptor whose connections say what they want with their first byte, and stay until they hang up."""

    def __init__(self, address: str = LOCAL, listener: socket.socket | None = None, **limits: float) -> None:
        self.metrics = Metrics()
        self.ended: list[str | None] = []
        """Why each connection ended, in the order in which they did; None = of itself."""
        self.said: list[bytes] = []
        self.acceptor = Acceptor("pcm", Door(address, listener), self._serve, Limits(**limits), self.metrics)

    async def _serve(self, arrival: Arrival) -> None:
        ear, writer = await arrival.ear(100)
        try:
            while data := bytes(await ear.read()):
                ear.heard()
                self.said.append(data)
                arrival.admit(asyncio.get_running_loop().time() + 3600)
                writer.write(data)
        finally:
            self.ended.append(arrival.cut_for)
            writer.close()

    async def call(self, said: bytes = b"") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        host, _, port = self.acceptor.address.removeprefix("tcp://").rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(said)
        return reader, writer

    def open(self) -> float:
        return self.metrics.registry.get_sample_value("streamdet_connections", {"endpoint": "pcm"}) or 0.0

    def refused(self, reason: str) -> float:
        return self.metrics.registry.get_sample_value("streamdet_refusals_total", {"reason": reason}) or 0.0


async def until(what: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not what():  # noqa: ASYNC110 - what is waited for knows no events
            await asyncio.sleep(0.005)


async def hang_up(*connections: tuple[asyncio.StreamReader, asyncio.StreamWriter]) -> None:
    for _, writer in connections:
        writer.close()
        await writer.wait_closed()


def within(door: Serving, test: Callable[[Serving], Awaitable[None]]) -> Coroutine[None, None, None]:
    async def main() -> None:
        async with door.acceptor:
            await test(door)

    return main()


def test_connections_are_served_and_counted(run):
    async def test(door: Serving) -> None:
        callers = [await door.call(b"hello") for _ in range(5)]
        assert [await reader.readexactly(5) for reader, _ in callers] == [b"hello"] * 5
        assert door.open() == 5
        await hang_up(*callers)
        await until(lambda: door.open() == 0)
        assert door.ended == [None] * 5

    run(within(Serving(), test))


def test_who_says_nothing_is_cut_off_in_time_and_who_has_spoken_is_not(run):
    async def test(door: Serving) -> None:
        speaking, silent = await door.call(b"x"), await door.call()
        assert await silent[0].read() == b""
        assert door.ended == ["slow"]
        assert door.refused("slow") == 1
        speaking[1].write(b"y")
        assert await speaking[0].readexactly(2) == b"xy"
        await hang_up(speaking, silent)

    run(within(Serving(handshake_s=0.1), test))


def test_where_all_places_are_taken_who_has_been_silent_for_longest_makes_room(run, monkeypatch):
    monkeypatch.setattr(acceptor, "SPARED_S", 0.05)

    async def test(door: Serving) -> None:
        speaking = await door.call(b"x")
        first, second = await door.call(), await door.call()
        await until(lambda: door.open() == 3)
        new = await door.call(b"z")
        assert await new[0].readexactly(1) == b"z"
        assert await first[0].read() == b""
        assert door.ended == ["limit"]
        assert door.refused("limit") == 1
        second[1].write(b"2")
        speaking[1].write(b"y")
        assert await second[0].readexactly(1) == b"2"
        assert await speaking[0].readexactly(2) == b"xy"
        await hang_up(speaking, first, second, new)

    run(within(Serving(connections=3), test))


def test_where_everybody_has_spoken_callers_wait_until_a_place_is_given_back(run):
    async def test(door: Serving) -> None:
        callers = [await door.call(b"x") for _ in range(2)]
        await until(lambda: len(door.said) == 2)
        waiting = await door.call(b"z")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(waiting[0].readexactly(1), 0.2)
        await hang_up(callers[0])
        assert await asyncio.wait_for(waiting[0].readexactly(1), PATIENCE_S) == b"z"
        assert door.ended == [None]
        await hang_up(callers[1], waiting)

    run(within(Serving(connections=2), test))


def test_who_has_just_come_is_spared(run, monkeypatch):
    """Many good callers may come at once, faster than the loop reads what they say."""
    monkeypatch.setattr(acceptor, "SPARED_S", 3600.0)

    async def test(door: Serving) -> None:
        silent, waiting = await door.call(), await door.call(b"z")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(waiting[0].readexactly(1), 0.2)
        assert door.ended == []
        await hang_up(silent)
        assert await asyncio.wait_for(waiting[0].readexactly(1), PATIENCE_S) == b"z"
        await hang_up(waiting)

    run(within(Serving(connections=1), test))


def test_a_deadline_that_comes_nearer_is_kept(run, monkeypatch):
    monkeypatch.setattr(acceptor, "LOOK_S", 0.05)

    class Impatient(Serving):
        async def _serve(self, arrival: Arrival) -> None:
            try:
                arrival.admit(float("inf"))
                arrival.deadline_s = 0.0
                await asyncio.sleep(PATIENCE_S)
            finally:
                self.ended.append(arrival.cut_for)

    async def test(door: Serving) -> None:
        caller = await door.call()
        assert await caller[0].read() == b""
        assert door.ended == ["slow"]
        await hang_up(caller)

    run(within(Impatient(), test))


def test_time_in_which_we_were_stopped_ourselves_is_not_the_callers(run, monkeypatch):
    monkeypatch.setattr(acceptor, "LATE_S", 0.2)

    async def test(door: Serving) -> None:
        caller = await door.call()
        await until(lambda: door.open() == 1)
        caller[1].write(b"x")
        time.sleep(1.0)  # noqa: ASYNC251 - SIGSTOP, a machine that slept
        assert await caller[0].readexactly(1) == b"x"
        assert door.ended == []
        await hang_up(caller)

    run(within(Serving(handshake_s=0.5), test))


class Short:
    """A listening socket of a process that has run out of descriptors, for so many tries."""

    def __init__(self, sock: socket.socket, tries: int, number: int) -> None:
        self._sock, self._left, self._number = sock, tries, number
        self.tried_s: list[float] = []

    def accept(self) -> tuple[socket.socket, object]:
        self.tried_s.append(asyncio.get_running_loop().time())
        self._left -= 1
        if self._left >= 0:
            raise OSError(self._number, "no more")
        return self._sock.accept()

    def __getattr__(self, name: str) -> object:
        return getattr(self._sock, name)


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EPROTO])
def test_where_none_can_be_accepted_it_tries_more_and_more_seldom(run, number, monkeypatch):
    monkeypatch.setattr(acceptor, "LONGEST_WAIT_S", 0.04)

    async def test(door: Serving) -> None:
        caller = await door.call(b"x")
        assert await asyncio.wait_for(caller[0].readexactly(1), PATIENCE_S) == b"x"
        waits_s = [after - before for before, after in zip(short.tried_s, short.tried_s[1:5], strict=False)]
        assert all(waited >= least for waited, least in zip(waits_s, (0.009, 0.018, 0.036, 0.036), strict=True))
        name = "streamdet_accepts_failed_total"
        assert door.metrics.registry.get_sample_value(name, {"endpoint": "pcm"}) == 4
        await hang_up(caller)

    with socket.create_server(("127.0.0.1", 0)) as sock:
        short = Short(sock, 4, number)
        run(within(Serving(listener=short), test))


def test_trouble_is_told_when_it_begins_and_with_its_count_when_it_is_over(run, monkeypatch, caplog):
    monkeypatch.setattr(acceptor, "QUIET_S", 0.05)

    async def main() -> None:
        trouble = Trouble("connections wait", endpoint="pcm")
        for _ in range(50):
            trouble.happened("no more")
        await until(lambda: len(caplog.records) == 2)
        trouble.happened("again")

    with caplog.at_level("INFO"):
        run(main())
    told = [(record.message, record.fields) for record in caplog.records]
    assert told[0] == ("connections wait", {"endpoint": "pcm", "reason": "no more"})
    assert told[1][0] == "connections wait: over"
    assert told[1][1]["times"] == 50
    assert told[2][1]["reason"] == "again"


def test_a_socket_that_was_there_before_keeps_its_queue(run):
    """`listen` would change it: asyncio's own server calls it again."""

    async def test(door: Serving) -> None:
        assert door.acceptor.address == f"tcp://127.0.0.1:{sock.getsockname()[1]}"
        await hang_up(await door.call(b"x"))

    with socket.create_server(("127.0.0.1", 0), backlog=7) as sock:
        before = backlog(sock)
        again = socket.socket(fileno=socket.dup(sock.fileno()))
        run(within(Serving(listener=again), test))
        assert backlog(sock) == before == 7


def backlog(sock: socket.socket) -> int:
    """How many callers may wait: tcpi_sacked of a listening socket (tcp_diag.c)."""
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
    return int.from_bytes(info[28:32], "little")


def test_a_unix_socket_of_ours_is_open_to_all_and_goes_with_us(run, tmp_path):
    path = tmp_path / "s"

    async def test(_: Serving) -> None:
        assert path.stat().st_mode & 0o777 == 0o666
        with pytest.raises(UnreachableError, match="another process listens there"):
            await Serving(f"unix:{path}").acceptor.__aenter__()

    run(within(Serving(f"unix:{path}"), test))
    assert not path.exists()


def test_a_stale_unix_socket_is_replaced_and_any_other_file_is_not(run, tmp_path):
    stale, other = tmp_path / "stale", tmp_path / "other"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(stale))
    other.write_text("mine")

    async def test(_: Serving) -> None:
        with pytest.raises(ConfigError, match="a path that is free or a socket"):
            await Serving(f"unix:{other}").acceptor.__aenter__()

    run(within(Serving(f"unix:{stale}"), test))
    assert other.read_text() == "mine"


def test_a_unix_socket_whose_queue_is_full_is_somebody_elses(run, tmp_path):
    """A daemon that was stopped, and callers who wait for it: the next one must not wait in line behind them."""
    path = tmp_path / "s"

    async def test() -> None:
        with pytest.raises(UnreachableError, match="another process listens there"):
            await Serving(f"unix:{path}").acceptor.__aenter__()

    with socket.socket(socket.AF_UNIX) as stopped, contextlib.ExitStack() as callers:
        stopped.bind(str(path))
        stopped.listen(0)
        full = False
        while not full:
            caller = callers.enter_context(socket.socket(socket.AF_UNIX))
            caller.setblocking(False)
            full = caller.connect_ex(str(path)) == errno.EAGAIN
        run(test())
    assert path.is_socket()


def test_some_descriptors_are_left_to_zeromq(run, monkeypatch):
    """The process may open more, and yet a caller waits as where there is none."""
    monkeypatch.setattr(acceptor, "kept_free", lambda _limit, soft: soft)

    async def test(door: Serving) -> None:
        caller = await door.call(b"x")
        name = "streamdet_accepts_failed_total"
        await until(lambda: door.metrics.registry.get_sample_value(name, {"endpoint": "pcm"}))
        assert door.said == []
        monkeypatch.setattr(acceptor, "kept_free", lambda _limit, _soft: 0)
        assert await asyncio.wait_for(caller[0].readexactly(1), PATIENCE_S) == b"x"
        await hang_up(caller)

    run(within(Serving(), test))


@pytest.mark.parametrize(("soft", "left"), [(80, 1 + 1 + 1 + 5), (1024, 179 + 100 + 32 + 16), (65_536, 1000 + 148)])
def test_as_many_are_left_as_zeromqs_sockets_have_places(soft, left):
    assert kept_free(1000, soft) == left
