"""A model that hangs or fails: the daemon notices, says so, and ends where nothing else helps."""

import contextlib
import itertools
import signal
import socket
import time
from pathlib import Path

import pytest
import zmq

from streamdet.audio import encode
from streamdet.records import AudioFormat, Frame
from streamdet.wire import frames
from tests.faults import bundles
from tests.faults.harness import PATIENCE_S, Served, figure, wait_for

FORM = AudioFormat(bundles.RATE_HZ, "s16le")
DEVICE = 71


class Caller:
    """Sends seconds, ordinary or loud, as fast as a test wants; a shorter one is the last of its stream."""

    def __init__(self, address: str) -> None:
        self._context = zmq.Context()
        self._push = self._context.socket(zmq.PUSH)
        self._push.setsockopt(zmq.LINGER, 0)
        self._push.connect(address)
        self._seconds: dict[str, int] = {}

    def say(self, stream: str, *, loud: bool = False, seconds: float = 1.0) -> None:
        at = self._seconds.get(stream, 0)
        self._seconds[stream] = at + 1
        second = (bundles.loud if loud else bundles.ordinary)(seconds)
        frame = Frame(stream, FORM, encode(second, "s16le"), start=at * bundles.RATE_HZ)
        self._push.send_multipart(frames.build(frame))

    def close(self) -> None:
        self._context.destroy(linger=0)


@pytest.fixture
def caller(ends):
    def one(served):
        made = Caller(served.endpoints["audio"])
        ends.callback(made.close)
        return made

    return one


@pytest.fixture
def hanging(tmp_path):
    return bundles.hanging(tmp_path / "hanging").path


@pytest.fixture
def failing(tmp_path):
    return bundles.failing(tmp_path / "failing").path


@pytest.fixture
def manager(tmp_path):
    """Listens as systemd does."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as made:
        made.settimeout(PATIENCE_S)
        made.bind(str(tmp_path / "notify"))
        yield made


def told(manager, line: str) -> list[str]:
    """Everything that the service manager is told until this."""
    lines: list[str] = []
    while line not in lines:
        lines += manager.recv(4096).decode().splitlines()
    return lines


def notices(recorder) -> list[dict]:
    return [each.record for each in list(recorder.heard) if isinstance(each.record, dict)]


def closes(recorder, reason: str) -> set[str]:
    return {event.stream for event in recorder.events("close") if event.detail["reason"] == reason}


def hang(serve, record, caller, bundle: Path, **options):
    """A daemon with two calls of a second each, one of which then gets loud; when that was."""
    served = serve(bundle=bundle, **options)
    recorder, call = record(served), caller(served)
    for stream in ("good", "bad"):
        call.say(stream)
    recorder.await_verdicts(["good", "bad"])
    loud_s = time.monotonic()
    call.say("bad", loud=True)
    return served, recorder, call, loud_s


def test_a_hung_run_ends_the_process_for_a_new_one_and_subscribers_are_told(serve, record, caller, hanging):
    served, recorder, call, loud_s = hang(serve, record, caller, hanging)
    assert served.wait() == DEVICE
    figure("hung", ended_s=time.monotonic() - loud_s)
    wait_for(lambda: closes(recorder, "drain") == {"good", "bad"})
    (failure,) = notices(recorder)
    assert (failure["type"], failure["ok"]) == ("failure", False)
    assert "a run: " in failure["error"]
    assert "a run hangs" in served.said()
    served.started()
    for _ in range(2):
        call.say("good")
    recorder.await_verdicts(["good"], 2)


def test_systemd_is_asked_to_end_it_where_it_listens(serve, record, caller, hanging, manager, tmp_path):
    environment = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "10000000"}
    served, _, _, loud_s = hang(serve, record, caller, hanging, environment=environment)
    told(manager, "READY=1")
    before = told(manager, "WATCHDOG=trigger")
    figure("hung-systemd", triggered_s=time.monotonic() - loud_s)
    assert "STOPPING=1" not in before
    # Nobody did anything about it.
    assert served.wait() == DEVICE


def test_signs_of_life_go_on_while_runs_are_merely_under_way(serve, record, caller, hanging, manager, tmp_path):
    """The control of the above: with patience without end nothing is noticed, and systemd is told that all is well."""
    environment = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "10000000"}
    served, *_ = hang(serve, record, caller, hanging, environment=environment, scoring={"deadline_s": 3600})
    told(manager, "READY=1")
    heard = list(itertools.chain.from_iterable(told(manager, "WATCHDOG=1") for _ in range(4)))
    assert "WATCHDOG=trigger" not in heard
    assert served.code is None


@pytest.mark.parametrize("deadline_s", [0, 3600])
def test_sigterm_ends_a_daemon_whose_run_hangs_within_its_drain(serve, record, caller, hanging, deadline_s):
    """By the watch, or without it when the drain has waited long enough: nothing waits for a thread that hangs."""
    sections = {"scoring": {"deadline_s": deadline_s, "threads": 2}, "daemon": {"drain_timeout_s": 3.0}}
    served, recorder, call, _ = hang(serve, record, caller, hanging, **sections)
    call.say("good")
    recorder.await_verdicts(["good"], 2)
    begun_s = time.monotonic()
    served.signal(signal.SIGTERM)
    assert served.wait() == DEVICE
    figure("hung-sigterm", deadline_s=deadline_s, ended_s=time.monotonic() - begun_s)
    wait_for(lambda: closes(recorder, "drain") == {"good", "bad"})
    (lost,) = [event for event in recorder.events("close") if event.stream == "bad"]
    assert (lost.detail["windows"], lost.detail["skipped"]) == (1, 1)


def test_sigterm_ends_a_daemon_whose_very_last_run_hangs(serve, record, caller, hanging):
    """It begins in the drain, with the rest of a stream that ends there: nobody can tell it from one that is slow."""
    served = serve(bundle=hanging, scoring={"deadline_s": 3600}, daemon={"drain_timeout_s": 1.5})
    recorder, call = record(served), caller(served)
    call.say("rest", loud=True, seconds=0.6)
    wait_for(lambda: recorder.events("open"))
    served.signal(signal.SIGTERM)
    assert served.wait() == 0
    assert "drain took too long" in served.said()
    wait_for(lambda: closes(recorder, "drain") == {"rest"})


def test_a_run_that_fails_costs_its_window_and_is_told(serve, record, caller, failing):
    """A loud second is in four windows of its call; the other call's run goes well in between."""
    served = serve(bundle=failing)
    recorder, call = record(served), caller(served)
    call.say("bad")
    recorder.await_verdicts(["bad"])
    for failed in (1, 2, 3, 4):
        call.say("bad", loud=failed == 1)
        wait_for(lambda failed=failed: served.metric("streamdet_runs_failed_total") == failed)
        call.say("good")
        recorder.await_verdicts(["good"], failed)
    call.say("bad")
    recorder.await_verdicts(["bad"], 2)
    assert served.code is None
    assert served.metric("streamdet_windows_failed_total") == 4
    assert [(it.seq, it.end_s, it.skipped) for it in recorder.verdicts("bad")] == [(0, 1.0, 0), (1, 6.0, 4)]
    assert [it.skipped for it in recorder.verdicts("good")] == [0] * 4
    assert served.said().count("run failed windows=1") == 4


def test_three_failed_runs_in_a_row_end_the_process(serve, record, caller, failing):
    served = serve(bundle=failing)
    recorder, call = record(served), caller(served)
    for stream in ("good", "bad"):
        call.say(stream)
    recorder.await_verdicts(["good", "bad"])
    for failed in (1, 2, 3):
        call.say("bad", loud=True)
        wait_for(lambda failed=failed: served.code is not None or served.said().count("run failed") >= failed)
    assert served.wait() == DEVICE
    wait_for(lambda: closes(recorder, "drain") == {"good", "bad"})
    (failure,) = notices(recorder)
    assert "runs that failed in a row: 3" in failure["error"]


def test_sigterm_ends_a_daemon_whose_model_is_still_loading(tmp_path):
    """It is the first that hangs here; one of gigabytes takes longer, too, than systemd waits."""
    served = Served(tmp_path / "loading", bundles.endless(tmp_path / "endless").path)
    try:
        served.start()
        wait_for(lambda: answers(served), why="for a daemon that loads")
        begun_s = time.monotonic()
        served.signal(signal.SIGTERM)
        assert served.wait() == 0
        figure("loading-sigterm", ended_s=time.monotonic() - begun_s)
        assert "ready" not in served.said()
    finally:
        served.close()


def answers(served):
    with contextlib.suppress(OSError):
        return served.http("/livez")[0] == 200
