"""Peers that are up to no good, as processes: what they hoard must not be taken for the daemon's.

`strangers.py HOW ADDRESS ...`: `subscribe COUNT [IDENTITY]` with the library, or `raw COUNT` without: a socket that
says it is a SUB, and subscribes as fast as TCP goes. `flood` sends one stream's audio without pause.
"""

import contextlib
import socket
import struct
import sys
import time
from pathlib import Path

import zmq

from streamdet.guard import present
from streamdet.keys import Identity
from streamdet.records import AudioFormat, Frame
from streamdet.wire import frames

# A ZMTP 3.0 greeting of the mechanism NULL, and what it may be followed by.
GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
READY = b"\x05READY\x0bSocket-Type" + struct.pack(">I", 3) + b"SUB"
# The longest topic that a subscription may name has 132 bytes; these are the 100 of docs/reliability.md.
TOPIC = b"v.%07d." + b"x" * 90


def dialled(address: str) -> socket.socket:
    """Connect to `tcp://host:port`."""
    host, _, port = address.removeprefix("tcp://").rpartition(":")
    return socket.create_connection((host, int(port)))


def subscription(number: int) -> bytes:
    """A frame that subscribes to a topic that nobody else has."""
    body = b"\x01" + TOPIC % number
    return bytes([0, len(body)]) + body


def raw(address: str, count: int) -> None:
    """Subscribe without the library, and stay."""
    with dialled(address) as peer, contextlib.suppress(OSError):
        peer.sendall(GREETING)
        peer.recv(len(GREETING), socket.MSG_WAITALL)  # the library hangs up on some who do not wait for it
        peer.sendall(bytes([4, len(READY)]) + READY)
        for first in range(0, count, 1000):
            peer.sendall(b"".join(map(subscription, range(first, min(count, first + 1000)))))
        _said()
        peer.recv(1 << 20)
        time.sleep(3600)


def _said() -> None:
    sys.stdout.write("said\n")
    sys.stdout.flush()


def subscribe(address: str, count: int, identity: Path | None) -> None:
    """Subscribe with the library, and stay."""
    sub: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.SUB)
    sub.setsockopt(zmq.SNDHWM, 0)  # the library drops subscriptions beyond it
    present(sub, identity and Identity.read(identity))
    sub.connect(address)
    for number in range(count):
        sub.subscribe(TOPIC % number)
    _said()
    while True:
        sub.recv()


def flood(address: str) -> None:
    """Send a stream that is as far ahead of real time as the daemon takes it."""
    push: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.PUSH)
    push.connect(address)
    form, payload = AudioFormat(8000, "mulaw"), bytes([255]) * 800
    start = 0
    while True:
        push.send_multipart(frames.build(Frame("flood", form, payload, start=start)))
        start += len(payload)


if __name__ == "__main__":
    how, where, *more = sys.argv[1:]
    if how == "raw":
        raw(where, int(more[0]))
    elif how == "subscribe":
        subscribe(where, int(more[0]), Path(more[1]) if more[1:] else None)
    else:
        flood(where)
