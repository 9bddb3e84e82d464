"""From a run to a bundle that the daemon serves, or to no bundle at all."""

import json
import logging
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch

from streamdet import bundle
from streamdet.errors import BundleError, DataError, UsageError
from streamdet.records import Verdict
from streamdet.replay import replay
from streamdet.scorer import Scorer
from streamdet_export import export as module
from streamdet_export import graph, passes
from streamdet_export.calibrate import ROLLING_S
from streamdet_export.export import export
from streamdet_training import heads, model, run
from streamdet_training.recipe import Head


def windows(count: int) -> np.ndarray:
    rng = np.random.default_rng(5)
    return rng.uniform(-0.3, 0.3, (count, 16_000)).astype(np.float32)


def torch_scores(finished, audio):
    detector = model.merge(run.load_run(finished))
    with torch.inference_mode():
        return detector(torch.from_numpy(audio)).numpy()


@pytest.mark.parametrize("how", ["fp32", "fp16", "int8 static", "int8 dynamic"])
def test_a_run_becomes_a_bundle_that_scores_as_it_did(finished, manifest_csv, tmp_path, how):
    precision, _, quantization = how.partition(" ")
    quantised = {"quantization": quantization} if quantization else {}
    made = export(finished, tmp_path / "bundle", precision=precision, data=[manifest_csv], **quantised)
    assert made.manifest.model.batches == (quantization != "dynamic")
    scorer = Scorer(bundle.load(made.path), provider="cpu")
    most = 1e-4 if precision == "fp32" else 0.05
    for count in (1, 2, 5):
        assert np.abs(scorer.run(windows(count)) - torch_scores(finished, windows(count))).max() < most
    said = [it for it in replay(manifest_csv.parent / "0.wav", scorer) if isinstance(it, Verdict)]
    assert [verdict.end_s for verdict in said] == [1.0, 1.5, 2.0, 2.5, 3.0]
    assert any(verdict.llr is not None for verdict in said)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_a_run_of_blocks_becomes_a_bundle_of_two_models(finished_blocks, manifest_csv, tmp_path, precision):
    made = export(finished_blocks, tmp_path / "bundle", precision=precision, data=[manifest_csv])
    scorer = Scorer(bundle.load(made.path), provider="cpu")
    assert set(made.manifest.files) == {"model.onnx", "head.onnx"}
    # A window of two blocks, and what was before it: 12,000 samples make a block.
    audio = np.concatenate([windows(3), windows(3)], 1)[:, -20_000:]
    blocks = np.stack([audio[:, :12_000], audio[:, -12_000:]], 1).reshape(-1, 12_000)
    scores = scorer.head(scorer.run(blocks).reshape(3, 2, -1))
    most = 1e-4 if precision == "fp32" else 0.05
    assert np.abs(scores - torch_scores(finished_blocks, audio)).max() < most
    said = [it for it in replay(manifest_csv.parent / "0.wav", scorer) if isinstance(it, Verdict)]
    assert [verdict.end_s for verdict in said] == [1.0, 1.5, 2.0, 2.5, 3.0]
    assert any(verdict.llr is not None for verdict in said)


@pytest.mark.parametrize("kind", get_args(Head.model_fields["kind"].annotation))
@pytest.mark.parametrize("classes", [0, 1, 2])
def test_every_head_scores_in_onnx_as_in_torch(finished, tmp_path, kind, classes):
    """With the sum over layers, whose states are listened to by hooks."""
    how = run.load_recipe(finished)
    backbone = how.backbone.model_copy(update={"layer_sum": True})
    torch.manual_seed(4)
    detector = model.build(how.model_copy(update={"backbone": backbone}))
    detector.head = heads.make(Head(kind=kind, hidden=8), 16, states=3, classes=classes)
    with torch.no_grad():
        detector.head.layer_sum.weights.copy_(torch.tensor([1.0, -1.0, 0.5]))
    detector = model.merge(detector)
    with torch.inference_mode():
        expected = detector(torch.from_numpy(windows(3))).numpy()
    made = bundle.save(tmp_path / "bundle", how.draft(), graph.to_onnx(detector, 16_000, "fp32"))
    assert np.abs(Scorer(made, provider="cpu").run(windows(3)) - expected).max() < 1e-5
    assert np.ptp(expected) > 1e-4


def test_the_manifest_says_what_was_trained_and_fitted(finished, manifest_csv, tmp_path):
    manifest = export(finished, tmp_path / "bundle", data=[manifest_csv], name="mine").manifest
    adapters = 2 * 2 * 2 * 16 * 4  # layers, matrices, A and B, width, rank
    head = 16 * 64 + 64 + 64 + 1 + 2 * 16 + 1
    assert manifest.name == "mine"
    assert manifest.provenance["trainable_parameters"] == adapters + head
    assert manifest.provenance["lora"]["rank"] == 4
    assert manifest.provenance["metrics"]["parity"]["largest_difference"] <= 1e-4
    assert manifest.decision.speakers == 2
    assert manifest.calibration.scale > 0
    assert [row[0] for row in manifest.calibration.rolling] == list(ROLLING_S)
    assert manifest.provenance["calibration"]["bonafide"] == {"clips": 4, "scored": 4, "minutes": 0.2, "voices": 2}
    assert manifest.provenance["metrics"]["dev"] == manifest.provenance["calibration"]["metrics"]


@pytest.mark.parametrize(
    "lora",
    [
        {"use_dora": True, "rank_pattern": {"v_proj": 2}},
        {"use_rslora": True, "layers": [":1"]},
        {"init": "pissa", "targets": ["q_proj", "intermediate_dense"]},
        {"init": "gaussian", "alpha_pattern": {"q_proj": 32}},
    ],
    ids=["DoRA and a rank pattern", "rsLoRA in one layer", "PiSSA", "gaussian and an alpha pattern"],
)
def test_adapters_of_every_kind_merge_into_the_graph(trained_with, tmp_path, lora):
    """Saved, loaded, merged, exported: onnxruntime scores as the trained detector did with its adapters beside it."""
    how, detector = trained_with({"rank": 4, **lora})
    with torch.inference_mode():
        expected = detector(torch.from_numpy(windows(3))).numpy()
    run.begin(tmp_path / "run", how, detector)
    run.save_weights(tmp_path / "run", detector)
    contents = graph.to_onnx(model.merge(run.load_run(tmp_path / "run")), 16_000, "fp32")
    scorer = Scorer(bundle.save(tmp_path / "bundle", how.draft(), contents), provider="cpu")
    assert np.abs(scorer.run(windows(3)) - expected).max() < 1e-4


def test_a_graph_that_scores_otherwise_makes_no_bundle(finished, manifest_csv, tmp_path, monkeypatch):
    def bent(detector, window_samples, precision, **how):
        with torch.no_grad():
            kept = detector.head.linear.bias.clone()
            detector.head.linear.bias += 0.01
            contents = graph.to_onnx(detector, window_samples, precision, **how)
            detector.head.linear.bias.copy_(kept)
        return contents

    monkeypatch.setattr(module, "to_onnx", bent)
    with pytest.raises(BundleError, match="parity: score difference"):
        export(finished, tmp_path / "bundle", data=[manifest_csv])
    assert not (tmp_path / "bundle").exists()


def test_weights_may_lie_beside_the_graph(finished, manifest_csv, tmp_path, monkeypatch):
    monkeypatch.setattr(passes, "INLINE_MAX_BYTES", 0)
    made = export(finished, tmp_path / "bundle", data=[manifest_csv])
    assert set(made.manifest.files) == {"model.onnx", "model.onnx.data"}
    scorer = Scorer(bundle.load(made.path), provider="cpu")
    assert np.abs(scorer.run(windows(3)) - torch_scores(finished, windows(3))).max() < 1e-4


def test_what_is_missing_or_in_the_way_is_named(finished, manifest_csv, tmp_path):
    with pytest.raises(UsageError, match="data"):
        export(finished, tmp_path / "bundle")
    export(finished, tmp_path / "bundle", data=[manifest_csv])
    with pytest.raises(UsageError, match="out"):
        export(finished, tmp_path / "bundle", data=[manifest_csv])


def test_voices_that_were_trained_on_do_not_calibrate(finished, manifest_csv, tmp_path):
    trained = {"voices": {"bonafide": ["b0", "x"], "spoof": ["s1"]}}
    (finished / run.METRICS).write_text(json.dumps(trained))
    with pytest.raises(DataError, match="trained on: 'speaker:b0, system:s1', expected others"):
        export(finished, tmp_path / "bundle", data=[manifest_csv])
    made = export(finished, tmp_path / "bundle", data=[manifest_csv], allow_overlap=["speaker:b0", "system:s1"])
    marked = made.manifest.provenance["voices"]
    assert len(marked["bonafide"].split()) == 2
    assert "b0" not in marked["bonafide"]


def test_normalisation_is_inside_the_graph(finished, tmp_path):
    detector = model.merge(run.load_run(finished))
    detector.normalise = True
    contents = graph.to_onnx(detector, 16_000, "fp32")
    draft = run.load_recipe(finished).draft()
    scorer = Scorer(bundle.save(tmp_path / "b", draft, contents), provider="cpu")
    assert np.abs(scorer.run(windows(2)) - scorer.run(0.1 * windows(2))).max() < 1e-3


def test_export_logs_what_parity_found(finished, manifest_csv, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    export(finished, tmp_path / "bundle", data=[manifest_csv])
    assert "largest score difference" in caplog.text


def test_a_model_does_not_tell_where_it_was_exported(finished):
    """torch notes the stack of every node: paths of this machine, for everybody to read."""
    detector = model.merge(run.load_run(finished))
    (contents,) = graph.to_onnx(detector, 8000, "fp32").values()
    assert str(Path.home()).encode() not in contents
    assert str(Path(__file__).parents[2]).encode() not in contents
    assert b"stack_trace" not in contents
