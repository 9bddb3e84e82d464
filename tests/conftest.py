"""Fixtures that several packages' tests share."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings
from onnx import TensorProto, helper

from streamdet import bundle
from streamdet.bundle import FORMAT, Audio, Bundle, Calibration, Decision, Manifest, Model

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
