"""What is done to the graph: fused operators, fp16 with float32 where it matters, int8 whose scales are fixed."""

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from streamdet_export import graph, halve, passes, quantise, skip
from streamdet_export.fused import fused
from streamdet_training import model, run

EXPORTED: list[bytes] = []


def windows(count: int, loud: float = 0.3) -> np.ndarray:
    return np.random.default_rng(5).uniform(-loud, loud, (count, 16_000)).astype(np.float32)


@pytest.fixture
def plain(finished, tmp_path) -> Path:
    """The file of a float32 export, and nothing done to it yet."""
    path = tmp_path / "plain" / "model.onnx"
    path.parent.mkdir()
    if not EXPORTED:  # seconds, and every time the same
        detector = model.merge(run.load_run(finished))
        graph.fold_weight_norm(detector)
        graph._export(detector, torch.zeros(2, 16_000), ("audio", "score"), path)
        EXPORTED.append(path.read_bytes())
    path.write_bytes(EXPORTED[0])
    return path


def scores(path: Path, audio: np.ndarray) -> np.ndarray:
    return ort.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"audio": audio})[0]


def operators(path: Path) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(path).graph.node)


def test_the_graph_has_fused_operators_and_none_for_masks(plain):
    before = scores(plain, windows(3))
    passes.fuse(plain)
    found = operators(plain)
    assert found["MultiHeadAttention"] == 2
    assert found["SkipLayerNormalization"] == 5  # two a layer, and the sum with the positions
    assert found["Conv"] == 1  # of the positions; the front-end is made of products
    assert not {"IsNaN", "Where", "Expand"} & found.keys()
    assert found["Transpose"] == 2  # to the convolution of the positions and back
    assert np.abs(scores(plain, windows(3)) - before).max() < 1e-5


def test_torch_scores_as_before_once_an_export_is_over(finished):
    detector = model.merge(run.load_run(finished))
    audio = torch.from_numpy(windows(2))
    with torch.inference_mode():
        before = detector(audio)
        with fused(detector):
            assert not torch.equal(detector(audio), before)
        assert torch.equal(detector(audio), before)


def test_a_sum_that_is_broadcast_or_unknown_is_not_fused():
    shapes = {"wide": ["b", 5, 4], "narrow": ["b", 1, 4], "sum": ["b", 5, 4]}
    nodes = [
        helper.make_node("Add", ["wide", "narrow"], ["sum"]),
        helper.make_node("LayerNormalization", ["sum", "weight", "bias"], ["normed"], axis=-1),
    ]
    values = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()}
    made = helper.make_graph(nodes, "g", [], [], value_info=list(values.values()))
    skip.fuse(made)
    assert [node.op_type for node in made.node] == ["Add", "LayerNormalization"]
    values["narrow"].type.tensor_type.shape.dim[1].dim_value = 5
    made = helper.make_graph(nodes, "g", [], [], value_info=list(values.values()))
    skip.fuse(made)
    assert [node.op_type for node in made.node] == ["SkipLayerNormalization"]


# -- fp16 ------------------------------------------------------------------------------------------------------------


def types(path: Path) -> dict[str, int]:
    """Type of every tensor that a weight, a cast or the way of float32 decides; the rest is worked out in order."""
    made = onnx.load(path)
    found = {weight.name: weight.data_type for weight in made.graph.initializer}
    found |= {given.name: given.type.tensor_type.elem_type for given in made.graph.input}
    for node in made.graph.node:
        cast = next((given.i for given in node.attribute if given.name == "to"), None)
        kinds = {found[name] for name in node.input if name} & {TensorProto.FLOAT, TensorProto.FLOAT16}
        assert len(kinds) <= 1, f"{node.op_type} {node.name} mixes precisions"
        found.update(dict.fromkeys(node.output, cast or next(iter(kinds), TensorProto.INT64)))
    return found


def test_fp16_leaves_float32_where_it_matters(plain):
    passes.fuse(plain)
    before = scores(plain, windows(3))
    passes.halve(plain)
    kinds, nodes = types(plain), onnx.load(plain).graph.node
    exact = [node for node in nodes if halve.stays(node) and node.op_type not in ("Cast", "Constant")]
    assert {"LayerNormalization", "SkipLayerNormalization", "Softmax", "Gemm", "Tanh"} <= {it.op_type for it in exact}
    for node in exact:
        assert TensorProto.FLOAT16 not in {kinds[name] for name in node.input if name}, node.name
    for node in nodes:
        if node.op_type in ("MultiHeadAttention", "Conv", "Gelu") or (node.op_type == "MatMul" and node not in exact):
            assert kinds[node.input[0]] == TensorProto.FLOAT16, node.name
    assert 0 < np.abs(scores(plain, windows(3)) - before).max() < 0.02


def test_constants_stay_within_fp16_and_none_becomes_zero():
    weight = numpy_helper.from_array(np.float32([1e-10, -1e-10, 0, 1e30, -1e30, 0.5]), "w")
    found = numpy_helper.to_array(halve._halved(weight, "h")).astype(np.float64)
    assert (found == [2.0**-24, -(2.0**-24), 0, 65504, -65504, 0.5]).all()


# -- int8 ------------------------------------------------------------------------------------------------------------


def test_a_windows_static_score_does_not_hang_on_its_company(plain):
    before = scores(plain, windows(4))
    passes.quantise_static(plain, windows(8))
    alone = np.concatenate([scores(plain, window[None]) for window in windows(4)])
    loud = np.concatenate([windows(4), windows(2, loud=1.0)])
    assert np.abs(scores(plain, loud)[:4] - alone).max() < 1e-6
    assert 0 < np.abs(alone - before).max() < 0.05


def test_dynamic_scores_do(plain):
    """Which is why the daemon runs such a model one window at a time."""
    passes.quantise_dynamic(plain)
    loud = np.concatenate([windows(4), windows(2, loud=1.0)])
    alone = np.concatenate([scores(plain, window[None]) for window in windows(4)])
    assert np.abs(scores(plain, loud)[:4] - alone).max() > 1e-6


@pytest.mark.parametrize(
    "quantise_it", [lambda path: passes.quantise_static(path, windows(2)), passes.quantise_dynamic]
)
def test_the_head_and_raw_audio_keep_float32(plain, quantise_it):
    products = {node.output[0] for node in quantise.products(onnx.load(plain).graph)}
    assert len(products) == 1 + 1 + 2 * 6  # the second convolution, the projection, and six a layer
    quantise_it(plain)
    kept = [weight for weight in onnx.load(plain).graph.initializer if weight.data_type == TensorProto.FLOAT]
    assert [20, 16] in [list(weight.dims) for weight in kept]  # the first convolution, over raw audio
    assert [16, 64] in [list(weight.dims) for weight in kept]  # the head's attention


def test_frames_are_laid_side_by_side_as_bytes(plain):
    passes.quantise_static(plain, windows(2))
    nodes = onnx.load(plain).graph.node
    maker = {output: node for node in nodes for output in node.output}
    moved = [node for node in nodes if node.op_type == "Gather" and node.input[0] in maker]
    assert "QuantizeLinear" in {maker[node.input[0]].op_type for node in moved}


def test_a_range_holds_zero_and_the_share_of_peaks_that_it_is_told(plain):
    loud = np.concatenate([windows(30), windows(1, loud=1.0)])
    narrow, wide = (quantise.calibrate(plain, loud, keep) for keep in (0.9, 1.0))
    assert narrow.keys() == wide.keys()
    assert all(found.low <= 0 <= found.high for found in wide.values())
    assert all(narrow[name].high <= wide[name].high for name in wide)
    assert any(narrow[name].high < wide[name].high for name in wide)


def test_weights_beside_the_graph_stay_there(plain, monkeypatch):
    monkeypatch.setattr(passes, "INLINE_MAX_BYTES", 0)
    before = scores(plain, windows(2))
    passes.save(onnx.load(plain), plain)
    for way in (passes.fuse, lambda path: passes.quantise_static(path, windows(2))):
        way(plain)
        assert sorted(file.name for file in plain.parent.iterdir()) == ["model.onnx", "model.onnx.data"]
    assert np.abs(scores(plain, windows(2)) - before).max() < 0.05
