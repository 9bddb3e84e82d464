"""Socket activation: the daemon serves on sockets that were there before it, and that stay when it goes."""

import json
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from streamdet.records import Event

HERE = Path(__file__).parent
RATE_HZ = 8000
HOP = b"\0\0" * RATE_HZ
PATIENCE_S = 30.0
NAMES = ("audio", "verdicts", "control", "http", "pcm")

needs_activate = pytest.mark.skipif(
    shutil.which("systemd-socket-activate") is None, reason="no systemd-socket-activate"
)


@pytest.fixture
def command(tmp_path, tiny_bundle) -> list[str]:
    """Serves with the default endpoints, of which none is free for a test to bind."""
    config = tmp_path / "streamdet.toml"
    config.write_text(
        f'[bundle]\npath = "{tiny_bundle.path}"\n[scoring]\nthreads = 1\nprovider = "cpu"\nbatch_max = 2\n'
    )
    return [sys.executable, str(HERE / "serve.py"), str(config)]


@pytest.fixture
def start():
    running = []

    def one(command: list[str], descriptors: tuple[int, ...] = ()) -> subprocess.Popen[bytes]:
        running.append(subprocess.Popen(command, pass_fds=descriptors))
        return running[-1]

    yield one
    for process in running:
        process.kill()
        process.wait()


class Sockets:
    """Listen for the daemon, as systemd does, over its whole life and longer."""

    def __init__(self, folder: Path) -> None:
        self.held = [(name, socket.create_server(("127.0.0.1", 0))) for name in NAMES]
        self.held.append(("pcm", socket.socket(socket.AF_UNIX)))
        self.held[-1][1].bind(f"{folder}/pcm.sock")
        self.held[-1][1].listen()
        ports = {name: f"127.0.0.1:{sock.getsockname()[1]}" for name, sock in self.held[:-1]}
        self.addresses = {name: f"tcp://{ports[name]}" for name in ("audio", "verdicts", "control")}
        self.addresses |= {"http": ports["http"], "pcm.0": f"tcp://{ports['pcm']}", "pcm.1": f"unix:{folder}/pcm.sock"}

    @property
    def descriptors(self) -> tuple[int, ...]:
        return tuple(sock.fileno() for _, sock in self.held)

    def hand_over(self, command: list[str]) -> list[str]:
        given = [f"{name}={sock.fileno()}" for name, sock in self.held]
        return [sys.executable, str(HERE / "inherit.py"), *given, "--", *command]


@pytest.fixture
def held(tmp_path):
    sockets = Sockets(tmp_path)
    yield sockets
    for _, sock in sockets.held:
        sock.close()


def get(address: str, path: str) -> str:
    with urllib.request.urlopen(f"http://{address}{path}", timeout=PATIENCE_S) as answer:
        return answer.read().decode()


def await_page(address: str) -> None:
    """Wait until somebody listens, and answers."""
    deadline_s = time.monotonic() + PATIENCE_S
    while True:
        try:
            assert get(address, "/livez") == "alive\n"
        except urllib.error.URLError:
            assert time.monotonic() < deadline_s
            time.sleep(0.01)
        else:
            return


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return sock.getsockname()[1]


@needs_activate
def test_it_serves_at_every_endpoint_that_systemd_listens_for(command, start, meet, dial):
    ports = {name: f"127.0.0.1:{free_port()}" for name in NAMES}
    listen = [word for name in NAMES for word in ("--listen", ports[name])]
    start(["systemd-socket-activate", *listen, "--fdname=" + ":".join(NAMES), *command])
    addresses = {name: f"tcp://{where}" for name, where in ports.items()} | {"pcm.0": f"tcp://{ports['pcm']}"}
    await_page(ports["http"])  # the first connection starts the daemon
    client = meet(addresses)
    client.send(HOP, "zmq")
    client.verdict(1.0, "zmq")
    connection = dial(addresses["pcm.0"])
    connection.sendall(b'STREAMDET {"stream": "pcm"}\n' + HOP)
    client.verdict(1.0, "pcm")
    assert {track["stream"] for track in client.ask(op="status")["tracks"]} == {"zmq", "pcm"}


def test_a_restart_refuses_nobody(command, start, held, meet, dial):
    """Who comes in the gap finds the socket there, and is served by the next daemon."""
    first = start(held.hand_over(command), held.descriptors)
    client = meet(held.addresses)
    client.send(HOP, "before")
    client.verdict(1.0, "before")
    first.send_signal(signal.SIGTERM)
    assert client.event("close", "before").detail["reason"] == "drain"
    assert first.wait(PATIENCE_S) == 0

    for way in ("pcm.0", "pcm.1"):
        dial(held.addresses[way]).sendall(json.dumps({"stream": way}).encode().join((b"STREAMDET ", b"\n")) + HOP)
    client.send(HOP, "before", start=RATE_HZ)
    page = dial(f"tcp://{held.addresses['http']}")
    page.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    page.settimeout(0.2)
    with pytest.raises(TimeoutError):
        page.recv(1)

    start(held.hand_over(command), held.descriptors)
    page.settimeout(PATIENCE_S)
    assert page.recv(1000).startswith(b"HTTP/1.1 200")
    for stream in ("pcm.0", "pcm.1"):
        client.until(lambda it, stream=stream: isinstance(it, Event) and it.stream == stream and it.type == "open")
    for number in range(PATIENCE_S.__ceil__()):
        tracks = {track["stream"]: track["seconds"] for track in client.ask(id=number, op="status")["tracks"]}
        if tracks == {"before": 1.0, "pcm.0": 1.0, "pcm.1": 1.0}:
            break
        client.listen(1)
    else:
        pytest.fail(f"some audio of the gap was lost: {tracks}")


def test_without_them_a_gap_is_a_refusal(start, command, held, tmp_path):
    """The control: what binds its own socket takes it along when it goes."""
    for _, sock in held.held:
        sock.close()
    config = Path(command[-1])
    lines = [f'{name} = "{held.addresses[name]}"' for name in ("audio", "verdicts", "control", "http")]
    pcm = [held.addresses["pcm.0"], f"unix:{tmp_path}/own.sock"]
    config.write_text(config.read_text() + "\n".join(["[endpoints]", *lines, f"pcm = {json.dumps(pcm)}"]))
    first = start(command)
    await_page(held.addresses["http"])
    first.send_signal(signal.SIGTERM)
    assert first.wait(PATIENCE_S) == 0
    assert not (tmp_path / "own.sock").exists()
    for name in ("http", "pcm.0"):
        host, _, port = held.addresses[name].removeprefix("tcp://").rpartition(":")
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((host, int(port)), PATIENCE_S)


def test_systemds_socket_file_stays_as_it_is(command, start, held, dial):
    path = Path(held.addresses["pcm.1"].removeprefix("unix:"))
    before = path.stat()
    first = start(held.hand_over(command), held.descriptors)
    assert get(held.addresses["http"], "/livez")
    first.send_signal(signal.SIGTERM)
    assert first.wait(PATIENCE_S) == 0
    assert (before.st_ino, before.st_mode) == (path.stat().st_ino, path.stat().st_mode)
    dial(held.addresses["pcm.1"])


def test_a_name_that_is_no_endpoints_is_a_refused_start(command, start, held):
    wrong = [word.replace("verdicts=", "verdict=") for word in held.hand_over(command)]
    assert start(wrong, held.descriptors).wait(PATIENCE_S) != 0
