"""The head of a PCM connection and its samples, however the bytes are split on their way."""

import io
import itertools
import json
import struct

import numpy as np
import pytest
import soundfile
from hypothesis import example, given
from hypothesis import strategies as st

from streamdet.errors import ProtocolError
from streamdet.records import AudioFormat
from streamdet.wire.pcm import WAV_HEAD_MAX_BYTES, Opening, PcmParser

LISTENER = AudioFormat(8000, "s16le", 1)
AUDIO = bytes(range(1, 201))


def read(pieces: list[bytes], form: AudioFormat = LISTENER, most_bytes: int = 64) -> tuple[Opening | None, bytes]:
    """What a connection makes of these reads."""
    parser, heard = PcmParser(form), b""
    for piece in pieces:
        parser.feed(piece)
        if parser.opening() is not None:
            while samples := parser.samples(most_bytes):
                heard += samples
    opening = parser.opening(ended=True)
    while samples := parser.samples(most_bytes):
        heard += samples
    parser.finish()
    return opening, heard


def outcome(pieces: list[bytes], form: AudioFormat = LISTENER) -> tuple[Opening | None, bytes] | None:
    """The same, with None for a refusal; any other exception is a failure of the test."""
    try:
        return read(pieces, form)
    except ProtocolError:
        return None


def refusal(*pieces: bytes) -> str:
    with pytest.raises(ProtocolError) as caught:
        read(list(pieces))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def split(data: bytes, cuts: list[int]) -> list[bytes]:
    at = [0, *sorted({cut % (len(data) + 1) for cut in cuts}), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(at)]


def greeting(**fields: object) -> bytes:
    return b"STREAMDET " + json.dumps(fields).encode() + b"\n"


def chunk(kind: bytes, body: bytes, length: int | None = None) -> bytes:
    return kind + struct.pack("<I", len(body) if length is None else length) + body + b"\0" * (len(body) % 2)


def fmt(tag: int = 1, channels: int = 1, rate_hz: int = 8000, bits: int = 16, more: bytes = b"") -> bytes:
    block = channels * bits // 8
    return chunk(b"fmt ", struct.pack("<HHIIHH", tag, channels, rate_hz, rate_hz * block, block, bits) + more)


def wav(*chunks: bytes) -> bytes:
    body = b"WAVE" + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def soundfile_wav(subtype: str, container: str = "WAV", rate_hz: int = 16_000, channels: int = 2) -> bytes:
    out = io.BytesIO()
    noise = np.random.default_rng(1).uniform(-0.5, 0.5, (500, channels))
    soundfile.write(out, noise, rate_hz, subtype=subtype, format=container)
    return out.getvalue()


WAV = wav(fmt(), chunk(b"data", AUDIO))
HEADS = [b"", b"RI", b"STR", b"STREAMDET", b"RIFF", greeting(stream="x"), wav(fmt(), chunk(b"data", b"", 0)), WAV]


# -- raw ---------------------------------------------------------------------------------------------------------------


def test_raw_audio_has_the_listeners_format_and_no_id():
    assert read([AUDIO]) == (Opening(None, LISTENER), AUDIO)


@pytest.mark.parametrize("word", [b"RI", b"RIFA", b"ST", b"STREAMDEX ", b"S", b"STREAMDET{}"])
def test_raw_audio_that_begins_like_a_header_is_audio(word):
    data = (word + AUDIO)[:200]
    assert read([data]) == (Opening(None, LISTENER), data)


@pytest.mark.parametrize("word", [b"RI", b"STRE"])
def test_a_connection_that_ends_within_what_might_have_been_a_header_was_audio(word):
    parser = PcmParser(LISTENER)
    parser.feed(word)
    assert parser.opening() is None
    assert read([word]) == (Opening(None, LISTENER), word)


def test_an_empty_connection_opens_and_holds_nothing():
    assert PcmParser(LISTENER).opening() is None
    assert read([]) == (Opening(None, LISTENER), b"")


@pytest.mark.parametrize(
    ("rest", "form"), [(1, LISTENER), (3, AudioFormat(8000, "s16le", 2)), (1, AudioFormat(8000, "f32le"))]
)
def test_an_end_within_a_sample_is_an_error_after_all_whole_samples(rest, form):
    parser = PcmParser(form)
    parser.feed(b"\1" * (8 * form.block_bytes + rest))
    parser.opening(ended=True)
    assert len(parser.samples(10_000)) == 8 * form.block_bytes
    with pytest.raises(ProtocolError, match=f"{rest} bytes of a sample, expected {form.block_bytes}"):
        parser.finish()


def test_samples_come_whole_and_no_more_than_asked_for():
    parser = PcmParser(AudioFormat(8000, "s16le", 2))
    parser.feed(AUDIO)
    parser.opening()
    assert [parser.samples(11), parser.samples(3), parser.samples(8)] == [AUDIO[:8], b"", AUDIO[8:16]]


# -- however it is split -----------------------------------------------------------------------------------------------


@given(
    st.sampled_from(HEADS),
    st.binary(max_size=64),
    st.lists(st.integers(0, 1000), max_size=12),
    st.lists(st.integers(0, 1000), max_size=12),
    st.sampled_from([LISTENER, AudioFormat(8000, "mulaw", 3), AudioFormat(48_000, "f32le", 1)]),
)
@example(HEADS[-1], b"", list(range(1000)), [], LISTENER)
def test_the_same_bytes_split_differently_give_the_same_opening_and_samples(head, tail, cuts, others, form):
    data = head + tail
    assert outcome(split(data, cuts), form) == outcome(split(data, others), form) == outcome([data], form)


@pytest.mark.parametrize("data", [WAV, greeting(stream="call", channels=2) + AUDIO, greeting(stream="call") + WAV])
def test_a_head_that_comes_byte_by_byte_is_the_same_head(data):
    assert read([bytes([byte]) for byte in data]) == read([data])


@given(
    st.lists(st.sampled_from([b"RIFF", b"WAVE", b"fmt ", b"data", b"\0\0\0\0"]) | st.binary(max_size=20), max_size=12)
)
def test_any_bytes_give_an_opening_or_one_line(pieces):
    assert outcome([b"RIFF", *pieces]) == outcome([b"RIFF" + b"".join(pieces)])
    outcome([b"STREAMDET ", *pieces, b"\n"])


# -- WAV ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("container", ["WAV", "WAVEX"])
@pytest.mark.parametrize(
    ("subtype", "encoding"), [("PCM_16", "s16le"), ("FLOAT", "f32le"), ("ULAW", "mulaw"), ("ALAW", "alaw")]
)
def test_a_wav_file_says_its_own_format(container, subtype, encoding):
    data = soundfile_wav(subtype, container)
    opening, heard = read(split(data, [13, 37, 90]))
    form = AudioFormat(16_000, encoding, 2)
    assert opening == Opening(None, form)
    assert len(heard) == 500 * form.block_bytes
    assert heard in data


@pytest.mark.parametrize("length", [0, 0xFFFFFFFF])
def test_a_wav_header_without_a_length_means_until_the_end(length):
    endless = wav(fmt(), chunk(b"data", b"", length))
    assert read([endless, AUDIO, AUDIO]) == (Opening(None, LISTENER), AUDIO + AUDIO)


def test_what_follows_a_wav_files_samples_is_dropped():
    data = wav(fmt(), chunk(b"data", AUDIO), chunk(b"LIST", b"INFOISFT" + b"x" * 90))
    assert read([data, b"and more"])[1] == AUDIO


def test_a_wav_file_that_is_cut_short_gives_what_there_is():
    assert read([wav(fmt(), chunk(b"data", AUDIO, 10_000))])[1] == AUDIO


def test_a_whole_wav_file_in_one_read_opens_after_its_end_too():
    parser = PcmParser(LISTENER)
    parser.feed(WAV)
    assert parser.opening(ended=True) == Opening(None, LISTENER)


def test_half_a_sample_at_a_wav_datas_end_is_dropped():
    assert read([wav(fmt(), chunk(b"data", AUDIO[:7]))])[1] == AUDIO[:6]


def test_chunks_before_the_samples_are_passed_over_odd_ones_too():
    data = wav(chunk(b"bext", b"x" * 603), fmt(), chunk(b"fact", b"\0" * 4), chunk(b"data", AUDIO))
    assert read(split(data, [30, 640]))[1] == AUDIO


@pytest.mark.parametrize("cuts", [[], [40_000], [65_000, 65_536, 70_000]])
def test_a_wav_header_of_more_than_64_kib_is_refused_however_it_is_split(cuts):
    room = WAV_HEAD_MAX_BYTES - len(wav(fmt(), chunk(b"junk", b""), chunk(b"data", b"", 2)))
    fits = wav(fmt(), chunk(b"junk", b"x" * room), chunk(b"data", AUDIO))
    assert read(split(fits, cuts))[1] == AUDIO
    over = wav(fmt(), chunk(b"junk", b"x" * (room + 2)), chunk(b"data", AUDIO))
    assert ", expected a data chunk within 65536" in refusal(*split(over, cuts))


@pytest.mark.parametrize(
    ("data", "line"),
    [
        (b"RIFF\0\0\0\0AVI LIST", "WAV form: b'AVI ', expected WAVE after RIFF"),
        (wav(chunk(b"data", AUDIO)), "WAV header: data before fmt, expected fmt first"),
        (wav(chunk(b"fmt ", b"\1\0")), "WAV fmt bytes: 2, expected 16 or more"),
        (wav(fmt(bits=24)), "WAV format, bits: (1, 24), expected 16-bit PCM, 32-bit float, A-law or mu-law"),
        (wav(fmt(tag=0x55, bits=0)), "WAV format, bits: (85, 0), expected 16-bit PCM"),
        (wav(fmt(rate_hz=8001)), "rate: 8001, expected one of 8000"),
        (wav(fmt(channels=0)), "channels: 0, expected an integer from 1 to 8"),
        (wav(fmt(channels=9)), "channels: 9, expected an integer from 1 to 8"),
        (wav(fmt()), "WAV header bytes: 36, expected a data chunk within 65536"),
    ],
)
def test_a_wav_header_that_is_not_taken_is_told_by_what_was_expected(data, line):
    assert refusal(data).startswith(line)


# -- the STREAMDET line ------------------------------------------------------------------------------------------------


def test_a_greeting_gives_id_and_format():
    line = greeting(stream="call-1", rate=16_000, encoding="mulaw", channels=2)
    assert read([line + AUDIO]) == (Opening("call-1", AudioFormat(16_000, "mulaw", 2)), AUDIO)


def test_what_a_greeting_leaves_out_is_as_the_listener_has_it():
    assert read([greeting(stream="call-1") + AUDIO])[0] == Opening("call-1", LISTENER)
    assert read([greeting(encoding="alaw") + AUDIO])[0] == Opening(None, AudioFormat(8000, "alaw", 1))
    assert read([b"STREAMDET {}\r\n" + AUDIO]) == (Opening(None, LISTENER), AUDIO)


def test_a_wav_header_after_the_greeting_has_the_last_word_on_the_format():
    data = soundfile_wav("ULAW", rate_hz=8000, channels=1)
    opening, heard = read([greeting(stream="call-1", rate=48_000, encoding="f32le") + data])
    assert opening == Opening("call-1", AudioFormat(8000, "mulaw", 1))
    assert len(heard) == 500


def test_a_second_greeting_is_audio():
    line = greeting(stream="b", x=1)
    line = line if len(line) % 2 == 0 else greeting(stream="bb", x=1)
    assert read([greeting(stream="a") + line]) == (Opening("a", LISTENER), line)
    assert read([greeting(stream="a"), line]) == (Opening("a", LISTENER), line)


def test_a_line_may_say_where_an_earlier_connection_left_off():
    assert read([greeting(start=80_000) + AUDIO]) == (Opening(None, LISTENER, 80_000), AUDIO)
    assert read([greeting(start=0) + WAV])[0] == read([WAV])[0]


@pytest.mark.parametrize(
    ("data", "line"),
    [
        (b"STREAMDET nonsense\n", "STREAMDET line: 8 bytes, expected a JSON object"),
        (b"STREAMDET [1]\n", "STREAMDET line: list, expected a JSON object"),
        (greeting(start=-1), "start: -1, expected an integer from 0 to 9007199254740992"),
        (greeting(start="0"), "start: '0', expected an integer from 0 to 9007199254740992"),
        (greeting(start=True), "start: True, expected an integer from 0 to 9007199254740992"),
        (b"STREAMDET \xff\n", "STREAMDET line: 1 bytes, expected a JSON object"),
        (b'STREAMDET {"stream":"\\ud800"}\n', "STREAMDET line: "),
        (b"STREAMDET " + b" " * 1020 + b"{}\n", "STREAMDET line bytes: 1025, expected at most 1024, and a newline"),
        (b"STREAMDET " + b"x" * 2000, "STREAMDET line bytes: 1025, expected at most 1024, and a newline"),
        (b"STREAMDET {}", "STREAMDET line bytes: 12, expected at most 1024, and a newline"),
        (greeting(stream=1), "stream: int, expected a string"),
        (greeting(stream=""), "stream id bytes: 0, expected 1 to 128"),
        (greeting(stream="a b"), "stream id: 3 characters, expected printable ones and no spaces"),
        (greeting(rate=1), "rate: 1, expected one of 8000"),
        (greeting(encoding="mp3"), "encoding: 'mp3', expected one of s16le"),
        (greeting(channels=0), "channels: 0, expected an integer from 1 to 8"),
    ],
)
def test_a_greeting_that_is_none_is_told_by_what_was_expected(data, line):
    assert refusal(data).startswith(line)


def test_an_endless_line_is_refused_before_it_ends():
    parser = PcmParser(LISTENER)
    parser.feed(b"STREAMDET " + b"x" * 1015)
    with pytest.raises(ProtocolError, match="STREAMDET line bytes: 1025"):
        parser.opening()
