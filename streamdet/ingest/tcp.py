"""Raw PCM over TCP and unix sockets: one connection is one stream. The lossless way in.

When scoring falls behind, nothing is skipped: this side stops reading, the kernel's buffers fill, and the sender waits.
"""

import asyncio
import contextlib
import itertools
import logging
import math
import os
import socket
import time
from collections.abc import Coroutine
from typing import Any, Final, Literal, Self

from streamdet.acceptor import Acceptor, Arrival, Cut
from streamdet.config import Limits
from streamdet.doors import Door
from streamdet.ear import Ear
from streamdet.engine import Engine
from streamdet.errors import OverloadError, ProtocolError
from streamdet.logs import fields
from streamdet.metrics import Metrics
from streamdet.pseudonyms import Named
from streamdet.records import AudioFormat, Frame
from streamdet.tokens import DENIED, Pass
from streamdet.wire.pcm import Opening, PcmParser

log = logging.getLogger(__name__)

# At the end what has arrived is still taken, but no longer than this: a sender that outruns us must not keep us.
LAST_S: Final = 1.0
# Read at once: two seconds of 8 kHz s16le. Larger reads only hold more before the engine can say stop.
READ_BYTES: Final = 32 << 10
# Audio that shows within `limits.idle_s` that a call goes on (s): a peer that trickles a byte now and then has none.
LEAST_S: Final = 0.1
# A connection that was slower than `limits.bytes_per_s` may make up for this much (s).
BURST_S: Final = 1.0


class PcmListener:
    """Listens while entered."""

    def __init__(
        self, door: Door, form: AudioFormat, engine: Engine, metrics: Metrics, limits: Limits, name: Named = str
    ) -> None:
        """Listen at a door for streams of `form`; the engine knows them by what `name` makes of their ids."""
        self._acceptor: Final = Acceptor("pcm", door, self._serve, limits, metrics)
        self.tokens: Final = door.tokens
        self.form: Final = form
        self.engine: Final = engine
        self.metrics: Final = metrics
        self.limits: Final = limits
        self.name: Final = name
        self._numbers: Final = itertools.count(1)
        self._open: Final[set[_Connection]] = set()
        self._left: Final = asyncio.Event()
        """Set whenever the last connection ends."""

    @property
    def address(self) -> str:
        """Once listening, with the port that `:0` became."""
        return self._acceptor.address

    async def __aenter__(self) -> Self:
        """Begin to listen.

        Raises:
            UnreachableError: the address is taken.
            ConfigError: it is not an address.
        """
        await self._acceptor.__aenter__()
        return self

    async def take_the_last(self) -> None:
        """Hear what has arrived on every connection, and nothing that comes later, within LAST_S."""
        self._acceptor.stop()
        for connection in self._open:
            connection.hear_the_last()
        self._left.clear()
        if self._open:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._left.wait(), LAST_S)

    async def __aexit__(self, *error: object) -> None:
        """Let go of all connections; their streams stay open for the drain to end."""
        await self._acceptor.__aexit__(*error)

    def recheck(self) -> None:
        """Cut off whoever has lost the right to send; to be called when the clients have changed."""
        for connection in self._open:
            connection.recheck()

    async def _serve(self, arrival: Arrival) -> None:
        # A stream whose sender gave no name is called by its address, or by a number where there is none.
        peer = f"pcm-{arrival.peer}" if arrival.peer else f"pcm-unix-{next(self._numbers)}"
        ear, transport = await arrival.ear(READ_BYTES)
        connection = _Connection(self, arrival, transport, self.name(peer))
        self._open.add(connection)
        try:
            await connection.serve(ear)
        except (ProtocolError, OverloadError) as error:
            self.metrics.refused("pcm", error)
            log.warning("refused", extra=fields(stream=connection.stream, reason=error))
            # Somebody with nc should not have to look into our log; a stranger learns nothing.
            transport.write(f"ERROR {DENIED if connection.strange else error}\n".encode())
        except asyncio.CancelledError:
            if arrival.cut_for is None:
                raise
            message = connection.cut_off(arrival.cut_for)
            log.info("cut off", extra=fields(stream=connection.stream, reason=message))
            transport.write(f"ERROR {message}\n".encode())
        finally:
            self._open.discard(connection)
            if not self._open:
                self._left.set()
            transport.close()


class _Connection:
    """One stream on its way in."""

    def __init__(self, listener: PcmListener, arrival: Arrival, transport: asyncio.Transport, peer: str) -> None:
        self.stream = peer
        self._name = listener.name
        self._engine = listener.engine
        self._metrics = listener.metrics
        self._limits = listener.limits
        self._tokens = listener.tokens
        self._pass: Pass | None = None
        self._arrival = arrival
        self._transport = transport
        self._form = listener.form
        self._parser = PcmParser(self._form)
        self._room = asyncio.Event()
        self._opened: str | None = None
        self._last = False
        """Whether the end that comes is ours."""
        self._least_bytes = 0
        self._came_bytes = 0
        """Since the deadline was last moved."""
        self._paid_until_s = 0.0
        """What has come may have been read by then."""

    async def serve(self, ear: Ear) -> None:
        """Read to the end."""
        try:
            while data := await ear.read():
                size_bytes = len(data)
                self._metrics.received("pcm", size_bytes)
                self._parser.feed(data)
                ear.heard()
                await self._pass_on(ended=False)
                if self._opened is not None and not self._is_open():
                    return  # somebody closed it through the control socket
                await self._keep_pace(size_bytes)
            if self._last:
                return  # the drain ends the stream
            if self._parser.begun:  # a probe that connects and leaves is no call
                await self._pass_on(ended=True)
            self._parser.finish()
        except ProtocolError as error:
            self._engine.error(self.stream, str(error), time.monotonic())
            self._close("end")
            raise
        except OSError:
            if not self._last:
                self._close("disconnect")
        else:
            self._close("end")

    def hear_the_last(self) -> None:
        """End the connection behind what has arrived: the kernel gives out that much, then says that it was all."""
        self._last = True
        with (
            contextlib.suppress(OSError),
            socket.socket(fileno=os.dup(self._transport.get_extra_info("socket").fileno())) as same,
        ):
            same.shutdown(socket.SHUT_RD)

    @property
    def strange(self) -> bool:
        """Whether it should say who it is, and has not yet."""
        return self._tokens is not None and self._pass is None

    def recheck(self) -> None:
        """Cut it off if its token is no longer allowed."""
        if self._tokens is not None and self._pass is not None and not self._tokens.holds(self._pass):
            self._arrival.cut("auth")

    def cut_off(self, why: Cut) -> str:
        """End the stream of a connection that was cut off; return what its peer is told."""
        limits = self._limits
        if why == "auth":
            self._close("disconnect")
            return DENIED
        if self._opened is None:
            late = f"none in {limits.handshake_s:g} s" if why == "slow" else "none yet, and others want the place"
            return f"audio: {late}, expected some"
        self._close("idle")
        return f"audio: less than {LEAST_S:g} s in {limits.idle_s:g} s, expected more"

    async def _keep_pace(self, size_bytes: int) -> None:
        """Move the deadline where enough has come, and wait where too much has."""
        now_s = time.monotonic()
        self._came_bytes += size_bytes
        if self._opened is not None and self._came_bytes >= self._least_bytes:
            self._came_bytes = 0
            self._arrival.deadline_s = now_s + self._limits.idle_s
        # Whoever was slow until now may be fast for as long as BURST_S: buffers empty in bursts.
        self._paid_until_s = max(self._paid_until_s, now_s - BURST_S) + size_bytes / self._limits.bytes_per_s
        if self._paid_until_s > now_s:
            await self._at_our_expense(asyncio.sleep(self._paid_until_s - now_s))

    async def _at_our_expense(self, waiting: Coroutine[Any, Any, object]) -> None:
        """Wait for something of ours: the deadline is moved by as long."""
        left_s = self._arrival.deadline_s - time.monotonic()
        self._arrival.deadline_s = math.inf
        await waiting
        self._arrival.deadline_s = time.monotonic() + left_s

    async def _pass_on(self, *, ended: bool) -> None:
        """Hand all whole samples to the engine, a hop at a time, waiting for room before each."""
        opening = self._parser.opening(ended=ended)
        if opening is None:
            return
        if self._opened is None:
            if self._tokens is not None:
                self._pass = await self._tokens.admit(self._parser.token)
            self._open(opening)
        while self._is_open() and (payload := self._parser.samples(self._engine.hop_bytes(self._form))):
            self._room.clear()
            frame = Frame(self.stream, self._form, payload)
            has_room = self._engine.feed(frame, time.monotonic(), lossless=True, owner=self._owner)
            payload[:] = bytes(len(payload))  # it is in the ring now, and nowhere else
            if not has_room:
                await self._at_our_expense(self._room.wait())

    def _open(self, opening: Opening) -> None:
        stream = self._name(opening.stream) if opening.stream else self.stream
        self._opened = self._engine.open(
            stream, opening.format, time.monotonic(), resume=self._room.set, start=opening.start, owner=self._owner
        )
        self.stream, self._form = stream, opening.format
        self._least_bytes = round(LEAST_S * self._form.rate_hz) * self._form.block_bytes
        self._arrival.admit(time.monotonic() + self._limits.idle_s)
        # A paused call may be silent: some recorders stop sending as well.
        self._arrival.excused = lambda: self._is_open() and self._engine.is_paused(self.stream)
        self._arrival.excused_s = self._limits.idle_s
        if opening.answer:
            self._transport.write(b"OK\n")

    @property
    def _owner(self) -> str | None:
        return None if self._pass is None else self._pass.name

    def _is_open(self) -> bool:
        return self._engine.is_open(self.stream, self._opened)

    def _close(self, reason: Literal["end", "disconnect", "idle"]) -> None:
        if self._opened is not None and self._is_open():
            self._engine.close(self.stream, reason, time.monotonic())
