"""How much multiplying a node of an INTEGER graph does."""

from __future__ import annotations

import onnx_ir as ir

from qcompiler.graph.model import Graph, attributes, operator_key
from qcompiler.ops import OPERATORS


def node_macs(graph: Graph, node: ir.Node) -> int:
    """Multiply-accumulates of one node, by its operator's own count."""
    inputs = [graph.shape(value) if value is not None else () for value in node.inputs]
    return OPERATORS[operator_key(node)].macs(inputs, [graph.shape(value) for value in node.outputs], attributes(node))
