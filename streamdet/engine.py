"""The engine: streams and their tracks, which window is due, batches, and the settling of scores.

Synchronous and without a clock of its own: time comes in as `now_s`. It belongs to one owner (the daemon's loop, a
replay, a test), takes frames, hands out batches of windows and takes their scores back; what it has to say goes through
`emit`.
"""

import secrets
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec
import numpy as np

from streamdet.bundle import Manifest
from streamdet.errors import ConfigError, OverloadError, ProtocolError
from streamdet.records import AudioFormat, CloseReason, Event, EventType, Frame, Score, State, Verdict
from streamdet.track import Job, Timeline, Track
from streamdet.verdict import Tracker

Emit = Callable[[Verdict | Event], None]

# A longer silence than this is not a gap in a call but another call, or a wrong counter.
MAX_GAP_S: Final = 60
# A sender with a bug repeats it fifty times a second; one line a second tells as much.
ERROR_EVERY_S: Final = 1.0
# When many calls end at once, as when a trunk fails, those that go on must not wait for the last words of those that do
# not: ended tracks get one place in so many, and what is left over.
ENDED_SHARE: Final = 16
# But what waits holds a window in memory, 32 kB of mu-law: the more there are, the larger their share; here it is all.
ENDED_MOST: Final = 4096
# Worst first: what a stream of several channels is summed up as.
WORST_FIRST: Final[tuple[State, ...]] = ("spoof", "uncertain", "bonafide", "listening")


class Counts(msgspec.Struct, frozen=True):
    """Totals since the start, and what is open now."""

    streams: int
    tracks: int
    windows: int
    """Scored or gated."""
    skipped: int
    opened: int
    """Streams ever opened."""
    pending: int
    """Streams that ended and still wait for their last windows."""


class Stream:
    """One call: its format, its tracks, and the bookkeeping of its frames."""

    __slots__ = (
        "block_bytes",
        "error_at_s",
        "format",
        "full",
        "heard_at_s",
        "hop_bytes",
        "name",
        "next_seq",
        "opened",
        "paused",
        "reason",
        "resume",
        "tracks",
    )

    def __init__(
        self, name: str, form: AudioFormat, hop_bytes: int, now_s: float, resume: Callable[[], None] | None
    ) -> None:
        self.name: Final = name
        self.format: Final = form
        self.block_bytes: Final = form.block_bytes
        """Payloads are whole multiples of this..."""
        self.hop_bytes: Final = hop_bytes
        """...and no longer than this."""
        self.resume: Final = resume
        """Set for a lossless stream: called when there is room again."""
        self.opened: Final = secrets.token_hex(6)
        self.tracks: list[Track] = []
        """Empty until the first frame has set the clock."""
        self.next_seq: int | None = None
        self.heard_at_s = now_s
        self.error_at_s = -ERROR_EVERY_S
        self.paused = False
        self.full = False
        """A lossless stream whose reader was told to stop."""
        self.reason: CloseReason | None = None
        """Set once the stream has ended; its last windows may still be on their way."""

    @property
    def end_sample(self) -> int:
        """The stream's clock (samples a channel)."""
        return self.tracks[0].ring.end_sample if self.tracks else 0

    @property
    def end_s(self) -> float:
        """The stream's clock (s)."""
        return self.end_sample / self.format.rate_hz


class Engine:
    """All tracks of the daemon."""

    def __init__(
        self,
        manifest: Manifest,
        emit: Emit,
        *,
        prior_spoof: float | None = None,
        idle_timeout_s: float = 10.0,
        max_streams: int = 1000,
        min_window_s: float = 1.0,
        adaptive: bool = False,
        wake: Callable[[], None] = lambda: None,
    ) -> None:
        """Serve streams with the windows and thresholds of `manifest`; `wake` is called when a window becomes due.

        Raises:
            ConfigError: an adaptive hop for a block bundle.
        """
        if adaptive and manifest.blocks:
            raise ConfigError.of(
                "scoring.hop", "adaptive", "fixed, or a windowed bundle: the blocks of this one lie on its hops"
            )
        self._manifest = manifest
        self._emit = emit
        self._prior_spoof = prior_spoof
        self._idle_timeout_s = idle_timeout_s
        self._max_streams = max_streams
        self._min_window_s = min_window_s
        self._adaptive = adaptive
        self._wake = wake
        self._streams: dict[str, Stream] = {}
        self._ending: dict[str, Stream] = {}  # by `opened`: a name may be open again while its last call ends
        self._live: deque[Track] = deque()
        self._lossless: deque[Track] = deque()
        self._ended: deque[Track] = deque()
        self._owed = 0.0
        """To ended tracks, in windows."""
        self._lossless_next = False
        self._windows = self._skipped = self._opened = 0

    @property
    def model_id(self) -> str:
        """Bundle name and the first 12 hex digits of its hash."""
        return self._manifest.model_id

    # -- streams ----------------------------------------------------------------------------------------------------

    def is_open(self, stream: str, opened: str | None = None) -> bool:
        """Whether a stream of this id is open, and, where `opened` is given, still the same opening of it."""
        found = self._streams.get(stream)
        return found is not None and opened in (None, found.opened)

    def hop_bytes(self, form: AudioFormat) -> int:
        """The most that one frame of this format may hold: one hop of all channels."""
        audio = self._manifest.audio
        return audio.hop_samples * form.rate_hz // audio.rate_hz * form.block_bytes

    def open(self, stream: str, form: AudioFormat, now_s: float, *, resume: Callable[[], None] | None = None) -> str:
        """Open a stream ahead of its first frame.

        Args:
            stream: its id.
            form: the format of all its frames.
            now_s: monotonic time (s).
            resume: makes it lossless: no window is skipped, `feed` says when to stop reading and this when to go on.

        Returns:
            the id of this opening, as its verdicts carry it.

        Raises:
            ProtocolError: the id is open already.
            OverloadError: `max_streams` are open.
        """
        if stream in self._streams:
            raise ProtocolError.of("stream", stream, "an id that is not open already")
        if len(self._streams) >= self._max_streams:
            raise OverloadError.of("stream", stream, f"at most {self._max_streams} open streams (streams.max_streams)")
        self._streams[stream] = opened = Stream(stream, form, self.hop_bytes(form), now_s, resume)
        self._opened += 1
        self._event(opened, "open", opened=opened.opened, **msgspec.structs.asdict(form))
        return opened.opened

    def feed(self, frame: Frame, now_s: float, *, transit_s: float | None = None, lossless: bool = False) -> bool:
        """Take one frame; a live stream that is not open is opened by it.

        Args:
            frame: at most one hop of audio.
            now_s: monotonic time of its reading (s).
            transit_s: from the sender's stamp to that reading (s), where there is a stamp.
            lossless: it comes from the reader that opened the stream with `resume`.

        Returns:
            False when a lossless stream is full: read no more until its `resume` is called.

        Raises:
            ProtocolError: the frame breaks the contract; nothing of it was taken.
            OverloadError: it would open one stream too many.
        """
        stream = self._streams.get(frame.stream)
        if stream is not None:
            again = self._begins_again(stream, frame)
            self._check(stream, frame, lossless, again)
            if again:
                self.close(frame.stream, "restart", now_s)
                stream = None
        if stream is None:
            _check_size(frame.payload, frame.format.block_bytes, self.hop_bytes(frame.format))
            self.open(frame.stream, frame.format, now_s)
            stream = self._streams[frame.stream]
        self._take_in(stream, frame, now_s, transit_s)
        if frame.end:
            self.close(frame.stream, "end", now_s)
        return not stream.full

    def pause(self, stream: str, now_s: float) -> None:
        """Drop the audio of a stream unseen until `resume`; its clock goes on.

        Raises:
            ProtocolError: it is not open.
        """
        self._set_paused(self._require(stream), now_s, paused=True)

    def resume(self, stream: str, now_s: float) -> None:
        """End a pause.

        Raises:
            ProtocolError: it is not open.
        """
        self._set_paused(self._require(stream), now_s, paused=False)

    def error(self, stream: str, message: str, now_s: float) -> None:
        """Report a peer's mistake on an open stream, at most once a second."""
        found = self._streams.get(stream)
        if found is not None and now_s - found.error_at_s >= ERROR_EVERY_S:
            found.error_at_s = now_s
            self._event(found, "error", message=message)

    def close(self, stream: str, reason: CloseReason, now_s: float) -> None:  # noqa: ARG002 - one signature for all
        """End a stream: what has arrived is still scored, then its `close` event follows.

        Raises:
            ProtocolError: it is not open.
        """
        closing = self._require(stream)
        del self._streams[stream]
        closing.reason = reason
        self._ending[closing.opened] = closing
        for track in closing.tracks:
            track.finish()
            self._queue(track)
        if closing.full and closing.resume is not None:
            closing.resume()  # its reader waits for room; let it find the stream closed
        self._settle_end(closing)

    def close_all(self, reason: CloseReason, now_s: float) -> None:
        """End every stream."""
        for stream in list(self._streams):
            self.close(stream, reason, now_s)

    def tick(self, now_s: float) -> None:
        """Close live streams that have sent nothing valid for the idle timeout."""
        for stream in list(self._streams.values()):
            # A lossless reader knows its connection's end, and may itself be the one that was told to wait.
            idle = stream.resume is None and not stream.paused
            if idle and now_s - stream.heard_at_s >= self._idle_timeout_s:
                self.close(stream.name, "idle", now_s)

    # -- windows ----------------------------------------------------------------------------------------------------

    def take(self, limit: int, *, reserve: bool = True) -> list[Job]:
        """Hand out the next batch, or a part of it: at most `limit` windows, one a track, the longest waiting first.

        Live windows go first; lossless ones get the places left over and at least one, so that neither starves. The
        last windows of streams that have ended wait behind the live ones too, and get one place in ENDED_SHARE.

        Args:
            limit: places.
            reserve: False where the batch has a lossless window already.
        """
        jobs = self._take_from(self._ended, self._owed_to_ended(limit))
        limit -= len(jobs)
        reserved = 1 if self._lossless and reserve and limit else 0
        if reserved and limit == 1 and self._live:
            # One place for two lines: they take turns.
            self._lossless_next = not self._lossless_next
            reserved = int(self._lossless_next)
        for line, places in ((self._live, limit - reserved), (self._lossless, limit), (self._ended, limit)):
            more = self._take_from(line, min(places, limit))
            limit -= len(more)
            jobs += more
        return jobs

    def settle(self, jobs: Sequence[Job], scores: Sequence[Score], now_s: float) -> None:
        """Take the scores of a batch back and emit its verdicts.

        Args:
            jobs: as `take` gave them.
            scores: one a job, in the same order.
            now_s: monotonic time (s).
        """
        for job, score in zip(jobs, scores, strict=True):
            self._windows += 1
            track: Track = job.track
            stream: Stream = track.stream
            before = track.tracker.standing.state
            verdict = track.settle(job, score, now_s, self._manifest.model_id)
            self._emit(verdict)
            if verdict.state != before:
                self._event(stream, "state", track.channel, verdict.end_s, **{"from": before, "to": verdict.state})
            self._queue(track)
            self._make_room(stream)
            self._settle_end(stream)

    @property
    def idle(self) -> bool:
        """True when no ended stream waits for its last windows."""
        return not self._ending

    def counts(self) -> Counts:
        """Totals for the heartbeat, the status and the metrics."""
        tracks = sum(len(stream.tracks) for stream in self._streams.values())
        return Counts(len(self._streams), tracks, self._windows, self._skipped, self._opened, len(self._ending))

    def status(self) -> list[dict[str, Any]]:
        """One dict for each open track, for people and scripts."""
        return [
            {"stream": stream.name, "opened": stream.opened, "paused": stream.paused, **track.status()}
            for stream in self._streams.values()
            for track in stream.tracks
        ]

    # -- inside -----------------------------------------------------------------------------------------------------

    def _require(self, stream: str) -> Stream:
        if stream not in self._streams:
            raise ProtocolError.of("stream", stream, "the id of an open stream")
        return self._streams[stream]

    def _check(self, stream: Stream, frame: Frame, lossless: bool, again: bool) -> None:
        """Refuse a frame that neither continues the open stream nor, with `again`, may begin it anew."""
        if lossless != (stream.resume is not None):
            raise ProtocolError.of("stream", frame.stream, "an id that is not open on another kind of connection")
        if again:
            # Perhaps in another format.
            _check_size(frame.payload, frame.format.block_bytes, self.hop_bytes(frame.format))
            return
        if frame.format is not stream.format and frame.format != stream.format:
            raise ProtocolError(
                f"format: {described(frame.format)}, expected {described(stream.format)} as in the first frame"
            )
        _check_size(frame.payload, stream.block_bytes, stream.hop_bytes)
        if not stream.tracks:
            return
        if frame.start is not None:
            ahead = frame.start - stream.end_sample
            if ahead < 0:
                raise ProtocolError.of("start", frame.start, f"{stream.end_sample} or more, or 0 to begin again")
            if ahead > MAX_GAP_S * stream.format.rate_hz:
                raise ProtocolError.of(
                    "start", frame.start, f"a gap of at most {MAX_GAP_S} s after {stream.end_sample}"
                )
        elif frame.seq is not None and stream.next_seq is not None and frame.seq < stream.next_seq:
            raise ProtocolError.of("seq", frame.seq, f"{stream.next_seq} or more, or 0 to begin again")

    @staticmethod
    def _begins_again(stream: Stream, frame: Frame) -> bool:
        first = frame.seq if frame.start is None else frame.start
        return first == 0 and stream.end_sample > 0

    def _take_in(self, stream: Stream, frame: Frame, now_s: float, transit_s: float | None) -> None:
        if not stream.tracks:
            self._begin(stream, frame.start or 0)
        stream.heard_at_s = now_s
        self._take_gap(stream, frame, now_s, transit_s)
        stream.next_seq = None if frame.seq is None else frame.seq + 1
        for track in stream.tracks:
            if stream.paused:
                track.append_silence(len(frame.payload) // stream.block_bytes, now_s, transit_s)
            else:
                track.append(_channel(frame.payload, stream.format, track.channel), now_s, transit_s)
            self._queue(track)
        if stream.resume is not None:
            stream.full = any(track.full for track in stream.tracks)

    def _begin(self, stream: Stream, origin_sample: int) -> None:
        manifest, form = self._manifest, stream.format
        timeline = Timeline.of(
            manifest, form, self._min_window_s, lossless=stream.resume is not None, adaptive=self._adaptive
        )
        for channel in range(form.channels):
            tracker = Tracker(manifest.decision, manifest.calibration, manifest.audio, self._prior_spoof)
            stream.tracks.append(Track(stream, channel, timeline, tracker, form, origin_sample))

    def _take_gap(self, stream: Stream, frame: Frame, now_s: float, transit_s: float | None) -> None:
        """Fill a gap of known length with silence; report one of unknown length."""
        at_s = stream.end_s
        if frame.start is not None:
            missing = frame.start - stream.end_sample
            if missing > 0:
                for track in stream.tracks:
                    track.gap(missing, now_s, transit_s)
                    self._queue(track)
                self._event(stream, "gap", at_s=at_s, seconds=missing / stream.format.rate_hz)
        elif frame.seq is not None and stream.next_seq is not None and frame.seq > stream.next_seq:
            self._event(stream, "gap", at_s=at_s, seconds=None, frames=frame.seq - stream.next_seq)

    def _set_paused(self, stream: Stream, now_s: float, *, paused: bool) -> None:
        stream.heard_at_s = now_s  # the idle clock starts anew when a pause ends
        if stream.paused != paused:
            stream.paused = paused
            self._event(stream, "paused" if paused else "resumed")

    def _queue(self, track: Track) -> None:
        """Put a track with a due window in line, once."""
        if not track.queued and not track.in_flight and track.has_due():
            track.queued = True
            self._line(track).append(track)
            self._wake()

    def _line(self, track: Track) -> deque[Track]:
        """Where a track stands in line."""
        if track.timeline.lossless:
            return self._lossless
        return self._live if track.stream.reason is None else self._ended

    def _owed_to_ended(self, limit: int) -> int:
        """How many of the next places go to ended tracks, whoever else waits."""
        if not self._ended:
            self._owed = 0.0
            return 0
        self._owed += limit * max(1 / ENDED_SHARE, len(self._ended) / ENDED_MOST)
        places = min(int(self._owed), limit)
        self._owed -= places
        return places

    def _take_from(self, line: deque[Track], limit: int) -> list[Job]:
        jobs: list[Job] = []
        while line and len(jobs) < limit:
            track = line.popleft()
            if (now := self._line(track)) is not line:
                now.append(track)  # its stream ended while it stood in line
                continue
            track.queued = False
            job = track.take()
            self._skipped += job.skipped
            jobs.append(job)
        return jobs

    @staticmethod
    def _make_room(stream: Stream) -> None:
        if stream.full and stream.resume is not None and not any(track.full for track in stream.tracks):
            stream.full = False
            stream.resume()

    def _settle_end(self, stream: Stream) -> None:
        """Say goodbye once the last window of an ended stream has its verdict."""
        if stream.reason is None or any(track.in_flight or track.has_due() for track in stream.tracks):
            return
        if self._ending.pop(stream.opened, None) is None:
            return
        tracks = [track.status() for track in stream.tracks]
        states = {track["state"] for track in tracks}
        self._event(
            stream,
            "close",
            reason=stream.reason,
            opened=stream.opened,
            verdict=next((state for state in WORST_FIRST if state in states), "listening"),
            seconds=max((track["seconds"] for track in tracks), default=0.0),
            windows=sum(track["windows"] for track in tracks),
            speech=round(sum(track["total_speech_s"] for track in tracks), 3),
            skipped=sum(track["skipped"] for track in tracks),
            channels=tracks,
        )
        for track in stream.tracks:
            track.wipe()

    def _event(
        self,
        stream: Stream,
        kind: EventType,
        channel: int | None = None,
        at_s: float | None = None,
        **detail: Any,
    ) -> None:
        self._emit(Event(kind, stream.name, channel, stream.end_s if at_s is None else at_s, detail))


def described(form: AudioFormat) -> str:
    """A format as people write it: `8000 Hz mulaw, 1 channel(s)`."""
    return f"{form.rate_hz} Hz {form.encoding}, {form.channels} channel(s)"


def _check_size(payload: bytes, block_bytes: int, most_bytes: int) -> None:
    """Refuse half samples, and more than a hop at once."""
    if len(payload) % block_bytes:
        raise ProtocolError.of("payload bytes", len(payload), f"a multiple of {block_bytes}: whole samples")
    if len(payload) > most_bytes:
        raise ProtocolError.of("payload bytes", len(payload), f"at most {most_bytes}: one hop of audio")


def _channel(payload: bytes, form: AudioFormat, channel: int) -> bytes:
    """Pick one channel's samples out of an interleaved payload."""
    if form.channels == 1:
        return payload
    samples = np.frombuffer(payload, f"V{form.sample_bytes}").reshape(-1, form.channels)
    return samples[:, channel].tobytes()
