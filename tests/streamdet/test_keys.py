"""Who may do what: the clients file, and secrets in files."""

import os
import stat
import threading
from pathlib import Path

import pytest
import zmq
from hypothesis import given
from hypothesis import strategies as st

from streamdet import keys
from streamdet.errors import ConfigError, MissingError, UsageError
from streamdet.keys import Client, Clients, Identity

NAMES = st.from_regex(r"[A-Za-z0-9_-]{1,64}", fullmatch=True)


def key() -> str:
    return zmq.curve_keypair()[0].decode()


def client(*roles: str, curve: str | None = None, token: str | None = None) -> Client:
    return Client(roles=roles, curve=curve, token_sha256=None if token is None else keys.token_sha256(token))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "clients.toml"


# -- the clients file ------------------------------------------------------------------------------------------------


def test_a_client_may_what_its_roles_say_by_key_or_by_token(path):
    recorder, fraud = key(), key()
    keys.allow(path, "recorder", client("send", curve=recorder))
    keys.allow(path, "fraud", client("read", "control", curve=fraud, token="secret"))
    clients = Clients(path)
    assert clients.may("send", curve=recorder) == "recorder"
    assert clients.may("read", curve=fraud) == clients.may("control", token="secret") == "fraud"
    assert clients.may("read", curve=recorder) is None
    assert clients.may("send", token="secret") is None


@pytest.mark.parametrize(
    "who", [{}, {"token": ""}, {"token": "secre"}, {"token": "secret\0"}, {"token": "\ud800"}, {"curve": ""}]
)
def test_nobody_else_may_anything(who, path):
    keys.allow(path, "fraud", client(*keys.ROLES, token="secret"))
    keys.allow(path, "recorder", client(*keys.ROLES, curve=key()))
    assert [Clients(path).may(role, **who) for role in keys.ROLES] == [None] * 3
    assert Clients(path).may("read", curve=key()) is None


def test_a_token_is_not_its_hash(path):
    keys.allow(path, "fraud", client("read", token="secret"))
    assert Clients(path).may("read", token=keys.token_sha256("secret")) is None


def test_a_change_is_seen_once_and_a_revoked_client_may_nothing(path):
    own = key()
    keys.allow(path, "a", client("send", curve=own))
    clients = Clients(path)
    assert not clients.refresh()
    keys.revoke(path, "a")
    assert clients.refresh()
    assert not clients.refresh()
    assert clients.may("send", curve=own) is None


def test_a_broken_or_absent_file_is_told_once_and_changes_nothing(path):
    own = key()
    keys.allow(path, "a", client("send", curve=own))
    clients = Clients(path)
    path.write_text("[a]\nroles = [")
    with pytest.raises(ConfigError, match=r"clients\.toml"):
        clients.refresh()
    assert not clients.refresh()
    path.unlink()
    with pytest.raises(MissingError):
        clients.refresh()
    assert not clients.refresh()
    assert clients.may("send", curve=own) == "a"
    keys.allow(path, "b", client("send", curve=key()))
    assert clients.refresh()
    assert clients.may("send", curve=own) is None


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("roles = ['send']", "expected a table"),
        ("['a b']\nroles = ['send']", "expected a table"),
        (f"[a]\nroles = ['hear']\ncurve = '{key()}'", r"\[a\] roles: 'hear', expected"),
        (f"[a]\nroles = []\ncurve = '{key()}'", r"\[a\] roles"),
        ("[a]\nroles = ['send']", "one of curve, token_sha256"),
        ("[a]\nroles = ['send']\ncurve = 'short'", "40 characters of Z85"),
        (f"[a]\nroles = ['send']\ncurve = '{'#' * 40}'", "40 characters of Z85"),
        ("[a]\nroles = ['send']\ntoken = 'x'", "token: unknown key, did you mean token_sha256"),
    ],
)
def test_a_wrong_file_is_refused_with_the_client_and_the_field(text, complaint, path):
    path.write_text(text)
    with pytest.raises(ConfigError, match=complaint):
        Clients(path)


def test_a_file_that_everybody_may_change_is_refused(path):
    keys.allow(path, "recorder", client("send", curve=key()))
    path.chmod(0o646)
    with pytest.raises(ConfigError, match=r"mode 0646, expected .* chmod o-w"):
        keys.read_clients(path)


def test_a_token_in_place_of_its_hash_is_not_shown(path):
    path.write_text("[a]\nroles = ['send']\ntoken_sha256 = 'hunter2'")
    with pytest.raises(ConfigError) as caught:
        Clients(path)
    assert "hunter2" not in str(caught.value)


def test_two_clients_with_one_key_are_refused(path):
    own = key()
    keys.allow(path, "a", client("send", curve=own))
    with pytest.raises(ConfigError, match=r"\[b\] curve is that of \[a\]"):
        keys.allow(path, "b", client("read", curve=own))
    assert list(keys.read_clients(path)) == ["a"]


def test_edits_keep_comments_mode_and_the_others(path):
    path.write_text(f"# ours\n\n[a]  # first\nroles = [\n  'send',\n]\ncurve = '{key()}'\n")
    path.chmod(0o640)
    keys.allow(path, "b", client("read", curve=key()))
    keys.allow(path, "c", client("read", curve=key()))
    keys.revoke(path, "b")
    text = path.read_text()
    assert "# ours" in text
    assert "[a]  # first" in text
    assert list(keys.read_clients(path)) == ["a", "c"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_what_cannot_be_edited_by_lines_is_left_alone(path):
    text = f"a = {{roles = ['send'], curve = '{key()}'}}\n"
    path.write_text(text)
    with pytest.raises(ConfigError, match="by hand"):
        keys.revoke(path, "a")
    assert path.read_text() == text


def test_names_are_checked(path):
    keys.allow(path, "a", client("send", curve=key()))
    for name in ("a", "", "a b", "a]", "ä", "x" * 65):
        with pytest.raises(UsageError):
            keys.allow(path, name, client("send", curve=key()))
    with pytest.raises(UsageError, match="one of a"):
        keys.revoke(path, "b")
    with pytest.raises(MissingError):
        keys.revoke(path.with_name("none.toml"), "b")


@given(names=st.lists(NAMES, unique=True, min_size=1, max_size=6), data=st.data())
def test_whatever_is_allowed_and_revoked_the_rest_stays(names, data, tmp_path_factory):
    path = tmp_path_factory.mktemp("clients") / "clients.toml"
    every = {name: client("send", curve=key()) for name in names}
    for name, each in every.items():
        keys.allow(path, name, each)
    gone = data.draw(st.sets(st.sampled_from(names)))
    for name in gone:
        keys.revoke(path, name)
    assert keys.read_clients(path) == {name: each for name, each in every.items() if name not in gone}


def test_two_editors_at_once_lose_nothing(path):
    editors = [
        threading.Thread(target=keys.allow, args=(path, f"c{number}", client("send", curve=key())))
        for number in range(8)
    ]
    for editor in editors:
        editor.start()
    for editor in editors:
        editor.join()
    assert len(keys.read_clients(path)) == 8


# -- secrets in files ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o777])
def test_a_secret_is_its_owners_alone_whatever_the_umask(umask, tmp_path):
    before = os.umask(umask)
    try:
        Identity.new().write(tmp_path / "a.key")
    finally:
        os.umask(before)
    assert not stat.S_IMODE((tmp_path / "a.key").stat().st_mode) & 0o177


def test_a_secret_is_never_written_over_anything(tmp_path):
    path = tmp_path / "a.key"
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match="nothing is yet"):
        Identity.new().write(path)
    assert not (tmp_path / "elsewhere").exists()


def test_an_identity_comes_back_as_it_was_and_does_not_show_itself(tmp_path):
    identity = Identity.new(server=key(), token="t0ken")
    identity.write(tmp_path / "a.key")
    assert Identity.read(tmp_path / "a.key") == identity
    assert identity.secret not in repr(identity)
    assert "t0ken" not in repr(identity)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o620, 0o644])
def test_a_secret_that_others_may_read_is_refused_in_one_line(mode, tmp_path):
    path = tmp_path / "a.key"
    Identity.new().write(path)
    path.chmod(mode)
    with pytest.raises(ConfigError, match=f"mode 0{mode:o}, expected 0600: chmod 600"):
        Identity.read(path)


@pytest.mark.parametrize(
    "text", ["", "public = 1", "secret = 'x'\npublic = 'y'", "public = '{0}'\nsecret = '{1}'", "public = '{1}"]
)
def test_what_is_no_key_pair_is_refused_without_its_secret(text, tmp_path):
    secret = zmq.curve_keypair()[1].decode()
    keys.write_private(tmp_path / "a.key", text.format(key(), secret))
    with pytest.raises(ConfigError) as caught:
        Identity.read(tmp_path / "a.key")
    assert secret not in str(caught.value)


def test_the_servers_key_comes_from_the_file_or_from_systemd(tmp_path, monkeypatch):
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    with pytest.raises(ConfigError, match=r"security\.server_key"):
        keys.server_key(None)
    own, handed = Identity.new(), Identity.new()
    own.write(tmp_path / "own")
    handed.write(tmp_path / "server.key")
    (tmp_path / "server.key").chmod(0o440)  # as it looks to a DynamicUser
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert keys.server_key(tmp_path / "own") == own
    assert keys.server_key(None) == handed
    assert keys.credential("tls.cert") is None
