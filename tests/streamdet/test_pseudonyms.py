"""Stream ids that only the key's owner can tell."""

import hashlib
import hmac
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamdet import pseudonyms
from streamdet.errors import ConfigError, MissingError
from streamdet.pseudonyms import named, pseudonym
from streamdet.wire.frames import parse_stream

KEY = b"0123456789abcdef0123456789abcdef"


@pytest.fixture
def key(tmp_path) -> Path:
    file = tmp_path / "stream.key"
    file.write_bytes(KEY + b"\n")
    file.chmod(0o600)
    return file


def test_without_a_key_ids_stay_as_they_are(monkeypatch):
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    assert named(None)("call-7") == "call-7"


def test_a_pseudonym_is_the_hmac_of_the_id(key):
    digest = hmac.new(KEY, b"call-7", hashlib.sha256).hexdigest()
    assert named(key)("call-7") == f"h-{digest[:32]}" == pseudonym(KEY, "call-7")
    assert named(key)("call-7") == named(key)("call-7") != named(key)("call-8")


def test_another_key_makes_other_pseudonyms(key, tmp_path):
    other = tmp_path / "other.key"
    other.write_bytes(KEY[::-1])
    other.chmod(0o600)
    assert named(other)("call-7") != named(key)("call-7")


def test_systemd_may_hand_over_the_key(key, monkeypatch):
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(key.parent))
    assert key.name == pseudonyms.CREDENTIAL
    assert named(None)("call-7") == named(key)("call-7")


@given(st.text(min_size=1, max_size=64))
def test_a_pseudonym_is_itself_a_stream_id(text):
    assert parse_stream(pseudonym(KEY, text).encode()) == pseudonym(KEY, text)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")
def test_openssl_makes_the_same(key):
    """docs/operations.md: how to find the pseudonym of a call."""
    script = f'printf %s call-7 | openssl dgst -sha256 -hmac "$(cat {key})" -r | cut -c1-32'
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True)
    assert f"h-{done.stdout.strip()}" == named(key)("call-7")


def test_a_key_that_is_no_secret_is_refused(key, tmp_path):
    with pytest.raises(MissingError):
        named(tmp_path / "nowhere")
    key.chmod(0o640)
    with pytest.raises(ConfigError, match="expected 0600"):
        named(key)
    key.chmod(0o600)
    key.write_bytes(KEY[:31] + b" \n")
    with pytest.raises(ConfigError, match=r"streams\.hash_key .*: 31 bytes, expected 32 or more"):
        named(key)
