"""What passes between the parts: frames in, windows and scores inside, verdicts and events out.

Every record is frozen. Sample counts are per channel and at the stream's own rate unless the name says otherwise; they
are the only clock of the audio. `read_at_s` is monotonic time and serves to measure lag, nothing else.
"""

from typing import Any, Final, Literal, get_args

import msgspec
import numpy as np
from numpy.typing import NDArray

Encoding = Literal["s16le", "f32le", "mulaw", "alaw"]
State = Literal["listening", "bonafide", "uncertain", "spoof"]
EventType = Literal["open", "state", "gap", "paused", "resumed", "stalled", "error", "close"]
NoticeType = Literal["reload", "failure"]
CloseReason = Literal["end", "idle", "drain", "disconnect", "restart"]

ENCODINGS: Final[tuple[Encoding, ...]] = get_args(Encoding)
SAMPLE_BYTES: Final[dict[Encoding, int]] = {"s16le": 2, "f32le": 4, "mulaw": 1, "alaw": 1}

# Telephony (8, 16 kHz), WebRTC (48 kHz) and what sound cards give; anything else is more likely a mistake.
RATES_HZ: Final = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)
# Two legs are common, conference bridges stop at 8; more is a wrong header.
MAX_CHANNELS: Final = 8

Sums = NDArray[np.float32]
"""Pooling sums of one block, `(2 + 2 D,)`: docs/bundle.md has them. Never written to."""


Payload = bytes | bytearray | memoryview
"""Audio on its way into a ring: a view of whatever memory it came in, which is overwritten once it was fed."""


class AudioFormat(msgspec.Struct, frozen=True):
    """How a stream's bytes are to be read; fixed by its first frame."""

    rate_hz: int
    """Samples a second of one channel, one of RATES_HZ."""
    encoding: Encoding
    channels: int = 1
    """1 to MAX_CHANNELS, interleaved."""

    @property
    def sample_bytes(self) -> int:
        """Bytes of one sample of one channel."""
        return SAMPLE_BYTES[self.encoding]

    @property
    def block_bytes(self) -> int:
        """Bytes of one sample of all channels: payloads are whole multiples of this."""
        return self.sample_bytes * self.channels


class Frame(msgspec.Struct, frozen=True):
    """One message of audio, as any transport delivers it."""

    stream: str
    """Stream id: 1 to 128 bytes of printable UTF-8 without spaces."""
    format: AudioFormat
    payload: Payload
    """Whole samples of all channels, interleaved."""
    seq: int | None = None
    """Counts frames of this stream from 0."""
    start: int | None = None
    """Index of the first sample since the start of the stream (samples a channel)."""
    sent_at_s: float | None = None
    """The sender's Unix time (s)."""
    end: bool = False
    """Closes the stream after its payload."""


class Window(msgspec.Struct, frozen=True):
    """The bytes to be scored at once: a copy, so that a scoring thread can have it."""

    format: AudioFormat
    data: bytes
    """One channel, raw, at most one window long; shorter when the track is (it will be repeated to fill one).

    Of a window in blocks, with what the first of them hears before the window, as far as the track has it.
    """
    start_sample: int
    end_sample: int
    """Audio time of its last sample + 1."""
    read_at_s: float
    """Monotonic time at which the daemon read the window's last byte."""
    transit_s: float | None = None
    """From the sender's stamp to that reading (s)."""
    block_ends: tuple[int, ...] = ()
    """Audio time of the end of each of its blocks, the oldest first; none where windows are scored whole."""
    sums: tuple[Sums | None, ...] = ()
    """For each block what its track remembers: it need not be encoded again. Nothing else may follow from them."""


class Score(msgspec.Struct, frozen=True):
    """What the model says of one window."""

    llr: float | None
    """Calibrated natural-log likelihood ratio, higher = more bona fide; None = not enough speech to score."""
    speech_s: float
    """Speech in the window (s)."""
    sums: tuple[Sums | None, ...] = ()
    """For each of the window's blocks, for its track to remember; None for a block that was left out."""


class Verdict(msgspec.Struct, frozen=True, omit_defaults=False, tag_field="type", tag="verdict"):
    """A track's verdict after one window: the `v.*` message. docs/wire.md has the same table for users."""

    stream: str
    channel: int
    opened: str
    """Id of this opening of the stream; `seq` counts within it."""
    seq: int
    """Counts this track's verdicts from 0, without holes."""
    start_s: float
    end_s: float
    """The window in audio time (s)."""
    speech_s: float
    """Speech in this window (s)."""
    total_speech_s: float
    """Speech in the track so far (s)."""
    llr: float | None
    """The window's calibrated LLR (nat); None without enough speech."""
    rolling_llr: float
    """Evidence of the last `rolling_s` seconds (nat)."""
    p_spoof: float | None
    """P(spoof) at the configured prior; None while listening."""
    state: State
    state_since_s: float
    """Audio time at which this state began (s)."""
    skipped: int
    """Windows of this track skipped since the last verdict because scoring was behind."""
    lag_ms: float
    transit_ms: float | None
    model: str
    """Bundle name and the first 12 hex digits of its hash."""
    snapshot: bool = False
    """True for a repeat to a new subscriber."""


class Event(msgspec.Struct, frozen=True):
    """Something that happened to a stream: the `e.*` message."""

    type: EventType
    stream: str
    channel: int | None
    """None when it concerns all channels."""
    at_s: float
    """Audio time (s)."""
    detail: dict[str, Any]


class Notice(msgspec.Struct, frozen=True):
    """Something that happened to the daemon itself: the `daemon` message."""

    type: NoticeType
    ok: bool
    model: str
    """What scores from here on; of a failure, what scored."""
    before: str = msgspec.field(name="from")
    """What scored until then."""
    error: str | None = None
    """Why not, where it is not `ok`."""
    changed: tuple[str, ...] = ()
    """Config keys whose new values hold from here on."""
    restart: tuple[str, ...] = ()
    """Config keys whose new values wait for the next start."""


class Heartbeat(msgspec.Struct, frozen=True, tag_field="type", tag="hb"):
    """Once a second, whatever else happens: the `hb` message."""

    epoch: str
    """Changes with each start of the daemon."""
    seq: int
    streams: int
    tracks: int
    windows: int
    """Windows scored or gated since the start."""
    skipped: int
    """Windows skipped since the start."""
    lag_ms_p99: float | None
    """Over the last second's verdicts; None when there was none."""
    overload: bool
    """True when windows were skipped in the last second."""
