"""Float islands: float operators between integer nodes, where the user allowed them (`--nonlinear float`).

A node of an island carries its reason as metadata from the pass `check_support` on, through the QDQ graph into the
INTEGER graph. There an island reads DequantizeLinear nodes, constants and its own values, and every value that leaves
it goes through a QuantizeLinear. What an island computes is float32: onnxruntime's kernels are the reference
(execute/oracle.py), and a target is compared within a tolerance (evaluate.py) where a value depends on one.
"""

from __future__ import annotations

from typing import Any

import networkx as nx
import onnx_ir as ir

from qcompiler.graph.model import DOMAIN, Graph, attribute

ISLAND_KEY = "qcompiler.island"
"""Metadata key of a float node that stays float: why."""

SMOOTH = frozenset({
    "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "Cos", "Cosh", "Erf", "Exp", "Gelu", "Log", "Mish", "Reciprocal",
    "Sigmoid", "Sin", "Sinh", "Softplus", "Softsign", "Sqrt", "Tan", "Tanh",
})  # fmt: skip
"""Non-linear functions of one variable that are tables with integer arithmetic."""
NORMALIZING = frozenset({
    "GroupNormalization", "InstanceNormalization", "LayerNormalization", "LogSoftmax", "RMSNormalization", "Softmax",
})  # fmt: skip
"""Operators with an integer algorithm of ours."""
NONLINEAR = SMOOTH | NORMALIZING
"""What `--nonlinear float` makes float although there is an integer form."""
OPERATORS = NONLINEAR | {
    "Add", "And", "Conv", "ConvTranspose", "CumSum", "Div", "Einsum", "Elu", "Equal", "GatherElements", "Gemm",
    "Greater", "GreaterOrEqual", "GridSample", "Hardmax", "LRN", "Less", "LessOrEqual", "LpPool", "MatMul", "Max",
    "Mean", "Min", "Mod", "Mul", "Neg", "Not", "Or", "PRelu", "Pow", "ReduceL1", "ReduceLogSum", "ReduceLogSumExp",
    "ReduceMean", "ReduceProd", "ReduceSum", "ReduceSumSquare", "Resize", "Selu", "Shrink", "Sub", "Sum", "Trilu",
    "Where", "Xor",
}  # fmt: skip
"""Float operators that can be in an island: those whose lowering is tested against onnxruntime."""


def is_island(node: ir.Node | None) -> bool:
    """Whether a node is part of a float island."""
    return node is not None and ISLAND_KEY in node.metadata_props


def name_of(node: ir.Node) -> str:
    """The node's name, or that of its output."""
    return str(node.name or node.outputs[0].name)


def can_be_island(graph: Graph, node: ir.Node) -> str:
    """Reason why a float node cannot run as (part of) a float island, or ''."""
    if node.op_type not in OPERATORS or node.domain not in ("", "ai.onnx", DOMAIN):
        return "is no operator of float islands"
    if any(value.uses() or value.is_graph_output() for value in node.outputs[1:]):
        return "returns several values"
    for value in not_float(graph, node):
        maker = value.producer()
        if maker is None or value.is_graph_output() or can_be_island(graph, maker):
            return f"reads `{value.name}`, which is {value.dtype}"
    return ""


def not_float(graph: Graph, node: ir.Node) -> list[ir.Value]:
    """The choices and indices that a node reads, constants aside: they have no codes, so an island makes its own."""
    inputs = [value for value in node.inputs if value is not None and graph.const(value) is None]
    return [value for value in inputs if value.dtype not in (None, ir.DataType.FLOAT)]


def inside(value: ir.Value) -> bool:
    """Whether a value stays in its island: an island node makes it, and nothing but island nodes read it."""
    uses = list(value.uses())
    return is_island(value.producer()) and not value.is_graph_output() and all(is_island(use.node) for use in uses)


def describe_islands(graph: Graph) -> list[dict[str, Any]]:
    """The islands of a graph of any stage, in graph order: float nodes that are connected by float values, each with
    name, operator and reason. JSON-able."""
    links = nx.Graph()
    nodes = [node for node in graph.nodes() if is_island(node)]
    order = {node: i for i, node in enumerate(nodes)}
    links.add_nodes_from(range(len(nodes)))
    for node in nodes:
        for value in node.inputs:
            maker = value.producer() if value is not None else None
            if maker in order:
                links.add_edge(order[maker], order[node])
    groups = sorted(sorted(group) for group in nx.connected_components(links))
    return [{"nodes": [_describe(nodes[i]) for i in group]} for group in groups]


def _describe(node: ir.Node) -> dict[str, str]:
    return {"name": name_of(node), "operator": node.op_type, "reason": node.metadata_props[ISLAND_KEY]}


def touched(graph: Graph) -> set[str]:
    """Names of the values that depend on an island: those within it and all behind it."""
    found: set[str] = set()
    for node in graph.nodes():
        if is_island(node) or any(value is not None and value.name in found for value in node.inputs):
            found.update(str(value.name) for value in node.outputs)
    return found


def single_node(graph: Graph, node: ir.Node, *, constants: bool) -> Graph:
    """A graph of this node alone: inputs `input0`, `input1`, ... by position, output `output`.

    constants: whether initializers come along as such; otherwise they are inputs too. Functions come along.
    """
    inputs: list[ir.Value | None] = []
    initializers, seen = [], dict[ir.Value, ir.Value]()
    for i, value in enumerate(node.inputs):
        if value is None:
            inputs.append(None)
            continue
        dtype = value.dtype or ir.DataType.FLOAT
        tensor = value.const_value if constants and value.is_initializer() else None
        if value not in seen:
            shape = ir.Shape(graph.shape(value))
            seen[value] = ir.Value(name=f"input{i}", shape=shape, type=ir.TensorType(dtype), const_value=tensor)
            if tensor is not None:
                initializers.append(seen[value])
        inputs.append(seen[value])
    values = {name: attribute(node, name) for name in node.attributes}
    copy = ir.node(node.op_type, inputs, attributes=values, domain=node.domain, num_outputs=1, name="node")
    output, like = copy.outputs[0], node.outputs[0]
    output.name, output.shape = "output", ir.Shape(graph.shape(like))
    output.type = ir.TensorType(like.dtype or ir.DataType.FLOAT)
    given = [value for value in seen.values() if value not in initializers]
    opsets = dict(graph.ir.opset_imports)
    alone = ir.Graph(given, [output], nodes=[copy], initializers=initializers, name="island", opset_imports=opsets)
    model = ir.Model(alone, ir_version=graph.model.ir_version)
    function = graph.model.functions.get((node.domain, node.op_type, node.overload))
    if function is not None:
        model.functions[function.identifier()] = function.clone()
    return Graph(model, graph.path)
