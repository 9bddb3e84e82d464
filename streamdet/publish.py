"""Verdicts, events and heartbeats out: an XPUB socket that tells newcomers where every track stands."""

import secrets
from typing import Final, Self

import msgspec
import numpy as np
import zmq

from streamdet.config import Limits
from streamdet.connections import READERS, Peer
from streamdet.engine import Counts
from streamdet.metrics import Metrics
from streamdet.records import Event, Heartbeat, Notice, Verdict
from streamdet.sockets import Gate, ZmqSocket
from streamdet.wire import verdicts
from streamdet.wire.frames import STREAM_MAX_BYTES

# Messages that may wait for one slow subscriber: 1,000 tracks for four seconds, beside what the kernel holds. Then it
# loses some, and sees it by `seq`. 128 bytes each, and what is in it once for all who wait at the same time.
SEND_HWM: Final = 4_000
# A message of a subscriber; with CURVE its handshake needs 288.
SUBSCRIPTION_MAX_BYTES: Final = 1024
# A subscription names a topic or its beginning: `v.`, a stream, `.`, a channel. A longer one would never hear anything.
TOPIC_MAX_BYTES: Final = 2 + STREAM_MAX_BYTES + 2
# Of all connections together, 6 kB each: 60 MB. A thousand people who watch a call each have two thousand.
TOPICS_MAX: Final = 10_000
# Subscriptions that the library may have read and we not: it stores them all before it gives us the first, so a low
# number is what lets us stop somebody who sends them without end.
RECEIVE_HWM: Final = 16


class Publisher(ZmqSocket):
    """Publishes while entered; with an empty address it only keeps count."""

    def __init__(self, address: str) -> None:
        """Bind to `address` on entering."""
        # Without VERBOSER a second subscription to the same topic is not reported, and that subscriber gets no
        # snapshot; nor is the end of one, and its connection could not be held to its number.
        super().__init__(
            zmq.XPUB,
            "endpoints.verdicts",
            address,
            self._take_subscription,
            sndhwm=SEND_HWM,
            rcvhwm=RECEIVE_HWM,
            xpub_verboser=1,
            maxmsgsize=SUBSCRIPTION_MAX_BYTES,
        )
        self._most_topics = Limits().subscriptions
        self._topics = 0
        """Of all connections."""
        self._wanted: list[bytes] = []
        """Topics that were subscribed to in this turn."""
        self._newest: dict[tuple[str, int], Verdict] = {}
        self._lags_ms: list[float] = []
        self._epoch: Final = secrets.token_hex(6)
        self._beats = 0
        self._skipped = 0

    def publish(self, record: Verdict | Event) -> None:
        """Send to whoever has subscribed, and remember the newest verdict of each live track."""
        if isinstance(record, Verdict):
            self._newest[record.stream, record.channel] = record
            self._lags_ms.append(record.lag_ms)
        elif record.type == "close":
            self._forget(record)
        self.send(verdicts.build(record))

    def tell(self, notice: Notice) -> None:
        """Send what concerns the whole daemon."""
        self.send(verdicts.build(notice))

    def heartbeat(self, counts: Counts) -> Heartbeat:
        """Send a heartbeat; to be called once a second."""
        lag_ms = float(np.percentile(self._lags_ms, 99)) if self._lags_ms else None
        beat = Heartbeat(
            epoch=self._epoch,
            seq=self._beats,
            streams=counts.streams,
            tracks=counts.tracks,
            windows=counts.windows,
            skipped=counts.skipped,
            lag_ms_p99=lag_ms,
            overload=counts.skipped > self._skipped,
        )
        self._beats += 1
        self._skipped = counts.skipped
        self._lags_ms.clear()
        self.send(verdicts.build(beat))
        return beat

    def snapshot(self) -> list[Verdict]:
        """Return the newest verdict of each live track, marked as a repeat."""
        return [msgspec.structs.replace(verdict, snapshot=True) for verdict in self._newest.values()]

    def _forget(self, close: Event) -> None:
        for key, verdict in list(self._newest.items()):
            # Under the same name another call may have begun while this one's last windows were scored.
            if verdict.stream == close.stream and verdict.opened == close.detail["opened"]:
                del self._newest[key]

    def limited(self, limits: Limits, metrics: Metrics, gate: Gate | None = None) -> Self:
        """Keep within `limits`, count in `metrics`, and ask for keys where there is a `gate`; before entering."""
        self._most_topics = limits.subscriptions
        most = min(limits.connections, READERS)
        return super().limited(limits.model_copy(update={"connections": most}), metrics, gate)

    def _take_subscription(self, parts: list[bytes]) -> None:
        """Keep a connection's subscriptions within their number; its user is known from now on."""
        kind, topic = parts[0][:1], parts[0][1:]
        peer = self._peer()
        if peer is None or peer.cut:
            return
        if self.key is not None:
            peer.users.add(self.key)
        self._topics -= len(peer.topics)
        if kind == b"\1":
            peer.topics.add(topic)
            self._wanted.append(topic)
        elif kind == b"\0":
            peer.topics.discard(topic)
        self._topics += len(peer.topics)
        if len(topic) > TOPIC_MAX_BYTES or len(peer.topics) > self._most_topics or self._topics > TOPICS_MAX:
            self._cut("subscriptions")

    def _left(self, peer: Peer) -> None:
        super()._left(peer)
        self._topics -= len(peer.topics)

    def _turn_over(self) -> None:
        """Repeat what new subscriptions would otherwise hear of only in a second; once, however many there are."""
        if not self._wanted:
            return
        wanted, self._wanted = tuple(set(self._wanted)), []
        for verdict in self.snapshot():
            if verdicts.topic(verdict).encode().startswith(wanted):
                self.send(verdicts.build(verdict))
