"""No input costs much more than its length: what would, quadratic reading above all, is looked for by construction.

Steps are counted, not seconds: lines of our code that run. Twice the input may take twice the steps.
"""

import json
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from streamdet import config
from streamdet.errors import StreamdetError
from streamdet.records import AudioFormat
from streamdet.wire import pcm
from streamdet.wire.pcm import PcmParser
from tests.fuzz import keep, targets

# Twice the input: twice the steps, and room for what does not grow. Quadratic reading takes four times as many.
MOST_GROWTH = 2.5
LISTENER = AudioFormat(8000, "s16le")


def count(work: Callable[[], object]) -> int:
    """Lines of our code that `work` runs."""
    lines = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal lines
        if not frame.f_code.co_filename.startswith(keep.PACKAGES):
            return None
        lines += event == "line"
        return trace

    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(None)
    return lines


def read_slowly(data: bytes) -> None:
    """Read a connection byte by byte, as its sender may please."""
    parser = PcmParser(LISTENER)
    try:
        for at in range(len(data)):
            parser.feed(data[at : at + 1])
            if parser.opening() is not None:
                parser.samples(1000)
        parser.opening(ended=True)
    except StreamdetError as error:
        targets.told(error)


FMT = b"fmt \x10\0\0\0\1\0\1\0\x40\x1f\0\0\x80\x3e\0\0\2\0\x10\0"
SLOW = {
    "empty chunks": lambda size: b"RIFF\0\0\0\0WAVE" + size * b"junk\0\0\0\0",
    "fmt again and again": lambda size: b"RIFF\0\0\0\0WAVE" + size * FMT,
    "a chunk that never ends": lambda size: b"RIFF\0\0\0\0WAVEjunk\xff\xff\xff\x7f" + size * b"12345678",
    "a greeting that never ends": lambda size: b"STREAMDET " + b" " * (4 * size),
    "samples": lambda size: b"\1" * 8 * size,
    "samples after a header": lambda size: b"STREAMDET {}\n" + b"\1" * 8 * size,
}


@pytest.mark.parametrize("kind", SLOW)
def test_a_connection_that_comes_byte_by_byte_costs_no_more_than_its_bytes(kind):
    assert count(lambda: read_slowly(SLOW[kind](200))) <= MOST_GROWTH * count(lambda: read_slowly(SLOW[kind](100)))


def test_reading_a_header_anew_with_each_byte_is_noticed(monkeypatch):
    """The control: as the reading of a WAV header was before it remembered how far it had come."""
    read = pcm._WavHead.read
    monkeypatch.setattr(pcm._WavHead, "read", lambda _, data: read(pcm._WavHead(), data))
    slow = SLOW["empty chunks"]
    assert count(lambda: read_slowly(slow(200))) > MOST_GROWTH * count(lambda: read_slowly(slow(100)))


MANIFEST = {
    "nested": lambda size: b'{"provenance":' + b"[" * size,
    "nested, whole": lambda size: b'{"provenance":' + b"[" * size + b"]" * size + b"}",
    "many keys": lambda size: json.dumps({f"key{number}": number for number in range(size)}).encode(),
    "one key": lambda size: b'{"' + b"k" * size + b'":1}',
    "digits": lambda size: b'{"format":' + b"9" * size + b"}",
}
CONFIG = {
    "nested": lambda size: b"a = " + b"[" * size,
    "tables in tables": lambda size: b"a = " + b"{a=" * size,
    "a long name": lambda size: b"[" + b"a." * size + b"a]",
    "one key": lambda size: b'"' + b"k" * size + b'" = 1',
    "digits": lambda size: b"[scoring]\nthreads = " + b"9" * size,
    "hexadecimal digits": lambda size: b"[scoring]\nthreads = 0x" + b"f" * size,
    "hexadecimal digits of a float": lambda size: b"[streams]\nidle_timeout_s = 0x" + b"f" * size,
    "digits of an exponent": lambda size: b"[streams]\nidle_timeout_s = 1e" + b"9" * size,
    "not a number": lambda size: b"[streams]\nidle_timeout_s = nan" + b" " * size,
    "letters": lambda size: b"[endpoints]\nhttp = '" + b"\xe2\x80\xae" * size + b"'",
    "zeros": lambda size: b"\0" * size,
    "many listeners": lambda size: b"[endpoints]\npcm = [" + b"'tcp://['," * size + b"]",
}
SETTINGS = {
    "nested": lambda size: b"endpoints.pcm=" + b"[" * size,
    "digits": lambda size: b"endpoints.pcm=[" + b"9" * size + b"]",
    "digits of a number": lambda size: b"scoring.threads=" + b"9" * size,
    "a line of a log": lambda size: b"x" * size + b"\rERROR all is lost.y=1",
    "no UTF-8": lambda size: b"pcm.encoding=" + b"\xff" * size,
}
VERDICTS = {
    "nested": lambda size: b'h\n{"type":"hb","x":' + b"[" * size,
    "nested in detail": lambda size: (
        b'e\n{"type":"open","stream":"a","channel":null,"at_s":0,"detail":{"a":' + b"[" * size
    ),
    "digits": lambda size: b'h\n{"type":"hb","seq":' + b"9" * size + b"}",
    "a name": lambda size: b'v\n{"type":"' + b"\\n" * size + b'"}',
}
CONTROL = {
    "nested": lambda size: b'{"op":"status","id":' + b"[" * size,
    "nested, whole": lambda size: b'{"op":"status","id":' + b"[" * size + b"]" * size + b"}",
    "id": lambda size: b'{"op":"status","id":"' + b"\1" * size + b'"}',
    "op": lambda size: b'{"op":"' + b"\xe2\x80\xae" * size + b'"}',
}
LONG = {"manifest": MANIFEST, "config": CONFIG, "settings": SETTINGS, "verdicts": VERDICTS, "control": CONTROL}
SIZES = (300, 5_000, 50_000)
# Bytes a byte: a tree of small objects takes more than its text, a TOML table in a table some 500.
MOST_MEMORY = 600
# A file is read into a buffer of its largest size, twice over.
ALWAYS_BYTES = 2 * config.FILE_MAX_BYTES + 500_000


@pytest.mark.parametrize(("target", "kind"), [(target, kind) for target, kinds in LONG.items() for kind in kinds])
def test_long_and_deep_input_is_told_in_one_line_and_takes_memory_by_its_length(target, kind):
    for size in SIZES:
        data = LONG[target][kind](size)
        targets.TARGETS[target](data)  # once before, for what is made only once
        tracemalloc.start()
        try:
            targets.TARGETS[target](data)
            most_bytes = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert most_bytes <= MOST_MEMORY * len(data) + ALWAYS_BYTES


def test_a_file_that_is_no_manifest_is_not_even_read(tmp_path):
    folder = Path(tmp_path)
    with (folder / "manifest.json").open("wb") as file:
        file.truncate(1 << 40)  # a terabyte of nothing
    with pytest.raises(StreamdetError, match=r"manifest\.json bytes: 1099511627776, expected at most"):
        targets.bundle.load(folder)
