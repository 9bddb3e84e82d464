"""Reads a connection into memory of its own, and overwrites it as soon as it was heard.

asyncio's streams would do, but for what they leave behind. uvloop reads all connections through one buffer of 256 kB,
in which the last calls' audio stays until other bytes come, and a StreamReader makes objects that nobody can overwrite.
"""

import asyncio
from typing import Final, cast


class Ear(asyncio.BufferedProtocol):
    """The reading half of a connection: `read`, take what came, `heard`; stops reading while nobody does."""

    def __init__(self, most_bytes: int, *, half_open: bool) -> None:
        """Hold at most `most_bytes`; with `half_open`, not with TLS, we may still answer a peer that has said all."""
        self._bytes: Final = bytearray(most_bytes)
        self._view: Final = memoryview(self._bytes)
        self._length = 0
        self._half_open: Final = half_open
        self._came: Final = asyncio.Event()
        self._ended = self._is_paused = False
        self._error: Exception | None = None
        self._transport: asyncio.Transport | None = None

    async def read(self) -> memoryview:
        """Wait for bytes; none at the end.

        Raises:
            OSError: the connection was lost.
        """
        while not (self._length or self._ended):
            self._came.clear()
            await self._came.wait()
        if not self._length and self._error is not None:
            raise self._error
        return self._view[: self._length]

    def heard(self) -> None:
        """Overwrite what `read` gave, and read on; to be called before waiting for anything."""
        self._bytes[: self._length] = bytes(self._length)
        self._length = 0
        if self._is_paused and self._transport is not None:
            self._is_paused = False
            self._transport.resume_reading()

    # -- as asyncio calls it -----------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's has no such base

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - asyncio's signature
        """Say where bytes go; there is room, or reading would have stopped."""
        return self._view[self._length :]

    def buffer_updated(self, nbytes: int) -> None:
        """Take what came, and stop where there is no more room."""
        self._length += nbytes
        if self._length == len(self._bytes) and self._transport is not None:
            self._is_paused = True
            self._transport.pause_reading()
        self._came.set()

    def eof_received(self) -> bool:
        """Hear that the peer has said all."""
        self._ended = True
        self._came.set()
        return self._half_open

    def connection_lost(self, exc: Exception | None) -> None:
        """Hear that nothing more comes."""
        self._ended = True
        self._error = exc
        self._transport = None
        self._came.set()
