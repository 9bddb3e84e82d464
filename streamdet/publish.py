"""Verdicts, events and heartbeats out: an XPUB socket that tells newcomers where every track stands."""

import secrets
from typing import Final

import msgspec
import numpy as np
import zmq

from streamdet.engine import Counts
from streamdet.records import Event, Heartbeat, Notice, Verdict
from streamdet.sockets import ZmqSocket
from streamdet.wire import verdicts

# Verdicts that may wait for one slow subscriber: 200 tracks for a minute. Then it loses some, and sees it by `seq`.
SEND_HWM: Final = 12_000
# A subscription names a topic of at most 2 + 128 + 2 bytes; a longer message from a subscriber is not one.
SUBSCRIPTION_MAX_BYTES: Final = 1024


class Publisher(ZmqSocket):
    """Publishes while entered; with an empty address it only keeps count."""

    def __init__(self, address: str) -> None:
        """Bind to `address` on entering."""
        # Without VERBOSE a second subscription to the same topic is not reported, and that subscriber gets no snapshot.
        super().__init__(
            zmq.XPUB,
            "endpoints.verdicts",
            address,
            self._take_subscription,
            sndhwm=SEND_HWM,
            xpub_verbose=1,
            maxmsgsize=SUBSCRIPTION_MAX_BYTES,
        )
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

    def _take_subscription(self, parts: list[bytes]) -> None:
        """Repeat what a new subscription would otherwise hear of only in a second."""
        if parts[0][:1] != b"\x01":
            return  # it ends, or it is no subscription at all
        for verdict in self.snapshot():
            message = verdicts.build(verdict)
            if message[0].startswith(parts[0][1:]):
                self.send(message)
