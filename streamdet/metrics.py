"""Numbers for Prometheus.

No stream id is ever a label: every call would make a new series. docs/metrics.md lists them all.
"""

from collections import Counter as Tally
from collections.abc import Callable, Iterator
from typing import Final, Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info
from prometheus_client.metrics_core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from streamdet import logs
from streamdet.engine import Counts
from streamdet.errors import DeniedError, OverloadError, StreamdetError
from streamdet.process import ProcessCollector, versions
from streamdet.records import Event, Verdict

Transport = Literal["zeromq", "pcm", "http"]
Refusal = Literal["protocol", "full", "auth", "limit", "slow"]
"""Why a peer was refused: it broke the contract; `streams.max_streams` are open; who it is, or what it may not; it
wanted more connections, tracks or bytes than it may have; it took too long to say what it wants, or to bring audio."""
Cut = Literal["connections", "subscriptions", "revoked"]
"""Why a ZeroMQ connection was shut down: one too many, too many subscriptions, a key that is not allowed any more."""
Endpoint = Literal["audio", "verdicts", "control", "http", "pcm"]

# From a hop on an idle CPU to a window too late to matter.
LAG_BUCKETS_S: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
BATCH_BUCKETS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """The daemon's registry."""

    def __init__(self) -> None:
        """Begin at zero."""
        self.registry: Final = CollectorRegistry()
        self.refusals: Final[Tally[Refusal]] = Tally()
        """By reason, over all transports."""
        self._info = Info("streamdet_model", "Bundle and provider that score.", registry=self.registry)
        self._frames = self._counter("frames", "Messages (ZeroMQ) or reads (PCM) that were taken.", "transport")
        self._bytes = self._counter("audio_bytes", "Bytes of audio that were taken.", "transport")
        self._refused = self._counter("refused", "Messages or connections that were refused.", "transport")
        self._refusals = self._counter("refusals", "The same, by why they were.", "reason")
        self._disconnects = self._counter(
            "disconnects", "Senders that left, or were cut off for a message over 1 MiB.", "transport"
        )
        self._connections = self._gauge("connections", "Connections that are open.", "endpoint")
        self._opened = self._counter("connections_opened", "Connections that were ever open.", "endpoint")
        self._short = self._counter(
            "accepts_failed", "Tries to accept a connection for want of descriptors.", "endpoint"
        )
        self._cut = self._counter("cut", "ZeroMQ connections that were shut down.", "endpoint", "reason")
        self._verdicts = self._counter("verdicts", "Verdicts, by the state they left their track in.", "state")
        self._gated = self._counter("windows_gated", "Windows with too little speech to score.")
        self._skipped = self._counter("windows_skipped", "Windows skipped because scoring was behind.")
        self._runs_failed = self._counter("runs_failed", "Runs of the model, or preparations of one, that failed.")
        self._windows_failed = self._counter("windows_failed", "Windows in them; they are skipped.")
        self._events = self._counter("events", "Events, by type.", "type")
        self._streams = self._gauge("streams", "Streams that are open.")
        self._streams_max = self._gauge("streams_max", "Streams that may be open (streams.max_streams).")
        self._paused = self._gauge("streams_paused", "Streams whose audio is dropped unseen.")
        self._tracks = self._gauge("tracks", "Tracks of open streams.")
        self._lag = self._histogram("lag_seconds", "From reading a window's last byte to its verdict.", LAG_BUCKETS_S)
        self._transit = self._histogram("transit_seconds", "From the sender's stamp to that reading.", LAG_BUCKETS_S)
        self._batch = self._histogram("batch_windows", "Windows in one run of the model.", BATCH_BUCKETS)
        self._run = self._histogram("batch_seconds", "Time of one batch in the scoring thread.", LAG_BUCKETS_S)
        self._ready = self._gauge("ready", "1 while calls are welcome: after the warm-up, before the drain.")
        self._loop = self._histogram(
            "loop_late_seconds", "How late the event loop does what it does once a second.", LAG_BUCKETS_S
        )
        self._reloads = self._counter("reloads", "Attempts to reload config and bundle, by result.", "result")
        self._reload_ok = self._gauge("last_reload_successful", "0 when the last one was refused: the old ones go on.")
        self._reload_ok.set(1)
        self._reload_at = self._gauge("last_reload_success_timestamp_seconds", "When what is in force was loaded.")
        self._build = Info("streamdet_build", "Versions of what runs.", registry=self.registry)
        self._build.info(versions())
        ProcessCollector(self.registry)
        LostLines(self.registry)

    def loaded(self, model: str, provider: str) -> None:
        """Say what scores."""
        self._info.info({"model": model, "provider": provider})
        self._reload_at.set_to_current_time()

    def reloaded(self, *, ok: bool) -> None:
        """Count an attempt to reload."""
        self._reloads.labels("ok" if ok else "refused").inc()
        self._reload_ok.set(ok)
        if ok:
            self._reload_at.set_to_current_time()
        if ok:
            self._reload_at.set_to_current_time()

    def received(self, transport: Transport, size_bytes: int, frames: int = 1) -> None:
        """Count audio that was taken; an increment costs half as much as a frame, so count many at once."""
        self._frames.labels(transport).inc(frames)
        self._bytes.labels(transport).inc(size_bytes)

    def refused(self, transport: Transport, reason: Refusal | StreamdetError = "protocol") -> None:
        """Count a peer's mistake, or a limit that it met."""
        if isinstance(reason, OverloadError):
            reason = "full"
        elif isinstance(reason, StreamdetError):
            reason = "auth" if isinstance(reason, DeniedError) else "protocol"
        self.refusals[reason] += 1
        self._refused.labels(transport).inc()
        self._refusals.labels(reason).inc()

    def opened(self, endpoint: Endpoint) -> None:
        """Count a connection that began."""
        self._opened.labels(endpoint).inc()
        self._connections.labels(endpoint).inc()

    def closed(self, endpoint: Endpoint) -> None:
        """Count a connection that is no longer open."""
        self._connections.labels(endpoint).dec()

    def fell_short(self, endpoint: Endpoint) -> None:
        """Count a connection that could not be accepted yet, for want of a descriptor or memory."""
        self._short.labels(endpoint).inc()

    def disconnected(self, transport: Transport) -> None:
        """Count a connection that ended."""
        self._disconnects.labels(transport).inc()

    def cut_off(self, endpoint: str, why: Cut) -> None:
        """Count a ZeroMQ connection that we shut down."""
        self._cut.labels(endpoint, why).inc()
        self.refused("zeromq", "auth" if why == "revoked" else "limit")

    def observe(self, record: Verdict | Event) -> None:
        """Count what is published."""
        if isinstance(record, Event):
            self._events.labels(record.type).inc()
            return
        self._verdicts.labels(record.state).inc()
        self._gated.inc(record.llr is None)
        self._skipped.inc(record.skipped)
        self._lag.observe(record.lag_ms / 1e3)
        if record.transit_ms is not None:
            self._transit.observe(record.transit_ms / 1e3)

    def scored(self, windows: int, seconds: float) -> None:
        """Count a batch."""
        self._batch.observe(windows)
        self._run.observe(seconds)

    def failed(self, windows: int) -> None:
        """Count a run or a preparation that failed."""
        self._runs_failed.inc()
        self._windows_failed.inc(windows)

    def count(self, counts: Counts) -> None:
        """Take what is open now."""
        self._streams.set(counts.streams)
        self._tracks.set(counts.tracks)
        self._paused.set(counts.paused)

    def limited(self, streams_max: int) -> None:
        """Say how much may be open."""
        self._streams_max.set(streams_max)

    def watch(self, is_ready: Callable[[], bool]) -> None:
        """Ask whether calls are welcome whenever somebody wants to know."""
        self._ready.set_function(lambda: float(is_ready()))

    def late(self, seconds: float) -> None:
        """Take by how much the loop missed its time."""
        self._loop.observe(max(0.0, seconds))

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"streamdet_{name}", text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"streamdet_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"streamdet_{name}", text, registry=self.registry, buckets=buckets)


class LostLines(Collector):
    """Log lines that were not written."""

    def __init__(self, registry: CollectorRegistry) -> None:
        """Register."""
        registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """Read what the log has counted."""
        lost = CounterMetricFamily("streamdet_log_lines_lost", "Log lines that were not written.", labels=["reason"])
        for reason, lines in logs.LOST.items():
            lost.add_metric([reason], lines)
        yield lost
