"""The HTTP endpoint: health and metrics, in the daemon's own loop."""

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Final, Self

import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from streamdet.acceptor import Acceptor, Arrival
from streamdet.config import Limits
from streamdet.doors import Door
from streamdet.errors import DeniedError
from streamdet.metrics import Metrics
from streamdet.tokens import Tokens

# For balancers and service managers, who have no tokens: they tell nothing else.
HEALTH: Final = frozenset({"/livez", "/readyz"})
# A request's head: a browser with its cookies sends 4 kB, and other servers take 8 to 32.
HEAD_MAX_BYTES: Final = 16 << 10
# From a request's head to the end of its answer (s): /metrics is made in milliseconds, and whoever does not read it in
# this time does not want it.
ANSWER_S: Final = 30.0
# At the end, requests that are under way have this long (s): an answer is made in milliseconds.
FINISH_S: Final = 1


class HttpServer:
    """/livez, /readyz and /metrics."""

    def __init__(self, door: Door, metrics: Metrics, is_ready: Callable[[], bool], limits: Limits) -> None:
        """Serve at a door while entered."""
        self._acceptor: Final = Acceptor("http", door, self._serve, limits, metrics)
        self._tokens: Final = door.tokens
        self._limits: Final = limits
        self._metrics: Final = metrics
        self._is_ready: Final = is_ready

    @property
    def address(self) -> str:
        """Once listening, with the port that `:0` became."""
        return self._acceptor.address

    async def __aenter__(self) -> Self:
        """Begin to listen.

        Raises:
            UnreachableError: the address is taken.
            ConfigError: it is not an address.
        """
        pages = Starlette(routes=[Route(path, answer) for path, answer in self._answers().items()])
        self._config = uvicorn.Config(
            pages if self._tokens is None else Asking(pages, self._tokens, self._metrics),
            http=_Connection,
            ws="none",  # a connection that uvicorn upgrades is another's, whose end nobody would tell us
            log_config=None,
            log_level="warning",
            access_log=False,
            lifespan="off",
            h11_max_incomplete_event_size=HEAD_MAX_BYTES,
            timeout_graceful_shutdown=FINISH_S,
        )
        self._config.load()
        self._server = _Server(self._config)
        await self._acceptor.__aenter__()
        self._serving = asyncio.create_task(self._server.serve())
        return self

    async def __aexit__(self, *error: object) -> None:
        """Finish the requests that are under way."""
        self._acceptor.stop()
        self._server.should_exit = True
        await self._serving
        await self._acceptor.__aexit__(*error)

    async def _serve(self, arrival: Arrival) -> None:
        connection = _Connection(self._config, self._server.server_state, {}, arrival, self._limits.handshake_s)
        transport = await arrival.connect(connection)
        try:
            await connection.lost.wait()
        finally:
            transport.abort()

    def _answers(self) -> dict[str, Callable[[Request], Awaitable[Response]]]:
        return {"/livez": self._livez, "/readyz": self._readyz, "/metrics": self._page}

    async def _livez(self, _: Request) -> Response:
        return PlainTextResponse("alive\n")

    async def _readyz(self, _: Request) -> Response:
        """503 while the model warms up and while the daemon drains: balancers should send calls elsewhere."""
        ready = self._is_ready()
        return PlainTextResponse("ready\n" if ready else "not ready\n", 200 if ready else 503)

    async def _page(self, _: Request) -> Response:
        return Response(generate_latest(self._metrics.registry), media_type=CONTENT_TYPE_LATEST)


class Asking:
    """Asks for a token before anything but health is shown."""

    def __init__(self, pages: ASGIApp, tokens: Tokens, metrics: Metrics) -> None:
        """Stand before `pages`."""
        self._pages: Final = pages
        self._tokens: Final = tokens
        self._metrics: Final = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request pass, or deny it: what there is at all is nothing for strangers."""
        try:
            if scope["path"] not in HEALTH:
                await self._tokens.admit(_bearer(Headers(scope=scope)))
        except DeniedError:
            self._metrics.refused("http", "auth")
            denied = PlainTextResponse("a token is wanted\n", 401, {"WWW-Authenticate": "Bearer"})
            await denied(scope, receive, send)
        else:
            await self._pages(scope, receive, send)


def _bearer(headers: Headers) -> str | None:
    scheme, _, token = headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else None


class _Connection(H11Protocol):
    """uvicorn's, with a deadline for each request's head, which uvicorn has not, and for its answer."""

    def __init__(
        self,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        arrival: Arrival,
        head_s: float,
    ) -> None:
        super().__init__(config, server_state, app_state)
        self.lost: Final = asyncio.Event()
        self._arrival: Final = arrival
        self._head_s: Final = head_s
        self._answering = False

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._see()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._see()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.lost.set()

    def _see(self) -> None:
        """Set the deadline of what it is waited for now."""
        answering = self.cycle is not None and not self.cycle.response_complete
        if answering and not self._answering:
            self._arrival.admit(asyncio.get_running_loop().time() + ANSWER_S)
        elif self._answering and not answering:
            self._arrival.wait(self._head_s)
        self._answering = answering


class _Server(uvicorn.Server):
    """uvicorn without its own sockets, and without its signal handlers: signals are the daemon's."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:  # noqa: ARG002 - uvicorn's signature
        self.servers = []
        self.started = True

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
