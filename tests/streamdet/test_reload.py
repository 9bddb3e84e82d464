"""What a reload would bring: which settings it can change, and which bundles it refuses."""

import asyncio
import math
import re
import shutil
import threading
from pathlib import Path

import msgspec
import numpy as np
import pytest
from onnx import TensorProto, helper

from streamdet import bundle, reload
from streamdet.bundle import Calibration, Decision
from streamdet.config import Config, settings
from streamdet.errors import BundleError, ConfigError, MissingError
from streamdet.reload import LIVE, compare, in_thread, merge, prepare, probe
from streamdet.scoring import load

CPU = {"provider": "cpu", "threads": 1, "batch_max": 2}


def config(made, **sections) -> Config:
    return Config.model_validate({"bundle": {"path": made.path}, "scoring": CPU, **sections})


@pytest.fixture
def serving(tiny_bundle):
    """Settings and the model that scores."""
    given = config(tiny_bundle)
    return given, load(tiny_bundle, given.scoring), tiny_bundle


def offered(serving, fresh: Config, in_force: Config | None = None):
    given, loaded, made = serving
    return prepare(given, in_force or given, lambda: fresh, loaded, made)


def other_bundle(serving, tmp_path, content: bytes, **changes):
    """A bundle beside the one that scores."""
    manifest = msgspec.structs.replace(serving[2].manifest, **changes)
    return bundle.save(tmp_path / "other", manifest, {"model.onnx": content})


def constant(value: float, window_samples: int = 64_000) -> bytes:
    """A model whose every score is this."""
    graph = helper.make_graph(
        [
            helper.make_node("ReduceMean", ["audio", "axes"], ["mean"], keepdims=0),
            helper.make_node("Mul", ["mean", "none"], ["zero"]),
            helper.make_node("Add", ["zero", "value"], ["score"]),
        ],
        "constant",
        [helper.make_tensor_value_info("audio", TensorProto.FLOAT, ["batch", window_samples])],
        [helper.make_tensor_value_info("score", TensorProto.FLOAT, ["batch"])],
        [
            helper.make_tensor("axes", TensorProto.INT64, [1], [1]),
            helper.make_tensor("none", TensorProto.FLOAT, [], [0.0]),
            helper.make_tensor("value", TensorProto.FLOAT, [], [value]),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9).SerializeToString()


# -- settings ----------------------------------------------------------------------------------------------------------


def test_every_live_key_exists():
    assert {setting.name for setting in settings()} >= LIVE


def test_the_page_lists_the_live_keys():
    text = (Path(__file__).parents[2] / "docs" / "config.md").read_text("utf-8")
    listed = re.findall(r"^- `(\w+\.\w+)`$", text.partition("## Reload")[2].partition("\n## ")[0], re.MULTILINE)
    assert listed == [setting.name for setting in settings() if setting.name in LIVE]


def test_what_is_bound_to_sockets_and_devices_waits_for_a_restart():
    sections = {name.partition(".")[0] for name in LIVE}
    assert sections.isdisjoint({"endpoints", "pcm", "limits", "security"})
    assert "scoring.provider" not in LIVE


def test_changes_are_told_apart_by_what_they_need():
    old = Config()
    new = Config.model_validate(
        {
            "streams": {"idle_timeout_s": 3},
            "endpoints": {"audio": "tcp://127.0.0.1:9", "http": ""},
            "decision": {"prior_spoof": 0.5},
        }
    )
    found = compare(old, new)
    assert found.live == ("streams.idle_timeout_s", "decision.prior_spoof")
    assert found.restart == ("endpoints.audio", "endpoints.http")
    in_force = merge(old, new, found.live)
    assert (in_force.streams.idle_timeout_s, in_force.decision.prior_spoof) == (3, 0.5)
    assert in_force.endpoints == old.endpoints
    assert compare(in_force, new).live == ()
    assert compare(in_force, new).restart == found.restart, "it is said again at the next reload"


def test_addresses_that_others_opened_are_no_change(serving):
    given, *_ = serving
    in_force = given.model_copy(update={"endpoints": given.endpoints.model_copy(update={"audio": "tcp://inherited:1"})})
    found = offered(serving, given, in_force)
    assert found.changes == reload.Changes((), ())
    assert found.config.endpoints.audio == "tcp://inherited:1"


def test_settings_that_cannot_be_read_are_an_error(serving):
    def gone():
        raise MissingError.of("config file", "x", "a file that exists")

    given, loaded, made = serving
    with pytest.raises(MissingError):
        prepare(given, given, gone, loaded, made)


def test_a_hop_that_the_bundle_cannot_have_is_refused(serving, block_bundle):
    with pytest.raises(ConfigError, match=r"scoring.hop"):
        offered(serving, config(block_bundle, scoring={**CPU, "hop": "adaptive"}))


# -- bundles -----------------------------------------------------------------------------------------------------------


def test_what_scores_already_is_verified_and_not_loaded_again(serving):
    given, _, made = serving
    assert offered(serving, given).loaded is None
    assert offered(serving, config(made, scoring={**CPU, "min_window_s": 2.0, "deadline_s": 9})).loaded is None
    assert offered(serving, config(made, scoring={**CPU, "batch_max": 4})).loaded.scorer.buckets == (1, 2, 4)


def test_a_change_of_the_files_on_the_disk_is_noticed_though_the_manifest_is_the_same(serving):
    given, _, made = serving
    file = made.path / "model.onnx"
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    with pytest.raises(BundleError, match="sha256"):
        offered(serving, given)


@pytest.mark.parametrize("damage", ["absent", "truncated", "swapped", "no model", "no manifest"])
def test_a_damaged_bundle_is_refused(damage, serving, tmp_path, block_bundle):
    given, _, made = serving
    other = tmp_path / "other"
    shutil.copytree(made.path, other)
    if damage == "absent":
        shutil.rmtree(other)
    elif damage == "truncated":
        (other / "model.onnx").write_bytes((other / "model.onnx").read_bytes()[:-1])
    elif damage == "swapped":
        shutil.copy(block_bundle.path / "model.onnx", other / "model.onnx")
    elif damage == "no model":
        (other / "model.onnx").unlink()
    else:
        (other / "manifest.json").write_text("{}")
    with pytest.raises(BundleError):
        offered(serving, given.model_copy(update={"bundle": given.bundle.model_copy(update={"path": other})}))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_model_whose_score_is_no_number_is_refused(value, serving, tmp_path):
    made = other_bundle(serving, tmp_path, constant(value))
    with pytest.raises(BundleError, match="score of a probe window"):
        offered(serving, config(made))


def test_another_model_may_score_as_it_likes(serving, tmp_path):
    made = other_bundle(serving, tmp_path, constant(-7.0))
    found = offered(serving, config(made))
    assert probe(found.loaded.scorer) == -7.0
    assert found.changes.live == ("bundle.path",)


def test_the_same_model_with_another_calibration_is_held_against_the_old_one(serving, tmp_path, monkeypatch):
    content = (serving[2].path / "model.onnx").read_bytes()
    made = other_bundle(
        serving, tmp_path, content, calibration=Calibration(scale=3.0, offset=1.0), decision=Decision(prior_spoof=0.5)
    )
    assert offered(serving, config(made)).loaded is not None
    run = reload.Scorer.run
    monkeypatch.setattr(
        reload.Scorer,
        "run",
        lambda self, *parts: run(self, *parts) + (0.1 if self.manifest == made.manifest else 0.0),
    )
    with pytest.raises(BundleError, match=r"expected .* within 0.005, as the same model gave it"):
        offered(serving, config(made))


def test_a_probe_is_scored_whatever_a_bundle_takes_for_speech(serving, tmp_path, block_scorer):
    content = (serving[2].path / "model.onnx").read_bytes()
    deaf = other_bundle(serving, tmp_path, content, decision=Decision(alarm=2.0, clear=2.0, min_speech_s=4.0))
    assert probe(load(deaf, config(deaf).scoring).scorer) == pytest.approx(probe(serving[1].scorer))
    assert np.isfinite(probe(block_scorer))


# -- the thread --------------------------------------------------------------------------------------------------------


def test_work_that_fails_fails_here():
    async def wait():
        with pytest.raises(ZeroDivisionError):
            await in_thread(lambda: 1 // 0)
        return await in_thread(lambda: 7)

    assert asyncio.run(wait()) == 7


def test_work_that_hangs_is_refused_after_its_time(monkeypatch):
    monkeypatch.setattr(reload, "LOAD_S", 0.05)
    go = threading.Event()

    async def wait():
        with pytest.raises(BundleError, match=r"reload \(s\): 0.05"):
            await in_thread(go.wait)
        assert reload.loading()
        assert reload.hanging()
        go.set()

    asyncio.run(wait())


def test_work_whose_own_time_ran_out_says_so_itself():
    async def wait():
        with pytest.raises(TimeoutError, match="the share"):
            await in_thread(give_up)

    def give_up():
        raise TimeoutError("the share does not answer")

    asyncio.run(wait())
    assert not reload.hanging()
