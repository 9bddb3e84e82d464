"""A TCP proxy that misbehaves on command: late, slow, in pieces, deaf, or gone. All of it may change under way."""

import asyncio
import contextlib
import random
import socket
import struct
import threading
from collections.abc import Coroutine
from typing import Any, Final, Self

READ_BYTES: Final = 64 << 10
# How often a deaf proxy looks whether it may hear again.
LOOK_S: Final = 0.02


class Chaos:
    """Passes bytes on between whoever connects to `address` and `target`, while entered.

    What is not named here is left as it is: order and content of the bytes, for example.
    """

    def __init__(self, target: str) -> None:
        """Pass on to `tcp://host:port` or `host:port`."""
        self.latency_s = 0.0
        """Each piece is passed on this much later."""
        self.jitter_s = 0.0
        """Plus a random time up to this; order is kept."""
        self.bytes_per_s: float | None = None
        """A direction of a connection carries no more; None is as much as it likes."""
        self.slice_bytes: int | None = None
        """Pieces no longer than this; None is as they come."""
        self.blackhole = False
        """Takes nothing and passes nothing on, without a word: what a pulled cable looks like until TCP gives up."""
        self.connections = 0
        """Ever taken."""
        self.passed_bytes = 0
        self._target: Final = target.removeprefix("tcp://").rpartition(":")
        self._open: Final[set[asyncio.StreamWriter]] = set()
        self._loop: Final = asyncio.new_event_loop()
        self._ready: Final = threading.Event()
        self._stop: Final = asyncio.Event()
        self._thread: Final = threading.Thread(target=self._run, name="chaos", daemon=True)
        self._random: Final = random.Random(7)

    def __enter__(self) -> Self:
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(self, *error: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def reset(self) -> None:
        """End every connection with a RST, both ways."""
        asyncio.run_coroutine_threadsafe(self._reset(), self._loop).result()

    # -- inside ------------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        with contextlib.closing(self._loop):
            self._loop.run_until_complete(self._serve())

    async def _serve(self) -> None:
        tasks: set[asyncio.Task[None]] = set()

        def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.ensure_future(self._pass_both_ways(reader, writer))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

        server = await asyncio.start_server(connected, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self.address = f"tcp://127.0.0.1:{self.port}"
        self._ready.set()
        await self._stop.wait()
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0)  # for transports to close

    async def _pass_both_ways(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        host, _, port = self._target
        ends = [writer]
        try:
            there, back = await asyncio.open_connection(host, int(port))
            ends.append(back)
            self._open.update(ends)
            await self._first_of(self._pass_on(reader, back), self._pass_on(there, writer))
        except OSError:
            pass  # nobody listens there: whoever connected to us is told by the end
        finally:
            self._open.difference_update(ends)
            for end in ends:
                end.close()

    async def _first_of(self, *ways: Coroutine[Any, Any, None]) -> None:
        tasks = [asyncio.ensure_future(way) for way in ways]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass one direction on until it ends; pieces wait on their way side by side, as on a long line."""
        line: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        delivering = asyncio.ensure_future(self._deliver(line, writer))
        try:
            while data := await self._read(reader):
                late_s = self.latency_s + self.jitter_s * self._random.random()
                size = self.slice_bytes or len(data)
                for at in range(0, len(data), size):
                    line.put_nowait((self._loop.time() + late_s, data[at : at + size]))
                if self.bytes_per_s is not None:
                    await asyncio.sleep(len(data) / self.bytes_per_s)
            line.put_nowait((self._loop.time() + self.latency_s, b""))
            await delivering
        finally:
            delivering.cancel()
            await asyncio.gather(delivering, return_exceptions=True)

    async def _read(self, reader: asyncio.StreamReader) -> bytes:
        while self.blackhole:  # noqa: ASYNC110 - another thread sets it
            await asyncio.sleep(LOOK_S)
        most = READ_BYTES if self.bytes_per_s is None else max(1, int(self.bytes_per_s * LOOK_S))
        return await reader.read(most)

    async def _deliver(self, line: "asyncio.Queue[tuple[float, bytes]]", writer: asyncio.StreamWriter) -> None:
        while True:
            due_s, data = await line.get()
            await asyncio.sleep(max(0.0, due_s - self._loop.time()))
            while self.blackhole:  # noqa: ASYNC110 - another thread sets it
                await asyncio.sleep(LOOK_S)
            if not data:
                return
            writer.write(data)
            self.passed_bytes += len(data)
            await writer.drain()

    async def _reset(self) -> None:
        for writer in list(self._open):
            raw = writer.get_extra_info("socket")
            # A close that lingers for no time is a RST.
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
        self._open.clear()
