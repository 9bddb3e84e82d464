"""The model that scores now, and older ones that still finish what they began: one pump each."""

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Final, Self

import msgspec

from streamdet.bundle import Bundle
from streamdet.config import Scoring as Settings
from streamdet.engine import Engine
from streamdet.health import Health
from streamdet.logs import fields
from streamdet.pump import Call, Pump, allowed_s
from streamdet.scorer import Scorer

log = logging.getLogger(__name__)


class Loaded(msgspec.Struct, frozen=True):
    """A model that has met every batch size."""

    scorer: Scorer
    warm_up_ms: Mapping[int, float]
    """What each batch size took."""

    @property
    def model_id(self) -> str:
        """Bundle name and the first 12 hex digits of its hash."""
        return self.scorer.manifest.model_id

    @property
    def slowest_s(self) -> float:
        """What the slowest batch took, or one window of a block model that has lost every block."""
        runs = max(1, -(-self.scorer.manifest.blocks // self.scorer.buckets[-1]))
        return runs * max(self.warm_up_ms.values()) / 1e3


def load(loaded: Bundle, settings: Settings) -> Loaded:
    """Verify a bundle's files, load them as the settings say, and run every batch size.

    Raises:
        BundleError: the files are not what the manifest says, or the model is not.
        ConfigError: the provider is not to be had.
    """
    scorer = Scorer.of(loaded, settings, at_once=True)
    taken_ms = scorer.warm_up()
    shown = ", ".join(f"{size}: {ms:.0f} ms" for size, ms in taken_ms.items())
    log.info("loaded", extra=fields(model=loaded.manifest.model_id, provider=scorer.provider, batches=shown))
    return Loaded(scorer, taken_ms)


class Scoring:
    """Scores while entered, once it was given a model."""

    def __init__(
        self,
        engine: Engine,
        health: Health,
        failed: Callable[[int], object],
        broke: Callable[[BaseException], object],
    ) -> None:
        """Pump for `engine`; `failed` hears of the windows of a run that failed, `broke` of what ends a pump."""
        self._engine: Final = engine
        self._health: Final = health
        self._failed: Final = failed
        self._broke: Final = broke
        self._tasks: Final[dict[Pump, asyncio.Task[None]]] = {}
        """The newest last; the others finish what they have begun."""
        self._retiring: Final[set[asyncio.Task[None]]] = set()

    async def __aenter__(self) -> Self:
        """Wait for a model."""
        return self

    async def __aexit__(self, *error: object) -> None:
        """End the pumps."""
        self.cancel()
        if tasks := [*self._tasks.values(), *self._retiring]:
            await asyncio.wait(tasks)
        for pump in self.pumps:
            pump.__exit__()

    @property
    def pumps(self) -> tuple[Pump, ...]:
        """Those that are at work; any thread may ask."""
        return tuple(self._tasks)

    @property
    def under_way(self) -> dict[int, Call]:
        """What their threads are at."""
        return {number: call for pump in self.pumps for number, call in pump.under_way.items()}

    def wake(self) -> None:
        """Say that a window became due."""
        if self._tasks:
            next(reversed(self._tasks)).wake()

    def begin(self, loaded: Loaded, settings: Settings) -> None:
        """Score with this model from here on; windows that another has taken are settled by it."""
        older = next(reversed(self._tasks), None)  # those before it have been told already
        deadline_s = allowed_s(settings.deadline_s, loaded.slowest_s)
        pump = Pump(loaded.scorer, settings.batch_max, self._health.scored, self._failed, deadline_s)
        self._tasks[pump] = task = asyncio.create_task(pump.run(self._engine), name="scoring")
        task.add_done_callback(self._ended)
        self._health.loaded(loaded.scorer, loaded.warm_up_ms)
        if older is not None:
            retiring = asyncio.create_task(self._retire(older))
            self._retiring.add(retiring)
            retiring.add_done_callback(self._retiring.discard)
        pump.wake()

    def allow(self, settings: Settings, loaded: Loaded) -> None:
        """Take another deadline for what scores now."""
        next(reversed(self._tasks)).deadline_s = allowed_s(settings.deadline_s, loaded.slowest_s)

    def cancel(self) -> None:
        """Take and settle nothing any more."""
        for task in [*self._tasks.values(), *self._retiring]:
            task.cancel()

    def leave_threads(self) -> None:
        """Do not wait, at the end, for what threads are at."""
        for pump in self.pumps:
            pump.waits = False

    async def _retire(self, pump: Pump) -> None:
        await pump.finish()
        self._tasks.pop(pump).cancel()
        pump.__exit__()

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._broke(error)
