"""Recognize spelled-out magnitudes: sqrt(a a + b b + ...) -> ReduceL2 over the stacked terms.

a, b, ...: float32 of one shape; a square is Pow(a, 2) or Mul(a, a), a root Sqrt or Pow(x, 0.5). Exporters write the
magnitude of a spectrum so, from its real and imaginary part. ReduceL2 has an integer form that squares and adds codes
exactly; squares with a quantizer of their own lose what is quiet (a 16-bit step of a sum that reaches r^2 is a length
of r / 256). Refused: a square or sum that others read or that is an output.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from qcompiler.context import Context
from qcompiler.graph.model import Graph
from qcompiler.graph.stages import Stage

STAGE = (Stage.FLOAT, Stage.FLOAT)


@dataclass(frozen=True, kw_only=True)
class Options:
    """None."""


def run(graph: Graph, options: Options, context: Context) -> Graph:
    """The same magnitudes, by ReduceL2."""
    for node in graph.nodes("Sqrt", "Pow"):
        source = node.inputs[0]
        if (
            source is None
            or source.dtype != ir.DataType.FLOAT
            or (node.op_type == "Pow" and _power(graph, node) != 0.5)
        ):
            continue
        terms = _squared(graph, source, node)
        if terms is None or len(terms) < 2 or any(term.shape != source.shape for term in terms):
            continue
        shape = graph.shape(source)
        front = graph.add_const(f"{node.name}_axis", np.array([0], np.int64))
        stacked = []
        for i, term in enumerate(terms):
            made = graph.add_node("Unsqueeze", [term, front], before=node, name=f"{node.name}_term{i}", like=term)
            made.outputs[0].shape = ir.Shape([1, *shape])
            stacked.append(made.outputs[0])
        joined = graph.add_node("Concat", stacked, {"axis": 0}, before=node, name=f"{node.name}_terms", like=terms[0])
        joined.outputs[0].shape = ir.Shape([len(terms), *shape])
        length = graph.add_node("ReduceL2", [joined.outputs[0], front], {"keepdims": 0}, before=node,
                                name=node.name, like=node.outputs[0])  # fmt: skip
        graph.bypass(node, length.outputs[0])
    graph.sweep()
    return graph


def _power(graph: Graph, node: ir.Node) -> float | None:
    exponent = graph.const(node.inputs[1])
    return float(exponent.reshape(-1)[0]) if exponent is not None and exponent.size == 1 else None


def _squared(graph: Graph, value: ir.Value, reader: ir.Node) -> list[ir.Value] | None:
    """What is squared in a sum of squares that only `reader` reads; None if it is something else."""
    node = value.producer()
    if node is None or node.domain or value.is_graph_output() or graph.sole_user(value) is not reader:
        return None
    a = node.inputs[0]
    if node.op_type == "Add":
        parts = [None if v is None else _squared(graph, v, node) for v in node.inputs]
        return None if None in parts else [term for part in parts for term in part or ()]
    square = node.op_type == "Mul" and a is node.inputs[1] or node.op_type == "Pow" and _power(graph, node) == 2.0
    return [a] if square and a is not None and graph.const(a) is None else None
