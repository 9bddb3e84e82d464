"""Another bundle and other settings under forty live calls: no second is lost, and what is bad is refused."""

import itertools
import shutil
import signal
import socket
import time

import msgspec
import pytest

from streamdet import bundle
from streamdet.bundle import starter_path
from tests.faults.harness import PATIENCE_S, figure, wait_for
from tests.faults.recorder import account, histories, without

CALLS = 40


def notices(recorder) -> list[dict]:
    return [each.record for each in list(recorder.heard) if isinstance(each.record, dict)]


def settled(recorder, count: int) -> dict:
    """The outcome of reload number `count`."""
    wait_for(lambda: len(notices(recorder)) >= count, 4 * PATIENCE_S, "for the outcome of a reload")
    return notices(recorder)[count - 1]


@pytest.fixture
def setting(serve, record, dial):
    """A daemon under live calls, and somebody who hears it."""

    def make(calls=CALLS, **options):
        served = serve(**options)
        recorder, caller = record(served), dial(served.endpoints["audio"])
        streams = [caller.stream(number) for number in caller.open(calls)]
        recorder.await_verdicts(streams, 2)
        return served, recorder, caller, streams

    return make


@pytest.fixture
def other(tmp_path, tiny_bundle):
    """A bundle with another name and the same model, and whatever a test wants to change."""

    def make(name="other", **changes):
        manifest = msgspec.structs.replace(tiny_bundle.manifest, name=name, **changes)
        content = (tiny_bundle.path / "model.onnx").read_bytes()
        return bundle.save(tmp_path / name, manifest, {"model.onnx": content}).path

    return make


def whole(recorder, caller, streams):
    """End the calls; nothing may be missing of any."""
    caller.end()
    recorder.await_closed(streams)
    tracks = recorder.histories(caller.prefix)
    counted = account(tracks.values())
    assert (counted.openings, counted.missing, counted.duplicates, counted.holes) == (CALLS, 0, 0, 0)
    return counted


def test_bundles_are_swapped_under_live_calls_without_a_second_lost(setting, other, tiny_bundle):
    """A renamed one, the starter (a block model), and back."""
    served, recorder, caller, streams = setting()
    models = [recorder.verdicts()[0].model]
    began_s = time.monotonic()
    for count, path in enumerate((other(), starter_path(), tiny_bundle.path), 1):
        served.rewrite(bundle={"path": str(path)})
        served.signal(signal.SIGHUP)
        outcome = settled(recorder, count)
        assert (outcome["type"], outcome["ok"], outcome["error"]) == ("reload", True, None)
        assert (outcome["from"], outcome["changed"], outcome["restart"]) == (models[-1], ["bundle.path"], [])
        models.append(outcome["model"])
        at_s = time.monotonic()
        recorder.await_verdicts(streams, 2, since_s=at_s)
        assert {it.model for it in recorder.verdicts()[-CALLS:]} == {models[-1]}
    counted = whole(recorder, caller, streams)
    figure("reload", **counted._asdict(), reloads=3, seconds=time.monotonic() - began_s)
    assert served.code is None
    by_stream: dict[str, list] = {stream: [] for stream in streams}
    for verdict in recorder.verdicts(caller.prefix):
        by_stream[verdict.stream].append(verdict)
    control = account(histories(without(recorder.heard, 100), caller.prefix).values())
    assert control.holes + control.missing > 0, "a verdict less would not have been noticed"
    for stream in streams:
        assert [model for model, _ in itertools.groupby(it.model for it in by_stream[stream])] == models


def test_another_grid_keeps_every_track(setting, other, tiny_bundle):
    served, recorder, _, streams = setting(4)
    audio = msgspec.structs.replace(tiny_bundle.manifest.audio, hop_samples=8_000)
    served.rewrite(bundle={"path": str(other("often", audio=audio))})
    answer = served.ask(id=3, op="reload")
    assert (answer["id"], answer["ok"], answer["changed"]) == (3, True, ["bundle.path"])
    recorder.await_verdicts(streams, 4, since_s=time.monotonic())
    for stream in streams:
        heard = recorder.verdicts(stream)
        assert [it.seq for it in heard] == list(range(len(heard)))
        assert len({it.opened for it in heard}) == 1
        ends = [it.end_s for it in heard if it.model == answer["model"]]
        assert all(after - before in (0.5, 1.0) for before, after in itertools.pairwise(ends))
        assert 0.5 in {after - before for before, after in itertools.pairwise(ends)}


def test_bad_bundles_and_settings_are_refused_and_the_old_goes_on(setting, tmp_path, tiny_bundle):
    served, recorder, caller, streams = setting()
    model, count = recorder.verdicts()[0].model, 0
    damaged = {}
    for damage in ("truncated", "tampered", "no manifest"):
        damaged[damage] = shutil.copytree(tiny_bundle.path, tmp_path / damage)
    content = (tiny_bundle.path / "model.onnx").read_bytes()
    (damaged["truncated"] / "model.onnx").write_bytes(content[:-10])
    (damaged["tampered"] / "model.onnx").write_bytes(content[:-3] + bytes([content[-3] ^ 1]) + content[-2:])
    (damaged["no manifest"] / "manifest.json").unlink()
    for path in (*damaged.values(), tmp_path / "absent"):
        served.rewrite(bundle={"path": str(path)})
        served.signal(signal.SIGHUP)
        count += 1
        outcome = settled(recorder, count)
        assert (outcome["ok"], outcome["model"], outcome["from"]) == (False, model, model)
        assert outcome["error"]
    served.config.write_text("[scoring]\nbatch_max = 0\n")
    served.signal(signal.SIGHUP)
    assert "scoring.batch_max: 0" in settled(recorder, count + 1)["error"]
    recorder.await_verdicts(streams, 2, since_s=time.monotonic())
    assert {it.model for it in recorder.verdicts()} == {model}
    assert served.ask(op="status")["health"]["reload"]["ok"] is False
    assert served.metric('streamdet_reloads_total{result="refused"}') == count + 1
    whole(recorder, caller, streams)


def test_settings_change_live_or_say_that_they_wait(setting):
    served, recorder, *_ = setting(2)
    served.rewrite(
        streams={"max_streams": 2, "idle_timeout_s": 33.0}, endpoints={"http": "127.0.0.1:1"}, pcm={"rate": 16000}
    )
    answer = served.ask(op="reload")
    assert answer["ok"]
    assert answer["changed"] == ["streams.idle_timeout_s", "streams.max_streams"]
    assert answer["restart"] == ["endpoints.http", "pcm.rate"]
    assert served.ask(op="status")["health"]["streams_max"] == 2
    assert "endpoints.http pcm.rate" in served.said()
    assert notices(recorder)[0]["restart"] == ["endpoints.http", "pcm.rate"]


def test_a_good_reload_after_a_bad_one(setting, other, tmp_path):
    served, recorder, caller, streams = setting()
    served.rewrite(bundle={"path": str(tmp_path / "absent")})
    assert not served.ask(op="reload")["ok"]
    served.rewrite(bundle={"path": str(other())})
    assert served.ask(op="reload")["model"].startswith("other@")
    recorder.await_verdicts(streams, 2, since_s=time.monotonic())
    whole(recorder, caller, streams)


def test_the_service_manager_hears_of_the_reload_and_of_its_end(setting, tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.settimeout(PATIENCE_S)
        manager.bind(str(tmp_path / "notify"))

        def told(line: str) -> list[str]:
            """The message that has this line; those before it are gone."""
            lines: list[str] = []
            while line not in lines:
                lines = manager.recv(4096).decode().splitlines()
            return lines

        served, *_ = setting(1, environment={"NOTIFY_SOCKET": str(tmp_path / "notify")})
        told("READY=1")
        before_us = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        served.signal(signal.SIGHUP)
        (stamp,) = [line for line in told("RELOADING=1") if line.startswith("MONOTONIC_USEC=")]
        assert before_us <= int(stamp.partition("=")[2]) <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        told("READY=1")
