"""Who may come in with a token, and for how long."""

import asyncio

import pytest

from streamdet import tokens
from streamdet.errors import DeniedError
from streamdet.keys import Client, Clients, allow, revoke, token_sha256
from streamdet.tokens import Tokens


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    monkeypatch.setattr(tokens, "WRONG_S", 0.0)


@pytest.fixture
def clients(tmp_path) -> Clients:
    path = tmp_path / "clients.toml"
    allow(path, "recorder", Client(roles=("send",), token_sha256=token_sha256("right")))
    allow(path, "scraper", Client(roles=("read",), token_sha256=token_sha256("page")))
    return Clients(path)


def test_who_has_the_token_of_the_role_is_let_in_by_name(clients):
    assert asyncio.run(Tokens(clients, "send").admit("right")).name == "recorder"


@pytest.mark.parametrize("token", [None, "", "wrong", "page", "right ", "right\0"])
def test_who_has_not_hears_the_same_whatever_was_wrong(clients, token):
    with pytest.raises(DeniedError) as caught:
        asyncio.run(Tokens(clients, "send").admit(token))
    assert str(caught.value) == tokens.DENIED
    assert str(token) not in ("wrong", "page") or str(token) not in str(caught.value)


def test_who_has_not_waits_for_the_answer(clients, monkeypatch):
    waited_s = []

    async def sleep(seconds):
        waited_s.append(seconds)

    monkeypatch.setattr(tokens, "WRONG_S", 7.0)
    monkeypatch.setattr(tokens.asyncio, "sleep", sleep)
    with pytest.raises(DeniedError):
        asyncio.run(Tokens(clients, "send").admit("wrong"))
    assert waited_s == [7.0]


def test_a_pass_holds_until_the_client_the_role_or_the_token_goes(clients):
    asking = Tokens(clients, "send")
    given = asyncio.run(asking.admit("right"))
    assert asking.holds(given)
    for changed in (
        Client(roles=("send",), token_sha256=token_sha256("another")),
        Client(roles=("read",), token_sha256=token_sha256("right")),
        None,
    ):
        revoke(clients.path, "recorder")
        assert clients.refresh()
        assert not asking.holds(given)
        if changed is not None:
            allow(clients.path, "recorder", changed)
            assert clients.refresh()
            assert not asking.holds(given)
