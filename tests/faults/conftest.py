"""Fixtures of the fault tests: daemons, calls, recorders and proxies that end with their test."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from streamdet.bundle import Bundle
from streamdet.records import Score, Verdict
from streamdet.scorer import Scorer
from streamdet.window import make_ready, settle
from tests.faults.calls import Calls
from tests.faults.chaos import Chaos
from tests.faults.harness import Served, Supervisor
from tests.faults.recorder import Recorder


@pytest.fixture
def ends() -> Iterator[contextlib.ExitStack]:
    """What is entered here is left when the test ends."""
    with contextlib.ExitStack() as stack:
        yield stack


@pytest.fixture
def prepare(ends: contextlib.ExitStack, tmp_path: Path, tiny_bundle: Bundle) -> Callable[..., Served]:
    """Makes daemons (of `tiny_bundle`) that are not started yet."""
    made: list[Served] = []

    def one(**options: Any) -> Served:
        served = Served(tmp_path / f"daemon-{len(made)}", options.pop("bundle", tiny_bundle.path), **options)
        made.append(served)
        ends.callback(served.close)
        return served

    return one


@pytest.fixture
def serve(prepare: Callable[..., Served]) -> Callable[..., Served]:
    """Starts daemons and waits until they are ready."""
    return lambda **options: prepare(**options).started()


@pytest.fixture
def supervise(ends: contextlib.ExitStack) -> Callable[[Served], Supervisor]:
    """Starts a daemon again whenever it ends."""
    return lambda served: ends.enter_context(Supervisor(served))


@pytest.fixture
def record(ends: contextlib.ExitStack) -> Callable[[Served], Recorder]:
    """Hears what a daemon publishes, and waits until it does."""

    def one(served: Served) -> Recorder:
        recorder = ends.enter_context(Recorder(served.endpoints["verdicts"]))
        recorder.await_beat()
        return recorder

    return one


@pytest.fixture
def dial(ends: contextlib.ExitStack, tmp_path: Path) -> Callable[..., Calls]:
    """Makes callers: `dial(address, prefix=...)`, without a call yet."""
    return lambda address, **options: ends.enter_context(Calls(address, tmp_path, **options))


@pytest.fixture
def chaos(ends: contextlib.ExitStack) -> Callable[[str], Chaos]:
    """Makes proxies in front of an address."""
    return lambda target: ends.enter_context(Chaos(target))


@pytest.fixture
def rescore(tiny_bundle: Bundle) -> Callable[[Calls, int, Verdict], Any]:
    """What the window of a verdict is worth by what the call said at that time: compare it to the verdict's `llr`."""
    scorer = Scorer(tiny_bundle, provider="cpu", threads=1)

    def one(calls: Calls, number: int, verdict: Verdict) -> Any:
        ready = make_ready([calls.window(number, verdict.start_s, verdict.end_s)], scorer.manifest)
        (score,) = settle([ready], scorer.run(ready.audio), scorer.manifest) if ready.heard else [Score(None, 0.0)]
        return score.llr if score.llr is None else pytest.approx(score.llr, abs=1e-4)

    return one
