"""fp16 for one ONNX file, but for what needs float32: marked nodes, and operators that sum over many values.

onnxruntime has a converter for this, but it makes a node twice where two operators that stay want the same tensor.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from streamdet_export.quantise import EXACT

# Softmax and layer norms; with a layer norm the residual stream, which grows from layer to layer, stays in float32
# too. In the one operator of attention the providers keep float32 where it matters themselves. The rest holds its type
# in an attribute.
FLOAT32: Final = frozenset(
    {"LayerNormalization", "SkipLayerNormalization", "Softmax", "Constant", "ConstantOfShape", "Cast", "Range"}
)
LARGEST: Final = 65504.0
LEAST: Final = 2.0**-24
"""What fp16 can hold; smaller constants guard divisions and logarithms against zero and must not become it."""


def halve(model: ModelProto) -> None:
    """Rewrite a model, in place; its input and output stay float32, and its weights must be in memory."""
    graph = model.graph
    types = {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.input, *graph.output)}
    weights = {weight.name: weight for weight in graph.initializer if weight.data_type == TensorProto.FLOAT}
    floats = {name for name, kind in types.items() if kind == TensorProto.FLOAT} | weights.keys()
    # In which precision each tensor is there: what a node makes has the node's, weights can be had in both.
    halves = {name for node in graph.node if not stays(node) for name in node.output} & floats
    nodes: list[NodeProto] = []
    made: set[str] = set()

    def in_precision(name: str, *, half: bool) -> str:
        """Name a tensor as it is in this precision; what is not there yet is made."""
        if name not in floats or (name in halves) == half:
            return name
        other = f"{name}/half" if half else f"{name}/float"
        if other not in made:
            made.add(other)
            if name in weights:
                graph.initializer.append(_halved(weights[name], other))
            else:
                nodes.append(_cast(name, other, half=half))
        return other

    for node in graph.node:
        inputs = [in_precision(name, half=not stays(node)) for name in node.input]
        del node.input[:]
        node.input.extend(inputs)
        nodes.append(node)
    for output in graph.output:
        if output.name in halves:
            _rename(nodes, output.name, f"{output.name}/half")
            nodes.append(_cast(f"{output.name}/half", output.name, half=False))
    used = {name for node in nodes for name in node.input}
    weights_left = [weight for weight in graph.initializer if weight.name in used]
    del graph.node[:], graph.initializer[:], graph.value_info[:]
    graph.node.extend(nodes)
    graph.initializer.extend(weights_left)


def stays(node: NodeProto) -> bool:
    """Whether a node keeps float32."""
    return node.op_type in FLOAT32 or node.name.startswith(EXACT)


def _rename(nodes: Sequence[NodeProto], name: str, to: str) -> None:
    for node in nodes:
        for names in (node.input, node.output):
            for at, each in enumerate(names):
                if each == name:
                    names[at] = to


def _cast(name: str, to: str, *, half: bool) -> NodeProto:
    kind = TensorProto.FLOAT16 if half else TensorProto.FLOAT
    return helper.make_node("Cast", [name], [to], name=to, to=kind)


def _halved(weight: TensorProto, name: str) -> TensorProto:
    values = numpy_helper.to_array(weight)
    small = (values != 0) & (np.abs(values) < LEAST)
    values = np.where(small, np.copysign(LEAST, values), np.clip(values, -LARGEST, LARGEST))
    return numpy_helper.from_array(values.astype(np.float16), name)
