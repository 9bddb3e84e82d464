"""A residual sum and the layer norm behind it as one operator, which gives both: SkipLayerNormalization."""

from collections import Counter
from collections.abc import Iterator

from onnx import GraphProto, NodeProto, ValueInfoProto, helper


def fuse(graph: GraphProto) -> None:
    """Rewrite a graph, in place; the bias of the product before the sum goes into the operator too."""
    became: dict[str, NodeProto | None] = {}
    for norm, total in list(_sums_before_norms(graph)):
        if total.output[0] in became:
            continue  # two norms of one sum: the second stays
        sides, bias = list(total.input), ""
        for at, biased in _biased(graph, total):
            became[sides[at]] = None
            sides[at], bias = biased.input
            break
        became[norm.output[0]] = None
        became[total.output[0]] = helper.make_node(
            "SkipLayerNormalization",
            [*sides, *norm.input[1:], bias],
            [norm.output[0], "", "", total.output[0]],
            name=norm.name,
            domain="com.microsoft",
            epsilon=next((given.f for given in norm.attribute if given.name == "epsilon"), 1e-5),
        )
    nodes = [made for node in graph.node if (made := became.get(node.output[0], node)) is not None]
    del graph.node[:]
    graph.node.extend(nodes)


def _sums_before_norms(graph: GraphProto) -> Iterator[tuple[NodeProto, NodeProto]]:
    """Layer norms with weight and bias, and the sums `(B, F, D)` that they are of; nothing in a sum is broadcast."""
    maker = {output: node for node in graph.node for output in node.output}
    shapes = {value.name: _shape(value) for value in graph.value_info}
    for norm in graph.node:
        if norm.op_type != "LayerNormalization" or len(norm.input) != 3:
            continue
        total = maker.get(norm.input[0])
        if total is not None and total.op_type == "Add":
            one, other = (shapes.get(name, ()) for name in total.input)
            if len(one) == 3 and one == other:
                yield norm, total


def _biased(graph: GraphProto, total: NodeProto) -> Iterator[tuple[int, NodeProto]]:
    """Sides of a sum that are sums with a bias `(D,)` themselves, and serve nobody else."""
    flat = {weight.name for weight in graph.initializer if len(weight.dims) == 1}
    uses = Counter(name for node in graph.node for name in node.input)
    for node in graph.node:
        if (
            node.op_type == "Add"
            and node.input[1] in flat
            and node.output[0] in total.input
            and uses[node.output[0]] == 1
        ):
            yield list(total.input).index(node.output[0]), node


def _shape(value: ValueInfoProto) -> tuple[str | int, ...]:
    return tuple(size.dim_param or size.dim_value for size in value.type.tensor_type.shape.dim)
