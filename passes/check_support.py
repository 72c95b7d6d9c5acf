"""Refuse a model that cannot be made integer, before calibration or any other work: all of its nodes in one error.

Reads the float graph after the float passes; `integerize` checks again, on the quantized graph, what only shows there.
With `nonlinear = "float"` nodes without an integer form and non-linear operators are marked as float islands
(qcompiler/graph/islands.py) if the target has floats; the rest is refused as before.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import onnx_ir as ir

from qcompiler.assignment import is_float, softmax_mask
from qcompiler.context import Context
from qcompiler.errors import RecipeError, UnsupportedError
from qcompiler.graph import islands, qdq
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

NONLINEAR = ("integer", "float")

Kind = Literal["integer", "table", "movement", "float island", "unsupported"]


@dataclass(frozen=True, kw_only=True)
class Options:
    nonlinear: str = "integer"
    """integer, or float: operators without integer form and non-linear ones run as float islands."""


def run(graph: Graph, options: Options, context: Context) -> Graph:
    """The graph as it was, float islands marked. Raises UnsupportedError, RecipeError for an unknown `nonlinear`."""
    for value in graph.outputs:
        if is_float(value) or not (reason := integers.refuses_output(graph, value, _nothing)):
            continue
        raise UnsupportedError(
            f"the output `{value.name}` {reason}.",
            where=graph.path,
            hint="Cut the model before the operators that make it, or drop the output.",
        )
    mark_islands(graph, options.nonlinear)
    _check_target(graph, context)
    _check_forms(graph, context)
    classified = [(node, *classify(graph, node)) for node in graph.nodes()]
    found = [(node, reason) for node, kind, reason in classified if kind == "unsupported"]
    if options.nonlinear == "float":
        found = [(node, f"{reason} and {islands.can_be_island(graph, node)}") for node, reason in found]
    if found:
        text = "; ".join(f"{node.op_type} (node `{islands.name_of(node)}`) {why}" for node, why in found[:SHOWN])
        more = f"; and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        raise UnsupportedError(
            f"{text}{more}.",
            where=graph.path,
            hint="Replace these operators in the model, or cut it before them (`qcompile inspect` lists all nodes)."
            + _way_out(graph, [node for node, _ in found], context),
        )
    return graph


def mark_islands(graph: Graph, nonlinear: str) -> None:
    """Write the reason into the metadata of every node that runs as a float island; none with "integer".

    Nodes become islands that have no integer form, that are in `islands.NONLINEAR`, the mask before such a Softmax, and
    what makes the choices (truth values, indices) that an island reads. Raises RecipeError for an unknown `nonlinear`,
    UnsupportedError where integer operators read such choices too.
    """
    if nonlinear not in NONLINEAR:
        raise RecipeError(f"`{nonlinear}` is no choice.", where="nonlinear", hint=f"Choose {' or '.join(NONLINEAR)}.")
    for node in graph.nodes() if nonlinear == "float" else ():
        kind, reason = classify(graph, node)
        chosen = node.op_type in islands.NONLINEAR and not qdq.is_quantizer(node)
        if (kind != "unsupported" and not chosen) or islands.can_be_island(graph, node):
            continue
        _mark(graph, node, reason or "is non-linear, and --nonlinear float was asked for")
        mask = softmax_mask(graph, node)
        if mask is not None:
            _mark(graph, mask.add, f"masks the Softmax `{islands.name_of(node)}`")
    for node in graph.nodes():
        for value in islands.not_float(graph, node) if not islands.is_island(node) else ():
            if islands.is_island(value.producer()):
                raise UnsupportedError(
                    f"{node.op_type} (node `{islands.name_of(node)}`) reads `{value.name}`, which a float island makes "
                    f"and which is {value.dtype}.",
                    where=graph.path,
                    hint="Only float values leave an island; cut the model here.",
                )


def _mark(graph: Graph, node: ir.Node, reason: str) -> None:
    node.metadata_props[islands.ISLAND_KEY] = reason
    for value in islands.not_float(graph, node):
        maker = value.producer()
        if maker is not None and not islands.is_island(maker):
            _mark(graph, maker, f"makes `{value.name}` for the island of `{islands.name_of(node)}`")


def _check_target(graph: Graph, context: Context) -> None:
    """Raise UnsupportedError for islands that the target of the context does not lower."""
    nodes = [node for node in graph.nodes() if islands.is_island(node)]
    can = context.capabilities
    if not nodes or can is None:
        return
    if can.refuses_float is None:
        names = ", ".join(f"{node.op_type} (node `{islands.name_of(node)}`)" for node in nodes[:SHOWN])
        raise UnsupportedError(
            f"the target computes without float, so these cannot be float islands: {names}.",
            where=graph.path,
            hint="Leave out `--nonlinear float`, or choose a target that has float islands (cpu).",
        )
    reasons = [reason for node in nodes if (reason := can.refuses_float(graph, node))]
    if reasons:
        raise UnsupportedError(
            " ".join(reasons[:SHOWN]),
            where=graph.path,
            hint="Replace these nodes in the model, or cut the model before them.",
        )


def _check_forms(graph: Graph, context: Context) -> None:
    """Raise UnsupportedError for nodes that the target of the context has no form for."""
    can = context.capabilities
    if can is None or can.refuses is None:
        return
    found = [(node, why) for node in graph.nodes() if (why := can.refuses(graph, node))]
    if found:
        text = "; ".join(f"{node.op_type} (node `{islands.name_of(node)}`) {why}" for node, why in found[:SHOWN])
        more = f"; and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        raise UnsupportedError(
            f"the target cannot do this: {text}{more}.",
            where=graph.path,
            hint="Cut the model before these nodes, or compile for `c` or `cpu`, which have them.",
        )


def _way_out(graph: Graph, nodes: list[ir.Node], context: Context) -> str:
    """The hint that float islands would do, where they would."""
    can = context.capabilities
    if (can is not None and can.refuses_float is None) or any(islands.can_be_island(graph, node) for node in nodes):
        return ""
    return " Or pass `--nonlinear float`: they then run in float32 between the integer operators."


def _nothing(graph: Graph, value: ir.Value | None) -> str:
    """Float values are quantized later."""
    return ""


def classify(graph: Graph, node: ir.Node) -> tuple[Kind, str]:
    """What a float node becomes, and the reason if that is nothing."""
    op = node.op_type
    if islands.is_island(node):
        return "float island", node.metadata_props[islands.ISLAND_KEY]
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
