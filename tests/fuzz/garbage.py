"""Connections that bring nothing good, a process of its own: `python -m tests.fuzz.garbage` reads an Order from stdin.

Each connection goes to one endpoint and brings what somebody lost, curious or hostile might: noise, another protocol,
half a greeting, lengths beyond all memory, a good beginning and a bad end. Then it hangs up, resets, or stays silent.
"""

import collections
import random
import socket
import struct
import sys
import time
from collections.abc import Callable
from typing import Final, Literal

import msgspec

Kind = Callable[[random.Random], bytes]
Leaving = Literal["close", "reset", "half", "stay"]

# Silent connections that one process keeps: longer than the daemon waits for any greeting, at its pace.
STAYING_MOST: Final = 150
# To connect or to send: a daemon that makes everybody wait this long is in trouble, and the report says so.
PATIENCE_S: Final = 5.0
LEAVINGS: Final[tuple[Leaving, ...]] = ("close", "close", "reset", "half", "stay")


class Order(msgspec.Struct, frozen=True):
    """What to send where."""

    addresses: dict[str, str]
    """By endpoint (`audio`, `control`, `pcm.0`...): `tcp://host:port`, `host:port` or `unix:/path`."""
    connections: int
    rate: float
    """Connections a second; who falls behind makes up for it."""
    seed: int


class Report(msgspec.Struct):
    """What came of it."""

    connections: int = 0
    seconds: float = 0.0
    bytes: int = 0
    refused: int = 0
    """Connections that did not come about."""
    hung_up: int = 0
    """The daemon's end came first."""
    slow: int = 0
    """Waited longer than PATIENCE_S."""


# -- what they bring ---------------------------------------------------------------------------------------------------


def noise(rng: random.Random) -> bytes:
    return rng.randbytes(rng.choice((0, 1, 7, 64, 500, 3000)))


def web(rng: random.Random) -> bytes:
    first = rng.choice(
        ("GET / HTTP/1.1", "GET /metrics HTTP/9", "POST / HTTP/1.1", "PRI * HTTP/2.0", "\x00 / HTTP/1.1")
    )
    head = rng.choice(
        ("Host: x", "Content-Length: 99999999999999999999", "Transfer-Encoding: chunked", "A: " + "b" * 9000)
    )
    rest = rng.choice(("", "\r\n", "\r\nFFFFFFFFFFFFFFFF\r\nx"))
    return f"{first}\r\n{head}\r\n{rest}".encode()


def tls(rng: random.Random) -> bytes:
    return b"\x16\x03\x01" + struct.pack(">H", rng.choice((0, 200, 0xFFFF))) + rng.randbytes(180)


def zmtp(kind: bytes) -> Kind:
    """ZeroMQ's own greeting (ZMTP 3.0), as far as it goes, and frames after it."""

    def made(rng: random.Random) -> bytes:
        mechanism = rng.choice((b"NULL", b"NULL", b"PLAIN", b"CURVE", rng.randbytes(20)))
        greeting = b"\xff" + bytes(8) + b"\x7f" + rng.choice((b"\3\0", b"\3\1", b"\1\0", b"\xff\xff"))
        greeting += mechanism.ljust(20, b"\0") + bytes(32)
        ready = b"\5READY\x0bSocket-Type" + struct.pack(">I", len(kind)) + kind
        whole = greeting + rng.choice((b"", b"\4" + bytes([len(ready)]) + ready, b"\6" + b"\xff" * 8))
        whole += b"".join(frame(rng) for _ in range(rng.choice((0, 1, 3, 50))))
        return whole[: rng.choice((5, 12, 64, 10_000))]

    return made


def frame(rng: random.Random) -> bytes:
    """A ZMTP frame: flags, length, body; perhaps of more than was ever sent."""
    body = rng.choice((b"\1v.", b"\1" + rng.randbytes(30), b"{}", b'{"op":"status"}', b"[" * 200, rng.randbytes(40)))
    if rng.random() < 0.1:
        return b"\2" + struct.pack(">Q", rng.choice((1 << 62, 1 << 30, (1 << 64) - 1))) + body
    return bytes([rng.choice((0, 1, 1, 4)), len(body)]) + body


def wav(rng: random.Random) -> bytes:
    chunks = (b"junk\0\0\0\0" * 500, b"fmt \x10\0\0\0" + rng.randbytes(16), b"data\4\0\0\0", b"LIST\xff\xff\xff\xff")
    return b"RIFF" + rng.randbytes(4) + rng.choice((b"WAVE", b"AVI ")) + b"".join(rng.choices(chunks, k=3))


def greeting(rng: random.Random) -> bytes:
    fields = ('{"stream":"\\ud800"}', '{"rate":1e999}', "[" * 900, '{"stream":"a b"}', '{"token":1}', '{"stream":"x"')
    return b"STREAMDET " + rng.choice(fields).encode() + rng.choice((b"\n", b"", b" " * 2000)) + rng.randbytes(100)


def long_noise(rng: random.Random) -> bytes:
    """On a raw PCM connection this is audio: over a second of it, so there is a window to score."""
    return rng.randbytes(20_000)


MUCH: Final[tuple[Kind, ...]] = (noise, noise, web, tls, zmtp(b"DEALER"))
KINDS: Final[dict[str, tuple[Kind, ...]]] = {
    "audio": (*MUCH, zmtp(b"PUSH"), zmtp(b"PUSH"), zmtp(b"PUB")),
    "verdicts": (*MUCH, zmtp(b"SUB"), zmtp(b"SUB"), zmtp(b"XSUB")),
    "control": (*MUCH, zmtp(b"REQ"), zmtp(b"DEALER")),
    "http": (*MUCH, web, web),
    "pcm": (*MUCH * 4, *(wav, wav, greeting, greeting) * 4, long_noise),
}


# -- how they bring it -------------------------------------------------------------------------------------------------


def connected(address: str) -> socket.socket:
    if address.startswith("unix:"):
        made = socket.socket(socket.AF_UNIX)
        made.settimeout(PATIENCE_S)
        made.connect(address.removeprefix("unix:"))
        return made
    host, _, port = address.removeprefix("tcp://").rpartition(":")
    return socket.create_connection((host, int(port)), PATIENCE_S)


def once(
    address: str, data: bytes, leaving: Leaving, staying: collections.deque[socket.socket], report: Report
) -> None:
    """Make one connection."""
    report.connections += 1
    try:
        made = connected(address)
    except TimeoutError:
        report.slow += 1
        return
    except OSError:
        report.refused += 1
        return
    try:
        made.sendall(data)
        report.bytes += len(data)
        if leaving == "half":
            made.shutdown(socket.SHUT_WR)
    except TimeoutError:
        report.slow += 1
    except OSError:
        report.hung_up += 1
    if leaving in ("half", "stay"):
        staying.append(made)
        made = staying.popleft() if len(staying) > STAYING_MOST else None
    if made is not None:
        if leaving == "reset":
            made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        made.close()


def run(order: Order) -> Report:
    """Make all connections at the rate that is asked for."""
    rng, report, staying = random.Random(order.seed), Report(), collections.deque()
    doors = list(order.addresses.items())
    began_s = time.monotonic()
    while report.connections < order.connections:
        due = min(order.connections, 1 + int(order.rate * (time.monotonic() - began_s)))
        while report.connections < due:
            name, address = rng.choice(doors)
            once(address, rng.choice(KINDS[name.partition(".")[0]])(rng), rng.choice(LEAVINGS), staying, report)
        time.sleep(0.001)
    report.seconds = time.monotonic() - began_s
    for made in staying:
        made.close()
    return report


if __name__ == "__main__":
    sys.stdout.buffer.write(msgspec.json.encode(run(msgspec.json.decode(sys.stdin.buffer.read(), type=Order))))
