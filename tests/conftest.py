"""Fixtures that several packages' tests share."""

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings
from onnx import TensorProto, helper, numpy_helper

from streamdet import bundle
from streamdet.bundle import FORMAT, Audio, Bundle, Calibration, Decision, Manifest, Model
from streamdet.scorer import Scorer

# No test asserts a time, so a busy machine must not fail one either.
hypothesis_settings.register_profile("shared", deadline=None, suppress_health_check=[HealthCheck.too_slow])
hypothesis_settings.load_profile("shared")

CORPUS = Path(__file__).parents[2] / "shared" / "data" / "speech"


def level_model(window_samples: int = 64_000, *, gain: float = -20.0, bias: float = 2.0) -> bytes:
    """An ONNX model whose score falls with the loudness of its window: 2 - 20 mean |x|."""
    graph = helper.make_graph(
        [
            helper.make_node("Abs", ["audio"], ["size"]),
            helper.make_node("ReduceMean", ["size", "axes"], ["mean"], keepdims=0),
            helper.make_node("Mul", ["mean", "gain"], ["scaled"]),
            helper.make_node("Add", ["scaled", "bias"], ["score"]),
        ],
        "level",
        [helper.make_tensor_value_info("audio", TensorProto.FLOAT, ["batch", window_samples])],
        [helper.make_tensor_value_info("score", TensorProto.FLOAT, ["batch"])],
        [
            helper.make_tensor("axes", TensorProto.INT64, [1], [1]),
            helper.make_tensor("gain", TensorProto.FLOAT, [], [gain]),
            helper.make_tensor("bias", TensorProto.FLOAT, [], [bias]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    return model.SerializeToString()


ENCODER = """
<ir_version: 9, opset_import: ["": 18]>
encoder (float[batch, 24000] audio) => (float[batch, 8] sums)
<int64[1] one = {1}, int64[1] two = {2}, int64[1] last = {-100}, int64[1] end = {9999}>
{
    channel = Unsqueeze(audio, one)
    heard = Conv<strides = [160]>(channel, kernel)
    ours = Slice(heard, last, end, two)
    h = Abs(ours)
    logits = Conv(h, query)
    largest = ReduceMax<keepdims = 1>(logits, two)
    below = Sub(logits, largest)
    w = Exp(below)
    wh = Mul(w, h)
    whh = Mul(wh, h)
    each = Concat<axis = 1>(w, wh, whh)
    rest = ReduceSum<keepdims = 0>(each, two)
    first = Squeeze(largest, two)
    sums = Concat<axis = 1>(first, rest)
}
"""
HEAD = """
<ir_version: 9, opset_import: ["": 18]>
head (float[batch, 4, 8] sums) => (float[batch] score)
<int64[2] split = {1, 7}, int64[3] parts = {1, 3, 3}, int64[1] one = {1}, float least = {1e-6}>
{
    largest, rest = Split<axis = 2>(sums, split)
    top = ReduceMax<keepdims = 1>(largest, one)
    below = Sub(largest, top)
    scale = Exp(below)
    scaled = Mul(scale, rest)
    total = ReduceSum<keepdims = 0>(scaled, one)
    w, wh, whh = Split<axis = 1>(total, parts)
    mean = Div(wh, w)
    square = Div(whh, w)
    mean2 = Mul(mean, mean)
    variance = Sub(square, mean2)
    floored = Max(variance, least)
    deviation = Sqrt(floored)
    pooled = Concat<axis = 1>(mean, deviation)
    weighed = Mul(pooled, linear)
    score = ReduceSum<keepdims = 0>(weighed, one)
}
"""


def block_weights() -> dict[str, np.ndarray]:
    """Of `block_models`: 3 features that hear 1600 samples each, an attention that cares, a linear layer."""
    rng = np.random.default_rng(3)
    shapes = {"kernel": (3, 1, 1600), "query": (1, 3, 1), "linear": (1, 6)}
    gains = {"kernel": 0.05, "query": 2.0, "linear": 40.0}
    return {name: (gains[name] * rng.standard_normal(shape)).astype(np.float32) for name, shape in shapes.items()}


def block_models() -> dict[str, bytes]:
    """The two files of a block model: a second of audio and half a second before it to 8 sums, 4 blocks to a score."""

    def made(text: str, *names: str) -> bytes:
        model = onnx.parser.parse_model(text)
        model.graph.initializer.extend(numpy_helper.from_array(block_weights()[name], name) for name in names)
        onnx.checker.check_model(model)
        return model.SerializeToString()

    return {"model.onnx": made(ENCODER, "kernel", "query"), "head.onnx": made(HEAD, "linear")}


BLOCK = Model(kind="block", output="sums", head="head.onnx", left_samples=8_000)


def manifest(**changes: object) -> Manifest:
    """A manifest for `level_model`; 4 s windows, a hop of 1 s."""
    fields = {
        "format": FORMAT,
        "name": "level",
        "created": "2026-01-01T00:00:00Z",
        "audio": Audio(16_000, 64_000, 16_000),
        "model": Model(kind="window"),
        "calibration": Calibration(),
        "decision": Decision(alarm=2.0, clear=2.0),
        "provenance": {},
        "files": {},
    }
    return Manifest(**{**fields, **changes})


@pytest.fixture
def tiny_bundle(tmp_path: Path) -> Bundle:
    """A whole bundle on disk, of a few hundred bytes."""
    return bundle.save(tmp_path / "bundle", manifest(), {"model.onnx": level_model()})


@pytest.fixture
def block_bundle(tmp_path: Path) -> Bundle:
    """A whole block bundle on disk."""
    return bundle.save(tmp_path / "blocks", manifest(name="blocks", model=BLOCK), block_models())


@pytest.fixture(scope="session", name="block_weights")
def _block_weights() -> dict[str, np.ndarray]:
    """What `block_bundle` consists of."""
    return block_weights()


@pytest.fixture(scope="session")
def block_scorer(tmp_path_factory: pytest.TempPathFactory) -> Scorer:
    """A scorer of `block_bundle`."""
    path = tmp_path_factory.mktemp("scorer") / "blocks"
    made = bundle.save(path, manifest(name="blocks", model=BLOCK), block_models())
    return Scorer(made, provider="cpu", threads=1, batch_max=4)


@pytest.fixture
def babble() -> np.ndarray:
    """Ten seconds at 16 kHz that the speech gate takes for speech: noise that comes and goes four times a second."""
    rng = np.random.default_rng(7)
    time_s = np.arange(160_000) / 16_000
    envelope = np.clip(np.sin(2 * np.pi * 4 * time_s), 0, 1) * (0.5 + 0.4 * np.sin(2 * np.pi * 0.1 * time_s))
    return (0.2 * envelope * rng.standard_normal(time_s.size)).astype(np.float32)


@pytest.fixture(scope="session")
def corpus() -> Path:
    """The folder of the speech corpus; the test skips where there is none."""
    if not (CORPUS / "manifest.csv").is_file():
        pytest.skip(f"no corpus at {CORPUS}")
    return CORPUS
