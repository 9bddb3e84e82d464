"""One call: its format, its tracks, the bookkeeping of its frames, and which frames it takes."""

import secrets
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np

from streamdet.errors import ProtocolError
from streamdet.records import AudioFormat, CloseReason, Frame, Payload
from streamdet.track import Track

# A longer silence than this is not a gap in a call but another call, or a wrong counter.
MAX_GAP_S: Final = 60
# A sender with a bug repeats it fifty times a second; one line a second tells as much.
ERROR_EVERY_S: Final = 1.0


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
        "owner",
        "paused",
        "played_s",
        "reason",
        "resume",
        "stalled",
        "start_sample",
        "tracks",
    )

    def __init__(
        self,
        name: str,
        form: AudioFormat,
        hop_bytes: int,
        now_s: float,
        resume: Callable[[], None] | None,
        start_sample: int = 0,
        owner: str | None = None,
    ) -> None:
        self.name: Final = name
        self.format: Final = form
        self.block_bytes: Final = form.block_bytes
        """Payloads are whole multiples of this..."""
        self.hop_bytes = hop_bytes
        """...and no longer than this."""
        self.resume: Final = resume
        """Set for a lossless stream: called when there is room again."""
        self.start_sample: Final = start_sample
        """Where the stream stood when this daemon came to it."""
        self.owner: Final = owner
        """The client that opened it, where clients are known: nobody else may feed it."""
        self.played_s = now_s
        """When its audio would be over if it were played as it comes (monotonic s)."""
        self.opened: Final = secrets.token_hex(6)
        self.tracks: list[Track] = []
        """Empty until the first frame has set the clock."""
        self.next_seq: int | None = None
        self.heard_at_s = now_s
        self.error_at_s = -ERROR_EVERY_S
        self.paused = False
        self.stalled = False
        """Whether frames are missed, and it was told."""
        self.full = False
        """A lossless stream whose reader was told to stop."""
        self.reason: CloseReason | None = None
        """Set once the stream has ended; its last windows may still be on their way."""

    @property
    def end_sample(self) -> int:
        """The stream's clock (samples a channel)."""
        return self.tracks[0].ring.end_sample if self.tracks else self.start_sample

    @property
    def end_s(self) -> float:
        """The stream's clock (s)."""
        return self.end_sample / self.format.rate_hz

    @property
    def lossless(self) -> bool:
        """Whether its reader waits instead of skipping windows."""
        return self.resume is not None

    def begins_again(self, frame: Frame) -> bool:
        """Whether a frame is its sender's first, though the stream is under way."""
        first = frame.seq if frame.start is None else frame.start
        return first == 0 and self.end_sample > 0

    def check(self, frame: Frame, *, lossless: bool) -> None:
        """Refuse a frame that does not continue this stream.

        Raises:
            ProtocolError: the line names the field, the value and what was expected.
        """
        self.check_kind(frame, lossless=lossless)
        if frame.format is not self.format and frame.format != self.format:
            raise ProtocolError(
                f"format: {described(frame.format)}, expected {described(self.format)} as in the first frame"
            )
        check_size(frame.payload, self.block_bytes, self.hop_bytes)
        if not self.tracks:
            return
        if frame.start is not None:
            ahead = frame.start - self.end_sample
            if ahead < 0:
                raise ProtocolError.of("start", frame.start, f"{self.end_sample} or more, or 0 to begin again")
            if ahead > MAX_GAP_S * self.format.rate_hz:
                raise ProtocolError.of("start", frame.start, f"a gap of at most {MAX_GAP_S} s after {self.end_sample}")
        elif frame.seq is not None and self.next_seq is not None and frame.seq < self.next_seq:
            raise ProtocolError.of("seq", frame.seq, f"{self.next_seq} or more, or 0 to begin again")

    def check_pace(self, now_s: float, ahead_s: float) -> None:
        """Refuse live audio that is far ahead of the clock; what a stall held up may come all at once.

        Only what comes now counts, played from now on: an hour of silence is no credit for an hour at once.
        """
        if self.played_s - now_s > ahead_s:
            expected = f"at most {ahead_s:g} (limits.ahead_s): what is no live call goes over raw PCM"
            raise ProtocolError.of("seconds ahead of real time", round(self.played_s - now_s, 1), expected)

    def check_kind(self, frame: Frame, *, lossless: bool) -> None:
        """Refuse a frame that comes another way than the stream's others."""
        if lossless != (self.resume is not None):  # fifty thousand a second come this way
            raise ProtocolError.of("stream", frame.stream, "an id that is not open on another kind of connection")


def described(form: AudioFormat) -> str:
    """A format as people write it: `8000 Hz mulaw, 1 channel(s)`."""
    return f"{form.rate_hz} Hz {form.encoding}, {form.channels} channel(s)"


def check_size(payload: Payload, block_bytes: int, most_bytes: int) -> None:
    """Refuse half samples, and more than a hop at once."""
    if len(payload) % block_bytes:
        raise ProtocolError.of("payload bytes", len(payload), f"a multiple of {block_bytes}: whole samples")
    if len(payload) > most_bytes:
        raise ProtocolError.of("payload bytes", len(payload), f"at most {most_bytes}: one hop of audio")


def append_channels(tracks: Sequence[Track], frame: Frame, now_s: float, transit_s: float | None) -> None:
    """Give each track its channel's samples of an interleaved payload, and keep no copy of them elsewhere."""
    form = frame.format
    if form.channels == 1:
        tracks[0].append(frame.payload, now_s, transit_s)
        return
    samples = np.frombuffer(frame.payload, f"V{form.sample_bytes}").reshape(-1, form.channels)
    own = bytearray(len(frame.payload) // form.channels)
    one = np.frombuffer(own, samples.dtype)
    for track in tracks:
        one[:] = samples[:, track.channel]
        track.append(own, now_s, transit_s)
    own[:] = bytes(len(own))
