"""Reading from a ZeroMQ socket within the loop: every message whole, and nobody else kept waiting."""

import asyncio
import itertools
import subprocess
import sys

import pytest
import zmq

from streamdet import addresses, sockets
from streamdet.errors import ConfigError
from streamdet.sockets import ZmqSocket

LOCAL = "tcp://127.0.0.1:*"
# Without a thread between: what was sent is there to be read at once.
AT_ONCE = "inproc://flood"
PATIENCE_S = 30.0


class Taking(ZmqSocket):
    """Keeps what it takes, and after how many messages each turn ended."""

    def __init__(self, address: str) -> None:
        self.taken: list[list[bytes]] = []
        self.turns: list[int] = []
        super().__init__(zmq.PULL, "endpoints.audio", address, self.taken.append, rcvhwm=0)

    def _turn_over(self) -> None:
        self.turns.append(len(self.taken))


async def taken_of(messages: list[list[bytes]], address: str = LOCAL, each_turn=lambda _: None) -> Taking:
    """Send messages, and run a callback of the loop's own beside their reading."""
    async with Taking(address) as taking:
        push = zmq.Context.instance().socket(zmq.PUSH)
        push.set(zmq.SNDHWM, 0)
        push.connect(taking.address)
        for parts in messages:
            push.send_multipart(parts)
        async with asyncio.timeout(PATIENCE_S):
            while len(taking.taken) < len(messages):
                each_turn(taking)
                await asyncio.sleep(0)
        each_turn(taking)
        push.close()
    return taking


def test_messages_of_any_number_of_parts_keep_their_borders():
    messages = [[b"%d.%d" % (number, part) for part in range(1 + number % 5)] for number in range(1000)]
    messages += [[b""], [b"", b"", b""], [b"x" * 100_000, b""]]
    assert asyncio.run(taken_of(messages)).taken == messages


def test_the_rest_of_the_loop_has_its_turn_in_a_flood():
    seen = [0]
    asyncio.run(taken_of([[b"x"]] * 3000, AT_ONCE, lambda taking: seen.append(len(taking.taken))))
    assert max(after - before for before, after in itertools.pairwise(seen)) <= sockets.TURN


def test_what_is_done_once_a_turn_is_done_for_every_message():
    taking = asyncio.run(taken_of([[b"x"]] * 1000))
    assert taking.turns[-1] == 1000
    assert len(taking.turns) < 1000


OUTRUNS = """
import os, sys, zmq
push = zmq.Context().socket(zmq.PUSH)
push.set(zmq.SNDTIMEO, 300)
push.connect(sys.argv[1])
try:
    while True:
        push.send(bytes(1000))
except zmq.Again:
    os._exit(0)
"""
DOES_NOT_READ = """
import asyncio, subprocess, sys, time, zmq
from streamdet.sockets import ZmqSocket

async def main():
    async with ZmqSocket(zmq.PULL, "endpoints.audio", "tcp://127.0.0.1:*", print, rcvhwm=10) as socket:
        subprocess.run([sys.executable, "-c", sys.argv[1], socket.address])
        time.sleep(1)
        # The assertion comes with a heartbeat, whose interval may be longer than anybody waits here.
        assert socket._socket.get(zmq.HEARTBEAT_IVL) == 0, "ZeroMQ's own heartbeats are on"

asyncio.run(main())
"""


def test_a_sender_that_outruns_us_and_hangs_up_does_not_end_the_process():
    """It did, by an assertion of libzmq, as long as ZeroMQ's own heartbeats were on."""
    command = [sys.executable, "-c", DOES_NOT_READ, OUTRUNS]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("address", "where"),
    [("tcp://127.0.0.1:1", ("127.0.0.1", 1)), ("[::1]:2", ("::1", 2)), ("localhost:0", ("localhost", 0))],
)
def test_an_address_is_a_host_and_a_port(address, where):
    assert addresses.host_and_port("f", address) == where


@pytest.mark.parametrize(
    "address",
    [
        *("tcp://[", "tcp://[::1", "[:1", "tcp://\u2100:1", "tcp://a:1?b", "tcp://a:1#b", "tcp://b@a:1", "tcp://a:1/b"),
        *("tcp://a\n:1", "a\t:1", "a:\udc80", "a:99999", "a:-1", "udp://a:1", ":1", "a", ""),
    ],
)
def test_what_is_no_address_is_refused_and_nothing_of_it_ignored(address):
    with pytest.raises(ConfigError, match=r"^f: .*, expected host:port or tcp://host:port$") as caught:
        addresses.host_and_port("f", address)
    assert str(caught.value).isprintable()


def test_an_error_that_nobody_expected_leaves_no_message_behind():
    """The descriptor tells of messages once: without another look those after the error would wait for ever."""

    async def stumble() -> list[list[bytes]]:
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)
        async with Taking(LOCAL) as taking:
            taking._take = lambda parts: taking.taken.append(parts) if parts != [b"bad"] else 1 / 0
            with zmq.Context.instance().socket(zmq.PUSH) as push:
                push.connect(taking.address)
                for part in (b"bad", b"a", b"b"):
                    push.send(part)
                async with asyncio.timeout(PATIENCE_S):
                    while len(taking.taken) < 2:  # noqa: ASYNC110 - nothing tells of them
                        await asyncio.sleep(0.01)
        return taking.taken

    assert asyncio.run(stumble()) == [[b"a"], [b"b"]]
