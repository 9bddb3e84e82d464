"""The engine: streams and their tracks, which window is due, batches, and the settling of scores.

Synchronous and without a clock of its own: time comes in as `now_s`. It belongs to one owner (the daemon's loop, a
replay, a test), takes frames, hands out batches of windows and takes their scores back; what it has to say goes through
`emit`.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

from streamdet.bundle import Manifest
from streamdet.errors import ConfigError, OverloadError, ProtocolError
from streamdet.line import Line
from streamdet.records import AudioFormat, CloseReason, Event, EventType, Frame, Score, State, Verdict
from streamdet.stream import ERROR_EVERY_S, Stream, append_channels, check_size
from streamdet.track import Job, Timeline, Track
from streamdet.verdict import Tracker

Emit = Callable[[Verdict | Event], None]

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
    paused: int = 0
    """Open streams whose audio is dropped unseen."""


class Engine:
    """All tracks of the daemon."""

    def __init__(
        self,
        manifest: Manifest,
        emit: Emit,
        *,
        prior_spoof: float | None = None,
        idle_timeout_s: float = 10.0,
        stalled_after_s: float = 2.0,
        max_streams: int = 1000,
        streams_per_client: int = 1_000_000,
        ahead_s: float = math.inf,
        min_window_s: float = 1.0,
        adaptive: bool = False,
        wake: Callable[[], None] = lambda: None,
    ) -> None:
        """Serve streams with the windows and thresholds of `manifest`; `wake` is called when a window becomes due.

        Raises:
            ConfigError: an adaptive hop for a block bundle.
        """
        self._emit = emit
        self._streams_per_client = streams_per_client
        self._ahead_s = ahead_s
        self._wake = wake
        self._set(manifest, prior_spoof, idle_timeout_s, stalled_after_s, max_streams, min_window_s, adaptive)
        self._streams: dict[str, Stream] = {}
        self._ending: dict[str, Stream] = {}  # by `opened`: a name may be open again while its last call ends
        self._line = Line()
        self._keeps = False
        self._windows = self._skipped = self._opened = 0

    @property
    def model_id(self) -> str:
        """Bundle name and the first 12 hex digits of its hash."""
        return self._model_id

    def _set(
        self,
        manifest: Manifest,
        prior_spoof: float | None,
        idle_timeout_s: float,
        stalled_after_s: float,
        max_streams: int,
        min_window_s: float,
        adaptive: bool,
    ) -> None:
        check_hop(manifest, adaptive=adaptive)
        self._manifest, self._model_id = manifest, manifest.model_id
        self._prior_spoof = prior_spoof
        self._idle_timeout_s, self._stalled_after_s = idle_timeout_s, stalled_after_s
        self._max_streams = max_streams
        self._min_window_s = min_window_s
        self._adaptive = adaptive

    def change(
        self,
        manifest: Manifest,
        now_s: float,
        *,
        prior_spoof: float | None,
        idle_timeout_s: float,
        stalled_after_s: float,
        max_streams: int,
        min_window_s: float,
        adaptive: bool,
    ) -> None:
        """Go on with another bundle and other settings; windows that were taken are settled as they were cut.

        Tracks keep their clock, `seq`, `opened`, state and audio. What they remember of the old model is forgotten.

        Raises:
            ConfigError: an adaptive hop for a block bundle; nothing has changed.
        """
        same_model = manifest.model_id == self._model_id
        self._set(manifest, prior_spoof, idle_timeout_s, stalled_after_s, max_streams, min_window_s, adaptive)
        waiting = self._line.clear()
        for stream in (*self._streams.values(), *self._ending.values()):
            stream.hop_bytes = self.hop_bytes(stream.format)
            timeline = self._timeline(stream)
            for track in stream.tracks:
                track.go_on_with(timeline, self._tracker(track.tracker), same_model=same_model)
        # On another grid fewer windows may be due, or more.
        for track in waiting:
            self._queue(track)
        for stream in (*self._streams.values(), *list(self._ending.values())):
            for track in stream.tracks:
                self._go_on(track, now_s)

    # -- streams ----------------------------------------------------------------------------------------------------

    def is_open(self, stream: str, opened: str | None = None) -> bool:
        """Whether a stream of this id is open, and, where `opened` is given, still the same opening of it."""
        found = self._streams.get(stream)
        return found is not None and opened in (None, found.opened)

    def is_paused(self, stream: str) -> bool:
        """Whether a stream of this id is open and its audio is dropped."""
        return stream in self._streams and self._streams[stream].paused

    def hop_bytes(self, form: AudioFormat) -> int:
        """The most that one frame of this format may hold: one hop of all channels."""
        audio = self._manifest.audio
        return audio.hop_samples * form.rate_hz // audio.rate_hz * form.block_bytes

    def open(
        self,
        stream: str,
        form: AudioFormat,
        now_s: float,
        *,
        resume: Callable[[], None] | None = None,
        start: int | None = 0,
        owner: str | None = None,
    ) -> str:
        """Open a stream ahead of its first frame.

        Args:
            stream: its id.
            form: the format of all its frames.
            now_s: monotonic time (s).
            resume: makes it lossless: no window is skipped, `feed` says when to stop reading and this when to go on.
            start: index of the first sample to come since the stream's start; more than 0 where another daemon has
                heard what was before, None where nobody says.
            owner: the client that it belongs to, where clients are known.

        Returns:
            the id of this opening, as its verdicts carry it.

        Raises:
            ProtocolError: the id is open already.
            OverloadError: `max_streams` are open, or `streams_per_client` of its owner.
        """
        if stream in self._streams:
            raise ProtocolError.of("stream", stream, "an id that is not open already")
        if len(self._streams) >= self._max_streams:
            raise OverloadError.of("stream", stream, f"at most {self._max_streams} open streams (streams.max_streams)")
        if owner is not None and self._owned_by(owner) >= self._streams_per_client:
            most = f"at most {self._streams_per_client} open streams of a client (limits.streams_per_client)"
            raise OverloadError.of("stream", stream, most)
        opened = Stream(stream, form, self.hop_bytes(form), now_s, resume, start or 0, owner)
        self._streams[stream] = opened
        self._opened += 1
        from_s = None if start is None else start / form.rate_hz
        self._event(
            opened,
            "open",
            at_s=from_s or 0.0,
            opened=opened.opened,
            **msgspec.structs.asdict(form),
            continued_from_s=from_s,
        )
        return opened.opened

    def feed(
        self,
        frame: Frame,
        now_s: float,
        *,
        transit_s: float | None = None,
        lossless: bool = False,
        owner: str | None = None,
    ) -> bool:
        """Take one frame; a live stream that is not open is opened by it.

        Args:
            frame: at most one hop of audio.
            now_s: monotonic time of its reading (s).
            transit_s: from the sender's stamp to that reading (s), where there is a stamp.
            lossless: it comes from the reader that opened the stream with `resume`.
            owner: the client that sent it, where clients are known.

        Returns:
            False when a lossless stream is full: read no more until its `resume` is called.

        Raises:
            ProtocolError: the frame breaks the contract; nothing of it was taken.
            OverloadError: it would open one stream too many.
        """
        stream = self._streams.get(frame.stream)
        if stream is not None:
            if stream.owner != owner:
                raise ProtocolError.of("stream", frame.stream, "an id that is not open for another client")
            if stream.begins_again(frame):  # perhaps in another format
                stream.check_kind(frame, lossless=lossless)
                check_size(frame.payload, frame.format.block_bytes, self.hop_bytes(frame.format))
                self.close(frame.stream, "restart", now_s)
                stream = None
            else:
                stream.check(frame, lossless=lossless)
                if not lossless:
                    stream.check_pace(now_s, self._ahead_s)
        if stream is None:
            check_size(frame.payload, frame.format.block_bytes, self.hop_bytes(frame.format))
            self.open(frame.stream, frame.format, now_s, start=_begins_at(frame), owner=owner)
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

    def error(self, stream: str, message: str, now_s: float, *, owner: str | None = None) -> None:
        """Report a mistake of a stream's owner on it if it is open, at most once a second."""
        found = self._streams.get(stream)
        if found is not None and found.owner == owner and now_s - found.error_at_s >= ERROR_EVERY_S:
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
        """Tell of streams whose frames are missed, and close live ones that have sent nothing valid for too long."""
        for stream in list(self._streams.values()):
            silent_s = now_s - stream.heard_at_s
            if stream.paused or stream.full:  # a reader that was told to wait
                continue
            # A lossless reader knows its connection's end.
            if stream.resume is None and silent_s >= self._idle_timeout_s:
                self.close(stream.name, "idle", now_s)
            elif silent_s >= self._stalled_after_s and not stream.stalled:
                stream.stalled = True
                self._event(stream, "stalled", seconds=round(silent_s, 3))

    # -- windows ----------------------------------------------------------------------------------------------------

    def take(self, limit: int, *, reserve: bool = True) -> list[Job]:
        """Hand out the next batch, or a part of it: at most `limit` windows, one a track, as `Line` orders them.

        Args:
            limit: places.
            reserve: False where the batch has a lossless window already.
        """
        jobs = [track.take() for track in self._line.take(limit, reserve=reserve)]
        self._skipped += sum(job.skipped for job in jobs)
        return jobs

    def settle(self, jobs: Sequence[Job], scores: Sequence[Score], now_s: float, *, model: str | None = None) -> None:
        """Take the scores of a batch back and emit its verdicts.

        Args:
            jobs: as `take` gave them.
            scores: one a job, in the same order.
            now_s: monotonic time (s).
            model: what scored, where it is not the bundle in force.
        """
        for job, score in zip(jobs, scores, strict=True):
            track: Track = job.track
            stream: Stream = track.stream
            if not track.in_flight:
                continue  # it was given up meanwhile
            self._windows += 1
            before = track.tracker.standing.state
            verdict = track.settle(job, score, now_s, model or self._model_id)
            self._emit(verdict)
            if verdict.state != before:
                self._event(stream, "state", track.channel, verdict.end_s, **{"from": before, "to": verdict.state})
            self._go_on(track, now_s)

    def drop(self, jobs: Sequence[Job], now_s: float) -> None:
        """Give up windows whose run failed: they count as skipped, their tracks go on.

        Args:
            jobs: as `take` gave them.
            now_s: monotonic time (s).
        """
        for job in jobs:
            if job.track.in_flight:
                self._skipped += 1
                job.track.drop(job)
                self._go_on(job.track, now_s)

    def keep_windows(self) -> None:
        """From here on every window of tracks that are not behind is scored: the end comes, and they are few."""
        self._keeps = True
        for stream in self._streams.values():
            for track in stream.tracks:
                track.keep()
                self._queue(track)

    def abandon(self, reason: CloseReason, now_s: float) -> None:
        """End every stream at once, since nothing will be scored any more; what still waited counts as skipped."""
        self.close_all(reason, now_s)
        self._line = Line()
        for stream in list(self._ending.values()):
            self._skipped += sum(track.abandon() for track in stream.tracks)
            self._settle_end(stream)

    @property
    def idle(self) -> bool:
        """True when no ended stream waits for its last windows."""
        return not self._ending

    def counts(self) -> Counts:
        """Totals for the heartbeat, the status and the metrics."""
        tracks = sum(len(stream.tracks) for stream in self._streams.values())
        paused = sum(stream.paused for stream in self._streams.values())
        return Counts(len(self._streams), tracks, self._windows, self._skipped, self._opened, len(self._ending), paused)

    def status(self) -> list[dict[str, Any]]:
        """One dict for each open track, for people and scripts."""
        return [
            {
                "stream": stream.name,
                "opened": stream.opened,
                "paused": stream.paused,
                "stalled": stream.stalled,
                **track.status(),
            }
            for stream in self._streams.values()
            for track in stream.tracks
        ]

    # -- inside -----------------------------------------------------------------------------------------------------

    def _require(self, stream: str) -> Stream:
        if stream not in self._streams:
            raise ProtocolError.of("stream", stream, "the id of an open stream")
        return self._streams[stream]

    def _owned_by(self, owner: str) -> int:
        return sum(stream.owner == owner for stream in self._streams.values())

    def _take_in(self, stream: Stream, frame: Frame, now_s: float, transit_s: float | None) -> None:
        if not stream.tracks:
            self._begin(stream, stream.start_sample)
        if stream.stalled:
            stream.stalled = False
            self._event(stream, "resumed", stalled_s=round(now_s - stream.heard_at_s, 3))
        stream.heard_at_s = now_s
        samples = len(frame.payload) // stream.block_bytes
        stream.played_s = max(stream.played_s, now_s) + samples / stream.format.rate_hz
        self._take_gap(stream, frame, now_s, transit_s)
        stream.next_seq = None if frame.seq is None else frame.seq + 1
        if not stream.paused:
            append_channels(stream.tracks, frame, now_s, transit_s)
        for track in stream.tracks:
            if stream.paused:
                track.append_silence(samples, now_s, transit_s)
            self._queue(track)
        if stream.resume is not None:
            stream.full = any(track.full for track in stream.tracks)

    def _begin(self, stream: Stream, origin_sample: int) -> None:
        form, timeline = stream.format, self._timeline(stream)
        for channel in range(form.channels):
            stream.tracks.append(Track(stream, channel, timeline, self._tracker(), form, origin_sample))
            if self._keeps:
                stream.tracks[-1].keep()

    def _timeline(self, stream: Stream) -> Timeline:
        return Timeline.of(
            self._manifest, stream.format, self._min_window_s, lossless=stream.lossless, adaptive=self._adaptive
        )

    def _tracker(self, old: Tracker | None = None) -> Tracker:
        make = Tracker if old is None else old.continued
        manifest = self._manifest
        return make(manifest.decision, manifest.calibration, manifest.audio, self._prior_spoof)

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
            stream.paused, stream.stalled = paused, False
            self._event(stream, "paused" if paused else "resumed")

    def _queue(self, track: Track) -> None:
        """Put a track with a due window in line, once."""
        if not track.queued and not track.in_flight and track.has_due():
            self._line.join(track)
            self._wake()

    def _go_on(self, track: Track, now_s: float) -> None:
        """See what a track whose window came back wants next."""
        stream: Stream = track.stream
        self._queue(track)
        self._make_room(stream, now_s)
        self._settle_end(stream)

    @staticmethod
    def _make_room(stream: Stream, now_s: float) -> None:
        if stream.full and stream.resume is not None and not any(track.full for track in stream.tracks):
            stream.full = False
            stream.heard_at_s = now_s  # until now it was not to send anything
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
        # They know their stream, and it knows them: only the garbage collector would find them, and it is in no hurry
        # with so few objects, whatever rings they hold. 10,000 calls in four minutes left 190 MB behind.
        stream.tracks.clear()

    def _event(
        self,
        stream: Stream,
        kind: EventType,
        channel: int | None = None,
        at_s: float | None = None,
        **detail: Any,
    ) -> None:
        self._emit(Event(kind, stream.name, channel, stream.end_s if at_s is None else at_s, detail))


def check_hop(manifest: Manifest, *, adaptive: bool) -> None:
    """Refuse what cannot go together.

    Raises:
        ConfigError: an adaptive hop for a block bundle.
    """
    if adaptive and manifest.blocks:
        raise ConfigError.of(
            "scoring.hop", "adaptive", "fixed, or a windowed bundle: the blocks of this one lie on its hops"
        )


def _begins_at(frame: Frame) -> int | None:
    """Index of a frame's first sample since its stream's start; None where it does not say."""
    if frame.start is not None:
        return frame.start
    return 0 if frame.seq == 0 else None
