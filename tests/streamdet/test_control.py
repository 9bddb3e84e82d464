"""Control without a daemon: what waits for a reload is bounded."""

import asyncio
from typing import Any, cast

import msgspec

from streamdet.control import PLACES, Control
from streamdet.publish import Publisher
from streamdet.records import Notice

REQUEST = b'{"id": 7, "op": "reload"}'
GOOD = Notice("reload", ok=True, model="a@1", before="a@0")
PATIENCE_S = 30.0


class Answering(Control):
    """Control whose answers come into a queue."""

    def __init__(self, outcome: "asyncio.Future[Notice]") -> None:
        super().__init__("", cast("Any", None), Publisher(""), reload=lambda: outcome)
        self.said: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    def send(self, parts: list[bytes]) -> None:
        self.said.put_nowait(msgspec.json.decode(parts[-1]))

    def ask(self, times: int) -> None:
        for _ in range(times):
            self._take_request([b"peer", REQUEST])


def test_so_many_may_wait_for_a_reload_and_each_of_them_is_answered():
    async def asked() -> None:
        outcome: asyncio.Future[Notice] = asyncio.get_running_loop().create_future()
        control = Answering(outcome)
        control.ask(PLACES + 1)
        refused = control.said.get_nowait()
        assert refused["error"] == f"reloads that wait for their answer: {PLACES}, expected under {PLACES}"
        assert control.said.empty()
        outcome.set_result(GOOD)
        async with asyncio.timeout(PATIENCE_S):
            answers = [await control.said.get() for _ in range(PLACES)]
            assert all((answer["id"], answer["ok"], answer["model"]) == (7, True, "a@1") for answer in answers)

    asyncio.run(asked())
