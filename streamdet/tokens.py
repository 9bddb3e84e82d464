"""Who may come in with a token: raw PCM and HTTP, where CURVE is not spoken."""

import asyncio
from typing import Final

import msgspec

from streamdet.errors import DeniedError
from streamdet.keys import Clients, Role

# Who came with a wrong token hears of it this much later (s). Nobody guesses 32 random bytes at any speed; this is for
# the log, for our own time, and for tokens that somebody chose. Over raw PCM others may take the place meanwhile.
WRONG_S: Final = 1.0
# Said to a stranger, whatever was wrong: no token, a wrong one, or one for something else.
DENIED: Final = "token: (not shown), expected one that is allowed here"


class Pass(msgspec.Struct, frozen=True):
    """That somebody was let in."""

    name: str
    """Of the client."""
    token_sha256: str | None
    """By this token."""


class Tokens:
    """The right to do one thing, for those alone whom the clients file names."""

    def __init__(self, clients: Clients, role: Role) -> None:
        """Let in who may act as `role`."""
        self._clients: Final = clients
        self._role: Final[Role] = role

    async def admit(self, token: str | None) -> Pass:
        """Let somebody in.

        Raises:
            DeniedError: there is no such token, or it is for something else; after WRONG_S.
        """
        name = self._clients.may(self._role, token=token)
        if name is None:
            await asyncio.sleep(WRONG_S)
            raise DeniedError(DENIED)
        return Pass(name, dict(self._clients)[name].token_sha256)

    def holds(self, given: Pass) -> bool:
        """Whether who was let in would still be."""
        now = dict(self._clients).get(given.name)
        return now is not None and self._role in now.roles and now.token_sha256 == given.token_sha256
