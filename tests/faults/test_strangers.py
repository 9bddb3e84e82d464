"""Strangers, clients that were revoked, and peers that want more than their share: what they get, and what it costs."""

import contextlib
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import zmq

from streamdet import keys
from streamdet.guard import DOMAINS, present
from streamdet.keys import ROLES, Client, Identity
from streamdet.records import AudioFormat, Frame
from streamdet.wire import frames
from tests import pages
from tests.faults.harness import PATIENCE_S, figure, wait_for
from tests.faults.recorder import account
from tests.faults.strangers import GREETING, dialled

BROKEN = str(Path(__file__).with_name("broken.py"))
STRANGERS = str(Path(__file__).with_name("strangers.py"))
CALLS = 10
SUBSCRIPTIONS = 300_000
# What may be lost to the library's and the allocator's ways; the promise for peers that may subscribe is 64 MB.
NOTHING_BYTES = 10 << 20
PROMISED_BYTES = 64 << 20
# Heartbeats come once a second: whoever hears none for so long is not served.
IN_VAIN_S = 2.5
S16 = AudioFormat(8000, "s16le")


@pytest.fixture
def stranger(ends):
    """Starts peers of strangers.py, which end with the test."""

    def one(*args: object) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-P", STRANGERS, *map(str, args)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        ends.enter_context(process)
        ends.callback(process.kill)
        return process

    return one


@pytest.fixture
def plug(ends):
    """Connects sockets that show an identity."""
    context = ends.enter_context(zmq.Context())

    def one(kind: int, address: str, identity: Identity) -> zmq.Socket:
        made = ends.enter_context(context.socket(kind))
        made.setsockopt(zmq.LINGER, 0)
        present(made, identity)
        if kind == zmq.SUB:
            made.subscribe("")
        made.connect(address)
        return made

    return one


class Keyring:
    """A daemon's key and its clients."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.clients = folder, folder / "clients.toml"
        self.server = Identity.new()
        self.server.write(folder / "server.key")
        self.clients.touch()

    @property
    def config(self) -> dict[str, Any]:
        return {"clients": str(self.clients), "server_key": str(self.folder / "server.key"), "everywhere": True}

    def metric(self, served: Any, name: str) -> float:
        """The sample of this name and labels, which is for those with a token; 0 where there is none yet."""
        if "watch" not in keys.read_clients(self.clients):
            keys.allow(self.clients, "watch", keys.client(["read"], None, keys.token_sha256("watch")))
        address = served.endpoints["http"]

        def page() -> tuple[int, str] | None:
            found = pages.get(address, "/metrics", PATIENCE_S, "watch")
            return found if found[0] == 200 else None  # until the daemon has looked at the file again

        return pages.sample(wait_for(page), name)

    def identity(self, name: str, *, allowed: bool) -> Identity:
        made = Identity.new(server=self.server.public)
        made.write(self.folder / f"{name}.key")
        if allowed:
            keys.allow(self.clients, name, Client(roles=ROLES, curve=made.public))
        return made


@pytest.fixture
def ring(tmp_path) -> Keyring:
    return Keyring(tmp_path)


def frame(stream: str, number: int) -> list[bytes]:
    return frames.build(Frame(stream, S16, bytes(320), start=160 * number))


# -- strangers ---------------------------------------------------------------------------------------------------------


def attempts(served, ring, plug, stranger) -> tuple[set[str], int]:
    """Everything that somebody with a key of his own making can try; what he got done, and the daemon's growth (bytes).

    Others speak no CURVE at all: they subscribe in plain ZeroMQ, or send garbage.
    """
    before = served.memory().rss
    forged = ring.identity("forged", allowed=False)
    audio, verdicts, control = (served.endpoints[name] for name in DOMAINS)
    push, sub, dealer = (
        plug(zmq.PUSH, audio, forged),
        plug(zmq.SUB, verdicts, forged),
        plug(zmq.DEALER, control, forged),
    )
    push.send_multipart(frame("forged", 0))
    dealer.send_json({"op": "status"})
    peers = [stranger("subscribe", verdicts, SUBSCRIPTIONS, ring.folder / "forged.key")]
    peers += [stranger("raw", verdicts, SUBSCRIPTIONS) for _ in range(3)]
    for address in (audio, verdicts, control):
        for garbage in (b"GET / HTTP/1.1\r\n\r\n" * 1000, GREETING.replace(b"NULL\0", b"CURVE") + bytes(100_000)):
            with contextlib.suppress(OSError), dialled(address) as peer:
                peer.sendall(garbage)
    for peer in peers:
        peer.stdout.readline()  # said it all, or was cut off before
    until_s = time.monotonic() + IN_VAIN_S
    done, grown = set[str](), 0
    while time.monotonic() < until_s:
        grown = max(grown, served.memory().rss - before)
        done |= {name for name, got in (("read", sub.poll(100)), ("control", dealer.poll(0))) if got}
    if ring.metric(served, 'streamdet_events_total{type="open"}'):
        done.add("send")
    return done, grown


def test_a_stranger_can_do_nothing_and_costs_nothing(serve, ring, plug, stranger):
    served = serve(security=ring.config)
    friend = ring.identity("friend", allowed=True)
    heard = plug(zmq.SUB, served.endpoints["verdicts"], friend)
    assert heard.poll(1000 * PATIENCE_S)
    done, grown = attempts(served, ring, plug, stranger)
    figure(
        "strangers",
        subscriptions=SUBSCRIPTIONS,
        done=",".join(sorted(done)) or "nothing",
        grown_mb=grown / 1e6,
        denied=ring.metric(served, 'streamdet_refusals_total{reason="auth"}'),
    )
    assert done == set()
    assert grown < NOTHING_BYTES
    asked = plug(zmq.DEALER, served.endpoints["control"], friend)
    asked.send_json({"op": "status"})
    assert asked.poll(1000 * PATIENCE_S)


def test_a_daemon_that_lets_any_key_in_is_found_out(serve, ring, plug, stranger):
    served = serve(security=ring.config, program=[BROKEN, "admits"])
    done, grown = attempts(served, ring, plug, stranger)
    assert done == {"send", "read", "control"}
    assert grown > NOTHING_BYTES


# -- clients that were revoked -----------------------------------------------------------------------------------------


def revoked(served, ring, plug) -> dict[str, float | None]:
    """How long a client was still heard, answered and told after it was revoked (s); None where it goes on."""
    bad, good = ring.identity("bad", allowed=True), ring.identity("good", allowed=True)
    audio, verdicts, control = (served.endpoints[name] for name in DOMAINS)
    push, sub = plug(zmq.PUSH, audio, bad), plug(zmq.SUB, verdicts, bad)
    dealer, watch = plug(zmq.DEALER, control, bad), plug(zmq.DEALER, control, good)

    def answers(socket: zmq.Socket, patience_s: float) -> dict[str, Any] | None:
        with contextlib.suppress(zmq.Again):
            socket.send_json({"op": "status"}, zmq.NOBLOCK)
        return socket.recv_json() if socket.poll(1000 * patience_s) else None

    def seconds() -> float:
        return sum(track["seconds"] for track in answers(watch, PATIENCE_S)["tracks"])

    number = 0
    push.send_multipart(frame("bad", number))
    wait_for(lambda: seconds() > 0)
    assert answers(dealer, PATIENCE_S) is not None
    assert sub.poll(1000 * PATIENCE_S)
    keys.revoke(ring.clients, "bad")
    began_s = last_s = time.monotonic()
    took: dict[str, float] = {"send": 0.0, "control": 0.0, "read": 0.0}
    before = seconds()
    while time.monotonic() - last_s < IN_VAIN_S and time.monotonic() - began_s < 3 * IN_VAIN_S:
        number += 1
        with contextlib.suppress(zmq.Again):
            push.send_multipart(frame("bad", number), zmq.NOBLOCK)
        heard = {"send": seconds() > before, "control": answers(dealer, 0.05) is not None, "read": False}
        while sub.poll(0):
            sub.recv_multipart()
            heard["read"] = True
        before = seconds()
        for name in heard:
            if heard[name]:
                took[name] = last_s = time.monotonic()
                took[name] -= began_s
    ended = time.monotonic() - last_s >= IN_VAIN_S
    return {name: took[name] if ended else None for name in took}


def test_a_revoked_client_is_cut_off_in_mid_call(serve, ring, plug):
    served = serve(security=ring.config)
    took = revoked(served, ring, plug)
    figure("revoked", **{f"{name}_s": value for name, value in took.items()})
    assert None not in took.values()
    assert ring.metric(served, 'streamdet_cut_total{endpoint="verdicts",reason="revoked"}') >= 1


def test_a_daemon_that_asks_only_once_is_found_out(serve, ring, plug):
    served = serve(security=ring.config, program=[BROKEN, "forgives"])
    assert None in revoked(served, ring, plug).values()


# -- more than their share ---------------------------------------------------------------------------------------------


def hoarded(served, stranger) -> int:
    """How much the daemon grows by somebody who subscribes without end (bytes)."""
    before = served.memory().rss
    peer = stranger("raw", served.endpoints["verdicts"], SUBSCRIPTIONS)
    grown = 0
    until_s = time.monotonic() + PATIENCE_S
    while peer.poll() is None and grown < 2 * PROMISED_BYTES and time.monotonic() < until_s:
        grown = max(grown, served.memory().rss - before)
        time.sleep(0.005)
    return grown


def test_who_subscribes_without_end_is_cut_off_and_no_call_notices(serve, record, dial, stranger):
    served = serve()
    recorder, calls = record(served), dial(served.endpoints["audio"])
    streams = [calls.stream(number) for number in calls.open(CALLS)]
    recorder.await_verdicts(streams)
    grown = hoarded(served, stranger)
    recorder.await_verdicts(streams, 2, since_s=time.monotonic())
    calls.end()
    recorder.await_closed(streams)
    counted = account(recorder.histories(calls.prefix).values())
    figure("subscribed", subscriptions=SUBSCRIPTIONS, grown_mb=grown / 1e6, **counted._asdict())
    assert served.metric('streamdet_cut_total{endpoint="verdicts",reason="subscriptions"}') == 1
    assert grown < PROMISED_BYTES
    assert (counted.missing, counted.duplicates, counted.holes, counted.unclosed) == (0, 0, 0, 0)


def test_a_daemon_that_keeps_every_subscription_is_found_out(serve, stranger):
    assert hoarded(serve(program=[BROKEN, "collects"]), stranger) > PROMISED_BYTES


PLACES, SILENT = 50, 300


@pytest.mark.parametrize("name", list(DOMAINS))
def test_connections_beyond_the_limit_are_shut_down(name, serve, ends):
    served = serve(limits={"connections": PLACES})
    before = served.descriptors()
    for _ in range(SILENT):
        ends.enter_context(dialled(served.endpoints[name]))
    cut = f'streamdet_cut_total{{endpoint="{name}",reason="connections"}}'
    # How many depends on the machine: whoever says nothing leaves again after two seconds and makes room.
    wait_for(lambda: served.metric(cut) > 0)
    wait_for(lambda: served.descriptors() - before <= PLACES + 2)  # two for the one who asks over HTTP
    figure("connections", endpoint=name, tried=SILENT, places=PLACES, descriptors=served.descriptors() - before)


def test_a_daemon_without_that_limit_is_found_out(serve, ends):
    served = serve(limits={"connections": 100_000})
    before = served.descriptors()
    for _ in range(SILENT):
        ends.enter_context(dialled(served.endpoints["audio"]))
    wait_for(lambda: served.descriptors() - before > PLACES + 2)


def ahead_s(served, record, dial, stranger) -> tuple[float, Any]:
    """How far somebody gets ahead of real time who sends without pause (s), and what calls beside it make of it."""
    recorder, calls = record(served), dial(served.endpoints["audio"])
    streams = [calls.stream(number) for number in calls.open(CALLS)]
    recorder.await_verdicts(streams)
    began_s = time.monotonic()
    stranger("flood", served.endpoints["audio"])
    recorder.await_verdicts(streams, 3, since_s=began_s)
    heard = {track["stream"]: track["seconds"] for track in served.ask(op="status")["tracks"]}
    far_s = heard.get("flood", 0.0) - (time.monotonic() - began_s)
    calls.end()
    recorder.await_closed(streams)
    return far_s, account(recorder.histories(calls.prefix).values())


def test_who_sends_faster_than_real_time_gets_no_further_than_the_limit(serve, record, dial, stranger):
    served = serve(limits={"ahead_s": 20.0})
    far_s, counted = ahead_s(served, record, dial, stranger)
    figure("ahead", limit_s=20.0, ahead_s=far_s, **counted._asdict())
    assert 0 < far_s < 21
    assert (counted.missing, counted.duplicates, counted.holes, counted.unclosed) == (0, 0, 0, 0)


def test_a_daemon_that_takes_any_pace_is_found_out(serve, record, dial, stranger):
    far_s, _ = ahead_s(serve(limits={"ahead_s": 1e6}), record, dial, stranger)
    assert far_s > 21
