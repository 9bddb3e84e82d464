"""int8 for one ONNX file: matrix products with constant weights.

Weights get a scale a column. What they are multiplied with gets one scale and one zero point a tensor: once, from real
windows (`static`, in the form that every provider can read, QDQ), so that a window's score does not depend on the
windows beside it in a batch; or from each run (`dynamic`). uint8 times int8 is what AVX-512 VNNI multiplies.

Shapes: B windows, F frames, K and N the rows and columns of a weight.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from streamdet.audio import Samples

Floats = NDArray[np.float64]

EXACT: Final = "exact/"
"""Nodes whose names begin so keep float32 in every precision: the head, and what leads from audio to spectra."""
# Operators that only move values: in uint8 there is a quarter as much to move.
MOVES: Final = frozenset({"Gather", "Reshape", "Transpose", "Unsqueeze", "Squeeze", "Flatten", "Slice"})
AUGMENTED: Final = "calibrated.onnx"
KEEP: Final = 0.9999
"""Share of frames whose peak an activation's range holds; docs/benchmarks.md has what others give."""


class Range(msgspec.Struct, frozen=True):
    """What a tensor holds; zero always lies within."""

    low: float
    high: float

    @property
    def scale(self) -> np.float32:
        """Of one step of uint8."""
        return np.float32(max(self.high - self.low, 1e-12) / 255)

    @property
    def zero(self) -> np.uint8:
        """The step that means zero."""
        return np.uint8(np.clip(round(-self.low / float(self.scale)), 0, 255))


def products(graph: GraphProto) -> list[NodeProto]:
    """Matrix products with a constant right side `(K, N)`; not the head's, nor the first one, which hears raw audio."""
    matrices = {weight.name for weight in graph.initializer if len(weight.dims) == 2}
    maker = {output: node for node in graph.node for output in node.output}

    def hears_audio(node: NodeProto) -> bool:
        while (before := maker.get(node.input[0])) is not None and before.op_type in MOVES:
            node = before
        return before is None or before.name.startswith(EXACT)

    return [
        node
        for node in graph.node
        if node.op_type == "MatMul"
        and node.input[1] in matrices
        and not node.name.startswith(EXACT)
        and not hears_audio(node)
    ]


def calibrate(path: Path, windows: Iterable[Samples], keep: float) -> dict[str, Range]:
    """Run windows, one at a time, through the float32 model at `path`, and see what its products are given.

    Args:
        path: of the model; its external data, if any, lies beside it.
        windows: each `(T,)`, as the model hears them; of a longer one its end, as long as the model's input.
        keep: share of frames whose largest (smallest) value a range holds: 1 holds all, less cuts off rare peaks.

    Returns:
        tensor -> its range, for the left side of every one of `products`.
    """
    model = onnx.load(path, load_external_data=False)
    names = sorted({node.input[0] for node in products(model.graph)})
    _listen(model.graph, names)
    augmented = path.with_name(AUGMENTED)
    onnx.save(model, augmented)
    try:
        session = ort.InferenceSession(augmented, providers=["CPUExecutionProvider"])
    finally:
        augmented.unlink()
    wanted = [f"{name}/{end}" for name in names for end in ("low", "high")]
    seen: dict[str, list[Floats]] = {name: [] for name in wanted}
    (given,) = session.get_inputs()
    for window in windows:
        for name, found in zip(wanted, session.run(wanted, {given.name: window[None, -given.shape[1] :]}), strict=True):
            seen[name].append(found.ravel())

    def end(name: str, share: float) -> float:
        return float(np.quantile(np.concatenate(seen[name]), share))

    return {name: Range(min(0.0, end(f"{name}/low", 1 - keep)), max(0.0, end(f"{name}/high", keep))) for name in names}


def _listen(graph: GraphProto, names: Sequence[str]) -> None:
    """Make the smallest and the largest value of every frame of the named tensors outputs, in place of the score."""
    graph.initializer.append(numpy_helper.from_array(np.array([-1]), "last_axis"))
    del graph.output[:]
    for name in names:
        for end, operator in (("low", "ReduceMin"), ("high", "ReduceMax")):
            made = f"{name}/{end}"
            graph.node.append(helper.make_node(operator, [name, "last_axis"], [made], keepdims=0))
            graph.output.append(helper.make_tensor_value_info(made, TensorProto.FLOAT, None))


def dynamic(model: ModelProto) -> None:
    """Rewrite the products of a model, in place, so that each run scales what they are given by its largest values.

    The operator is onnxruntime's own, and only its CPU provider has it.
    """
    graph = model.graph
    weights = {weight.name: weight for weight in graph.initializer}
    done: dict[str, list[str]] = {}
    for node in products(graph):
        weight = node.input.pop()
        if weight not in done:
            done[weight] = _put_bytes(graph, weights[weight])
        node.input.extend(done[weight])
        node.op_type, node.domain = "DynamicQuantizeMatMul", "com.microsoft"
    if "com.microsoft" not in {known.domain for known in model.opset_import}:
        model.opset_import.append(helper.make_opsetid("com.microsoft", 1))


def static(model: ModelProto, ranges: Mapping[str, Range]) -> None:
    """Rewrite the products of a model, in place, with scales that are the same for every run.

    onnxruntime makes one operator of each dequantised pair and its product. Values are quantised before they are moved
    about, so where the front-end lays frames side by side, it lays bytes.
    """
    graph = model.graph
    chosen = products(graph)
    moves = {given: _moves(graph, given, chosen) for given in {node.input[0]: None for node in chosen}}
    before: dict[str, list[NodeProto]] = {node.output[0]: [] for node in graph.node}
    weights = {weight.name: weight for weight in graph.initializer}
    for node in chosen:
        given, weight = node.input
        if given in moves:
            way = moves.pop(given)
            scale, zero = _constants(graph, given, ranges[given])
            first = way[0] if way else node
            as_bytes = f"{given}/bytes"
            before[first.output[0]].append(
                helper.make_node("QuantizeLinear", [first.input[0], scale, zero], [as_bytes])
            )
            if way:
                first.input[0], as_bytes = as_bytes, given
            before[node.output[0]].append(
                helper.make_node("DequantizeLinear", [as_bytes, scale, zero], [f"{given}/float"])
            )
        if weight in weights:
            parts = _put_bytes(graph, weights.pop(weight))
            before[node.output[0]].append(helper.make_node("DequantizeLinear", parts, [f"{weight}/float"], axis=1))
        node.input[0], node.input[1] = f"{given}/float", f"{weight}/float"
    nodes = [part for node in graph.node for part in (*before[node.output[0]], node)]
    del graph.node[:]
    graph.node.extend(nodes)
    del graph.value_info[:]  # the exporter's, which says float32 of what are bytes now


def _moves(graph: GraphProto, given: str, chosen: Sequence[NodeProto]) -> list[NodeProto]:
    """The operators right before a product that only move values, first to last, and serve nobody else."""
    maker = {output: node for node in graph.node for output in node.output}
    users: dict[str, list[NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
    outputs = {output.name for output in graph.output}
    way: list[NodeProto] = []
    allowed = {node.output[0] for node in chosen}
    while (node := maker.get(given)) is not None and node.op_type in MOVES and given not in outputs:
        if not {user.output[0] for user in users[given]} <= allowed:
            break
        way.insert(0, node)
        given, allowed = node.input[0], {node.output[0]}
    return way


def _constants(graph: GraphProto, given: str, found: Range) -> tuple[str, str]:
    names = f"{given}/scale", f"{given}/zero"
    graph.initializer.extend(
        numpy_helper.from_array(np.asarray(value), name)
        for value, name in zip((found.scale, found.zero), names, strict=True)
    )
    return names


def _put_bytes(graph: GraphProto, weight: TensorProto) -> list[str]:
    """Put int8 in place of a weight `(K, N)`; the names of the bytes, of their scales and of their zeros, by column."""
    values, name = numpy_helper.to_array(weight), weight.name
    scale = np.maximum(np.abs(values).max(0), np.float32(1e-12)) / np.float32(127)  # (N,)
    rounded = np.clip(np.rint(values / scale), -127, 127).astype(np.int8)
    graph.initializer.remove(weight)
    parts = {f"{name}/bytes": rounded, f"{name}/scale": scale, f"{name}/zero": np.zeros(scale.shape, np.int8)}
    graph.initializer.extend(numpy_helper.from_array(part, named) for named, part in parts.items())
    return list(parts)
