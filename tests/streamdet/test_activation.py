"""Sockets that systemd handed over: which is whose, and what is none."""

import contextlib
import os
import socket
import subprocess
import sys

import pytest

from streamdet import activation
from streamdet.activation import Inherited, address_of
from streamdet.config import Endpoints
from streamdet.errors import ConfigError

# Where the descriptors are put: 3, which systemd begins with, is somebody else's in a test.
FIRST_FD = 200


@pytest.fixture
def given(monkeypatch):
    """Hands sockets over under their names, or under others."""
    monkeypatch.setattr(activation, "FIRST_FD", FIRST_FD)
    adopted = []

    def hand_over(*named: tuple[str, socket.socket], **variables: str) -> Inherited:
        for at, (_, sock) in enumerate(named):
            os.dup2(sock.fileno(), FIRST_FD + at, inheritable=True)
        environment = {
            "LISTEN_PID": str(os.getpid()),
            "LISTEN_FDS": str(len(named)),
            "LISTEN_FDNAMES": ":".join(name for name, _ in named),
        }
        for name, value in {**environment, **variables}.items():
            monkeypatch.setenv(name, value)
        adopted.append(Inherited.of_environment())
        return adopted[-1]

    yield hand_over
    for one in adopted:
        one.close()
    for at in range(4):
        with contextlib.suppress(OSError):
            os.close(FIRST_FD + at)


@pytest.fixture
def tcp():
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock


@pytest.fixture
def unix(tmp_path):
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(f"{tmp_path}/s")
        sock.listen()
        yield sock


def test_each_socket_goes_to_the_endpoint_whose_name_it_has(given, tcp, unix):
    inherited = given(("pcm", tcp), ("audio", unix), ("pcm", unix))
    tcp_at, unix_at = tcp.getsockname(), unix.getsockname()
    first, second = inherited.take("pcm")
    (audio,) = inherited.take("audio")
    try:
        assert [first.getsockname(), second.getsockname(), audio.getsockname()] == [tcp_at, unix_at, unix_at]
        assert inherited.take("pcm") == []
        assert inherited.take_one("http") is None
    finally:
        for sock in (first, second, audio):
            sock.close()


def test_nothing_that_is_done_with_them_waits_and_no_child_gets_them(given, tcp):
    sock = given(("http", tcp)).take_one("http")
    try:
        assert sock.getblocking() is False
        assert sock.get_inheritable() is False
        here = f"import os; os.fstat({sock.fileno()})"
        assert subprocess.run([sys.executable, "-c", here], capture_output=True).returncode != 0
    finally:
        sock.close()


def test_the_variables_are_gone_so_that_no_child_takes_them_for_its_own(given, tcp):
    given(("http", tcp))
    assert [name for name in os.environ if name.startswith("LISTEN_")] == []


def test_what_is_meant_for_another_process_is_left_alone(given, tcp):
    assert given(("http", tcp), LISTEN_PID="1").take("http") == []
    os.fstat(FIRST_FD)


def test_without_systemd_every_address_is_the_configs(monkeypatch):
    monkeypatch.delenv("LISTEN_PID", raising=False)
    assert Inherited.of_environment().endpoints(Endpoints()) == Endpoints()


def test_the_addresses_are_read_back_from_the_sockets(given, tcp, unix):
    host, port = tcp.getsockname()
    inherited = given(("http", tcp), ("audio", unix), ("pcm", tcp), ("pcm", unix))
    found = inherited.endpoints(Endpoints(control=""))
    assert found == Endpoints(
        http=f"{host}:{port}",
        audio=f"ipc://{unix.getsockname()}",
        pcm=(f"tcp://{host}:{port}", f"unix:{unix.getsockname()}"),
        control="",
    )


def test_what_speaks_tls_in_the_config_does_so_on_a_socket_that_was_handed_over(given, tcp, unix):
    host, port = tcp.getsockname()
    inherited = given(("http", tcp), ("pcm", tcp), ("pcm", unix))
    config = Endpoints(http="https://localhost:1", pcm=("tls://localhost:2", "unix:/nowhere"))
    found = inherited.endpoints(config)
    assert found.http == f"https://{host}:{port}"
    assert found.pcm == (f"tls://{host}:{port}", f"unix:{unix.getsockname()}")
    assert inherited.endpoints(Endpoints(pcm=("tls://localhost:2", "tcp://localhost:3"))).pcm[0].startswith("tcp://")


def test_an_endpoint_that_is_switched_off_and_listened_for_is_refused(given, tcp):
    with pytest.raises(ConfigError, match=r"endpoints\.http: '', expected an address: systemd listens"):
        given(("http", tcp)).endpoints(Endpoints(http=""))


@pytest.mark.parametrize(
    ("name", "address"), [("pcm", "tcp://[::1]:{}"), ("http", "[::1]:{}"), ("verdicts", "tcp://[::1]:{}")]
)
def test_an_address_of_ipv6_stands_in_brackets(name, address):
    try:
        sock = socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError:
        pytest.skip("no IPv6")
    with sock:
        assert address_of(name, sock) == address.format(sock.getsockname()[1])


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"LISTEN_FDS": "many"}, "LISTEN_FDS: 'many', expected a number"),
        ({"LISTEN_FDS": "9" * 5000}, "LISTEN_FDS: '999.*, expected a number of at most 64"),
        ({"LISTEN_FDS": "1000"}, "LISTEN_FDS: '1000', expected a number of at most 64"),
        ({"LISTEN_FDNAMES": "http:http"}, "LISTEN_FDNAMES: 'http:http', expected 1 names"),
        ({"LISTEN_FDNAMES": ""}, "LISTEN_FDNAMES: '', expected 1 names"),
        ({"LISTEN_FDNAMES": "streamdet.socket"}, "LISTEN_FDNAMES: 'streamdet.socket', expected one of audio, "),
    ],
)
def test_what_does_not_say_whose_a_socket_is_is_refused(variables, message, given, tcp):
    with pytest.raises(ConfigError, match=message):
        given(("http", tcp), **variables)


def test_two_sockets_for_an_endpoint_of_one_are_refused(given, tcp, unix):
    with pytest.raises(ConfigError, match="expected one socket for http"):
        given(("http", tcp), ("http", unix))


def test_what_does_not_listen_is_refused(given, tmp_path):
    with socket.socket() as idle, pytest.raises(ConfigError, match="expected a stream socket that listens"):
        given(("http", idle))
    with (tmp_path / "file").open("w") as file, pytest.raises(ConfigError, match="expected the descriptor of a socket"):
        given(("http", file))
