"""The report of how the daemon is, without a daemon."""

from types import SimpleNamespace
from typing import Any, cast

import pytest

from streamdet.engine import Counts
from streamdet.errors import OverloadError, ProtocolError
from streamdet.health import RECENT_S, Health
from streamdet.metrics import Metrics
from streamdet.records import Heartbeat


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


ENGINE = cast("Any", SimpleNamespace(counts=lambda: Counts(1, 2, 3, 4, 5, 6)))
SCORER = cast(
    "Any",
    SimpleNamespace(
        manifest=SimpleNamespace(model_id="level@0"), provider="CPUExecutionProvider", runs=2, run_threads=1
    ),
)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def health(metrics: Metrics, clock: Clock) -> Health:
    return Health(metrics, 1000, clock)


def report(health: Health) -> dict[str, Any]:
    return health.report(ENGINE, ready=True)


def test_before_the_model_is_there_it_says_what_it_can(health: Health):
    said = report(health)
    assert (said["provider"], said["lag_ms_p99"], said["batches"], said["load"]) == (None, None, 0, 0)
    assert said["streams_max"] == 1000
    assert said["reload"] is None


def test_batches_of_the_last_seconds_and_how_busy_they_kept_the_scorer(health: Health, clock: Clock):
    health.loaded(SCORER, {1: 2.0, 2: 3.456})
    health.scored(99, 9.0)
    clock.now_s += RECENT_S + 1
    for windows in (1, 3):
        health.scored(windows, 5.0)
    said = report(health)
    assert (said["batches"], said["batch_windows_mean"], said["batch_windows_max"]) == (2, 2.0, 3)
    assert said["batch_ms_mean"] == 5000
    assert said["load"] == 0.5  # ten seconds of the twenty that two runs at once have
    assert said["warm_up_ms"] == {"1": 2.0, "2": 3.46}


def test_a_scorer_that_does_all_it_can_has_a_load_of_one(health: Health):
    health.scored(1, 60.0)
    assert report(health)["load"] == 1.0


def test_refusals_and_reloads(health: Health, metrics: Metrics):
    metrics.refused("zeromq", OverloadError("x"))
    metrics.refused("zeromq", ProtocolError("x"))
    metrics.refused("pcm", "auth")
    metrics.refused("pcm")
    assert report(health)["refused"] == {"full": 1, "protocol": 2, "auth": 1}
    health.reloaded("manifest.json: not there")
    said = report(health)["reload"]
    assert (said["ok"], said["error"]) == (False, "manifest.json: not there")
    value = metrics.registry.get_sample_value
    assert value("streamdet_last_reload_successful") == 0
    assert value("streamdet_last_reload_success_timestamp_seconds") == 0
    health.reloaded()
    assert value("streamdet_last_reload_successful") == 1
    assert value("streamdet_last_reload_success_timestamp_seconds") > 0
    assert value("streamdet_reloads_total", {"result": "refused"}) == 1


def test_the_worst_of_the_last_ticks_is_told(health: Health):
    beat = Heartbeat("e", 0, 1, 1, 1, 0, 7.0, overload=True)
    for late_s in (0.001, 0.25, 0.002):
        health.beat(beat, late_s)
    said = report(health)
    assert (said["loop_late_ms"], said["epoch"], said["overload"]) == (250.0, "e", True)
    for _ in range(int(RECENT_S)):
        health.beat(beat, 0.001)
    assert report(health)["loop_late_ms"] == 1.0
