"""What the fpga target can do."""

from __future__ import annotations

import onnx_ir as ir

from qcompiler.cost import ACTIVATIONS, work_of
from qcompiler.graph.model import Graph
from qcompiler.graph.qdq import is_quantizer
from qcompiler.minifloat import tokens
from qcompiler.target import Capabilities

_MOVES = ("Constant", "Dropout", "Flatten", "Identity", "Reshape", "Shape", "Squeeze", "Unsqueeze", "Transpose")


def refuses(graph: Graph, node: ir.Node) -> str:
    """Why a node of a FLOAT graph has no engine, or ''. `network_of` refuses what only integers show."""
    work, op = work_of(graph, node), node.op_type
    if is_quantizer(node) or op in _MOVES or work.kind == "free":
        return ""
    if work.kind == "conv" and op == "Conv":
        return ""
    if work.kind in ("dense", "pool", "mean", "softmax"):
        return ""
    if work.kind == "add":
        return "" if len({*work.inputs}) == 1 and not _constant(graph, node) else "adds other than two equal tensors"
    if op in ("Pad", "Slice"):
        return ""
    if op == "Concat":
        return "" if len(node.inputs) == 2 else f"joins {len(node.inputs)} tensors; its engine joins two"
    if op in (*ACTIVATIONS, "Swish") or (len(work.inputs) == 1 and work.kind == "activation"):
        return ""
    if op in ("Div", "Mul", "Sub", "Pow", "Max", "Min", "PRelu") and _constant(graph, node):
        return ""  # a function of one value, or refused with the integer graph
    return "has no engine"


def _constant(graph: Graph, node: ir.Node) -> bool:
    return any(graph.const(value) is not None for value in node.inputs)


CAPABILITIES = Capabilities(
    weight_bits=(2, 3, 4, 5, 6, 7, 8),
    activation_bits=(2, 3, 4, 5, 6, 7, 8, 16),
    arithmetic=("fixed",),
    float_boundary=False,
    formats_cost=True,
    refuses=refuses,
    weight_minifloats=tokens(3),
    activation_minifloats=(*tokens(3), *tokens(3, signed=False)),
)
