"""Refuse a model that cannot be made integer, before calibration or any other work: all of its nodes in one error.

Reads the float graph after the float passes; `integerize` checks again, on the quantized graph, what only shows there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import onnx_ir as ir

from qcompiler.assignment import is_float
from qcompiler.context import Context
from qcompiler.errors import UnsupportedError
from qcompiler.graph import qdq
from qcompiler.graph.model import Graph, attribute
from qcompiler.graph.stages import Stage
from qcompiler.passes import unroll_recurrent
from qcompiler.passes.integerize import integers, truth
from qcompiler.passes.integerize.interpolate import refuses_resize
from qcompiler.passes.integerize.movement import MOVEMENT, PAD_MODES
from qcompiler.passes.integerize.rules import rule_of
from qcompiler.passes.integerize.unary import function_input

STAGE = (Stage.FLOAT, Stage.FLOAT)
SHOWN = 8
PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")

Kind = Literal["integer", "table", "movement", "unsupported"]


@dataclass(frozen=True, kw_only=True)
class Options:
    pass


def run(graph: Graph, options: Options, context: Context) -> Graph:
    """The graph as it was. Raises UnsupportedError."""
    for value in graph.outputs:
        if is_float(value) or not (reason := integers.refuses_output(graph, value, _nothing)):
            continue
        raise UnsupportedError(
            f"the output `{value.name}` {reason}.",
            where=graph.path,
            hint="Cut the model before the operators that make it, or drop the output.",
        )
    found = [(node, reason) for node in graph.nodes() if (reason := classify(graph, node)[1])]
    if found:
        text = "; ".join(f"{node.op_type} (node `{_name(node)}`) {why}" for node, why in found[:SHOWN])
        more = f"; and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        raise UnsupportedError(
            f"{text}{more}.",
            where=graph.path,
            hint="Replace these operators in the model, or cut it before them (`qcompile inspect` lists all nodes).",
        )
    return graph


def _name(node: ir.Node) -> str:
    return str(node.name or node.outputs[0].name)


def _nothing(graph: Graph, value: ir.Value | None) -> str:
    """Float values are quantized later."""
    return ""


def classify(graph: Graph, node: ir.Node) -> tuple[Kind, str]:
    """What a float node becomes, and the reason if that is nothing."""
    op = node.op_type
    if qdq.is_quantizer(node):
        return "integer", ""
    if node.domain in ("", "ai.onnx") and op in MOVEMENT:
        if op == "Resize":
            if reason := refuses_resize(graph, node):
                return "unsupported", reason
            return ("movement" if attribute(node, "mode", "nearest") == "nearest" else "integer"), ""
        if op == "Pad" and attribute(node, "mode", "constant") not in PAD_MODES:
            return "unsupported", f"has mode {attribute(node, 'mode')}"
        return "movement", ""
    if not node.domain and op in unroll_recurrent.GATES:
        return "unsupported", unroll_recurrent.refuses(graph, node, unroll_recurrent.Options()) or "is not unrolled"
    if function_input(graph, node) is not None:
        return "table", ""
    if not node.domain and (found := _beside(graph, node)) is not None:
        return ("unsupported", found) if found else ("integer", "")
    if rule_of(node) is None:
        return "unsupported", "has no integer form yet"
    if op in PRODUCTS:
        if op != "MatMul" and graph.const(node.inputs[1]) is None:
            return "unsupported", "multiplies two activations; it needs constant weights"
        if op.startswith("Conv") and len(graph.shape(node.inputs[1])) > 4:
            return "unsupported", "has more than two spatial dimensions"
    if op.endswith("Pool") and len(graph.shape(node.inputs[0])) > 4 and not op.startswith("GlobalAverage"):
        return "unsupported", "has more than two spatial dimensions"
    if op == "MaxPool" and len(node.outputs) > 1 and node.outputs[1].uses():
        return "unsupported", "returns indices"
    return "integer", ""


def _beside(graph: Graph, node: ir.Node) -> str | None:
    """Of what makes or reads truth values and integers: why it has no integer form, or ''. None of others."""
    y = node.outputs[0]
    if node.op_type in truth.OPERATORS or node.op_type == "Cast" and y.dtype == ir.DataType.BOOL:
        return truth.refuses(graph, y, _nothing)
    if node.op_type in ("ArgMax", "ArgMin", "TopK") or node.op_type == "Cast" and y.dtype in integers.TYPES:
        return integers.refuses(graph, node.outputs[-1], _nothing)
    if node.op_type in ("Where", "Cast"):
        source = node.inputs[0]
        if node.op_type == "Where" and y.dtype != ir.DataType.FLOAT:
            return "chooses among integers"
        if source is not None and source.dtype != ir.DataType.BOOL:
            return integers.refuses(graph, source, _nothing)
        return truth.refuses(graph, source, _nothing)
    if node.op_type == "Gather" and graph.const(node.inputs[1]) is None:
        return integers.refuses(graph, node.inputs[1], _nothing)
    return None
