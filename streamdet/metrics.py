"""Numbers for Prometheus.

No stream id is ever a label: every call would make a new series. docs/metrics.md lists them all.
"""

from typing import Final, Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info

from streamdet.engine import Counts
from streamdet.records import Event, Verdict

Transport = Literal["zeromq", "pcm"]

# From a hop on an idle CPU to a window too late to matter.
LAG_BUCKETS_S: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
BATCH_BUCKETS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """The daemon's registry."""

    def __init__(self) -> None:
        """Begin at zero."""
        self.registry: Final = CollectorRegistry()
        self._info = Info("streamdet_model", "Bundle and provider that score.", registry=self.registry)
        self._frames = self._counter("frames", "Messages (ZeroMQ) or reads (PCM) that were taken.", "transport")
        self._bytes = self._counter("audio_bytes", "Bytes of audio that were taken.", "transport")
        self._refused = self._counter("refused", "Messages or connections that were refused.", "transport")
        self._disconnects = self._counter(
            "disconnects", "Senders that left, or were cut off for a message over 1 MiB.", "transport"
        )
        self._verdicts = self._counter("verdicts", "Verdicts, by the state they left their track in.", "state")
        self._gated = self._counter("windows_gated", "Windows with too little speech to score.")
        self._skipped = self._counter("windows_skipped", "Windows skipped because scoring was behind.")
        self._events = self._counter("events", "Events, by type.", "type")
        self._streams = self._gauge("streams", "Streams that are open.")
        self._tracks = self._gauge("tracks", "Tracks of open streams.")
        self._lag = self._histogram("lag_seconds", "From reading a window's last byte to its verdict.", LAG_BUCKETS_S)
        self._transit = self._histogram("transit_seconds", "From the sender's stamp to that reading.", LAG_BUCKETS_S)
        self._batch = self._histogram("batch_windows", "Windows in one run of the model.", BATCH_BUCKETS)
        self._run = self._histogram("batch_seconds", "Time of one batch in the scoring thread.", LAG_BUCKETS_S)

    def loaded(self, model: str, provider: str) -> None:
        """Say what scores."""
        self._info.info({"model": model, "provider": provider})

    def received(self, transport: Transport, size_bytes: int, frames: int = 1) -> None:
        """Count audio that was taken; an increment costs half as much as a frame, so count many at once."""
        self._frames.labels(transport).inc(frames)
        self._bytes.labels(transport).inc(size_bytes)

    def refused(self, transport: Transport) -> None:
        """Count a peer's mistake."""
        self._refused.labels(transport).inc()

    def disconnected(self, transport: Transport) -> None:
        """Count a connection that ended."""
        self._disconnects.labels(transport).inc()

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

    def count(self, counts: Counts) -> None:
        """Take what is open now."""
        self._streams.set(counts.streams)
        self._tracks.set(counts.tracks)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"streamdet_{name}", text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(f"streamdet_{name}", text, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"streamdet_{name}", text, registry=self.registry, buckets=buckets)
