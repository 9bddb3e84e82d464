"""Keys on ZeroMQ sockets, as clients meet them: who gets in, what each may do, and what a revoked one may no longer.

Whoever should hear nothing has a neighbour who does: silence alone shows nothing.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq
from prometheus_client import generate_latest

from streamdet import keys
from streamdet.addresses import check_endpoints
from streamdet.config import Config
from streamdet.connections import READERS
from streamdet.errors import ConfigError, MissingError
from streamdet.guard import DOMAINS, present
from streamdet.keys import ROLES, Client, Identity, Role
from streamdet.records import AudioFormat, Frame
from streamdet.sockets import ZmqSocket
from streamdet.wire import frames

PATIENCE_S = 30.0
S16 = AudioFormat(8000, "s16le")
# A heartbeat comes once a second; an answer, and a stream that opens, much sooner.
IN_VAIN_S = 1.5


class Keyring:
    """A server's key and clients' identities in a folder."""

    def __init__(self, folder: Path) -> None:
        self.clients = folder / "clients.toml"
        self.server_key = folder / "server.key"
        self.server = Identity.new()
        self.server.write(self.server_key)
        self.clients.touch()

    def allow(self, name: str, *roles: Role, identity: Identity | None = None) -> Identity:
        identity = identity or self.stranger()
        keys.allow(self.clients, name, Client(roles=roles, curve=identity.public))
        return identity

    def stranger(self) -> Identity:
        return Identity.new(server=self.server.public)

    def config(self, **more: Any) -> dict[str, Any]:
        return {"clients": self.clients, "server_key": self.server_key, "everywhere": True, **more}


@pytest.fixture
def ring(tmp_path: Path) -> Keyring:
    return Keyring(tmp_path)


@pytest.fixture
def guarded(serve, ring: Keyring) -> Callable[..., Any]:
    return lambda **sections: serve(security=ring.config(), **sections)


@pytest.fixture
def plug() -> Iterator[Callable[..., zmq.Socket]]:
    """Connects sockets that show an identity, or none."""
    context = zmq.Context()
    every: list[zmq.Socket] = []  # one that nobody holds would be collected, with a warning

    def one(kind: int, address: str, identity: Identity | None) -> zmq.Socket:
        made = context.socket(kind)
        every.append(made)
        made.setsockopt(zmq.LINGER, 0)
        made.setsockopt(zmq.RECONNECT_IVL, 50)
        present(made, identity)
        if kind == zmq.SUB:
            made.subscribe("")
        made.connect(address)
        return made

    yield one
    context.destroy(linger=0)


def metric(running: Any, name: str) -> float:
    """As `/metrics` has it, which asks for a token here; 0 where there is none yet."""
    exposed = generate_latest(running.daemon_._metrics.registry).decode()
    rows = (line.rsplit(" ", 1) for line in exposed.splitlines() if not line.startswith("#"))
    return float(dict(rows).get(name, 0))


def frame(stream: str = "a", number: int = 0, **fields: Any) -> list[bytes]:
    return frames.build(Frame(stream, S16, bytes(320), start=160 * number, **fields))


def wait_for(what: Callable[[], object]) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while not what():
        assert time.monotonic() < deadline_s, "waited in vain"
        time.sleep(0.01)


def answers(socket: zmq.Socket, patience_s: float = PATIENCE_S) -> bool:
    socket.send_json({"op": "status"})
    return bool(socket.poll(int(1000 * patience_s))) and socket.recv_json()["ok"]


def can(running: Any, plug: Any, identity: Identity | None, hoped: set[Role], stream: str = "x") -> set[Role]:
    """What somebody with this identity gets done: in all the time that it takes to do what is hoped for, and some."""
    audio, verdicts, control = (running.addresses[name] for name in DOMAINS)
    push, sub, dealer = (
        plug(zmq.PUSH, audio, identity),
        plug(zmq.SUB, verdicts, identity),
        plug(zmq.DEALER, control, identity),
    )
    push.send_multipart(frame(stream))
    dealer.send_json({"op": "status"})
    found, until_s = set[Role](), time.monotonic() + PATIENCE_S
    while time.monotonic() < until_s:
        if found >= hoped:
            until_s, hoped = min(until_s, time.monotonic() + IN_VAIN_S), set(ROLES)
        done = (running.daemon_.engine.is_open(stream), sub.poll(0), dealer.poll(0))
        found |= {role for role, it in zip(("send", "read", "control"), done, strict=True) if it}
        time.sleep(0.01)
    return found


# -- who gets in -----------------------------------------------------------------------------------------------------


def test_a_client_with_every_role_can_do_everything(guarded, ring, plug):
    assert can(guarded(), plug, ring.allow("all", *ROLES), set(ROLES)) == set(ROLES)


@pytest.mark.parametrize("role", ROLES)
def test_a_role_opens_its_own_endpoint_and_no_other(role, guarded, ring, plug):
    running = guarded()
    assert can(running, plug, ring.allow("one", role), {role}) == {role}


STRANGERS: dict[str, Callable[[Keyring], Identity | None]] = {
    "without a key": lambda _: None,
    "with an unknown key": lambda ring: ring.stranger(),
    "with a key for another server": lambda ring: ring.allow("lost", *ROLES, identity=Identity.new(server=other())),
}


def other() -> str:
    return Identity.new().public


@pytest.mark.parametrize("who", STRANGERS)
def test_a_stranger_can_do_nothing(who, guarded, ring, plug):
    running = guarded()
    assert can(running, plug, STRANGERS[who](ring), set()) == set()
    assert can(running, plug, ring.allow("friend", *ROLES), set(ROLES), "y") == set(ROLES)


def test_refusals_are_counted(guarded, ring, plug):
    running = guarded()
    plug(zmq.SUB, running.addresses["verdicts"], ring.stranger())
    wait_for(lambda: metric(running, 'streamdet_refusals_total{reason="auth"}') >= 1)


def test_who_is_allowed_later_gets_in_by_itself(guarded, ring, plug):
    running = guarded()
    late = ring.stranger()
    sub = plug(zmq.SUB, running.addresses["verdicts"], late)
    wait_for(lambda: metric(running, 'streamdet_refusals_total{reason="auth"}') >= 1)
    ring.allow("late", "read", identity=late)
    assert sub.poll(int(1000 * PATIENCE_S))


def test_domains_and_endpoints_are_the_same():
    assert set(DOMAINS) == {"audio", "verdicts", "control"}
    assert set(DOMAINS.values()) == set(ROLES)


# -- revoked in mid-call ---------------------------------------------------------------------------------------------


def test_a_revoked_sender_is_not_heard_again_and_others_are(guarded, ring, plug):
    running = guarded()
    engine = running.daemon_.engine
    bad, good = (plug(zmq.PUSH, running.addresses["audio"], ring.allow(name, "send")) for name in ("bad", "good"))
    for number in range(5):
        bad.send_multipart(frame("bad", number))
        good.send_multipart(frame("good", number))
    wait_for(lambda: engine.is_open("bad") and engine.is_open("good"))
    keys.revoke(ring.clients, "bad")
    wait_for(lambda: "bad" not in dict(running.daemon_._clients))
    before = {track["stream"]: track["seconds"] for track in engine.status()}
    for number in range(5, 10):
        with contextlib.suppress(zmq.Again):
            bad.send_multipart(frame("bad", number), zmq.NOBLOCK)
        good.send_multipart(frame("good", number))
    wait_for(lambda: metric(running, 'streamdet_cut_total{endpoint="audio",reason="revoked"}') == 1)
    wait_for(lambda: {t["stream"]: t["seconds"] for t in engine.status()}["good"] == 0.2)
    assert {t["stream"]: t["seconds"] for t in engine.status()}["bad"] == before["bad"] <= 0.1


def silent(sub: zmq.Socket) -> bool:
    """Take what is there; True when nothing comes for longer than a heartbeat takes."""
    while sub.poll(0):
        sub.recv_multipart()
    return not sub.poll(2500)


def test_a_revoked_reader_hears_no_more_and_others_do(guarded, ring, plug, caplog):
    running = guarded()
    bad_key, good_key = (ring.allow(name, "read") for name in ("bad", "good"))
    bad, good = (plug(zmq.SUB, running.addresses["verdicts"], key) for key in (bad_key, good_key))
    assert bad.poll(int(1000 * PATIENCE_S))
    assert good.poll(int(1000 * PATIENCE_S))
    keys.revoke(ring.clients, "bad")
    wait_for(lambda: metric(running, 'streamdet_cut_total{endpoint="verdicts",reason="revoked"}') == 1)
    assert silent(bad)
    assert not silent(good)
    told = {"endpoint": "verdicts", "reason": "revoked", "client": "bad", "key": bad_key.public}
    assert [record.fields for record in caplog.records if record.message == "cut off"] == [told]


def test_a_revoked_reader_that_nobody_cuts_off_goes_on_hearing(guarded, ring, plug, monkeypatch):
    """The negative control: the library itself asks only when somebody connects."""
    monkeypatch.setattr(ZmqSocket, "recheck", lambda _: None)
    running = guarded()
    bad = plug(zmq.SUB, running.addresses["verdicts"], ring.allow("bad", "read"))
    assert bad.poll(int(1000 * PATIENCE_S))
    keys.revoke(ring.clients, "bad")
    wait_for(lambda: "bad" not in dict(running.daemon_._clients))
    assert not silent(bad)


def test_a_revoked_controller_gets_no_answer(guarded, ring, plug):
    running = guarded()
    bad, good = (plug(zmq.DEALER, running.addresses["control"], ring.allow(n, "control")) for n in ("bad", "good"))
    assert answers(bad)
    keys.revoke(ring.clients, "bad")
    wait_for(lambda: "bad" not in dict(running.daemon_._clients))
    assert not answers(bad, IN_VAIN_S)
    assert answers(good)


def test_a_clients_file_that_breaks_changes_nothing(guarded, ring, plug, caplog):
    running = guarded()
    good = plug(zmq.SUB, running.addresses["verdicts"], ring.allow("good", "read"))
    assert good.poll(int(1000 * PATIENCE_S))
    ring.clients.write_text("[good\n")
    wait_for(lambda: "clients not read" in caplog.text)
    assert not silent(good)


# -- clients and their streams ---------------------------------------------------------------------------------------


def test_a_client_cannot_speak_on_anothers_stream_nor_end_it(guarded, ring, plug):
    running = guarded()
    engine = running.daemon_.engine
    one, two = (plug(zmq.PUSH, running.addresses["audio"], ring.allow(name, "send")) for name in ("one", "two"))
    sub = plug(zmq.SUB, running.addresses["verdicts"], ring.allow("reader", "read"))
    assert sub.poll(int(1000 * PATIENCE_S))
    one.send_multipart(frame())
    wait_for(lambda: engine.is_open("a"))
    two.send_multipart(frame(number=1))
    two.send_multipart(frame(number=0, end=True))
    wait_for(lambda: metric(running, 'streamdet_refusals_total{reason="protocol"}') == 2)
    assert [track["seconds"] for track in engine.status()] == [0.02]
    topics = set()
    while sub.poll(0):
        topics.add(sub.recv_multipart()[0])
    assert topics <= {b"hb", b"e.a"}


def test_a_client_cannot_take_all_places(guarded, ring, plug):
    running = guarded(limits={"streams_per_client": 2})
    one, two = (plug(zmq.PUSH, running.addresses["audio"], ring.allow(name, "send")) for name in ("one", "two"))
    for stream in "abc":
        one.send_multipart(frame(stream))
    wait_for(lambda: metric(running, 'streamdet_refusals_total{reason="full"}') == 1)
    two.send_multipart(frame("d"))
    wait_for(lambda: running.daemon_.engine.is_open("d"))
    assert not running.daemon_.engine.is_open("c")


# -- what the config asks for ----------------------------------------------------------------------------------------


def config(ring: Keyring | None, everywhere: bool = False, insecure: bool = False, **endpoints: Any) -> Config:
    security = {} if ring is None else ring.config(everywhere=everywhere)
    return Config.model_validate({"security": security, "endpoints": {**endpoints, "insecure": insecure}})


@pytest.mark.parametrize("address", ["tcp://0.0.0.0:5560", "tcp://*:5560", "tcp://[::]:5560", "tcp://10.0.0.1:5560"])
@pytest.mark.parametrize("name", ["audio", "verdicts", "control"])
def test_an_address_that_leaves_loopback_needs_clients(name, address, ring):
    check_endpoints(config(ring, **{name: address}))
    check_endpoints(config(None, insecure=True, **{name: address}))
    with pytest.raises(ConfigError, match=rf"endpoints\.{name}: '.*', expected .* security\.clients"):
        check_endpoints(config(None, **{name: address}))


def test_keys_everywhere_need_clients():
    with pytest.raises(ConfigError, match=r"security\.clients"):
        check_endpoints(Config.model_validate({"security": {"everywhere": True}}))


def test_a_daemon_that_asks_for_keys_does_not_start_without_its_own(make, ring, monkeypatch):
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    with pytest.raises(ConfigError, match=r"security\.server_key"):
        make(security=ring.config(server_key=None)).started()
    ring.server_key.chmod(0o644)
    with pytest.raises(ConfigError, match="mode 0644, expected 0600"):
        make(security=ring.config()).started()
    ring.clients.unlink()
    with pytest.raises(MissingError, match=r"clients\.toml"):
        make(security=ring.config()).started()


def test_loopback_stays_open_unless_keys_are_asked_for_everywhere(serve, ring, plug):
    running = serve(security=ring.config(everywhere=False))
    assert can(running, plug, None, set(ROLES)) == set(ROLES)


def test_verdicts_have_so_many_places_and_who_comes_beyond_is_shut_down(serve, plug):
    running = serve()
    readers = [plug(zmq.SUB, running.addresses["verdicts"], None) for _ in range(READERS)]
    assert all(reader.poll(int(1000 * PATIENCE_S)) for reader in readers)
    one_more = plug(zmq.SUB, running.addresses["verdicts"], None)
    wait_for(lambda: metric(running, 'streamdet_cut_total{endpoint="verdicts",reason="connections"}') >= 1)
    assert metric(running, 'streamdet_connections{endpoint="verdicts"}') == READERS
    assert silent(one_more)
