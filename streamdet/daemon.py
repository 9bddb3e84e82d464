"""The daemon: wiring, and an ordered start and end.

One event loop owns all state. The threads of the pump make windows ready and run the model.
"""

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence, Set
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from typing import Any, Final, TypeVar

from streamdet import bundle, logs, pseudonyms
from streamdet.activation import Inherited
from streamdet.addresses import asks_for_keys, check_endpoints
from streamdet.config import Config
from streamdet.control import Control
from streamdet.doors import Doors
from streamdet.engine import Engine
from streamdet.errors import DeviceError, RefusedError, StreamdetError
from streamdet.guard import DOMAINS, Guard
from streamdet.health import Health
from streamdet.http import HttpServer
from streamdet.ingest.tcp import PcmListener
from streamdet.ingest.zeromq import AudioSocket
from streamdet.keys import Clients, server_key
from streamdet.logs import fields
from streamdet.metrics import Metrics
from streamdet.notify import notify, watchdog_interval_s
from streamdet.notify import reloading as notify_reloading
from streamdet.publish import Publisher
from streamdet.pump import first_line
from streamdet.records import AudioFormat, Event, Notice, Verdict
from streamdet.reload import Candidate, Changes, hanging, in_thread, loading, merge, prepare
from streamdet.scoring import Loaded, Scoring, load
from streamdet.sockets import ZmqSocket
from streamdet.watch import Overdue, Watch, end_process

log = logging.getLogger(__name__)

AnySocket = TypeVar("AnySocket", bound=ZmqSocket)

TICK_S: Final = 1.0
# At the end, for libzmq's thread to fetch from the kernel what has arrived, also where the whole process was stopped
# until then. What comes meanwhile is heard too.
FETCH_S: Final = 0.25
# A tick that comes so much too late: the process was stopped, or its machine, and the frames that wait must be heard
# before anybody is called silent.
AWAY_S: Final = 1.0


class Daemon:
    """Everything that `streamdet run` runs."""

    def __init__(
        self,
        config: Config,
        inherited: Inherited | None = None,
        *,
        read: Callable[[], Config] | None = None,
        end: Callable[[Overdue, Callable[[], object]], object] = end_process,
    ) -> None:
        """Wire nothing yet: the model and the sockets come with `serve`.

        Args:
            config: the settings.
            inherited: sockets that somebody else has opened.
            read: reads the settings again, for a reload; without it they stay, and the bundle alone is read again.
            end: what ends the process when a run hangs.

        Raises:
            ConfigError: `inherited` has sockets for an endpoint that is switched off.
        """
        self._inherited: Final = inherited or Inherited()
        self.config = config.model_copy(update={"endpoints": self._inherited.endpoints(config.endpoints)})
        self.ready = False
        self.addresses: Final[dict[str, str]] = {}
        """Where it listens, by endpoint, with the ports that `:0` became."""
        self._sockets: Final[list[ZmqSocket | PcmListener]] = []
        self._stopping: Final = asyncio.Event()
        self._failure: BaseException | None = None
        self._end: Final = end
        self._read: Final = read or (lambda: config)
        self._given = config
        """The settings as they were read, without what `inherited` has made of them."""
        self._reloading: Final = asyncio.Lock()
        self._drain_until_s = 0.0
        self._next_reload: asyncio.Task[Notice] | None = None
        """It waits for the one that is under way, which may have read the file before it changed once more."""

    async def serve(self, on_ready: Callable[[], None] = lambda: None) -> None:
        """Start, run until `stop`, drain.

        Args:
            on_ready: called when calls are welcome.

        Raises:
            StreamdetError: it cannot start, or scoring broke.
        """
        self._loop = asyncio.get_running_loop()
        async with AsyncExitStack() as stack:
            stack.callback(self._inherited.close)
            await self._start(stack)
            if not self.stopping:  # nobody lost patience while the model was loading
                self.ready = True
                on_ready()
            await self._stopping.wait()
            self.ready = False
        if self._failure is not None:
            raise self._failure

    @property
    def stopping(self) -> bool:
        """Whether the end has begun."""
        return self._stopping.is_set()

    @property
    def at_work(self) -> bool:
        """Whether a thread has still not come back."""
        return bool(self._scoring.under_way) or loading()

    def hang_up(self) -> None:
        """Reload, if there is anything to be reloaded yet or still; the signal handler of SIGHUP."""
        if self.ready:
            self.reload()
        else:
            log.warning("reload refused: not ready, or ending")

    def stop(self) -> None:
        """Begin to drain; a signal handler may call it, and call it again."""
        self._stopping.set()

    # -- start, and by unwinding it, the end -------------------------------------------------------------------------

    async def _start(self, stack: AsyncExitStack) -> None:
        """Enter what must be left in the opposite order: ingest first, then the last windows, then the voice."""
        config = self.config
        check_endpoints(config)
        loaded = bundle.chosen(config.bundle)
        self._metrics = Metrics()
        self._metrics.watch(lambda: self.ready)
        self._name = pseudonyms.named(config.streams.hash_key)
        self._health = Health(self._metrics, config.streams.max_streams)
        self._clients = None if config.security.clients is None else Clients(config.security.clients)
        self._doors = Doors(config.security, self._clients)
        self._guard = await self._guarding(stack)
        self._publisher = await self._entered(stack, "verdicts", Publisher(config.endpoints.verdicts))
        if config.endpoints.http:
            door = self._doors.door("http", config.endpoints.http, self._inherited.take_one("http"))
            http = HttpServer(door, self._metrics, lambda: self.ready, config.limits)
            self.addresses["http"] = (await stack.enter_async_context(http)).address
        self.engine = self._engine(loaded)  # before the model: what it refuses, it refuses at once
        self._scoring = Scoring(self.engine, self._health, self._metrics.failed, self._broke)
        model = await self._load(loaded)
        if model is None:
            return  # there is nothing to drain yet
        self._bundle, self._model = loaded, model
        self._watch = stack.enter_context(Watch(lambda: self._scoring.pumps, self._hung))
        await stack.enter_async_context(self._scoring)
        control = Control(config.endpoints.control, self.engine, self._publisher, self._report, self._name, self.reload)
        await self._entered(stack, "control", control)
        self._scoring.begin(model, config.scoring)
        await stack.enter_async_context(self._background("ticking", self._tick()))
        stack.push_async_callback(self._drain)
        if not self.stopping:
            await self._listen(stack)

    async def _load(self, loaded: bundle.Bundle) -> Loaded | None:
        """Load the model; None where somebody lost patience, since nobody knows how long it would still take."""
        loading = asyncio.create_task(in_thread(partial(load, loaded, self.config.scoring), within_s=math.inf))
        stopping = asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait((loading, stopping), return_when=asyncio.FIRST_COMPLETED)
            return loading.result() if loading.done() else None
        finally:
            loading.cancel()
            stopping.cancel()

    async def _listen(self, stack: AsyncExitStack) -> None:
        """Open the ears, last of all."""
        endpoints, default, limits = self.config.endpoints, self.config.pcm, self.config.limits
        form = AudioFormat(default.rate, default.encoding, default.channels)
        await self._entered(stack, "audio", AudioSocket(endpoints.audio, self.engine, self._metrics, self._name))
        given, pcms = self._inherited.take("pcm"), list[PcmListener]()
        for number, address in enumerate(endpoints.pcm):
            door = self._doors.door("pcm", address, given[number] if given else None)
            pcm = PcmListener(door, form, self.engine, self._metrics, limits, self._name)
            self._sockets.append(await stack.enter_async_context(pcm))
            self.addresses[f"pcm.{number}"] = pcm.address
            pcms.append(pcm)
        stack.push_async_callback(self._take_the_last, pcms)

    async def _take_the_last(self, pcms: Sequence[PcmListener]) -> None:
        """Hear what has reached this machine when the end begins; ZeroMQ's own is taken as its socket closes."""
        if self._failure is None:
            self._drain_until_s = time.monotonic() + self.config.daemon.drain_timeout_s
            self.engine.keep_windows()
            await asyncio.gather(asyncio.sleep(FETCH_S), *(pcm.take_the_last() for pcm in pcms))

    async def _entered(self, stack: AsyncExitStack, name: str, sock: AnySocket) -> AnySocket:
        """Bind one of the ZeroMQ endpoints, within its limits, and with keys where it asks for them."""
        gate = self._guard if asks_for_keys(self.config.security, f"endpoints.{name}", sock.address) else None
        sock.on(self._inherited.take(name)).limited(self.config.limits, self._metrics, gate)
        await stack.enter_async_context(sock)
        self._sockets.append(sock)
        self.addresses[name] = sock.address
        return sock

    async def _guarding(self, stack: AsyncExitStack) -> Guard | None:
        """Begin to ask for keys, where any ZeroMQ endpoint does."""
        endpoints, security = self.config.endpoints, self.config.security
        asking = [name for name in DOMAINS if asks_for_keys(security, f"endpoints.{name}", getattr(endpoints, name))]
        if self._clients is None or not asking:
            return None
        key = server_key(security.server_key)
        return await stack.enter_async_context(
            Guard(self._clients, key, lambda: self._metrics.refused("zeromq", "auth"))
        )

    def _engine(self, loaded: bundle.Bundle) -> Engine:
        limits = self.config.limits
        return Engine(
            loaded.manifest,
            self._emit,
            streams_per_client=limits.streams_per_client,
            ahead_s=limits.ahead_s,
            wake=lambda: self._scoring.wake(),
            **_for_engine(self.config),
        )

    def _report(self) -> dict[str, Any]:
        return self._health.report(self.engine, ready=self.ready)

    def _emit(self, record: Verdict | Event) -> None:
        self._metrics.observe(record)
        self._publisher.publish(record)

    # -- once a second -----------------------------------------------------------------------------------------------

    async def _tick(self) -> None:
        """Once a second: idle closes, the heartbeat, and what systemd wants to hear."""
        watchdog_s = watchdog_interval_s()
        due_s = time.monotonic()
        while True:
            late_s = time.monotonic() - due_s
            if late_s < AWAY_S:
                self.engine.tick(time.monotonic())
            self._look_at_clients()
            self._doors.refresh()
            counts = self.engine.counts()
            self._metrics.count(counts)
            heartbeat = self._publisher.heartbeat(counts)
            self._health.beat(heartbeat, late_s)
            if self.ready:
                lag = "" if heartbeat.lag_ms_p99 is None else f", lag p99 {heartbeat.lag_ms_p99:.0f} ms"
                notify(STATUS=f"{heartbeat.tracks} tracks{lag}")
            logs.tick()
            if watchdog_s is not None and not self._watch.noticed:
                notify(WATCHDOG=1)
            due_s = time.monotonic() + TICK_S
            await asyncio.sleep(TICK_S)

    def _look_at_clients(self) -> None:
        """Take a change of the clients file: who is not in it any more is cut off."""
        if self._clients is None:
            return
        try:
            if not self._clients.refresh():
                return
        except StreamdetError as error:
            log.error("clients not read; who was allowed before still is", extra=fields(reason=error))
            return
        log.info("clients read", extra=fields(clients=", ".join(name for name, _ in self._clients) or "nobody"))
        for sock in self._sockets:
            sock.recheck()

    async def _drain(self) -> None:
        """End every stream and wait for the last verdicts, but not for ever; who waits longer is told of the end."""
        notify(STOPPING=1)
        log.info("draining", extra=fields(streams=self.engine.counts().streams))
        self.engine.close_all("drain", time.monotonic())
        deadline_s = self._drain_until_s or time.monotonic() + self.config.daemon.drain_timeout_s
        before = self._scoring.under_way.keys()
        while not self.engine.idle:
            if self._failure is not None or time.monotonic() > deadline_s:
                self._cut_short(before & self._scoring.under_way.keys())
                return
            await asyncio.sleep(0.01)

    def _cut_short(self, kept: Set[int]) -> None:
        """End with what is settled; `kept` are calls for which the whole drain was too short."""
        if self._failure is None:
            log.warning("drain took too long", extra=fields(streams=self.engine.counts().pending))
            if kept:
                self._failure = DeviceError("drain: a run that has not come back, expected its end before the drain's")
        self._scoring.leave_threads()
        self._scoring.cancel()
        self.engine.abandon("drain", time.monotonic())

    # -- reload ------------------------------------------------------------------------------------------------------

    def reload(self) -> "asyncio.Task[Notice]":
        """Read settings and bundle again, one after the other, and go on with them if they are good."""
        if self._next_reload is None:
            self._next_reload = asyncio.create_task(self._reload_in_turn(), name="reload")
        return self._next_reload

    async def _reload_in_turn(self) -> Notice:
        async with self._reloading:
            self._next_reload = None
            if not self.stopping:
                notify_reloading()
            notice = await self._reload()
            if not self.stopping:
                notify(READY=1)
            return notice

    async def _reload(self) -> Notice:
        before, changes, error = self.engine.model_id, Changes((), ()), None
        try:
            self._check_going_on()
            if hanging():
                raise RefusedError("reload: the model of an earlier one hangs, expected a restart")
            found = await in_thread(partial(prepare, self._given, self.config, self._read, self._model, self._bundle))
            self._take_over(found)
            changes = found.changes
        except StreamdetError as refused:
            error = str(refused)
        except Exception as unexpected:
            log.exception("reload")
            error = f"{type(unexpected).__name__}: {first_line(unexpected)}"
        notice = Notice(
            "reload",
            ok=error is None,
            model=self.engine.model_id,
            before=before,
            error=error,
            changed=changes.live,
            restart=changes.restart,
        )
        self._tell_reload(notice)
        return notice

    def _check_going_on(self) -> None:
        if self.stopping:
            raise RefusedError("reload: the daemon is ending, expected it to go on")

    def _take_over(self, found: Candidate) -> None:
        """Let it be in force, between two batches: nothing here waits."""
        self._check_going_on()
        config = found.config
        self.engine.change(found.bundle.manifest, time.monotonic(), **_for_engine(config))
        self._given = merge(self._given, config, found.changes.live)
        self.config, self._bundle = config, found.bundle
        if found.loaded is None:
            self._scoring.allow(config.scoring, self._model)
        else:
            self._model = found.loaded
            self._scoring.begin(found.loaded, config.scoring)
        self._health.limited(config.streams.max_streams)
        logging.getLogger().setLevel(config.daemon.log_level.upper())

    def _tell_reload(self, notice: Notice) -> None:
        known = fields(
            model=notice.model,
            before=notice.before,
            changed=" ".join(notice.changed),
            restart=" ".join(notice.restart),
        )
        if notice.ok:
            log.info("reloaded", extra=known)
        else:
            log.error("reload refused, the old goes on", extra=fields(reason=notice.error, model=notice.model))
        if notice.restart:
            log.warning("changed, but waits for a restart", extra=fields(keys=" ".join(notice.restart)))
        self._health.reloaded(notice.error)
        self._publisher.tell(notice)

    # -- failures ----------------------------------------------------------------------------------------------------

    def _broke(self, error: BaseException) -> None:
        """End, since a task that everything depends on has failed."""
        log.critical("failed", extra=fields(reason=error))
        if self._failure is None:
            self._failure = error
            self._tell_failure(str(error))
        self.stop()

    def _tell_failure(self, error: str) -> None:
        model = self.engine.model_id
        self._publisher.tell(Notice("failure", ok=False, model=model, before=model, error=error))

    def _hung(self, found: Overdue) -> None:
        """End at once; called by the watch, in its thread."""
        loop, error = self._loop, f"a {found.call.what}: {found.age_s:.1f} s, expected under {found.deadline_s:g}"

        def last_words() -> None:
            with suppress(RuntimeError):  # the loop has ended already
                loop.call_soon_threadsafe(self._give_up, error)

        self._end(found, last_words)

    def _give_up(self, error: str) -> None:
        """Say all that can still be said; the process ends in a moment."""
        self.ready = False
        self._tell_failure(error)
        self._scoring.cancel()
        self.engine.abandon("drain", time.monotonic())

    # -- tasks -------------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def _background(self, name: str, work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
        """Run a task beside the rest; its failure ends the daemon."""
        task = asyncio.create_task(work, name=name)
        task.add_done_callback(self._ended)
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait([task])

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._broke(error)


def _for_engine(config: Config) -> dict[str, Any]:
    """What the engine wants of the settings."""
    return {
        "prior_spoof": config.decision.prior_spoof,
        "idle_timeout_s": config.streams.idle_timeout_s,
        "stalled_after_s": config.streams.stalled_after_s,
        "max_streams": config.streams.max_streams,
        "min_window_s": config.scoring.min_window_s,
        "adaptive": config.scoring.hop == "adaptive",
    }
