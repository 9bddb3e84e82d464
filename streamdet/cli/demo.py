"""`streamdet demo`: a whole daemon in this process, a few calls, and what it says of them."""

import asyncio
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.text import Text

from streamdet import bundle, config
from streamdet.cli.board import COLOURS, Board, line
from streamdet.cli.send import play, recorded
from streamdet.cli.tail import records, subscribed, watch
from streamdet.errors import UnreachableError
from streamdet.records import AudioFormat, Event, Verdict
from streamdet.wire.verdicts import Record

# A demo is watched to its end; what is longer is cut.
MOST_S: Final = 20.0
# Beyond the calls themselves: starting up, the last verdicts, and a slow machine.
PATIENCE_S: Final = 30.0

Files = Annotated[list[Path] | None, typer.Argument(help="Recordings to play instead of the ones that come along.")]


def demo(files: Files = None) -> None:
    """Start a daemon with the bundled starter, play a few calls in real time, and sum up."""
    played = files or bundle.starter_recordings()
    names = {f"{number}-{path.stem.replace(' ', '_')[:40]}": path for number, path in enumerate(played, 1)}
    recordings = {name: recorded(path, None) for name, path in names.items()}  # a bad one is told of at once
    heard: list[Record] = []
    with _daemon() as addresses, subscribed(addresses["verdicts"], [""]) as socket:
        time.sleep(0.3)  # a subscription travels; without it the first event would be missed
        calls = threading.Thread(target=lambda: asyncio.run(_play(recordings, addresses["audio"])), daemon=True)
        calls.start()
        ended = _until_closed(_kept(records(socket), heard), len(names))
        if sys.stdout.isatty():
            watch(ended, Board(), screen=False)
        else:
            for record in ended:
                if isinstance(record, Verdict | Event):
                    typer.echo(line(record))
        calls.join(timeout=1)
    _sum_up(names, heard)


@contextmanager
def _daemon() -> Iterator[dict[str, str]]:
    """Run a daemon on free ports in a thread; yields its addresses."""
    from streamdet.daemon import Daemon

    overrides = dict.fromkeys(("audio", "verdicts", "control"), "tcp://127.0.0.1:0") | {"http": "", "pcm": ""}
    settings = config.load(None, {f"endpoints.{name}": address for name, address in overrides.items()})
    ready, failure = threading.Event(), []
    daemon = Daemon(settings)
    loop = asyncio.new_event_loop()

    def serve() -> None:
        try:
            loop.run_until_complete(daemon.serve(ready.set))
        except Exception as error:  # whatever it is, the main thread has to tell of it
            failure.append(error)
        finally:
            ready.set()

    thread = threading.Thread(target=serve, name="daemon")
    thread.start()
    try:
        ready.wait()
        if failure:
            raise failure[0]
        yield daemon.addresses
    finally:
        if thread.is_alive():
            loop.call_soon_threadsafe(daemon.stop)
        thread.join()
        loop.close()


async def _play(recordings: dict[str, tuple[AudioFormat, bytes]], address: str) -> None:
    """Play all recordings at once, a second and a half apart."""

    async def later(delay_s: float, name: str, form: AudioFormat, data: bytes) -> None:
        await asyncio.sleep(delay_s)
        await play(form, data[: round(MOST_S * form.rate_hz) * form.block_bytes], name, address)

    async with asyncio.TaskGroup() as tasks:
        for number, (name, (form, data)) in enumerate(recordings.items()):
            tasks.create_task(later(1.5 * number, name, form, data))


def _kept(found: Iterator[Record | None], heard: list[Record]) -> Iterator[Record | None]:
    for record in found:
        if record is not None:
            heard.append(record)
        yield record


def _until_closed(found: Iterator[Record | None], calls: int) -> Iterator[Record | None]:
    """Pass on until that many calls have ended."""
    deadline_s, closed = time.monotonic() + MOST_S + 1.5 * calls + PATIENCE_S, 0
    for record in found:
        yield record
        closed += isinstance(record, Event) and record.type == "close"
        if closed >= calls:
            return
        if time.monotonic() > deadline_s:
            raise UnreachableError.of("calls that ended", closed, f"{calls} by now; is this machine very busy?")


def _sum_up(names: dict[str, Path], heard: list[Record]) -> None:
    console = Console()
    console.print()
    for name, path in names.items():
        mine = [record for record in heard if isinstance(record, Verdict) and record.stream == name]
        for channel in sorted({verdict.channel for verdict in mine}):
            last = [verdict for verdict in mine if verdict.channel == channel][-1]
            p_spoof = "–" if last.p_spoof is None else f"{last.p_spoof:.2f}"
            text = f"{path.name}, channel {channel}: {last.state}, P(spoof) {p_spoof} after {last.end_s:.0f} s"
            console.print(Text(text, style=COLOURS[last.state]), soft_wrap=True)
    console.print(
        "The bundled model is a starter: it shows that the line works, it does not protect anybody.", soft_wrap=True
    )
