"""ReduceMax, ReduceMin and ReduceL2."""

from __future__ import annotations

from math import prod

import onnx_ir as ir

from qcompiler.errors import UnsupportedError
from qcompiler.formats import QuantParams
from qcompiler.graph.model import Graph, attribute
from qcompiler.ops.requantize import fixed_multiplier
from qcompiler.passes.integerize.rule import Rule, one_input, reach
from qcompiler.passes.integerize.windows import reduced_axes
from qcompiler.passes.integerize.writer import Writer


def _refuses(graph: Graph, node: ir.Node) -> str:
    return "has axes that are not constant" if reduced_axes(graph, node) is None else one_input(graph, node)


def _write_extreme(writer: Writer, node: ir.Node, params: QuantParams, name: str) -> ir.Value:
    """Quantization is monotonic, so the largest code is that of the largest value."""
    x = writer.codes(node.inputs[0])  # type: ignore[arg-type]
    attributes = {
        "axes": reduced_axes(writer.source, node),
        "keepdims": attribute(node, "keepdims", 1),
        "format": x.params.format.token,
    }
    own = name if x.params == params else f"{name}_picked"
    shape = writer.source.shape(node.outputs[0])
    codes = writer.emit(node.op_type, [x.value], attributes, x.params, shape, own)
    return writer.requantize(codes, x.params, params, name)


def _write_length(writer: Writer, node: ir.Node, params: QuantParams, name: str) -> ir.Value:
    graph = writer.source
    x = writer.codes(node.inputs[0])  # type: ignore[arg-type]
    shape = graph.shape(node.inputs[0])  # type: ignore[arg-type]
    axes = reduced_axes(graph, node) or []
    worst = prod(shape[a] for a in axes) * reach(x.params) ** 2
    half = (60 - worst.bit_length()) // 2
    if half < 0:
        raise UnsupportedError(
            f"ReduceL2 `{node.name}` runs over too many elements for {x.params.format.bits} bits.",
            where=graph.path,
            hint="Give its input 8 bits (a rule with `activation`).",
        )
    half = min(half, 12)
    ratio = float(x.params.scale) / float(params.scale) / 2.0**half
    multiplier, shift = fixed_multiplier(ratio, 31)
    attributes = {
        "axes": axes,
        "keepdims": attribute(node, "keepdims", 1),
        "half_shift": half,
        "multiplier": multiplier,
        "shift": shift,
        "x_zero_point": int(x.params.zero_point),
        "zero_point": int(params.zero_point),
        "format": params.format.token,
    }
    return writer.emit("ReduceL2", [x.value], attributes, params, graph.shape(node.outputs[0]), name)


RULES = {
    "ReduceL2": Rule(_write_length, _refuses),
    "ReduceMax": Rule(_write_extreme, _refuses),
    "ReduceMin": Rule(_write_extreme, _refuses),
}
