"""Operations of models, counted from what onnxruntime ran, and the rate of a matrix product."""

import json

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from streamdet import bundle
from streamdet.bench import roofline
from streamdet.bench.roofline import Node, operations
from streamdet.cli.bench.roofline import roofline as command
from streamdet.errors import ConfigError

CPU = "CPUExecutionProvider"


def layered(window_samples: int = 64_000) -> bytes:
    """A model of one convolution `(4, 1, 400)` by 320 and one product `(4, 8)`; both counts are known by hand."""
    rng = np.random.default_rng(5)

    def weights(name, *shape):
        return helper.make_tensor(name, TensorProto.FLOAT, shape, rng.standard_normal(np.prod(shape)).tolist())

    graph = helper.make_graph(
        [
            helper.make_node("Unsqueeze", ["audio", "one"], ["wave"]),
            helper.make_node("Conv", ["wave", "kernel"], ["frames"], strides=[320]),
            helper.make_node("Transpose", ["frames"], ["turned"], perm=[0, 2, 1]),
            helper.make_node("MatMul", ["turned", "matrix"], ["wide"]),
            helper.make_node("ReduceMean", ["wide", "axes"], ["score"], keepdims=0),
        ],
        "layered",
        [helper.make_tensor_value_info("audio", TensorProto.FLOAT, ["batch", window_samples])],
        [helper.make_tensor_value_info("score", TensorProto.FLOAT, ["batch"])],
        [
            weights("kernel", 4, 1, 400),
            weights("matrix", 4, 8),
            helper.make_tensor("one", TensorProto.INT64, [1], [1]),
            helper.make_tensor("axes", TensorProto.INT64, [2], [1, 2]),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9).SerializeToString()


FRAMES = (64_000 - 400) // 320 + 1


@pytest.fixture
def layered_bundle(tiny_bundle, tmp_path):
    return bundle.save(tmp_path / "layered", tiny_bundle.manifest, {"model.onnx": layered()})


def test_operations_of_a_model_are_those_of_its_shapes(layered_bundle):
    shapes, timed = roofline.profile(layered_bundle, CPU, 1, 2)
    counted = operations(shapes, "fp32")
    assert counted.by_part == {"convolutions": 2 * 2 * FRAMES * 4 * 400, "products": 2 * 2 * FRAMES * 4 * 8}
    assert counted.by_arithmetic == {"fp32": counted.total}
    assert {"Conv", "FusedMatMul"} <= {node.op for node in timed}
    assert all(node.seconds >= 0 for node in timed)


def node(op, *shapes, output, kind="float"):
    return Node(op, tuple((kind, shape) for shape in shapes), output, 0.0)


@pytest.mark.parametrize(
    ("ran", "expected"),
    [
        (node("MatMul", (3, 5, 7), (7, 11), output=(3, 5, 11)), {"products": 2 * 3 * 5 * 7 * 11}),
        (node("Gemm", (5, 7), (7, 11), output=(5, 11)), {"products": 2 * 5 * 7 * 11}),
        (node("Gemm", (7, 5), (7, 11), output=(5, 11)), {"products": 2 * 5 * 7 * 11}),  # the left one transposed
        (node("Conv", (1, 8, 50), (16, 2, 3), (16,), output=(1, 16, 48)), {"convolutions": 2 * 16 * 48 * 2 * 3}),
        (node("QLinearConv", (1, 8, 50), (), (), (16, 8, 3), output=(1, 16, 48)), {"convolutions": 2 * 768 * 24}),
        (
            node("Attention", (2, 9, 16), (16, 48), (48,), output=(2, 9, 16)),
            {"products": 2 * 2 * 9 * 16 * 48, "attention": 2 * 2 * 2 * 9 * 9 * 16},
        ),
        (node("MultiHeadAttention", (2, 9, 16), (2, 9, 16), output=(2, 9, 16)), {"attention": 4 * 2 * 9 * 9 * 16}),
        (node("Softmax", (3, 5), output=(3, 5)), {}),
    ],
)
def test_every_operator_has_its_count(ran, expected):
    assert operations([ran], "fp32").by_part == expected


def test_what_is_multiplied_in_int8_counts_as_int8_and_half_floats_as_the_bundle_says():
    small = Node("MatMulIntegerToFloat", (("uint8", (3, 5)), ("int8", (5, 7)), ("float", (1,))), (3, 7), 0.0)
    dynamic = Node("DynamicQuantizeMatMul", (("float", (3, 5)), ("int8", (5, 7))), (3, 7), 0.0)
    plain = node("MatMul", (3, 5), (5, 7), output=(3, 7))
    each = 2 * 3 * 5 * 7
    assert operations([small, dynamic, plain], "int8").by_arithmetic == {"int8": 2 * each, "fp32": each}
    assert operations([plain], "fp16").by_arithmetic == {"fp16": each}


@pytest.mark.parametrize("arithmetic", ["fp32", "fp16", "int8"])
def test_the_model_of_a_product_multiplies(arithmetic):
    content = roofline.product_model(arithmetic, 8)
    onnx.checker.check_model(onnx.load_from_string(content), full_check=True)
    session = ort.InferenceSession(content, providers=[CPU])
    left = np.eye(8).astype(roofline._GIVEN[arithmetic])
    (found,) = session.run(None, {"left": left})
    right = onnx.numpy_helper.to_array(onnx.load_from_string(content).graph.initializer[0])
    assert np.array_equal(found, right)  # the unit matrix gives back the other one
    assert roofline.product(arithmetic, CPU, 1, side=8)() > 0


def test_a_row_holds_the_model_against_its_limit(layered_bundle, monkeypatch):
    monkeypatch.setattr(roofline, "SIDE_CPU", 32)
    monkeypatch.setattr(roofline, "LEAST_S", 0.001)
    (row,) = roofline.bench([layered_bundle], provider=CPU, threads=1, batch=2, rounds=1)
    assert row["gflop"] == pytest.approx(2 * FRAMES * 4 * (400 + 8) / 1e9)  # a window, not a batch
    assert row["least_ms"] == pytest.approx(1e3 * row["gflop"] / row["matrix_gflop_s_fp32"])
    assert row["ratio_reached"] == pytest.approx(row["least_ms"] / row["ms"])
    assert "Conv" in row["time_in"]


def test_of_a_block_model_a_hop_is_what_counts(block_bundle, monkeypatch):
    monkeypatch.setattr(roofline, "SIDE_CPU", 32)
    monkeypatch.setattr(roofline, "LEAST_S", 0.001)
    (row,) = roofline.bench([block_bundle], provider=CPU, threads=1, batch=2, rounds=1)
    frames = (8_000 + 16_000 - 1600) // 160 + 1  # of three features that hear 1600 samples; attention has 100 of them
    assert row["kind"] == "block"
    assert row["gflop_convolutions"] == pytest.approx((2 * frames * 3 * 1600 + 2 * 100 * 3) / 1e9)


def test_a_bench_of_the_starter_is_json_and_a_plot(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(roofline, "SIDE_CPU", 32)
    monkeypatch.setattr(roofline, "LEAST_S", 0.001)
    command(provider="cpu", threads=1, rounds=1, as_json=True, out=tmp_path)
    (row,) = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert row["bench"] == "roofline"
    assert row["model"].startswith("starter@")
    assert 0.2 < row["gflop"] < 2
    assert {file.name for file in tmp_path.iterdir()} == {"bench-roofline.json", "bench-roofline.png"}


def test_a_provider_that_is_not_there_is_named(layered_bundle):
    if (
        "CUDAExecutionProvider"
        not in ort.InferenceSession(layered(), providers=["CUDAExecutionProvider"]).get_providers()
    ):
        with pytest.raises(ConfigError, match="fell back to CPUExecutionProvider"):
            roofline.bench([layered_bundle], provider="CUDAExecutionProvider", threads=1, batch=1)
