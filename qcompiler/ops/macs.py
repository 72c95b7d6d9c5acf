"""How much multiplying a node does."""

from __future__ import annotations

import onnx_ir as ir

from qcompiler.graph.islands import is_island
from qcompiler.graph.model import Graph, attribute, attributes, operator_key
from qcompiler.graph.qdq import quantizer_of
from qcompiler.ops import OPERATORS


def node_macs(graph: Graph, node: ir.Node) -> int:
    """Multiply-accumulates of one node of an INTEGER graph, by its operator's own count; float islands count none."""
    if is_island(node):
        return 0
    inputs = [graph.shape(value) if value is not None else () for value in node.inputs]
    return OPERATORS[operator_key(node)].macs(inputs, [graph.shape(value) for value in node.outputs], attributes(node))


def float_macs(graph: Graph, node: ir.Node) -> int:
    """Multiply-accumulates of a node of a float or QDQ graph."""
    names = {"Gemm": "MatMul", "MatMul": "MatMul", "Conv": "Conv", "ConvTranspose": "ConvTranspose"}
    if node.op_type not in names or node.domain:
        return 0
    name = names[node.op_type]
    if graph.const(node.inputs[1]) is None and quantizer_of(graph, node.inputs[1]) is None:
        if node.op_type != "MatMul":
            return 0
        name = "BatchMatMul"
    shapes = [graph.shape(value) for value in node.inputs[:2] if value is not None]
    if node.op_type == "Gemm":
        turned = [attribute(node, "transA", 0), attribute(node, "transB", 0)]
        shapes = [shape[::-1] if turn else shape for shape, turn in zip(shapes, turned, strict=True)]
    return OPERATORS[f"qcompiler::{name}"].macs(shapes, [graph.shape(node.outputs[0])], attributes(node))
