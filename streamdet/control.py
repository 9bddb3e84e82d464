"""Control: one JSON object in, one out, over a ROUTER socket. docs/wire.md has the operations for users."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final, Self

import msgspec
import zmq

from streamdet.config import Limits
from streamdet.connections import ASKERS
from streamdet.engine import Engine
from streamdet.errors import ProtocolError
from streamdet.metrics import Metrics
from streamdet.pseudonyms import Named
from streamdet.publish import Publisher
from streamdet.records import Notice
from streamdet.sockets import Gate, ZmqSocket
from streamdet.wire.frames import parse_fields

# Requests that may wait from one client: a person or a script asks one thing at a time.
RECEIVE_HWM: Final = 100
# Answers that may wait for one: `status` of 1,000 tracks has 300 kB. More are dropped, with whoever does not read them;
# with 4 some were lost to a client that does, before the library had told us that it had read the last ones.
SEND_HWM: Final = 16
# As many as may be connected may wait for a reload, which can take minutes: whoever asks for it without end would else
# fill the memory.
PLACES: Final = ASKERS
# A request is an object of at most 1 KiB. More is a mistake that deserves its answer up to here; beyond, the library
# drops the connection.
REQUEST_MAX_BYTES: Final = 64 << 10


class Control(ZmqSocket):
    """Answers while entered."""

    def __init__(
        self,
        address: str,
        engine: Engine,
        publisher: Publisher,
        health: Callable[[], dict[str, Any]] = dict,
        name: Named = str,
        reload: Callable[[], Awaitable[Notice]] | None = None,
    ) -> None:
        """Answer for an engine.

        Args:
            address: to bind to.
            engine: which is asked.
            publisher: has the newest verdicts.
            health: says the rest of `status`.
            name: makes of a sender's id the engine's.
            reload: reads config and bundle again.
        """
        super().__init__(
            zmq.ROUTER,
            "endpoints.control",
            address,
            self._take_request,
            rcvhwm=RECEIVE_HWM,
            sndhwm=SEND_HWM,
            maxmsgsize=REQUEST_MAX_BYTES,
        )
        self._engine = engine
        self._publisher = publisher
        self._health = health
        self._name = name
        self._reload = reload
        self._reloads: Final[set[asyncio.Task[None]]] = set()
        self._operations: Final[dict[str, Callable[[dict[str, Any]], dict[str, Any]]]] = {
            "status": self._status,
            "snapshot": self._snapshot,
            "pause": self._pause,
            "resume": self._resume,
            "close": self._close,
        }

    async def __aexit__(self, *error: object) -> None:
        """Leave reloads unanswered that are still under way."""
        for task in self._reloads:
            task.cancel()
        await super().__aexit__(*error)

    def limited(self, limits: Limits, metrics: Metrics, gate: Gate | None = None) -> Self:
        """Keep within `limits`, count in `metrics`, and ask for keys where there is a `gate`; before entering."""
        places = min(limits.connections, PLACES)
        return super().limited(limits.model_copy(update={"connections": places}), metrics, gate)

    def _take_request(self, parts: list[bytes]) -> None:
        # A REQ socket puts an empty part before its message and wants it back; a DEALER need not.
        envelope, body = parts[:-1], parts[-1]
        if (answer := self._answer(envelope, body)) is not None:
            self._send(envelope, answer)

    def _send(self, envelope: list[bytes], answer: dict[str, Any]) -> None:
        self.send([*envelope, msgspec.json.encode(answer)])

    def _answer(self, envelope: list[bytes], body: bytes) -> dict[str, Any] | None:
        """What to say now; None where the answer comes later."""
        request: dict[str, Any] = {}
        try:
            request = parse_fields(body, "request")
            if request.get("op") == "reload" and self._reload is not None:
                if len(self._reloads) >= PLACES:
                    raise ProtocolError.of("reloads that wait for their answer", len(self._reloads), f"under {PLACES}")
                self._begin_reload(envelope, request.get("id"), self._reload())
                return None
            operation = self._operations.get(_text(request, "op"))
            if operation is None:
                raise ProtocolError.of("op", request.get("op"), f"one of {', '.join((*self._operations, 'reload'))}")
            return {"id": request.get("id"), "ok": True, **operation(request)}
        except ProtocolError as error:
            return {"id": request.get("id"), "ok": False, "error": str(error)}

    def _begin_reload(self, envelope: list[bytes], ident: object, outcome: Awaitable[Notice]) -> None:
        """Answer when it is over: that may take as long as a start."""

        async def answer() -> None:
            notice = msgspec.to_builtins(await asyncio.shield(outcome))
            self._send(envelope, {"id": ident, **{key: value for key, value in notice.items() if key != "type"}})

        task = asyncio.create_task(answer(), name="reload")
        self._reloads.add(task)
        task.add_done_callback(self._reloads.discard)

    def _status(self, _: dict[str, Any]) -> dict[str, Any]:
        return {
            "counts": self._engine.counts(),
            "model": self._engine.model_id,
            "tracks": self._engine.status(),
            "health": self._health(),
        }

    def _snapshot(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"verdicts": self._publisher.snapshot()}

    def _pause(self, request: dict[str, Any]) -> dict[str, Any]:
        self._engine.pause(self._stream(request), time.monotonic())
        return {}

    def _resume(self, request: dict[str, Any]) -> dict[str, Any]:
        self._engine.resume(self._stream(request), time.monotonic())
        return {}

    def _close(self, request: dict[str, Any]) -> dict[str, Any]:
        self._engine.close(self._stream(request), "end", time.monotonic())
        return {}

    def _stream(self, request: dict[str, Any]) -> str:
        """Who is meant: a request may say the id that the daemon publishes, or the sender's."""
        stream = _text(request, "stream")
        return stream if self._engine.is_open(stream) else self._name(stream)


def _text(request: dict[str, Any], name: str) -> str:
    value = request.get(name)
    if not isinstance(value, str):
        raise ProtocolError.of(name, value, "a string")
    return value
