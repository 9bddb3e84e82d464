"""Raw PCM and HTTP behind TLS and tokens: who comes in, who does not, and what a stranger learns."""

import contextlib
import json
import socket
import ssl
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from streamdet import tokens
from streamdet.errors import ConfigError
from streamdet.keys import Client, Identity, allow, revoke, token_sha256
from streamdet.tokens import DENIED
from tests.certificates import make, needs_openssl
from tests.faults.harness import figure, wait_for

HOP = b"\0\0" * 8000
PATIENCE_S = 30.0
SEND, READ = "the-token-that-may-send", "the-token-that-may-read"

pytestmark = needs_openssl


@pytest.fixture
def clients(tmp_path) -> Path:
    path = tmp_path / "clients.toml"
    allow(path, "recorder", Client(roles=("send",), token_sha256=token_sha256(SEND)))
    allow(path, "scraper", Client(roles=("read",), token_sha256=token_sha256(READ)))
    return path


@pytest.fixture
def security(tmp_path, clients) -> dict[str, object]:
    cert, key = make(tmp_path)
    return {"clients": str(clients), "tls_cert": str(cert), "tls_key": str(key)}


@pytest.fixture
def trusting(security) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=security["tls_cert"])


OPEN = {"pcm": ["tcp://0.0.0.0:0", "tcp://127.0.0.1:0"], "http": "0.0.0.0:0"}
"""The first address of each leaves the machine, the second does not."""


def reach(address: str) -> tuple[str, int]:
    return "127.0.0.1", int(address.rpartition(":")[2])


@pytest.fixture
def call(trusting):
    """Connects to raw PCM in TLS."""
    made = []

    def one(address: str, said: bytes = b"", context: ssl.SSLContext = trusting) -> ssl.SSLSocket:
        plain = socket.create_connection(reach(address), PATIENCE_S)
        made.append(context.wrap_socket(plain, server_hostname="localhost"))
        made[-1].sendall(said)
        return made[-1]

    yield one
    for connection in made:
        connection.close()


def line(stream: str, **fields: object) -> bytes:
    return b"STREAMDET " + json.dumps({"stream": stream, **fields}).encode() + b"\n"


def rest(connection: socket.socket) -> bytes:
    """Everything that the daemon says until it hangs up."""
    said = b""
    while data := connection.recv(1000):
        said += data
    return said


def get(address: str, path: str, context: ssl.SSLContext, token: str | None = None) -> tuple[int, str]:
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    request = urllib.request.Request(f"https://localhost:{reach(address)[1]}{path}", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE_S, context=context) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


# -- raw PCM -----------------------------------------------------------------------------------------------------------


def test_an_address_that_leaves_the_machine_takes_audio_by_tls_and_token(serve, meet, call, security):
    running = serve(endpoints=OPEN, security=security)
    assert running.addresses["pcm.0"].startswith("tls://0.0.0.0:")
    client = meet({**running.addresses, "pcm.0": running.addresses["pcm.1"]})
    connection = call(running.addresses["pcm.0"], line("a", token=SEND, answer=True) + HOP)
    assert connection.recv(100) == b"OK\n"
    client.verdict(1.0)
    connection.unwrap().close()
    close = client.event("close")
    assert (close.detail["reason"], close.detail["seconds"]) == ("end", 1.0)


def test_loopback_and_unix_stay_as_they_were(serve, meet, dial, security, tmp_path):
    running = serve(endpoints={**OPEN, "pcm": [*OPEN["pcm"], f"unix:{tmp_path}/s"]}, security=security)
    client = meet({**running.addresses, "pcm.0": running.addresses["pcm.1"]})
    for number in (1, 2):
        dial(running.addresses[f"pcm.{number}"]).sendall(line(f"a{number}") + HOP)
        client.verdict(1.0, f"a{number}")


@pytest.mark.parametrize(
    "said",
    [
        line("a") + HOP,
        line("a", token="") + HOP,
        line("a", token="wrong") + HOP,
        line("a", token=READ) + HOP,
        line("a", token=SEND[:-1]) + HOP,
        HOP,
        b"RIFF" + b"\0" * 100_000,
    ],
)
def test_a_stranger_learns_nothing_and_sends_nothing(said, serve, call, security, monkeypatch, caplog):
    monkeypatch.setattr(tokens, "WRONG_S", 0.0)
    running = serve(endpoints=OPEN, security=security)
    connection = call(running.addresses["pcm.0"], said[:8000])
    assert rest(connection).decode() == f"ERROR {DENIED}\n"
    assert running.daemon_.engine.counts().opened == 0
    assert not any(token in caplog.text for token in (SEND, READ, SEND[:-1]))


def test_a_token_of_the_wrong_kind_or_in_broken_json_is_not_repeated(serve, call, security, caplog):
    running = serve(endpoints=OPEN, security=security)
    for said in (b'STREAMDET {"token": ["%b"]}\n', b'STREAMDET {"token": "%b", oops}\n'):
        told = rest(call(running.addresses["pcm.0"], said % SEND.encode() + HOP)).decode()
        assert told == f"ERROR {DENIED}\n"
    assert SEND not in caplog.text
    assert [record.fields["reason"].args for record in caplog.records if record.message == "refused"] == [
        ("token: (not shown), expected a string",),
        ("STREAMDET line: (not shown, for its token), expected a JSON object",),
    ]


def test_who_does_not_speak_tls_is_sent_away_and_counted(serve, dial, security):
    running = serve(endpoints=OPEN, security=security)
    connection = dial(f"tcp://127.0.0.1:{reach(running.addresses['pcm.0'])[1]}")
    connection.sendall(line("a", token=SEND) + HOP)
    connection.settimeout(PATIENCE_S)
    with contextlib.suppress(ConnectionResetError):
        assert b"OK" not in rest(connection)
    wait_for(lambda: running.daemon_._metrics.refusals["protocol"])
    assert running.daemon_.engine.counts().opened == 0


def test_a_handshake_that_does_not_end_is_given_up(serve, dial, security):
    running = serve(endpoints=OPEN, security=security, limits={"handshake_s": 0.3})
    connection = dial(f"tcp://127.0.0.1:{reach(running.addresses['pcm.0'])[1]}")
    connection.settimeout(PATIENCE_S)
    connection.sendall(b"\x16\x03\x01")  # the beginning of a hello
    assert connection.recv(1) == b""
    wait_for(lambda: running.daemon_._metrics.refusals["slow"] == 1)


def test_a_token_that_is_revoked_in_the_middle_of_a_call_ends_it(serve, meet, call, security, clients):
    running = serve(endpoints=OPEN, security=security)
    client = meet({**running.addresses, "pcm.0": running.addresses["pcm.1"]})
    connection = call(running.addresses["pcm.0"], line("a", token=SEND, answer=True) + HOP)
    client.verdict(1.0)
    began_s = time.monotonic()
    revoke(clients, "recorder")
    assert rest(connection) == f"OK\nERROR {DENIED}\n".encode()
    figure("revoked_token", ended_s=time.monotonic() - began_s)
    assert client.event("close").detail["reason"] == "disconnect"
    wait_for(lambda: running.daemon_._metrics.refusals["auth"] == 1)


def test_a_change_of_the_clients_that_does_not_concern_a_call_leaves_it_alone(serve, meet, call, security, clients):
    running = serve(endpoints=OPEN, security=security)
    client = meet({**running.addresses, "pcm.0": running.addresses["pcm.1"]})
    connection = call(running.addresses["pcm.0"], line("a", token=SEND) + HOP)
    client.verdict(1.0)
    revoke(clients, "scraper")
    wait_for(lambda: len(list(running.daemon_._clients)) == 1)
    connection.sendall(HOP)
    client.verdict(2.0)


def test_two_clients_do_not_share_a_stream(serve, meet, call, security, clients):
    allow(clients, "other", Client(roles=("send",), token_sha256=token_sha256("another")))
    running = serve(endpoints=OPEN, security=security)
    client = meet({**running.addresses, "pcm.0": running.addresses["pcm.1"]})
    call(running.addresses["pcm.0"], line("a", token=SEND) + HOP)
    client.verdict(1.0)
    said = rest(call(running.addresses["pcm.0"], line("a", token="another") + HOP))
    assert said == b"ERROR stream: 'a', expected an id that is not open already\n"


def test_the_certificate_is_read_again_when_it_changes(serve, security, tmp_path):
    running = serve(endpoints=OPEN, security=security)
    cert, key = make(tmp_path / "new")
    trusting_new = ssl.create_default_context(cafile=cert)
    with pytest.raises(urllib.error.URLError):
        get(running.addresses["http"], "/livez", trusting_new)
    key.replace(security["tls_key"])
    cert.replace(security["tls_cert"])
    deadline_s = time.monotonic() + PATIENCE_S
    while True:
        try:
            assert get(running.addresses["http"], "/livez", trusting_new)[0] == 200
        except urllib.error.URLError:
            assert time.monotonic() < deadline_s
        else:
            break


# -- HTTP --------------------------------------------------------------------------------------------------------------


def test_pages_are_for_those_who_may_read_and_health_is_for_all(serve, trusting, security, monkeypatch):
    monkeypatch.setattr(tokens, "WRONG_S", 0.0)
    running = serve(endpoints=OPEN, security=security)
    address = running.addresses["http"]
    assert address.startswith("https:")
    assert get(address, "/livez", trusting) == (200, "alive\n")
    assert get(address, "/readyz", trusting) == (200, "ready\n")
    assert get(address, "/metrics", trusting, READ)[0] == 200
    assert get(address, "/nothing", trusting, READ)[0] == 404
    for token in (None, "", "wrong", SEND):
        for path in ("/metrics", "/nothing", "/", "/livez/../metrics"):
            assert get(address, path, trusting, token) == (401, "a token is wanted\n")


# -- the config --------------------------------------------------------------------------------------------------------


def test_everywhere_asks_on_loopback_and_unix_too(serve, call, dial, security, tmp_path, monkeypatch):
    """Unix sockets want a token and no TLS: nobody listens in on them."""
    monkeypatch.setattr(tokens, "WRONG_S", 0.0)
    pcm = ["tcp://127.0.0.1:0", f"unix:{tmp_path}/s"]
    Identity.new().write(tmp_path / "server.key")
    everywhere = {"everywhere": True, "server_key": str(tmp_path / "server.key")}
    running = serve(endpoints={"pcm": pcm}, security={**security, **everywhere})
    assert running.addresses["pcm.0"].startswith("tls://127.0.0.1:")
    assert call(running.addresses["pcm.0"], line("a", token=SEND, answer=True) + HOP).recv(3) == b"OK\n"
    unix = dial(running.addresses["pcm.1"])
    unix.sendall(line("b", token=SEND, answer=True) + HOP)
    assert unix.recv(3) == b"OK\n"
    unix = dial(running.addresses["pcm.1"])
    unix.sendall(line("c") + HOP)
    assert unix.recv(100) == f"ERROR {DENIED}\n".encode()


def test_an_address_may_ask_for_tls_by_its_scheme_on_loopback_too(serve, call, trusting, security):
    security = {name: value for name, value in security.items() if name != "clients"}
    endpoints = {"pcm": ["tls://127.0.0.1:0"], "http": "https://127.0.0.1:0"}
    running = serve(endpoints=endpoints, security=security)
    assert call(running.addresses["pcm.0"], line("a", answer=True) + HOP).recv(3) == b"OK\n"
    assert get(running.addresses["http"], "/metrics", trusting)[0] == 200


def test_tls_without_a_certificate_is_refused(serve, monkeypatch):
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    for name, address in (("pcm", ["tls://127.0.0.1:0"]), ("http", "https://127.0.0.1:0")):
        with pytest.raises(ConfigError, match=rf"endpoints\.{name}: .*, expected security\.tls_cert"):
            serve(endpoints={name: address})


def test_tokens_without_tls_are_taken_and_warned_of(serve, dial, clients, caplog):
    running = serve(endpoints=OPEN, security={"clients": str(clients)})
    connection = dial(f"tcp://127.0.0.1:{reach(running.addresses['pcm.0'])[1]}")
    connection.sendall(line("a", token=SEND, answer=True) + HOP)
    assert connection.recv(3) == b"OK\n"
    assert caplog.text.count("tokens travel in the clear") == 2
