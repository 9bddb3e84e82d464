"""Log lines: their forms, what never gets into them, their limits, and a stderr that fails."""

import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamdet import logs
from streamdet.errors import LINE_CHARS, printable
from streamdet.logs import (
    BURST,
    EVERY_S,
    LOST,
    WAITING_MAX,
    Entry,
    Limiter,
    LogWriter,
    as_json,
    as_logfmt,
    as_text,
    fields,
)

PATIENCE_S = 30.0


def record(
    message: str = "refused", *args: object, line: int = 1, level: int = logging.WARNING, **known: object
) -> Any:
    made = logging.LogRecord("streamdet.ingest.tcp", level, "tcp.py", line, message, args, None)
    made.created = 1_800_000_000.123
    made.__dict__.update(fields(**known))
    return made


def entry(message: str = "refused", **known: object) -> Entry:
    return Entry.of(record(message, **known))


# -- forms -----------------------------------------------------------------------------------------------------------


def test_text_has_level_place_message_and_fields():
    assert as_text(entry(stream="a", reason="too long", n=3)) == [
        'WARNING streamdet.ingest.tcp: refused stream=a reason="too long" n=3'
    ]


def test_logfmt_has_time_and_level_too():
    assert as_logfmt(entry(stream="a", reason='say "no"', none=None)) == [
        "time=2027-01-15T08:00:00.123Z level=warning logger=streamdet.ingest.tcp message=refused "
        'stream=a reason="say \\"no\\"" none=null'
    ]


def test_json_keeps_numbers_numbers():
    (text,) = as_json(entry(stream="a", lag_ms=1.5, n=3, ok=True))
    assert json.loads(text) == {
        "time": "2027-01-15T08:00:00.123Z",
        "level": "warning",
        "logger": "streamdet.ingest.tcp",
        "message": "refused",
        "stream": "a",
        "lag_ms": 1.5,
        "n": 3,
        "ok": True,
    }


def test_the_old_form_of_a_log_call_works_too():
    assert as_text(Entry.of(record("took %d s", 3)))[0].endswith(": took 3 s")


def test_a_field_may_not_hide_a_part_of_the_line():
    with pytest.raises(AssertionError):
        fields(level="mine")


HOSTILE = st.text(max_size=40) | st.sampled_from(
    ["a\nERROR forged: line", "\x1b[2J", "\x9b2J", "x=y", "\u202e", "\ud800"]
)


@given(message=HOSTILE, value=HOSTILE)
@pytest.mark.parametrize("form", logs.FORMS.values())
def test_nobody_can_forge_a_line_or_reach_the_terminal(form: Callable[[Entry], list[str]], message: str, value: str):
    (line,) = form(Entry.of(record(message.replace("%", ""), reason=value)))
    assert line.isprintable()
    assert line.encode()


@given(value=HOSTILE)
def test_logfmt_can_be_read_back(value: str):
    (line,) = as_logfmt(entry(reason=value))
    _, _, text = line.partition(" reason=")
    assert (json.loads(text) if text.startswith('"') else text) == printable(value)


def test_a_long_value_loses_its_middle():
    (line,) = as_text(entry(reason="a" + "b" * 5000 + "c"))
    assert "abbb" in line
    assert line.endswith("bbbc")
    assert len(line) < 2 * LINE_CHARS


@pytest.mark.parametrize("audio", [b"\x11\x22" * 800, bytearray(b"\x11\x22" * 800), memoryview(b"\x11\x22" * 800)])
def test_bytes_are_only_counted(audio: bytes):
    assert as_text(entry(payload=audio))[0].endswith('payload="1600 bytes"')


def test_of_other_things_only_the_kind_is_told():
    assert as_text(entry(window=[0.25, 0.5]))[0].endswith('window="a list"')


def failed() -> logging.LogRecord:
    try:
        raise ValueError("no\nnumber")
    except ValueError:
        made = record("failed")
        made.exc_info = sys.exc_info()
        return made


def test_a_trace_is_indented_lines_of_text_and_one_value_elsewhere():
    first, *rest = as_text(Entry.of(failed()))
    assert first.endswith("failed")
    assert rest
    assert all(line.startswith("  ") for line in rest)
    (line,) = as_json(Entry.of(failed()))
    assert "ValueError" in json.loads(line)["trace"]
    (line,) = as_logfmt(Entry.of(failed()))
    assert "\n" not in line


# -- limits ----------------------------------------------------------------------------------------------------------


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def suppressed(of: logging.LogRecord) -> int:
    return of.fields.get("suppressed", 0)


def test_a_burst_goes_through_then_the_newest_with_the_count_of_the_others():
    clock = Clock()
    limiter = Limiter(clock)
    before = LOST["limit"]
    written = [each for n in range(BURST + 5) for each in limiter.admit(record(n=n))]
    assert [each.fields["n"] for each in written] == list(range(BURST))
    assert limiter.due() == []
    clock.now_s = EVERY_S
    (last,) = limiter.due()
    assert (last.fields["n"], suppressed(last)) == (BURST + 4, 4)
    assert LOST["limit"] - before == 4
    assert limiter.due() == []


def test_a_place_that_is_quiet_again_has_its_burst_again():
    clock = Clock()
    limiter = Limiter(clock)
    for _ in range(BURST):
        limiter.admit(record())
    clock.now_s = EVERY_S
    assert len(limiter.admit(record())) == 1


def test_places_do_not_share_a_limit():
    limiter = Limiter(Clock())
    for _ in range(BURST + 1):
        limiter.admit(record(line=1))
    assert len(limiter.admit(record(line=2))) == 1


def test_a_held_line_comes_with_the_next_of_any_place():
    clock = Clock()
    limiter = Limiter(clock)
    for _ in range(BURST + 1):
        limiter.admit(record(line=1))
    clock.now_s = EVERY_S
    assert [each.lineno for each in limiter.admit(record(line=2))] == [1, 2]


@given(st.lists(st.tuples(st.floats(0, 2 * EVERY_S), st.integers(1, 3)), max_size=200))
def test_every_line_is_written_held_or_counted(calls: list[tuple[float, int]]):
    clock = Clock()
    limiter = Limiter(clock)
    written = []
    for wait_s, line in calls:
        clock.now_s += wait_s / 10
        written += limiter.admit(record(line=line))
    clock.now_s += EVERY_S
    written += limiter.due()
    assert len(written) + sum(map(suppressed, written)) == len(calls)


# -- writing ---------------------------------------------------------------------------------------------------------


class Pipe:
    def __init__(self) -> None:
        self.reader, self.writer = os.pipe()

    def read(self) -> str:
        """What is there."""
        return os.read(self.reader, 1 << 20).decode()


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    made = Pipe()
    yield made
    for descriptor in (made.reader, made.writer):
        os.close(descriptor)


def logger_of(writer: LogWriter) -> logging.Logger:
    made = logging.Logger("streamdet.test")
    made.addHandler(writer)
    return made


def wait_for(seen: Callable[[], object]) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while not seen():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def test_lines_come_out_in_order(pipe: Pipe):
    writer = LogWriter("text", pipe.writer)
    for number in range(5):
        logger_of(writer).info("line", extra=fields(n=number))
    writer.flush()
    assert pipe.read().splitlines() == [f"INFO streamdet.test: line n={number}" for number in range(5)]


def test_a_journal_gets_priorities_on_every_line(pipe: Pipe, monkeypatch: pytest.MonkeyPatch):
    status = os.fstat(pipe.writer)
    monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
    writer = LogWriter("text", pipe.writer)
    try:
        raise ValueError("x")
    except ValueError:
        logger_of(writer).exception("failed")
    logger_of(writer).info("ready")
    writer.flush()
    *errors, last = pipe.read().splitlines()
    assert last == "<6>INFO streamdet.test: ready"
    assert len(errors) > 2
    assert all(line.startswith("<3>") for line in errors)


def test_somebody_elses_journal_is_not_ours(pipe: Pipe, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("JOURNAL_STREAM", "1:2")
    assert not logs.leads_to_journal(pipe.writer)
    assert not logs.leads_to_journal(987_654)


def flood(writer: LogWriter, lines: int, text: str = "") -> None:
    """As many lines, each from another place, so that no limit helps."""
    for number in range(lines):
        writer.handle(record(text or "x" * 500, line=number))


def test_a_pipe_that_nobody_reads_holds_nobody_up_and_the_loss_is_told(pipe: Pipe, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(logs, "FLUSH_S", 0.05)
    writer = LogWriter("text", pipe.writer)
    before = LOST["full"]
    began_s = time.perf_counter()
    flood(writer, 2 * WAITING_MAX)  # with a write in this thread this would hang after 64 KiB
    taken_us = 1e6 * (time.perf_counter() - began_s) / (2 * WAITING_MAX)
    writer.flush()  # and so would this
    lost = LOST["full"] - before
    assert lost > 0
    sys.stdout.write(f"FIGURE log-nobody-reads lines={2 * WAITING_MAX} lost={lost} us_a_line={taken_us:.0f}\n")
    heard = ""
    while heard.count("\n") < 2 * WAITING_MAX - lost:
        heard += pipe.read()
    wait_for(writer._waiting.empty)
    told: list[int] = []
    monkeypatch.setattr(
        logs.logging.getLogger("streamdet.logs"), "warning", lambda _, extra: told.append(extra["fields"]["lines"])
    )
    writer.tick()
    writer.tick()
    assert told == [LOST["full"] + LOST["disk"]]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_is_counted_and_survived(pipe: Pipe):
    full = os.open("/dev/full", os.O_WRONLY)
    writer = LogWriter("text", full)
    before = LOST["disk"]
    logger_of(writer).info("lost")
    wait_for(lambda: LOST["disk"] > before)
    os.dup2(pipe.writer, full)  # the disk has room again
    logger_of(writer).info("written")
    writer.flush()
    assert pipe.read() == "INFO streamdet.test: written\n"
    os.close(full)


def test_a_reader_that_left_is_survived():
    reader, writing = os.pipe()
    os.close(reader)
    writer = LogWriter("text", writing)
    before = LOST["disk"]
    logger_of(writer).info("lost")
    wait_for(lambda: LOST["disk"] > before)
    os.close(writing)


def test_a_pipe_that_somebody_made_non_blocking_loses_nothing(pipe: Pipe):
    os.set_blocking(pipe.writer, False)
    writer = LogWriter("text", pipe.writer)
    flood(writer, 400)  # 200 kB, a pipe holds 64
    heard = ""
    while heard.count("\n") < 400:
        heard += pipe.read()
    assert len(heard.splitlines()) == 400


def test_a_log_call_that_is_wrong_is_a_line_that_says_where(pipe: Pipe):
    writer = LogWriter("text", pipe.writer)
    writer.handle(record("%d", "no number"))
    writer.flush()
    assert "tcp.py:1" in pipe.read()


@pytest.fixture
def root(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The process's logging as it was before."""
    before, level = logging.getLogger().handlers[:], logging.getLogger().level
    monkeypatch.setattr(logging, "raiseExceptions", True)
    yield
    logging.getLogger().handlers[:] = before
    logging.getLogger().setLevel(level)
    logging.captureWarnings(False)


@pytest.mark.usefixtures("root")
def test_held_lines_are_told_without_another(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]):
    clock = Clock()
    monkeypatch.setattr(logs.Limiter.__init__, "__defaults__", (clock,))
    logs.start("text", "info")
    for number in range(BURST + 3):
        logging.getLogger("streamdet").info("again", extra=fields(n=number))
    clock.now_s = EVERY_S
    logs.tick()
    logs.flush()
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == BURST + 1
    assert lines[-1] == f"INFO streamdet: again n={BURST + 2} suppressed=2"
