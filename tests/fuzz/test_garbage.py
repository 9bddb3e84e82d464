"""Garbage on every socket, a thousand connections a second, beside twenty good calls that must not notice.

The daemon is a process of its own with the starter bundle. Half of the calls come over ZeroMQ and half over raw PCM;
half of each began before the garbage and half begin in the midst of it. The same calls are made without garbage too.

Over raw PCM any bytes are audio, so some of the garbage there becomes streams of its own, with verdicts: the figures
say how many.
"""

import contextlib
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest

from tests.faults.calls import Calls
from tests.faults.harness import Served, figure, wait_for
from tests.faults.recorder import Account, Recorder, account, histories, without
from tests.fuzz.garbage import Order, Report

CALLS = 20
RATE = 1000.0
CONNECTIONS = 10_000
# Each keeps half of the rate, on two cores that have a daemon and twenty calls to serve as well.
GENERATORS = 2
# Of one call; before the garbage, and then of all calls in the midst of it.
VERDICTS = 2
MEMORY_MAX_BYTES = 10_000_000
# A line a second of each place in the code that has one to say, whatever comes; ten thousand lines would be a megabyte.
LOG_MAX_BYTES = 100_000
SAME_LLR = 1e-4
# What a machine does that stops for two seconds: connections pile up, and each takes memory. Garbage that does harm
# does it every time, so these alone are tried again.
BUSY = {"skipped", "blocked", "memory"}
TRIES = 3
BROKEN = str(Path(__file__).parents[1] / "faults" / "broken.py")


class Phase(NamedTuple):
    """Twenty calls, and what became of them."""

    account: Account
    blocked: int
    """Frames for which a caller found no room."""
    llrs: dict[tuple[str, float, float], float | None]
    """(call, from, to in seconds) -> llr"""


class Party:
    """A daemon, whoever listens to it, and who calls it."""

    def __init__(self, served: Served, folder: Path, ends: contextlib.ExitStack) -> None:
        self.served = served
        self.recorder = ends.enter_context(Recorder(served.endpoints["verdicts"]))
        self.recorder.await_beat()
        self._folder = folder

    @contextlib.contextmanager
    def calls(self, name: str) -> Iterator["Talk"]:
        """Two callers, one a transport."""
        pcm = self.served.endpoints["pcm"][0]
        ways = {"zeromq": self.served.endpoints["audio"], "pcm": f"pcm+{pcm}"}
        with contextlib.ExitStack() as stack:
            callers = [
                stack.enter_context(Calls(address, self._folder, prefix=f"{name}-{way}-"))
                for way, address in ways.items()
            ]
            for caller in callers:
                caller.report()  # it runs: who begins late would say other things at other times
            yield Talk(self.recorder, callers, f"{name}-")

    def garbage(self, connections: int = CONNECTIONS) -> "Garbage":
        endpoints = self.served.endpoints
        pcm = {f"pcm.{number}": address for number, address in enumerate(endpoints["pcm"])}
        return Garbage({name: endpoints[name] for name in ("audio", "verdicts", "control", "http")} | pcm, connections)


class Talk:
    """Calls that go on."""

    def __init__(self, recorder: Recorder, callers: Sequence[Calls], prefix: str) -> None:
        self._recorder, self._callers, self._prefix = recorder, callers, prefix
        self._streams: list[str] = []

    def open(self) -> None:
        """Begin half of the calls, and hear of each."""
        for caller in self._callers:
            self._streams += [caller.stream(number) for number in caller.open(CALLS // 2 // len(self._callers))]
        self._recorder.await_verdicts(self._streams, VERDICTS)

    def end(self) -> Phase:
        for caller in self._callers:
            caller.end()
        self._recorder.await_closed(self._streams)
        told = self._recorder.verdicts(self._prefix)
        llrs = {(it.stream.removeprefix(self._prefix), it.start_s, it.end_s): it.llr for it in told}
        blocked = sum(caller.report().blocked for caller in self._callers)
        return Phase(account(self._recorder.histories(self._prefix).values()), blocked, llrs)


class Garbage:
    """Generators that run until they have made their connections."""

    def __init__(self, addresses: dict[str, str], connections: int) -> None:
        self._runs = [
            subprocess.Popen(
                [sys.executable, "-m", "tests.fuzz.garbage"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                cwd=Path(__file__).parents[2],
            )
            for _ in range(GENERATORS)
        ]
        for seed, run in enumerate(self._runs):
            assert run.stdin is not None
            order = Order(addresses, connections // GENERATORS, RATE / GENERATORS, seed)
            run.stdin.write(msgspec.json.encode(order))
            run.stdin.close()

    def __enter__(self) -> "Garbage":
        return self

    def __exit__(self, *error: object) -> None:
        for run in self._runs:
            run.kill()
            run.wait()
            assert run.stdout is not None
            run.stdout.close()

    @property
    def over(self) -> bool:
        return all(run.poll() is not None for run in self._runs)

    def reports(self) -> list[Report]:
        return [msgspec.json.decode(run.stdout.read(), type=Report) for run in self._runs if run.stdout is not None]


@pytest.fixture
def party(tmp_path):
    with contextlib.ExitStack() as stack:

        def serve(**options: Any) -> Party:
            served = Served(tmp_path / "daemon", **options)
            stack.callback(served.close)
            return Party(served.started(), tmp_path, stack)

        yield serve


class Trial(NamedTuple):
    """The same calls without garbage and beside it, and what the daemon looks like afterwards."""

    quiet: Phase
    loud: Phase
    reports: list[Report]
    rss_bytes: int
    """More than before the garbage."""
    descriptors: int
    """More than before."""
    log_bytes: int
    cpu_s: float
    alive: bool

    def complaints(self) -> set[str]:
        """Name every promise that was broken."""
        quiet, loud = self.quiet, self.loud
        both = loud.llrs.keys() & quiet.llrs.keys()
        found = {
            "dead": not self.alive,
            "calls": (loud.account.tracks, loud.account.openings, loud.account.unclosed) != (CALLS, CALLS, 0),
            "verdicts": loud.account.missing + loud.account.holes + loud.account.duplicates > 0,
            "blocked": loud.blocked > quiet.blocked,
            "skipped": loud.account.skipped > quiet.account.skipped,
            "llr": len(both) < CALLS * VERDICTS or any(not same(loud.llrs[key], quiet.llrs[key]) for key in both),
            "memory": self.rss_bytes > MEMORY_MAX_BYTES,
            "descriptors": self.descriptors > 0,
            "log": self.log_bytes > LOG_MAX_BYTES,
        }
        return {name for name, broken in found.items() if broken}


def same(one: float | None, other: float | None) -> bool:
    return one == other or (one is not None and other is not None and abs(one - other) <= SAME_LLR)


def tried(here: Party, connections: int, number: int = 0) -> Trial:
    served = here.served
    with here.calls(f"quiet{number}") as talk:
        talk.open()
        talk.open()
        quiet = talk.end()
    descriptors, memory, logged = served.descriptors(), served.memory(), served.log.stat().st_size
    cpu_s = served.cpu_s()
    with here.calls(f"loud{number}") as talk:
        talk.open()
        with here.garbage(connections) as garbage:
            talk.open()
            wait_for(lambda: garbage.over, 120.0, "for the garbage to be over")
            reports = garbage.reports()
        loud = talk.end()
    with contextlib.suppress(AssertionError):  # for what is on its way; what stays is a complaint
        wait_for(lambda: served.descriptors() <= descriptors, 5.0)
    return Trial(
        quiet,
        loud,
        reports,
        rss_bytes=served.memory().rss - memory.rss,
        descriptors=served.descriptors() - descriptors,
        log_bytes=served.log.stat().st_size - logged,
        cpu_s=served.cpu_s() - cpu_s,
        alive=served.code is None,
    )


def test_a_thousand_connections_of_garbage_a_second_disturb_nobody(party):
    here = party()
    for number in range(TRIES):
        trial = tried(here, CONNECTIONS, number)
        show(here, trial)
        if not trial.complaints() & BUSY:
            break
    assert sum(report.connections for report in trial.reports) == CONNECTIONS
    assert trial.complaints() == set()
    quiet = f"quiet{number}-"
    first = next(place for place, it in enumerate(here.recorder.verdicts()) if it.stream.startswith(quiet))
    one_less = histories(without(list(here.recorder.heard), first + CALLS), quiet)
    lost = trial.quiet._replace(account=account(one_less.values()))
    assert trial._replace(loud=lost).complaints() == {"verdicts"}, "the control: a verdict that is missing is missed"


def show(here: Party, trial: Trial) -> None:
    made = sum(report.connections for report in trial.reports)
    figure(
        "garbage",
        connections=made,
        per_s=round(made / max(report.seconds for report in trial.reports)),
        megabytes=sum(report.bytes for report in trial.reports) / 1e6,
        refused=sum(report.refused for report in trial.reports),
        hung_up=sum(report.hung_up for report in trial.reports),
        slow=sum(report.slow for report in trial.reports),
        streams=len(here.recorder.events("open", "pcm-")),
        streams_verdicts=len(here.recorder.verdicts("pcm-")),
        cpu_s=trial.cpu_s,
        verdicts=trial.loud.account.verdicts,
        missing=trial.loud.account.missing,
        skipped=trial.loud.account.skipped,
        skipped_without=trial.quiet.account.skipped,
        rss_mb=trial.rss_bytes / 1e6,
        descriptors=trial.descriptors,
        log_kb=trial.log_bytes / 1e3,
    )


@pytest.mark.parametrize(
    ("how", "complaints"),
    [("leaks,60000,10", {"memory", "descriptors"}), ("greedy", {"memory"})],
)
def test_a_daemon_that_gives_garbage_too_much_is_found_out(how, complaints, party):
    """The controls: every stream leaves something behind; or it gets its whole ring before any audio has come."""
    trial = tried(party(program=[BROKEN, how]), CONNECTIONS // 2)
    assert trial.complaints() >= complaints
