"""Raw PCM on a connection: an optional STREAMDET line, an optional WAV header, then samples until the end.

Bytes go in as they come, whole samples come out. As in h11, reading has three outcomes: something, an error, or "need
more data" (None, or no bytes).
"""

from typing import Any, Final

import msgspec

from streamdet.errors import ProtocolError
from streamdet.records import AudioFormat, Encoding
from streamdet.wire.frames import COUNT_MAX, HEADER_MAX_BYTES, audio_format, integer, parse_fields, parse_stream

GREETING: Final = b"STREAMDET "
RIFF: Final = b"RIFF"
# Broadcast WAV puts a few KiB of production notes before the samples; more is not a header.
WAV_HEAD_MAX_BYTES: Final = 64 << 10

# WAVE_FORMAT tags (RFC 2361) with the bits a sample that go with them; 0xFFFE names one of these in its sub-format.
_WAV_ENCODINGS: Final[dict[tuple[int, int], Encoding]] = {
    (1, 16): "s16le",
    (3, 32): "f32le",
    (6, 8): "alaw",
    (7, 8): "mulaw",
}
_EXTENSIBLE: Final = 0xFFFE
_ENDLESS: Final = (0, 0xFFFFFFFF)


class Opening(msgspec.Struct, frozen=True):
    """What the head of a connection says."""

    stream: str | None
    """None where the peer gave no id."""
    format: AudioFormat
    start: int = 0
    """Index of the first sample since the stream's start: where an earlier connection left off."""
    answer: bool = False
    """Whether the peer wants to be told when the stream is open."""


class PcmParser:
    """The bytes of one connection."""

    def __init__(self, form: AudioFormat) -> None:
        """Expect `form` unless the peer says otherwise."""
        self._form = form
        self._stream: str | None = None
        self._answer = False
        self.token: str | None = None
        """Once there is an opening, what the peer says to be let in; not part of it, so that nobody shows it."""
        self._buffer = bytearray()
        self._start = 0
        self._greeted = False
        self._wav = _WavHead()
        self._opening: Opening | None = None
        self._left: int | None = None
        """Bytes of samples to come; None = until the end."""

    def feed(self, data: bytes | memoryview) -> None:
        """Take what was read."""
        self._buffer += data

    @property
    def begun(self) -> bool:
        """Whether anything has come."""
        return bool(self._buffer) or self._greeted or self._opening is not None

    def opening(self, *, ended: bool = False) -> Opening | None:
        """Read the head.

        Args:
            ended: nothing more will come, so a beginning that might have become a header is audio.

        Returns:
            None as long as more data is needed.

        Raises:
            ProtocolError: a STREAMDET line or WAV header that is none, or of audio that is not taken.
        """
        if self._opening is None and self._greeting_done(ended) and self._wav_done(ended):
            self._opening = Opening(self._stream, self._form, self._start, self._answer)
        return self._opening

    def samples(self, most_bytes: int) -> bytearray:
        """Return at most `most_bytes` of whole samples of all channels; none when more data is needed.

        What follows a WAV file's samples (tags, other data) is dropped.
        """
        block = self._form.block_bytes
        ready = len(self._buffer) if self._left is None else min(len(self._buffer), self._left)
        take = min(ready, most_bytes) // block * block
        data = self._buffer[:take]
        self._buffer[:take] = bytes(take)  # or what leaves would stay in this memory until that is used again
        del self._buffer[:take]
        if self._left is not None:
            self._left -= take
            if self._left < block:
                self._buffer.clear()
                self._left = 0
        return data

    def finish(self) -> None:
        """Check that the connection ended where it may, after `samples` has given all it has.

        Raises:
            ProtocolError: in the middle of a sample.
        """
        block = self._form.block_bytes
        if self._buffer:
            raise ProtocolError(f"stream ends after {len(self._buffer)} bytes of a sample, expected {block}")

    def _greeting_done(self, ended: bool) -> bool:
        if self._greeted or not _may_begin(self._buffer, GREETING, ended):
            return True
        line, newline, _ = self._buffer[: HEADER_MAX_BYTES + 1].partition(b"\n")
        if newline:
            self._greet(bytes(line))
            del self._buffer[: len(line) + 1]
            return True
        if len(line) > HEADER_MAX_BYTES or ended:
            raise ProtocolError.of("STREAMDET line bytes", len(line), f"at most {HEADER_MAX_BYTES}, and a newline")
        return False

    def _greet(self, line: bytes) -> None:
        fields = _fields(line.removeprefix(GREETING))
        self.token = fields.get("token")
        if not isinstance(self.token, str | None):
            self.token = None
            raise ProtocolError("token: (not shown), expected a string")
        name = fields.get("stream")
        if name is not None:
            if not isinstance(name, str):
                raise ProtocolError(f"stream: {type(name).__name__}, expected a string")
            self._stream = parse_stream(name.encode())
        if not isinstance(fields.get("answer", False), bool):
            raise ProtocolError.of("answer", fields["answer"], "true or false")
        self._answer = fields.get("answer", False)
        self._form = audio_format(fields, self._form)
        self._start = integer(fields, "start", 0, COUNT_MAX) or 0
        self._greeted = True

    def _wav_done(self, ended: bool) -> bool:
        if not _may_begin(self._buffer, RIFF, ended):
            return True
        head = self._wav.read(self._buffer)
        read_bytes = len(self._buffer) if head is None else head[1]
        if read_bytes > WAV_HEAD_MAX_BYTES or (head is None and ended):
            raise ProtocolError.of("WAV header bytes", read_bytes, f"a data chunk within {WAV_HEAD_MAX_BYTES}")
        if head is None:
            return False
        self._form, size, length = head
        self._left = None if length in _ENDLESS else length
        del self._buffer[:size]
        return True


def _fields(data: bytes) -> dict[str, Any]:
    """Read the JSON of a STREAMDET line; what holds a token is not repeated in the error."""
    try:
        return parse_fields(data, "STREAMDET line")
    except ProtocolError:
        if b"token" in data:
            raise ProtocolError("STREAMDET line: (not shown, for its token), expected a JSON object") from None
        raise


def _may_begin(buffer: bytearray, word: bytes, ended: bool) -> bool:
    """Whether the buffer begins with `word`, or may still come to."""
    if len(buffer) >= len(word) or ended:
        return buffer.startswith(word)
    return word.startswith(buffer)


class _WavHead:
    """A WAV header on its way in.

    It remembers how far it has read. A header of 8,000 empty chunks that comes byte by byte would otherwise be walked
    through 65,000 times: minutes of the loop's time for 64 KiB.
    """

    def __init__(self) -> None:
        self._at = 0
        """Where the next chunk begins; 0 = not even the form is known."""
        self._form: AudioFormat | None = None

    def read(self, data: bytearray) -> tuple[AudioFormat, int, int] | None:
        """Read on: (format, bytes before the samples, bytes of samples); None = need more data.

        Args:
            data: all bytes so far.

        Raises:
            ProtocolError: it is no WAV header, or one of audio that is not taken.
        """
        if self._at == 0:
            if len(data) < 12:
                return None
            if data[8:12] != b"WAVE":
                raise ProtocolError.of("WAV form", bytes(data[8:12]), "WAVE after RIFF")
            self._at = 12
        while len(data) >= self._at + 8:
            begin = self._at + 8
            kind, length = bytes(data[self._at : begin - 4]), int.from_bytes(data[begin - 4 : begin], "little")
            if kind == b"data":
                if self._form is None:
                    raise ProtocolError("WAV header: data before fmt, expected fmt first")
                return self._form, begin, length
            if kind == b"fmt ":
                if len(data) < begin + length:
                    return None
                self._form = _wav_format(bytes(data[begin : begin + length]))
            self._at = begin + length + length % 2  # chunks begin at even bytes
        return None


def _wav_format(chunk: bytes) -> AudioFormat:
    if len(chunk) < 16:
        raise ProtocolError.of("WAV fmt bytes", len(chunk), "16 or more")
    tag, channels, rate_hz, bits = (
        int.from_bytes(chunk[at : at + size], "little") for at, size in ((0, 2), (2, 2), (4, 4), (14, 2))
    )
    if tag == _EXTENSIBLE and len(chunk) >= 26:
        tag = int.from_bytes(chunk[24:26], "little")
    if (tag, bits) not in _WAV_ENCODINGS:
        raise ProtocolError.of("WAV format, bits", (tag, bits), "16-bit PCM, 32-bit float, A-law or mu-law")
    return audio_format({"rate": rate_hz, "encoding": _WAV_ENCODINGS[tag, bits], "channels": channels})
