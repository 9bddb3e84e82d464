"""One frame of audio as a ZeroMQ message: `[stream id][header][payload]`. docs/wire.md has the format for users.

A message is a frame or a ProtocolError; there is no third outcome, since ZeroMQ delivers messages whole.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final, Literal

import msgspec

from streamdet.errors import ProtocolError
from streamdet.records import ENCODINGS, MAX_CHANNELS, RATES_HZ, AudioFormat, Frame

PARTS: Final = 3
# The id becomes a topic and a word in logs: long enough for any pseudonym.
STREAM_MAX_BYTES: Final = 128
# The fields below take under 150 bytes; the rest is room for fields to come.
HEADER_MAX_BYTES: Final = 1 << 10
# A second of 8 channels at 8 kHz in f32le is 256,000 bytes; the engine allows one hop, whatever that is in bytes.
PAYLOAD_MAX_BYTES: Final = 256 << 10
# Sample counts stay exact in a JSON number of any reader up to here: 6,000 years of 48 kHz.
COUNT_MAX: Final = 2**53

_Count = Annotated[int, msgspec.Meta(ge=0, le=COUNT_MAX)]

# All there are, so that no frame makes one of its own and the engine compares by identity first.
_FORMATS: Final[dict[tuple[int, str, int], AudioFormat]] = {
    (rate_hz, encoding, channels): AudioFormat(rate_hz, encoding, channels)
    for rate_hz in RATES_HZ
    for encoding in ENCODINGS
    for channels in range(1, MAX_CHANNELS + 1)
}


class _Header(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """A header that has nothing to be explained: read and checked in one go."""

    rate: int
    encoding: str
    channels: int = 1
    seq: _Count | None = None
    start: _Count | None = None
    sent_at: Annotated[float, msgspec.Meta(ge=0, lt=COUNT_MAX)] | None = None
    event: Literal["end"] | None = None


_read_header: Final = msgspec.json.Decoder(_Header).decode


def parse(parts: Sequence[bytes]) -> Frame:
    """Read a message.

    Fifty thousand a second come this way, nearly all of them good, so a message is first read as if it were. What is
    not, or has fields of a later version, is read once more field by field, and that reading decides.

    Raises:
        ProtocolError: it breaks the format; the line names the field, the value and what was expected.
    """
    try:
        stream, header, payload = parts
        name = str(stream, "utf-8")
        fields = _read_header(header)
        form = _FORMATS[fields.rate, fields.encoding, fields.channels]
    except (ValueError, KeyError, RecursionError):  # msgspec's and UTF-8's errors are ValueErrors
        return parse_carefully(parts)
    if not _is_plain(name, stream) or len(header) > HEADER_MAX_BYTES or len(payload) > PAYLOAD_MAX_BYTES:
        return parse_carefully(parts)
    return Frame(name, form, payload, fields.seq, fields.start, fields.sent_at, fields.event is not None)


def parse_carefully(parts: Sequence[bytes]) -> Frame:
    """Read a message field by field; `parse` gives the same frame or the same error, sooner.

    Raises:
        ProtocolError: it breaks the format; the line names the field, the value and what was expected.
    """
    if len(parts) != PARTS:
        raise ProtocolError.of("message parts", len(parts), f"{PARTS}: stream id, header, payload")
    stream, header, payload = parts
    name = parse_stream(stream)
    fields = parse_fields(header, "header")
    if len(payload) > PAYLOAD_MAX_BYTES:
        raise ProtocolError.of("payload bytes", len(payload), f"at most {PAYLOAD_MAX_BYTES}")
    return Frame(
        stream=name,
        format=audio_format(fields),
        payload=payload,
        seq=integer(fields, "seq", 0, COUNT_MAX),
        start=integer(fields, "start", 0, COUNT_MAX),
        sent_at_s=_seconds(fields, "sent_at"),
        end=_event(fields) == "end",
    )


def build(frame: Frame) -> list[bytes]:
    """Write a message that `parse` reads back to the same frame."""
    form = frame.format
    fields: dict[str, Any] = {"rate": form.rate_hz, "encoding": form.encoding, "channels": form.channels}
    optional = {
        "seq": frame.seq,
        "start": frame.start,
        "sent_at": frame.sent_at_s,
        "event": "end" if frame.end else None,
    }
    fields.update({name: value for name, value in optional.items() if value is not None})
    return [frame.stream.encode(), msgspec.json.encode(fields), bytes(frame.payload)]


def parse_stream(data: bytes) -> str:
    """Read a stream id: 1 to 128 bytes of printable UTF-8 without spaces.

    What is wrong with one is told without it: it may be somebody's number, and errors are logged.
    """
    if not 1 <= len(data) <= STREAM_MAX_BYTES:
        raise ProtocolError.of("stream id bytes", len(data), f"1 to {STREAM_MAX_BYTES}")
    try:
        name = bytes(data).decode("utf-8")
    except UnicodeDecodeError:
        raise ProtocolError(f"stream id: {len(data)} bytes, expected UTF-8") from None
    if not _is_plain(name, data):
        raise ProtocolError(f"stream id: {len(name)} characters, expected printable ones and no spaces")
    return name


def _is_plain(name: str, data: bytes) -> bool:
    """Whether a stream id has its length and no letter that disturbs a line; U+0020 is the only printable space."""
    return 1 <= len(data) <= STREAM_MAX_BYTES and name.isprintable() and " " not in name


def stream_of(parts: Sequence[bytes]) -> str | None:
    """Whose fault a bad message is, if that much can be read."""
    try:
        return parse_stream(parts[0]) if parts else None
    except ProtocolError:
        return None


def parse_fields(data: bytes, what: str) -> dict[str, Any]:
    """Read one JSON object of at most 1 KiB.

    What is none is told by its size: it may be anything, audio in the place of a header too, and errors are logged.
    """
    if len(data) > HEADER_MAX_BYTES:
        raise ProtocolError.of(f"{what} bytes", len(data), f"at most {HEADER_MAX_BYTES}")
    try:
        fields = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise ProtocolError(f"{what}: {len(data)} bytes, expected a JSON object") from None
    if not isinstance(fields, dict):
        raise ProtocolError(f"{what}: {type(fields).__name__}, expected a JSON object")
    return fields


def audio_format(fields: Mapping[str, Any], default: AudioFormat | None = None) -> AudioFormat:
    """Read `rate`, `encoding` and `channels`; what is missing comes from `default`, if there is one."""
    rate = fields.get("rate", default and default.rate_hz)
    if type(rate) is not int or rate not in RATES_HZ:
        raise ProtocolError.of("rate", rate, f"one of {', '.join(map(str, RATES_HZ))}")
    encoding = fields.get("encoding", default and default.encoding)
    if encoding not in ENCODINGS:
        raise ProtocolError.of("encoding", encoding, f"one of {', '.join(ENCODINGS)}")
    channels = fields.get("channels", default.channels if default else 1)
    if type(channels) is not int or not 1 <= channels <= MAX_CHANNELS:
        raise ProtocolError.of("channels", channels, f"an integer from 1 to {MAX_CHANNELS}")
    return _FORMATS[rate, encoding, channels]


def integer(fields: Mapping[str, Any], name: str, least: int, most: int) -> int | None:
    """Read an optional integer."""
    value = fields.get(name)
    # `type` and not isinstance: JSON's true would pass for 1.
    if value is not None and (type(value) is not int or not least <= value <= most):
        raise ProtocolError.of(name, value, f"an integer from {least} to {most}")
    return value


def _seconds(fields: Mapping[str, Any], name: str) -> float | None:
    value = fields.get(name)
    if value is not None and (type(value) not in (int, float) or not 0 <= value < COUNT_MAX):
        raise ProtocolError.of(name, value, "Unix time in seconds")
    return None if value is None else float(value)


def _event(fields: Mapping[str, Any]) -> str | None:
    value = fields.get("event")
    if value not in (None, "end"):
        raise ProtocolError.of("event", value, "end")
    return value
