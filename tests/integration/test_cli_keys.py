"""Keys as an administrator handles them: files made, clients let in and out, and a daemon that asks who is there."""

import json
import os
import select
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from prometheus_client import generate_latest

from streamdet import keys
from streamdet.cli import main

STREAMDET = str(Path(sys.executable).with_name("streamdet"))
PATIENCE_S = 60.0
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("STREAMDET_")} | {
    "OMP_NUM_THREADS": "1"
}


def metric(running: Any, name: str) -> float:
    """As `/metrics` has it, which asks for a token here; 0 where there is none yet."""
    exposed = generate_latest(running.daemon_._metrics.registry).decode()
    rows = (line.rsplit(" ", 1) for line in exposed.splitlines() if not line.startswith("#"))
    return float(dict(rows).get(name, 0))


def process(*args: object, code: int = 0, **variables: str) -> str:
    """Run a command as a process; return what it printed, or its complaint."""
    done = subprocess.run(
        [STREAMDET, *map(str, args)],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
        env=ENVIRONMENT | variables,
    )
    assert done.returncode == code, done.stderr
    return done.stderr if code else done.stdout


@pytest.fixture
def streamdet(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Runs a command here, a second sooner than a process; returns what it printed, or its complaint."""

    def one(*args: object, code: int = 0) -> str:
        monkeypatch.setattr(sys, "argv", ["streamdet", *map(str, args)])
        with pytest.raises(SystemExit) as end:
            main()
        captured = capsys.readouterr()
        assert (end.value.code or 0) == code, captured.err
        return captured.err if code else captured.out

    return one


@pytest.fixture
def folder(tmp_path: Path, streamdet: Callable[..., str]) -> Path:
    """With the daemon's key, and clients `rec` (send), `fraud` (read) and `ops` (control)."""
    daemon = streamdet("keys", "new", "--server", tmp_path / "server.key").strip()
    for name, role in (("rec", "send"), ("fraud", "read"), ("ops", "control")):
        public = streamdet("keys", "new", tmp_path / f"{name}.key", "--for", daemon).strip()
        # With =, for a key may begin with a dash.
        streamdet("keys", "allow", name, "--role", role, f"--curve={public}", "--clients", tmp_path / "clients.toml")
    return tmp_path


def test_files_with_secrets_are_their_owners_alone(folder):
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    assert modes == {
        "server.key": 0o600,
        "rec.key": 0o600,
        "fraud.key": 0o600,
        "ops.key": 0o600,
        "clients.toml": 0o644,
    }
    secrets = [line for path in folder.glob("*.key") for line in path.read_text().splitlines() if "secret" in line]
    assert len(secrets) == 4
    assert not any(line.split('"')[1] in (folder / "clients.toml").read_text() for line in secrets)


def test_who_may_what_is_listed(folder, streamdet, monkeypatch):
    told = [
        json.loads(line)
        for line in streamdet("keys", "list", "--json", "--clients", folder / "clients.toml").splitlines()
    ]
    assert [(one["name"], one["roles"]) for one in told] == [
        ("rec", ["send"]),
        ("fraud", ["read"]),
        ("ops", ["control"]),
    ]
    monkeypatch.setenv("STREAMDET_SECURITY__CLIENTS", str(folder / "clients.toml"))
    table = streamdet("keys", "list")
    assert all(one["curve"] in table for one in told)


def test_an_identity_with_a_token_is_taken_over_from_its_file(folder, streamdet):
    path, clients = folder / "web.key", folder / "clients.toml"
    streamdet("keys", "new", path, "--token", "--set", f"security.server_key={folder}/server.key")
    streamdet("keys", "allow", "web", "--role", "read", "--role", "control", "--from", path, "--clients", clients)
    identity = keys.Identity.read(path)
    assert identity.server == keys.Identity.read(folder / "server.key").public
    assert keys.Clients(clients).may("read", token=identity.token) == "web"
    assert keys.Clients(clients).may("control", curve=identity.public) == "web"


@pytest.mark.parametrize(
    ("args", "code", "complaint"),
    [
        (("new", "rec.key"), 64, "nothing is yet"),
        (("new", "--server", "--token", "x"), 64, "--server"),
        (("new", "x", "--for", "short"), 64, "--for: 'short', expected a public key"),
        (("allow", "rec", "--role", "send", "--from", "ops.key"), 64, "a name that is free"),
        (("allow", "x", "--role", "sing", "--from", "ops.key"), 64, "'send', 'read' or 'control'"),
        (("allow", "x", "--role", "send"), 64, "curve: not set, expected one of curve, token_sha256"),
        (("allow", "x", "--role", "send", "--token-sha256", "hunter2"), 64, "token_sha256: (not shown)"),
        (("allow", "x", "--role", "send", "--from", "ops.key"), 78, "curve is that of [ops]"),
        (("revoke", "nobody"), 64, "expected one of rec, fraud, ops"),
    ],
)
def test_a_mistake_is_one_line(args, code, complaint, folder, streamdet, monkeypatch):
    monkeypatch.chdir(folder)
    more = () if args[0] == "new" else ("--clients", "clients.toml")
    before = (folder / "clients.toml").read_text()
    told = streamdet("keys", *args, *more, code=code)
    assert told.count("\n") == 1
    assert complaint in told
    assert (folder / "clients.toml").read_text() == before


def test_an_identity_that_others_may_read_is_refused(folder, streamdet):
    (folder / "ops.key").chmod(0o640)
    assert "mode 0640, expected 0600" in streamdet("status", "--identity", folder / "ops.key", code=78)


def test_the_commands_show_who_they_are_and_are_let_in_by_role(folder, serve, tmp_path):
    running = serve(
        security={"clients": folder / "clients.toml", "server_key": folder / "server.key", "everywhere": True}
    )
    verdicts, control = running.addresses["verdicts"], running.addresses["control"]
    soundfile.write(tmp_path / "a.wav", np.zeros(16000), 8000)
    tail = subprocess.Popen(
        [STREAMDET, "tail", "--json", "--address", verdicts],
        env=ENVIRONMENT | {"STREAMDET_IDENTITY": str(folder / "fraud.key"), "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        deadline_s = time.monotonic() + PATIENCE_S
        while not metric(running, 'streamdet_connections{endpoint="verdicts"}'):
            assert time.monotonic() < deadline_s
        told = False
        while not told:  # a subscription takes a moment longer than its connection
            assert time.monotonic() < deadline_s
            process(
                "send",
                tmp_path / "a.wav",
                "--set",
                f"endpoints.audio={running.addresses['audio']}",
                "--identity",
                folder / "rec.key",
            )
            told, _, _ = select.select([tail.stdout], [], [], 1)
        assert json.loads(tail.stdout.readline())["stream"] == "a"
    finally:
        tail.kill()
        tail.communicate()
    process("status", "--address", control, "--identity", folder / "ops.key")
    assert "does it run" in process("status", "--address", control, "--identity", folder / "fraud.key", code=69)
    assert "does it run" in process("status", "--address", control, code=69)
