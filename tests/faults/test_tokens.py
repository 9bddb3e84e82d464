"""Raw PCM in TLS, by `streamdet send` and a daemon as users run them: whole recordings, strangers, a revoked token."""

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from streamdet.keys import Client, Identity, allow, revoke, token_sha256
from tests.certificates import make, needs_openssl
from tests.faults.harness import PATIENCE_S, Served, figure, free_ports, wait_for

pytestmark = needs_openssl

SECONDS, CALLS = 20, 3


class Setting:
    """A daemon whose raw PCM leaves the machine, and a client who may send."""

    def __init__(self, folder: Path, serve, record) -> None:
        (port,) = free_ports(1)
        cert, key = make(folder)
        self.clients, self.identity = folder / "clients.toml", folder / "client.key"
        Identity.new(token="the-token").write(self.identity)
        allow(self.clients, "recorder", Client(roles=("send",), token_sha256=token_sha256("the-token")))
        security = {"clients": str(self.clients), "tls_cert": str(cert), "tls_key": str(key)}
        self.served: Served = serve(endpoints={"pcm": [f"tls://0.0.0.0:{port}"]}, security=security)
        self.recorder = record(self.served)
        self.folder, self.cert, self.address = folder, cert, f"tls://localhost:{port}"

    def command(self, *options: str, identity: Path | None = None) -> list[str]:
        path = self.folder / "call.wav"
        if not path.exists():
            noise = 0.1 * np.random.default_rng(1).standard_normal(SECONDS * 8000)
            soundfile.write(path, noise, 8000)
        who = ["--identity", str(identity or self.identity)]
        where = ["--set", f"endpoints.pcm={self.address}"]
        return [sys.executable, "-m", "streamdet", "send", str(path), *where, *who, *options]

    def send(self, *options: str, **who: Path) -> "subprocess.CompletedProcess[str]":
        command = self.command(*options, **who)
        return subprocess.run(command, capture_output=True, text=True, timeout=2 * PATIENCE_S, check=False)


@pytest.fixture
def setting(tmp_path, serve, record) -> Setting:
    return Setting(tmp_path, serve, record)


def test_all_of_a_recording_arrives_however_fast_it_is_sent(setting):
    done = setting.send("--speed", "0", "--calls", str(CALLS), "--ca", str(setting.cert))
    assert (done.returncode, done.stderr.count("\n")) == (0, 1), done.stderr
    streams = [f"call-{number}" for number in range(1, CALLS + 1)]
    setting.recorder.await_closed(streams)
    for stream in streams:
        assert [verdict.end_s for verdict in setting.recorder.verdicts(stream)] == list(range(1, SECONDS + 1))
    assert {event.detail["reason"] for event in setting.recorder.events("close")} == {"end"}


def test_who_is_not_trusted_or_not_allowed_is_told_so(setting, tmp_path):
    Identity.new(token="another").write(tmp_path / "stranger.key")
    ca = ["--speed", "0", "--ca", str(setting.cert)]
    untrusted = setting.send("--speed", "0")
    stranger = setting.send(*ca, identity=tmp_path / "stranger.key")
    assert (untrusted.returncode, "a daemon that is trusted" in untrusted.stderr) == (69, True), untrusted.stderr
    assert (stranger.returncode, "expected one that is allowed here" in stranger.stderr) == (65, True), stranger.stderr
    assert setting.recorder.events("open") == []
    assert not any(token in setting.served.said() + stranger.stderr for token in ("another", "the-token"))


def test_a_token_that_is_revoked_ends_the_call_and_no_other(setting):
    """Another call, by another client, goes on beside it."""
    other = setting.folder / "other.key"
    Identity.new(token="the-other").write(other)
    allow(setting.clients, "other", Client(roles=("send",), token_sha256=token_sha256("the-other")))
    wait_for(lambda: "other" in setting.served.said())
    options = ["--pcm", "--ca", str(setting.cert), "--stream"]
    revoked = subprocess.Popen(setting.command(*options, "revoked"), stderr=subprocess.PIPE, text=True)
    going_on = subprocess.Popen(setting.command(*options, "going-on", identity=other), stderr=subprocess.DEVNULL)
    try:
        setting.recorder.await_verdicts(["revoked", "going-on"], 1)
        revoke(setting.clients, "recorder")
        began_s = time.monotonic()
        (close,) = wait_for(lambda: setting.recorder.events("close", "revoked"))
        figure("revoked_token", ended_s=time.monotonic() - began_s)
        assert close.detail["reason"] == "disconnect"
        _, said = revoked.communicate(timeout=PATIENCE_S)
        assert (revoked.returncode, "expected" in said) in {(65, True), (69, True)}, said
        setting.recorder.await_verdicts(["going-on"], 2, since_s=time.monotonic())
    finally:
        for process in (revoked, going_on):
            process.kill()
            process.communicate()
