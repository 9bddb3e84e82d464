"""A bundle whose model costs a chosen time a window: overload with few calls, on any machine."""

import itertools
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from streamdet import bundle
from streamdet.bench.calls import pure_ms
from streamdet.bundle import Audio, Bundle, Manifest
from streamdet.errors import MissingError, from_extra
from streamdet.scorer import Scorer

AUDIO: Final = Audio(rate_hz=16_000, window_samples=64_000, hop_samples=16_000)
# A window is looked at as 250 rows of 256 and multiplied so many times by 256 x 256: 33 million operations each.
SIDE: Final = 256
# What is timed to tell how many products a millisecond takes.
PROBE: Final = 20


def slow_bundle(folder: Path, ms: float) -> Bundle:
    """Make a bundle whose windows cost `ms` each on one thread, here and now.

    Raises:
        MissingError: onnx is not installed.
    """
    return _saved(folder / "slow", max(1, round(ms * PROBE / probe_ms(_saved(folder / "probe", PROBE)))))


def probe_ms(made: Bundle, runs: int = 9) -> float:
    """Time one window on one thread: the median (ms)."""
    scorer = Scorer(made, provider="cpu", threads=1, batch_max=1)
    scorer.warm_up()
    return pure_ms(scorer, 1, runs)


def _saved(folder: Path, products: int) -> Bundle:
    manifest = msgspec.convert(
        {
            "format": bundle.FORMAT,
            "name": f"made-{products}",
            "created": "2026-01-01T00:00:00Z",
            "audio": AUDIO,
            "model": {"kind": "window"},
            "calibration": {},
            "decision": {},
            "provenance": {},
            "files": {},
        },
        Manifest,
        from_attributes=True,
    )
    return bundle.save(folder, manifest, {"model.onnx": _model(products)})


def _model(products: int) -> bytes:
    """The mean of what `products` matrix products leave of a window."""
    try:
        from onnx import TensorProto, helper
    except ModuleNotFoundError:
        raise MissingError.of("--slow-ms", "onnx", from_extra("bench")) from None
    make: Any = helper.make_node
    weights = np.random.default_rng(0).standard_normal((SIDE, SIDE)).astype(np.float32) / SIDE**0.5
    names = [f"rows.{number}" for number in range(products + 1)]
    graph = helper.make_graph(
        [
            make("Reshape", ["audio", "shape"], [names[0]]),
            *(make("MatMul", [a, "weights"], [b]) for a, b in itertools.pairwise(names)),
            make("ReduceMean", [names[-1], "axes"], ["score"], keepdims=0),
        ],
        "made",
        [helper.make_tensor_value_info("audio", TensorProto.FLOAT, ["batch", AUDIO.window_samples])],
        [helper.make_tensor_value_info("score", TensorProto.FLOAT, ["batch"])],
        [
            helper.make_tensor("shape", TensorProto.INT64, [3], [0, AUDIO.window_samples // SIDE, SIDE]),
            helper.make_tensor("axes", TensorProto.INT64, [2], [1, 2]),
            helper.make_tensor("weights", TensorProto.FLOAT, weights.shape, weights.tobytes(), raw=True),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return bytes(model.SerializeToString())
