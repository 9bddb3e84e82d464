"""Audio messages: what is built is read back, and whatever comes is a frame or one line that says what is wrong."""

import json
from collections.abc import Callable

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from streamdet.errors import ProtocolError
from streamdet.records import ENCODINGS, MAX_CHANNELS, RATES_HZ, AudioFormat, Frame
from streamdet.wire import frames

GOOD = {"rate": 8000, "encoding": "mulaw"}

names = st.text(st.characters(exclude_categories=("C", "Z")), min_size=1, max_size=32)
formats = st.builds(AudioFormat, st.sampled_from(RATES_HZ), st.sampled_from(ENCODINGS), st.integers(1, MAX_CHANNELS))
counts = st.none() | st.integers(0, frames.COUNT_MAX)
seconds = st.none() | st.floats(0, 2**40)
some_frames = st.builds(Frame, names, formats, st.binary(max_size=64), counts, counts, seconds, st.booleans())
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
values = st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=4)
fields_of_a_header = {
    "rate": values | st.sampled_from(RATES_HZ),
    "encoding": values | st.sampled_from(ENCODINGS),
    "channels": values,
    "seq": values,
    "start": values,
    "sent_at": values,
    "event": values | st.just("end"),
    "later": values,
}
headers = st.fixed_dictionaries({}, optional=fields_of_a_header)


def message(payload: bytes = b"\xff", stream: bytes = b"a", **fields: object) -> list[bytes]:
    return [stream, json.dumps({**GOOD, **fields}).encode(), payload]


def outcome(parts: list[bytes], parse: Callable[[list[bytes]], Frame] = frames.parse) -> Frame | str:
    """The frame, or the error's line; any other exception is a failure of the test."""
    try:
        return parse(parts)
    except ProtocolError as error:
        return str(error)


def alike(parts: list[bytes]) -> bool:
    """Whether the quick reading says what the careful one says; `repr` tells 1 from 1.0 and True."""
    return repr(outcome(parts)) == repr(outcome(parts, frames.parse_carefully))


@given(some_frames)
def test_a_built_message_reads_back_to_the_same_frame(frame):
    assert frames.parse(frames.build(frame)) == frame


@given(st.lists(st.binary(max_size=200), max_size=5))
@example([b"a", b"[" * 1000, b""])
@example([b"a", b'{"rate": 1e999}', b""])
@example([b"\xff", b"{}", b""])
def test_any_parts_give_a_frame_or_one_line(parts):
    found = outcome(parts)
    assert isinstance(found, Frame) or "\n" not in found
    assert isinstance(frames.stream_of(parts), str | None)


@given(names, headers, st.binary(max_size=16))
@example("a", {**GOOD, "channels": True}, b"")
@example("a", {**GOOD, "encoding": ["mulaw"]}, b"")
@example("a", {**GOOD, "rate": 8000.0}, b"")
def test_any_header_fields_give_a_frame_or_one_line_about_one_of_them(name, fields, payload):
    header = json.dumps(fields).encode()
    found = outcome([name.encode(), header, payload])
    if isinstance(found, Frame):
        again = frames.parse(frames.build(found))
        assert again == found
    else:
        assert "\n" not in found
        assert ", expected " in found
        assert found.partition(": ")[0] in {*fields, "rate", "encoding", "header", "header bytes"}


# What a header is made of, and what breaks it: numbers at and over every limit, in spellings that JSON has or lacks.
words = st.sampled_from(
    [
        *(b"{", b"}", b"[", b"]", b":", b",", b'"', b" ", b"\n", b"\xff", b"\xef\xbb\xbf", b"\\u0072", b"\0"),
        *(
            b"0",
            b"-0",
            b"1",
            b"-1",
            b"1.0",
            b"1e3",
            b"1e999",
            b"01",
            b"+1",
            b".5",
            b"NaN",
            b"Infinity",
            b"true",
            b"null",
        ),
        *(b"8000", b"8000.0", b"8001", b"9", b"9007199254740992", b"9007199254740993", b"9" * 30, b"1764056000.123"),
        *(
            f'"{name}"'.encode()
            for name in ("rate", "encoding", "channels", "seq", "start", "sent_at", "event", "later")
        ),
        *(b'"mulaw"', b'"alaw"', b'"mp3"', b'"end"', b'"stop"', b'"8000"', b"{}", b"[]", b"[" * 600),
    ]
)
edits = st.lists(st.tuples(st.integers(0, 150), st.integers(0, 12), words | st.binary(max_size=3)), max_size=4)


def edited(data: bytes, changes: list[tuple[int, int, bytes]]) -> bytes:
    for at, length, new in changes:
        data = data[:at] + new + data[at + length :]
    return data


@given(some_frames, edits)
@settings(max_examples=500)
def test_a_message_that_was_tampered_with_is_read_alike_quickly_and_carefully(frame, changes):
    stream, header, payload = frames.build(frame)
    assert alike([stream, edited(header, changes), payload])
    assert alike([edited(stream, changes), header, payload])


@given(
    names, st.lists(st.tuples(st.sampled_from(sorted(fields_of_a_header)), words), max_size=8), st.binary(max_size=4)
)
@settings(max_examples=500)
def test_a_header_of_any_fields_even_twice_is_read_alike_quickly_and_carefully(name, fields, payload):
    header = b",".join(b'"%s":%s' % (field.encode(), value) for field, value in fields)
    assert alike([name.encode(), b"{%s}" % header, payload])


@given(st.lists(st.binary(max_size=200), max_size=5))
def test_any_parts_are_read_alike_quickly_and_carefully(parts):
    assert alike(parts)


@pytest.mark.parametrize(
    "more",
    [
        *(b'"later":%s' % value for value in (b"1e999", b'"\xff"', rb'"\ud800"', rb'"\x"', b"01", b"[" * 600, b"tru")),
        *(b'"sent_at":%d' % value for value in (2**53 - 1, 2**53, 2**53 + 1, 2**64, 10**400)),
        *(b'"start":%d' % value for value in (2**53 - 1, 2**53, 2**53 + 1, 2**64, 10**400)),
        b'"seq":0' + b" " * frames.HEADER_MAX_BYTES,
        b'"rate":8001,"rate":8000',
        b'"rate":"8000","rate":8000',
    ],
)
def test_a_good_header_with_something_odd_is_read_alike_quickly_and_carefully(more):
    assert alike([b"a", b'{"rate":8000,"encoding":"mulaw",%s}' % more, b""])


@pytest.mark.parametrize(
    "letter", [chr(code) for code in (*range(33), 0x7F, 0x85, 0xA0, 0x200B, 0x2028, 0x3000, 0xFEFF)]
)
def test_no_letter_that_disturbs_a_line_is_in_a_stream_id(letter):
    assert isinstance(outcome(message(stream=f"a{letter}b".encode())), str)
    assert alike(message(stream=f"a{letter}b".encode()))


@pytest.mark.parametrize(
    ("parts", "line"),
    [
        ([], "message parts: 0, expected 3: stream id, header, payload"),
        ([b"a", b"{}"], "message parts: 2, expected 3: stream id, header, payload"),
        ([*message(), b""], "message parts: 4, expected 3: stream id, header, payload"),
        (message(stream=b""), "stream id bytes: 0, expected 1 to 128"),
        (message(stream=b"x" * 129), "stream id bytes: 129, expected 1 to 128"),
        (message(stream=b"a\xff"), "stream id: 2 bytes, expected UTF-8"),
        (message(stream=b"a b"), "stream id: 3 characters, expected printable ones and no spaces"),
        (message(stream=b"a\nb"), "stream id: 3 characters, expected printable ones and no spaces"),
        (message(stream="a\u3000b".encode()), r"stream id: 3 characters, expected printable ones and no spaces"),
        ([b"a", b"{", b""], "header: 1 bytes, expected a JSON object"),
        ([b"a", b"", b""], "header: 0 bytes, expected a JSON object"),
        ([b"a", b"[1]", b""], "header: list, expected a JSON object"),
        ([b"a", b'{"rate":"\xff"}', b""], "header: 12 bytes, expected a JSON object"),
        ([b"a", b" " * 1025, b""], "header bytes: 1025, expected at most 1024"),
        (message(b"\0" * (2**18 + 1)), "payload bytes: 262145, expected at most 262144"),
        (message(rate=8001), "rate: 8001, expected one of 8000, 11025, 12000, 16000"),
        (message(rate=True), "rate: True, expected one of 8000"),
        (message(rate=8000.0), "rate: 8000.0, expected one of 8000"),
        (message(rate="8000"), "rate: '8000', expected one of 8000"),
        ([b"a", b'{"encoding":"mulaw"}', b""], "rate: None, expected one of 8000"),
        ([b"a", b'{"rate":8000}', b""], "encoding: None, expected one of s16le, f32le, mulaw, alaw"),
        (message(encoding="mp3"), "encoding: 'mp3', expected one of s16le, f32le, mulaw, alaw"),
        (message(encoding={}), "encoding: {}, expected one of s16le"),
        (message(channels=0), "channels: 0, expected an integer from 1 to 8"),
        (message(channels=9), "channels: 9, expected an integer from 1 to 8"),
        (message(channels=True), "channels: True, expected an integer from 1 to 8"),
        (message(seq=-1), "seq: -1, expected an integer from 0 to 9007199254740992"),
        (message(seq=1.0), "seq: 1.0, expected an integer from 0 to 9007199254740992"),
        (message(start=2**53 + 1), "start: 9007199254740993, expected an integer from 0 to 9007199254740992"),
        (message(start=False), "start: False, expected an integer from 0 to 9007199254740992"),
        (message(sent_at=-1), "sent_at: -1, expected Unix time in seconds"),
        (message(sent_at="now"), "sent_at: 'now', expected Unix time in seconds"),
        (message(sent_at=True), "sent_at: True, expected Unix time in seconds"),
        (message(sent_at=1e300), "sent_at: 1e+300, expected Unix time in seconds"),
        (message(event="stop"), "event: 'stop', expected end"),
        (message(event=1), "event: 1, expected end"),
    ],
)
def test_a_bad_message_is_told_by_field_value_and_what_was_expected(parts, line):
    found = outcome(parts)
    assert isinstance(found, str)
    assert found.startswith(line)
    assert alike(parts)


def test_what_is_left_out_or_null_has_its_default():
    plain = Frame("a", AudioFormat(8000, "mulaw", 1), b"\xff")
    assert frames.parse(message()) == plain
    assert frames.parse(message(seq=None, start=None, sent_at=None, event=None)) == plain


def test_fields_of_a_later_version_are_ignored():
    assert frames.parse(message(codec={"name": "opus"})) == frames.parse(message())


def test_the_limits_themselves_are_allowed():
    at_most = message(b"\0" * frames.PAYLOAD_MAX_BYTES, b"x" * frames.STREAM_MAX_BYTES, seq=frames.COUNT_MAX)
    at_most[1] = at_most[1].ljust(frames.HEADER_MAX_BYTES)
    assert frames.parse(at_most).seq == frames.COUNT_MAX
    assert alike(at_most)


def test_a_bad_message_is_laid_at_its_streams_door_where_that_can_be_read():
    assert frames.stream_of([b"call", b"{", b""]) == "call"
    assert frames.stream_of([b"call"]) == "call"
    assert frames.stream_of([b"\xff", b"{", b""]) is None
    assert frames.stream_of([]) is None
