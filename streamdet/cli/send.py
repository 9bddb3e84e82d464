"""`streamdet send`: play a recording, or what comes on stdin, as one call or as many."""

import asyncio
import contextlib
import os
import ssl
import sys
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, NamedTuple, Protocol

import msgspec
import numpy as np
import typer
import zmq

from streamdet.addresses import host_and_port, is_local
from streamdet.audio import encode, read_recording, resample
from streamdet.cli.options import ConfigFile, IdentityFile, Settings, read_config, read_identity
from streamdet.errors import ConfigError, DataError, ProtocolError, StreamdetError, UnreachableError, UsageError
from streamdet.guard import present
from streamdet.keys import Identity
from streamdet.records import MAX_CHANNELS, RATES_HZ, AudioFormat, Encoding, Frame
from streamdet.tls import client_context
from streamdet.wire import frames
from streamdet.wire.pcm import PcmParser

# A frame costs the daemon a wake-up and a header, hardly its bytes: 100 ms takes a third of what 20 ms does. Longer
# ones gain little, and what waits for the rest of its frame is late by as much.
FRAME_MS: Final = 100
# How long until a full queue is asked again.
RETRY_S: Final = 0.02
READ_BYTES: Final = 64 << 10
# How long the daemon may take to read all that was sent when TLS says goodbye (s): it reads no faster than it scores.
GOODBYE_S: Final = 3600.0
# How long a full queue or an absent daemon is waited for.
PATIENCE_S: Final = 5.0


class Destination(NamedTuple):
    """Where a recording goes, and how."""

    address: str
    lossless: bool
    """Over raw PCM; else over ZeroMQ."""
    identity: Identity | None = None
    tls: ssl.SSLContext | None = None

    @property
    def token(self) -> str | None:
        """Of the identity."""
        return None if self.identity is None else self.identity.token


class Sink(Protocol):
    """Where the audio of one stream goes."""

    async def send(self, payload: bytes) -> None:
        """Send whole samples."""

    async def end(self) -> None:
        """End the stream."""


def send(
    source: Annotated[str, typer.Argument(metavar="FILE", help="A recording; - is raw PCM or WAV on stdin.")],
    config: ConfigFile = None,
    set_: Settings = None,
    stream: Annotated[str | None, typer.Option(help="Stream id; of several calls the beginning.")] = None,
    calls: Annotated[int, typer.Option(min=1, max=1000, help="Play it as this many calls at once.")] = 1,
    speed: Annotated[float, typer.Option(min=0, help="1 is real time; 0 as fast as it goes.")] = 1.0,
    rate: Annotated[int | None, typer.Option(help="Send at this rate (Hz); of stdin, its rate.")] = None,
    encoding: Annotated[str, typer.Option(help="s16le, f32le, mulaw or alaw.")] = "s16le",
    channels: Annotated[int, typer.Option(help="Channels on stdin.")] = 1,
    frame_ms: Annotated[int, typer.Option(min=10, max=FRAME_MS, help="Audio in a message.")] = FRAME_MS,
    pcm: Annotated[bool, typer.Option("--pcm", help="Over raw PCM in real time too.")] = False,
    identity: IdentityFile = None,
    ca: Annotated[Path | None, typer.Option(help="Certificates to trust at tls://, instead of the system's.")] = None,
) -> None:
    """Stream a recording to a daemon: over ZeroMQ in real time, over raw PCM when faster."""
    endpoints = read_config(config, set_).endpoints
    lossless = pcm or speed != 1.0
    address = next(iter(endpoints.pcm), "") if lossless else endpoints.audio
    if not address:
        raise UsageError.of(f"endpoints.{'pcm' if lossless else 'audio'}", address, "an address to send to")
    try:
        wanted = frames.audio_format({"rate": rate or 8000, "encoding": encoding, "channels": channels})
    except ProtocolError as error:
        raise UsageError(f"--{error}") from None
    name = stream or (Path(source).stem.replace(" ", "_") if source != "-" else f"stdin-{os.getpid()}")
    names = [name] if calls == 1 else [f"{name}-{number}" for number in range(1, calls + 1)]
    for each in names:
        frames.parse_stream(each.encode())
    tls = client_context(ca) if lossless and address.startswith("tls://") else None
    to = Destination(address, lossless, read_identity(identity), tls)
    if lossless and to.token is not None and tls is None and not is_local("endpoints.pcm", address):
        typer.echo(f"your token travels to {address} in the clear: tls:// hides it", err=True)
    try:
        asyncio.run(_send(source, names, wanted, rate, speed, frame_ms / 1000, to))
    except* StreamdetError as group:
        raise group.exceptions[0] from None  # of many calls that fail alike, one line says it


async def play(form: AudioFormat, data: bytes, name: str, address: str) -> None:
    """Play a recording over ZeroMQ in real time, for `demo`."""
    with _push(address) as push:
        frame_s = FRAME_MS / 1000
        await _pace(_cut(data, form, frame_s), [ZmqSink(push, name, form)], frame_s, 0.0)


def recorded(path: Path, wanted: AudioFormat | None) -> tuple[AudioFormat, bytes]:
    """Read a recording as the bytes of a stream; in `wanted`'s rate and encoding, or near its own."""
    samples, rate_hz = read_recording(path)
    if samples.shape[1] > MAX_CHANNELS:
        raise DataError.of(f"channels of {path}", samples.shape[1], f"at most {MAX_CHANNELS}")
    to_hz = wanted.rate_hz if wanted else rate_hz if rate_hz in RATES_HZ else 16000
    resampled = np.stack([resample(channel, rate_hz, to_hz) for channel in samples.T], axis=1)
    encoding: Encoding = wanted.encoding if wanted else "s16le"
    return AudioFormat(to_hz, encoding, samples.shape[1]), encode(resampled, encoding)


async def _send(
    source: str,
    names: Sequence[str],
    wanted: AudioFormat,
    rate: int | None,
    speed: float,
    frame_s: float,
    to: Destination,
) -> None:
    if source == "-":
        form, payloads = await _stdin(wanted, frame_s)
        groups = [(list(names), payloads, 0.0)]
    else:
        form, data = recorded(Path(source), wanted if rate or wanted.encoding != "s16le" else None)
        # Starts are spread over a second, as those of real calls are.
        groups = [([name], _cut(data, form, frame_s), at / len(names)) for at, name in enumerate(names)]
    typer.echo(f"{source} as {names[0]}{f' to {names[-1]}' if len(names) > 1 else ''} to {to.address}", err=True)
    with _push("", None) if to.lossless else _push(to.address, to.identity) as push:
        async with asyncio.TaskGroup() as tasks:
            for group, payloads, delay_s in groups:
                sinks = [await _sink(push, to, name, form) for name in group]
                tasks.create_task(_pace(payloads, sinks, frame_s / speed if speed else 0.0, delay_s))


async def _sink(push: "zmq.Socket[bytes]", to: Destination, name: str, form: AudioFormat) -> Sink:
    return await PcmSink.connect(to, name, form) if to.lossless else ZmqSink(push, name, form)


async def _pace(payloads: AsyncIterator[bytes], sinks: Sequence[Sink], every_s: float, delay_s: float) -> None:
    """Send each frame when it is due, counted from the start, so that no delay adds up; at once with `every_s` 0."""
    loop = asyncio.get_running_loop()
    began_s, number = loop.time() + delay_s, 0
    async for payload in payloads:
        if every_s > 0:
            await asyncio.sleep(began_s + number * every_s - loop.time())
        for sink in sinks:
            await sink.send(payload)
        number += 1
    for sink in sinks:
        await sink.end()


async def _cut(data: bytes, form: AudioFormat, frame_s: float) -> AsyncIterator[bytes]:
    size = round(frame_s * form.rate_hz) * form.block_bytes
    for at in range(0, len(data), size):
        yield data[at : at + size]


async def _stdin(form: AudioFormat, frame_s: float) -> tuple[AudioFormat, AsyncIterator[bytes]]:
    """Read the head of stdin; its samples come as they come."""
    parser = PcmParser(form)
    opening, ended = None, False
    while opening is None:
        data = await asyncio.to_thread(os.read, sys.stdin.fileno(), READ_BYTES)
        parser.feed(data)
        ended = not data
        opening = parser.opening(ended=ended)
    found = opening.format
    size = round(frame_s * found.rate_hz) * found.block_bytes

    async def payloads() -> AsyncIterator[bytes]:
        over = ended
        while True:
            while payload := parser.samples(size):
                yield bytes(payload)
            if over:
                parser.finish()
                return
            more = await asyncio.to_thread(os.read, sys.stdin.fileno(), READ_BYTES)
            parser.feed(more)
            over = not more

    return found, payloads()


class ZmqSink:
    """One stream of many on a PUSH socket."""

    def __init__(self, push: "zmq.Socket[bytes]", stream: str, form: AudioFormat) -> None:
        """Send as `stream`."""
        self._push = push
        self._stream = stream
        self._form = form
        self._start = 0

    async def send(self, payload: bytes) -> None:
        """Send one frame."""
        await self._send(Frame(self._stream, self._form, payload, start=self._start, sent_at_s=time.time()))
        self._start += len(payload) // self._form.block_bytes

    async def end(self) -> None:
        """End the stream with an empty frame."""
        await self._send(Frame(self._stream, self._form, b"", start=self._start, end=True))

    async def _send(self, frame: Frame) -> None:
        for _ in range(round(PATIENCE_S / RETRY_S)):
            try:
                self._push.send_multipart(frames.build(frame), zmq.NOBLOCK)
            except zmq.Again:
                await asyncio.sleep(RETRY_S)
            else:
                return
        raise UnreachableError.of(
            "audio",
            self._push.getsockopt_string(zmq.LAST_ENDPOINT),
            "a daemon that takes audio; does it run, and may your --identity send?",
        )


class PcmSink:
    """One stream on a connection of its own."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, address: str, *, asks: bool) -> None:
        """Use `connect`."""
        self._reader = reader
        self._writer = writer
        self._address = address
        self._asks = asks
        """Whether the daemon has yet to say that the stream is open."""

    @classmethod
    async def connect(cls, to: Destination, stream: str, form: AudioFormat) -> "PcmSink":
        """Connect and say what will come.

        Raises:
            UnreachableError: nobody listens, or nobody whose certificate is trusted.
        """
        try:
            if to.address.startswith("unix:"):
                path = to.address.removeprefix("unix:").removeprefix("//")
                reader, writer = await asyncio.open_unix_connection(path)
            else:
                where = host_and_port("endpoints.pcm", to.address)
                tls: dict[str, Any] = {} if to.tls is None else {"ssl": to.tls, "ssl_shutdown_timeout": GOODBYE_S}
                reader, writer = await asyncio.open_connection(*where, **tls)
        except ssl.SSLError as error:
            why = getattr(error, "verify_message", None) or error.reason
            raise UnreachableError.of("pcm", to.address, f"a daemon that is trusted ({why})") from None
        except OSError as error:
            raise UnreachableError.of("pcm", to.address, f"a daemon that listens ({error.strerror})") from None
        form_fields = {"rate": form.rate_hz, "encoding": form.encoding, "channels": form.channels}
        # A daemon of before there were tokens and TLS would not answer, and has neither.
        asks = to.tls is not None or to.token is not None
        asked = {"answer": True, "token": to.token} if asks else {}
        greeting = {
            name: value for name, value in {"stream": stream, **form_fields, **asked}.items() if value is not None
        }
        writer.write(b"STREAMDET " + msgspec.json.encode(greeting) + b"\n")
        return cls(reader, writer, to.address, asks=asks)

    async def send(self, payload: bytes) -> None:
        """Send samples, waiting where the daemon does."""
        try:
            self._writer.write(payload)
            await self._writer.drain()
            if self._asks:
                await self._hear()
        except OSError:
            with contextlib.suppress(OSError):
                await self._complain()
            raise UnreachableError.of("pcm", self._address, "a daemon that stays to the end") from None

    async def end(self) -> None:
        """End the stream, and hear whether it was taken, where the connection can be half closed."""
        try:
            if self._writer.can_write_eof():
                self._writer.write_eof()
                await self._complain()
            self._writer.close()
            await self._writer.wait_closed()
        except OSError:
            raise UnreachableError.of("pcm", self._address, "a daemon that stays to the end") from None
        finally:
            self._writer.close()

    async def _hear(self) -> None:
        """Wait for the daemon's word that the stream is open."""
        answer = await self._reader.readline()
        if answer != b"OK\n":
            raise ProtocolError(answer.decode(errors="replace").removeprefix("ERROR ").strip() or "no answer")
        self._asks = False

    async def _complain(self) -> None:
        answer = await self._reader.read(1000)
        if answer:
            raise ProtocolError(answer.decode(errors="replace").removeprefix("ERROR ").strip())


def _push(address: str, identity: Identity | None = None) -> "zmq.Socket[bytes]":
    """Return a PUSH socket; frames wait in it only once a daemon is there."""
    socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.PUSH)
    socket.setsockopt(zmq.IMMEDIATE, 1)
    present(socket, identity)
    socket.setsockopt(zmq.SNDHWM, 10_000)
    socket.setsockopt(zmq.LINGER, 2000)
    try:
        if address:
            socket.connect(address)
    except zmq.ZMQError as error:
        socket.close()
        raise ConfigError.of("audio", address, f"a ZeroMQ address ({error})") from None
    return socket
