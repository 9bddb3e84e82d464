"""How near to the machine's limit a model runs: its multiplications and additions over the rate of matrix products.

The operations are counted from what onnxruntime itself says it ran (its profile names every node with its shapes), so
that fused and quantised operators count as what they are. The rate is that of one large product of the same precision,
through onnxruntime too, with the same threads. Only products count: norms, activations and copies of memory are work
that a better graph has less of, and so are part of what is missing to 1.
"""

import json
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
import numpy as np
import onnxruntime as ort

from streamdet.audio import Samples
from streamdet.bench.report import Row
from streamdet.bench.steady import Steady, take_turns
from streamdet.bundle import Bundle
from streamdet.errors import ConfigError, MissingError, from_extra
from streamdet.providers import CPU, on_card
from streamdet.sessions import find_libraries, settings

Arithmetic = Literal["fp32", "fp16", "int8"]
Part = Literal["convolutions", "products", "attention"]

# Large enough that packing and starting threads are nothing beside the product itself, on either kind of machine.
SIDE_CPU: Final = 2048
SIDE_CUDA: Final = 8192
# A round of turns asks each thing for at least this long, or a small model's figure is that of the clock.
LEAST_S: Final = 0.2

_PRODUCTS: Final = {
    *("MatMul", "FusedMatMul", "TransposeMatMul", "FusedMatMulActivation", "MatMulInteger", "MatMulIntegerToFloat"),
    *("DynamicQuantizeMatMul", "QLinearMatMul", "MatMulNBits", "GemmFastGelu", "Gemm", "FusedGemm", "QGemm"),
}
_CONVOLUTIONS: Final = {"Conv", "FusedConv", "NhwcFusedConv", "QLinearConv", "ConvInteger"}
# Whole attention with its three projections in one operator; and attention alone, of what was projected before.
_WITH_PROJECTIONS: Final = {"Attention", "QAttention"}
_ALONE: Final = {"MultiHeadAttention", "PackedMultiHeadAttention"}

# What the left side of a product is made of.
_GIVEN: Final[Mapping[Arithmetic, Any]] = {"fp32": np.float32, "fp16": np.float16, "int8": np.uint8}


class Node(msgspec.Struct, frozen=True):
    """One operator as it was run."""

    op: str
    inputs: tuple[tuple[str, tuple[int, ...]], ...]
    """Type and shape of each."""
    output: tuple[int, ...]
    """Shape of the first."""
    seconds: float


class Operations(msgspec.Struct, frozen=True):
    """Multiplications and additions, two for each product of two numbers."""

    by_arithmetic: dict[Arithmetic, float]
    by_part: dict[Part, float]

    @property
    def total(self) -> float:
        """All of them."""
        return sum(self.by_part.values())


def bench(
    bundles: Sequence[Bundle], *, provider: str, threads: int, batch: int, rounds: int = 12
) -> list[dict[str, Any]]:
    """Measure models and matrix products in turns.

    Args:
        bundles: whose models.
        provider: onnxruntime's name of it.
        threads: of each run on the CPU.
        batch: windows (of a block model: hops) in a run; dynamic int8 runs one.
        rounds: turns of each at the most.

    Returns:
        a row a model.

    Raises:
        BundleError: a file is not what its manifest says.
        ConfigError: the provider is not to be had.
        MissingError: onnx is not installed.
    """
    nodes = [profile(bundle, provider, threads, _batch(bundle, batch)) for bundle in bundles]
    counted = [
        operations(shapes, bundle.manifest.model.precision) for (shapes, _), bundle in zip(nodes, bundles, strict=True)
    ]
    used = sorted({arithmetic for each in counted for arithmetic in each.by_arithmetic})
    measures: dict[str, Callable[[], float]] = {
        arithmetic: product(arithmetic, provider, threads) for arithmetic in used
    }
    for number, bundle in enumerate(bundles):
        measures[str(number)] = model(bundle, provider, threads, _batch(bundle, batch))
    found = take_turns(measures, rounds=rounds)
    # A limit is the highest rate there was, a speed the usual one.
    rates = {arithmetic: max(found[arithmetic].values) for arithmetic in used}
    return [
        dict(_row(bundle, each, _batch(bundle, batch), found[str(number)], rates, timed))
        for number, (bundle, each, (_, timed)) in enumerate(zip(bundles, counted, nodes, strict=True))
    ]


def profile(bundle: Bundle, provider: str, threads: int, batch: int) -> tuple[list[Node], list[Node]]:
    """Run a model once under onnxruntime's eyes.

    Returns:
        nodes with all their shapes, and nodes with the times that count. They are two runs: what makes a model fast (an
        order of memory that suits the processor, weights packed beforehand) hides shapes.
    """
    shapes = _profiled(bundle, provider, threads, batch, plain=True)
    return shapes, _profiled(bundle, provider, threads, batch, plain=False)


def operations(nodes: Iterable[Node], precision: Arithmetic) -> Operations:
    """Add up the operations of nodes; `precision` is what floats are, whatever the provider calls them."""
    by_arithmetic, by_part = defaultdict[Arithmetic, float](float), defaultdict[Part, float](float)
    floats: Arithmetic = "fp16" if precision == "fp16" else "fp32"
    for node in nodes:
        small = any(kind in ("int8", "uint8") for kind, shape in node.inputs if len(shape) > 1)
        for part, count in _count(node).items():
            by_part[part] += count
            by_arithmetic["int8" if small and part != "attention" else floats] += count
    return Operations(dict(by_arithmetic), dict(by_part))


def _count(node: Node) -> dict[Part, float]:
    shapes = [shape for _, shape in node.inputs]
    if node.op in _PRODUCTS:
        # The left matrix may lie either way round: what is not a row of the output was multiplied away.
        common = prod(shapes[0][-2:]) / (node.output[-2] if len(shapes[0]) > 1 else 1)
        return {"products": 2.0 * prod(node.output) * common}
    if node.op in _CONVOLUTIONS:
        kernel = next(shape for shape in shapes[1:] if len(shape) == len(shapes[0]))
        return {"convolutions": 2.0 * prod(node.output) * prod(kernel[1:])}
    if node.op in _WITH_PROJECTIONS:
        (rows, frames, width), (_, three) = shapes[0], shapes[1]
        attention = 2.0 * rows * frames * frames * 2 * three / 3
        return {"products": 2.0 * rows * frames * width * three, "attention": attention}
    if node.op in _ALONE:
        rows, frames, width = shapes[0]
        return {"attention": 4.0 * rows * frames * frames * width}
    return {}


def product(arithmetic: Arithmetic, provider: str, threads: int, side: int = 0) -> Callable[[], float]:
    """Prepare a large matrix product; each call gives operations a second."""
    side = side or (SIDE_CUDA if on_card(provider) else SIDE_CPU)
    session = _open(product_model(arithmetic, side), {}, provider, threads)
    rng = np.random.default_rng(0)
    left = rng.integers(0, 255, (side, side), np.uint8) if arithmetic == "int8" else rng.standard_normal((side, side))
    return _repeated(session, left.astype(_GIVEN[arithmetic]), 2.0 * side**3)


def model(bundle: Bundle, provider: str, threads: int, batch: int) -> Callable[[], float]:
    """Prepare a bundle's model without any of the daemon; each call gives windows (or hops) a second."""
    session = _session(bundle, provider, threads)
    return _repeated(session, _noise(session, batch), batch)


def _row(
    bundle: Bundle, counted: Operations, batch: int, speed: Steady, rates: Mapping[Arithmetic, float], timed: list[Node]
) -> Row:
    model = bundle.manifest.model
    least_s = sum(count / rates[arithmetic] for arithmetic, count in counted.by_arithmetic.items()) / batch
    return {
        "model": bundle.manifest.model_id,
        "kind": model.kind,
        "precision": model.precision if model.batches else f"{model.precision}, dynamic",
        "batch": batch,
        "gflop": counted.total / batch / 1e9,
        **{f"gflop_{part}": count / batch / 1e9 for part, count in sorted(counted.by_part.items())},
        **{f"gflop_{kind}": count / batch / 1e9 for kind, count in sorted(counted.by_arithmetic.items())},
        **{f"matrix_gflop_s_{arithmetic}": rates[arithmetic] / 1e9 for arithmetic in sorted(counted.by_arithmetic)},
        "least_ms": 1e3 * least_s,
        "ms": 1e3 / speed.median,
        "windows_per_s": speed.median,
        "ratio_reached": least_s * speed.median,
        "agreed": speed.agreed,
        "time_in": _said_shares(timed),
    }


def _said_shares(nodes: Iterable[Node], most: int = 4) -> str:
    """`MatMul 61 %, Conv 20 %`: where a run's time went, the largest first."""
    seconds = Counter[str]()
    for node in nodes:
        seconds[node.op] += node.seconds  # type: ignore[assignment] # a Counter adds up floats just as well
    total = sum(seconds.values()) or 1.0
    return ", ".join(f"{op} {100 * taken / total:.0f} %" for op, taken in seconds.most_common(most))


def _batch(bundle: Bundle, batch: int) -> int:
    return batch if bundle.manifest.model.batches else 1


def _repeated(session: ort.InferenceSession, given: Samples, counts: float) -> Callable[[], float]:
    """Prepare a measure: `counts` a second of runs with the input already where the model is."""
    device = "cuda" if on_card(session.get_providers()[0]) else "cpu"
    binding = session.io_binding()
    binding.bind_ortvalue_input(session.get_inputs()[0].name, ort.OrtValue.ortvalue_from_numpy(given, device, 0))
    for output in session.get_outputs():
        binding.bind_output(output.name, device, 0)

    def measure() -> float:
        began_s, runs, taken_s = time.perf_counter(), 0, 0.0
        while taken_s < LEAST_S:
            session.run_with_iobinding(binding)
            binding.synchronize_outputs()
            runs, taken_s = runs + 1, time.perf_counter() - began_s
        return counts * runs / taken_s

    return measure


def _noise(session: ort.InferenceSession, batch: int) -> Samples:
    samples = session.get_inputs()[0].shape[1]
    return (0.1 * np.random.default_rng(0).standard_normal((batch, samples))).astype(np.float32)


def _profiled(bundle: Bundle, provider: str, threads: int, batch: int, *, plain: bool) -> list[Node]:
    with tempfile.TemporaryDirectory() as folder:
        session = _session(bundle, provider, threads, profile=Path(folder) / "profile", plain=plain)
        given = {session.get_inputs()[0].name: _noise(session, batch)}
        session.run(None, given)
        if not plain:
            session.run(None, given)  # the first one finds no memory ready
        events = json.loads(Path(session.end_profiling()).read_text("utf-8"))
    nodes = [_node(event) for event in events if event.get("cat") == "Node" and event["name"].endswith("_kernel_time")]
    return nodes if plain else nodes[len(nodes) // 2 :]


def _node(event: Mapping[str, Any]) -> Node:
    args = event["args"]
    inputs = tuple((kind, tuple(shape)) for each in args["input_type_shape"] for kind, shape in each.items())
    output = next((tuple(shape) for each in args["output_type_shape"] for shape in each.values()), ())
    return Node(args["op_name"], inputs, output, event["dur"] / 1e6)


def _session(
    bundle: Bundle, provider: str, threads: int, *, profile: Path | None = None, plain: bool = False
) -> ort.InferenceSession:
    model = bundle.manifest.model
    # The head of a block model is a few numbers, and no part of the model's file.
    contents = bundle.read_verified(*(name for name in bundle.manifest.files if name != model.head))
    graph = contents.pop(model.file)
    return _open(graph, contents, provider, threads, profile=profile, plain=plain)


def _open(
    graph: bytes,
    beside: Mapping[str, bytes],
    provider: str,
    threads: int,
    *,
    profile: Path | None = None,
    plain: bool = False,
) -> ort.InferenceSession:
    options = settings(threads, beside)
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    if plain:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.add_session_config_entry("session.disable_prepacking", "1")
    providers = list(dict.fromkeys([provider, CPU]))
    if on_card(provider):
        find_libraries()
    session = ort.InferenceSession(graph, options, providers=providers)
    if (found := session.get_providers()[0]) != provider:
        raise ConfigError.of("--provider", provider, f"one that is there: onnxruntime fell back to {found}")
    return session


def product_model(arithmetic: Arithmetic, side: int) -> bytes:
    """Make the ONNX model `out = left @ right` with a fixed random `right`, all `(side, side)`.

    Raises:
        MissingError: onnx is not installed.
    """
    try:
        from onnx import TensorProto, helper, numpy_helper
    except ModuleNotFoundError:
        raise MissingError.of("bench roofline", "onnx", from_extra("bench")) from None
    rng = np.random.default_rng(1)
    if arithmetic == "int8":
        operator, given, made = "MatMulInteger", TensorProto.UINT8, TensorProto.INT32
        right = rng.integers(-127, 127, (side, side), np.int8)
    else:
        operator = "MatMul"
        given = made = TensorProto.FLOAT16 if arithmetic == "fp16" else TensorProto.FLOAT
        right = rng.standard_normal((side, side)).astype(_GIVEN[arithmetic])
    make: Any = helper.make_node
    graph = helper.make_graph(
        [make(operator, ["left", "right"], ["out"])],
        "product",
        [helper.make_tensor_value_info("left", given, [side, side])],
        [helper.make_tensor_value_info("out", made, [side, side])],
        [numpy_helper.from_array(right, "right")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    return bytes(model.SerializeToString())
