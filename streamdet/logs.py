"""Log lines: one record is one line, facts are fields of it, and no line ever waits for its reader.

`log.warning("refused", extra=fields(stream=..., reason=...))` says what happened in words that never change, and the
rest as fields. A thread of its own writes to stderr: a pipe that nobody reads, a full disk or a file system that hangs
would else stop the loop, and every call with it. What cannot be written is lost, counted, and told of afterwards.
docs/operations.md has the forms for users.
"""

import contextlib
import json
import logging
import os
import queue
import select
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, Final, Literal

import msgspec

from streamdet.errors import printable

LogFormat = Literal["text", "logfmt", "json"]
Lost = Literal["limit", "full", "disk"]

# Of one place in the code: ten lines show whether they are alike, and a line a second fills no journal.
BURST: Final = 10
EVERY_S: Final = 10.0
# Lines that wait for the writing thread: a burst of every place there is. Half a megabyte of text at the most.
WAITING_MAX: Final = 1000
# At the end of the process, for what still waits; a reader that is gone must not hold up a restart.
FLUSH_S: Final = 1.0
# Some dozens of lines of a traceback, whose ends tell most; with many fields still short of a journal's line (48 kB).
TRACE_CHARS: Final = 8000
# sd-daemon(3): what journald makes a priority of.
PRIORITIES: Final = {logging.CRITICAL: 2, logging.ERROR: 3, logging.WARNING: 4, logging.INFO: 6, logging.DEBUG: 7}
# Names that a line has anyway; a field of the same name would hide one of them.
RESERVED: Final = frozenset({"time", "level", "logger", "message", "trace"})

LOST: Final[dict[Lost, int]] = {"limit": 0, "full": 0, "disk": 0}
"""Lines that were not written since the start: over their place's limit, for want of a reader, or for an error."""


def fields(**known: object) -> dict[str, Any]:
    """Return what `extra=` of a log call wants, for facts beside the message; never audio, never a token."""
    assert not RESERVED & known.keys()
    return {"fields": known}


class Entry(msgspec.Struct, frozen=True):
    """A line before it has a form."""

    at_s: float
    """Unix time (s)."""
    level: int
    logger: str
    message: str
    fields: Mapping[str, str | int | float | bool | None] = {}
    trace: str = ""
    """Of an error that nobody expected."""

    @classmethod
    def of(cls, record: logging.LogRecord) -> "Entry":
        """Read a record; whatever it holds, the result is printable."""
        values = {name: _value(value) for name, value in getattr(record, "fields", {}).items()}
        trace = ""
        if record.exc_info and record.exc_info[0] is not None:
            trace = logging.Formatter().formatException(record.exc_info)
        return cls(record.created, record.levelno, record.name, printable(record.getMessage()), values, trace)


# -- forms -----------------------------------------------------------------------------------------------------------


def as_text(entry: Entry) -> list[str]:
    """For people: no time, since a journal and a terminal have their own."""
    head = f"{logging.getLevelName(entry.level)} {entry.logger}: {entry.message}"
    rest = [f"  {printable(line)}" for line in entry.trace.splitlines()]
    return [" ".join([head, *_pairs(entry.fields)]), *rest]


def as_logfmt(entry: Entry) -> list[str]:
    """`key=value` in one line, for Loki and grep."""
    trace = {"trace": printable(entry.trace, TRACE_CHARS, "\n")} if entry.trace else {}
    return [" ".join(_pairs(_head(entry) | dict(entry.fields) | trace))]


def as_json(entry: Entry) -> list[str]:
    """One object, for everything that reads JSON; numbers stay numbers."""
    trace = {"trace": printable(entry.trace, TRACE_CHARS, "\n")} if entry.trace else {}
    return [msgspec.json.encode(_head(entry) | dict(entry.fields) | trace).decode()]


FORMS: Final[dict[LogFormat, Callable[[Entry], list[str]]]] = {"text": as_text, "logfmt": as_logfmt, "json": as_json}


def _head(entry: Entry) -> dict[str, Any]:
    at = datetime.fromtimestamp(entry.at_s, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    level = logging.getLevelName(entry.level).lower()
    return {"time": at, "level": level, "logger": entry.logger, "message": entry.message}


def _pairs(known: Mapping[str, object]) -> Iterator[str]:
    for name, value in known.items():
        text = value if isinstance(value, str) else json.dumps(value)
        bare = text and not any(sign in text for sign in ' ="\\') and text.isprintable()
        yield f"{name}={text if bare else json.dumps(text, ensure_ascii=False)}"


def _value(value: object) -> str | int | float | bool | None:
    """Numbers as they are, text printable and not long; of bytes and arrays the size alone: they may be audio."""
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, bytes | bytearray | memoryview):
        return f"{len(value)} bytes"
    if isinstance(value, str | os.PathLike | Exception):
        return printable(str(value))
    return f"a {type(value).__name__}"


# -- limits ----------------------------------------------------------------------------------------------------------


class _Site:
    """A place in the code that logs."""

    def __init__(self, began_s: float) -> None:
        self.began_s = began_s
        self.written = 0
        self.held: logging.LogRecord | None = None
        """The newest line over the limit."""
        self.suppressed = 0
        """Lines before it."""


class Limiter:
    """Lets BURST lines through of each place in EVERY_S, then the newest of the rest, with their count."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Begin with none; there are never more places than log calls in the code."""
        self._clock: Final = clock
        self._sites: dict[tuple[str, int], _Site] = {}

    def admit(self, record: logging.LogRecord) -> list[logging.LogRecord]:
        """Take a record; return those to be written now."""
        now_s = self._clock()
        due = self.due()
        site = self._sites.setdefault((record.pathname, record.lineno), _Site(now_s))
        if now_s - site.began_s >= EVERY_S:
            site.began_s, site.written = now_s, 0
        if site.written < BURST:
            site.written += 1
            return [*due, record]
        if site.held is not None:
            site.suppressed += 1
            LOST["limit"] += 1
        site.held = record
        return due

    def due(self) -> list[logging.LogRecord]:
        """Return the held lines of all places whose time is over."""
        now_s, found = self._clock(), []
        for site in self._sites.values():
            if site.held is not None and now_s - site.began_s >= EVERY_S:
                found.append(_counted(site.held, site.suppressed))
                site.held, site.suppressed = None, 0
        return found


def _counted(record: logging.LogRecord, suppressed: int) -> logging.LogRecord:
    if suppressed:
        record.fields = {**getattr(record, "fields", {}), "suppressed": suppressed}
    return record


# -- writing ---------------------------------------------------------------------------------------------------------


class LogWriter(logging.Handler):
    """Writes to a file descriptor from a thread of its own; whoever logs never waits."""

    flushOnClose = False  # noqa: N815 - logging's name; what hangs at `flush` must not hang at the exit once more

    def __init__(self, form: LogFormat, descriptor: int = 2, *, limiter: Limiter | None = None) -> None:
        """Begin to write; lines get priorities where the descriptor is systemd's journal."""
        super().__init__()
        self._form: Final = FORMS[form]
        self._descriptor: Final = descriptor
        self._limiter: Final = limiter or Limiter()
        self._priorities: Final = leads_to_journal(descriptor)
        self._waiting: Final[queue.Queue[bytes | threading.Event]] = queue.Queue(WAITING_MAX)
        self._told = 0
        # A daemon thread: one that hangs in a write must not keep the process from ending.
        self._thread: Final = threading.Thread(target=self._write_all, name="log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Put a line in the queue, or count it where that is full."""
        for each in self._limiter.admit(record):
            self._put(each)

    def tick(self) -> None:
        """Tell, once a second, of lines that were held back or lost; nobody else would, if nothing more happens."""
        assert self.lock is not None
        with self.lock:
            for record in self._limiter.due():
                self._put(record)
        lost = LOST["full"] + LOST["disk"]
        if lost > self._told and self._waiting.empty():
            logging.getLogger(__name__).warning("log lines were lost", extra=fields(lines=lost - self._told))
            self._told = lost

    def flush(self) -> None:
        """Wait until everything is written, but no longer than FLUSH_S."""
        written, deadline_s = threading.Event(), time.monotonic() + FLUSH_S
        with contextlib.suppress(queue.Full):
            self._waiting.put(written, timeout=FLUSH_S)
            written.wait(deadline_s - time.monotonic())

    def _put(self, record: logging.LogRecord) -> None:
        try:
            lines = self._form(Entry.of(record))
        except Exception as error:  # a log call that is wrong must not be the end of a call
            lines = [f"ERROR {__name__}: a line that cannot be formed, {record.pathname}:{record.lineno}: {error!r}"]
        prefix = f"<{PRIORITIES.get(record.levelno, 6)}>" if self._priorities else ""
        data = "".join(f"{prefix}{line}\n" for line in lines).encode("utf-8", "backslashreplace")
        try:
            self._waiting.put_nowait(data)
        except queue.Full:
            LOST["full"] += 1

    def _write_all(self) -> None:
        while True:
            data = self._waiting.get()
            if isinstance(data, threading.Event):
                data.set()
                continue
            try:
                _write(self._descriptor, data)
            except OSError:  # the disk is full or gone (ENOSPC, EIO), the reader left (EPIPE), there is none (EBADF)
                LOST["disk"] += 1


def start(form: LogFormat, level: str) -> LogWriter:
    """Send all logs of the process to stderr from here on."""
    writer = LogWriter(form)
    logging.raiseExceptions = False  # or a handler that fails would print to the very stderr that fails
    logging.captureWarnings(True)
    logging.basicConfig(level=level.upper(), handlers=[writer], force=True)
    return writer


def tick() -> None:
    """Once a second: tell of lines that were held back or lost."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, LogWriter):
            handler.tick()


def flush() -> None:
    """Write what waits, within FLUSH_S: the last thing before a process ends, and before `os._exit`."""
    for handler in logging.getLogger().handlers:
        handler.flush()


def leads_to_journal(descriptor: int) -> bool:
    """Whether systemd says that this very descriptor is its journal; the variable alone is inherited by anybody."""
    try:
        status = os.fstat(descriptor)
    except OSError:
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def _write(descriptor: int, data: bytes) -> None:
    while data:
        try:
            data = data[os.write(descriptor, data) :]
        except BlockingIOError:  # whoever shares the pipe or terminal made it so
            select.select([], [descriptor], [])
