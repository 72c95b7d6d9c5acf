"""LayerNormalization, RMSNormalization, GroupNormalization, InstanceNormalization, LpNormalization as Normalize."""

from __future__ import annotations

from math import prod

import numpy as np
import onnx_ir as ir

from qcompiler.errors import UnsupportedError
from qcompiler.formats import QuantParams
from qcompiler.graph.model import DOMAIN, Graph, attribute
from qcompiler.ops.normalize import FRACTION
from qcompiler.passes.integerize.rule import Rule, one_input, reach
from qcompiler.passes.integerize.writer import Writer

LIMIT = 2**31
"""Of n |x - zx|: deviations times n, and gains, are int32."""


def _layout(graph: Graph, node: ir.Node) -> tuple[int, int, int]:
    """(axis, groups, elements of a run) of a node."""
    shape = graph.shape(node.inputs[0])  # type: ignore[arg-type]
    if node.op_type in ("LayerNormalization", "RMSNormalization", "LpNormalization"):
        axis = attribute(node, "axis", -1) % len(shape)
        return axis, 0, prod(shape[axis:])
    groups = shape[1] if node.op_type == "InstanceNormalization" else attribute(node, "num_groups")
    return 1, groups, prod(shape[1:]) // groups


def _refuses(graph: Graph, node: ir.Node) -> str:
    if any(value is not None and graph.const(value) is None for value in node.inputs[1:]):
        return "has a scale or a bias that is not constant"
    if any(value.uses() for value in node.outputs[1:]):
        return "returns mean or deviation"
    if not attribute(node, "epsilon", 1e-5) >= 0:
        return "has a negative epsilon"
    _, groups, _ = _layout(graph, node)
    if groups and graph.shape(node.inputs[1]) != graph.shape(node.inputs[0])[1:2]:  # type: ignore[arg-type]
        return "has a scale for each group; the form of operator set 21 has one for each channel"
    return one_input(graph, node)


def _refuses_lp(graph: Graph, node: ir.Node) -> str:
    if attribute(node, "p", 2) != 2:
        return "has p = 1; p = 2 has an integer form"
    rank = len(graph.shape(node.inputs[0]))  # type: ignore[arg-type]
    if attribute(node, "axis", -1) % rank != rank - 1:
        return "has another axis than the last"
    return one_input(graph, node)


def _write(writer: Writer, node: ir.Node, params: QuantParams, name: str) -> ir.Value:
    graph = writer.source
    x = writer.codes(node.inputs[0])  # type: ignore[arg-type]
    axis, groups, n = _layout(graph, node)
    shape = graph.shape(node.inputs[0])  # type: ignore[arg-type]
    span = reach(x.params)
    if n * 2 * span >= LIMIT:
        raise UnsupportedError(
            f"{node.op_type} `{node.name}` runs over {n} elements, too many for {x.params.format.bits} bits.",
            where=graph.path,
            hint="Give its input 8 bits (a rule with `activation`), or normalize fewer elements at once.",
        )
    # W = V 4^h + epsilon stays below 2^62: V is at most (n * span)^2.
    length = node.op_type == "LpNormalization"  # y = x / |x|: the RMS form over sqrt(n), without an epsilon
    exact = n * n * (0.0 if length else attribute(node, "epsilon", 1e-5)) / float(x.params.scale) ** 2
    half = next((h for h in range(16, 0, -1) if ((n * span) ** 2 + exact) * 4.0**h < 2.0**62), 0)
    epsilon = min(max(1, round(exact * 4.0**half)), 2**61)
    parameters = shape[1:2] if groups else shape[axis:]
    given = np.asarray(1 / np.sqrt(n)) if length else np.asarray(graph.const(node.inputs[1]), np.float64)
    gain = np.broadcast_to(given, parameters) / float(params.scale)
    bias = np.zeros(parameters)
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        given = np.asarray(graph.const(node.inputs[2]), np.float64)
        bias = np.broadcast_to(given, parameters) / float(params.scale)
    # |y| <= sqrt(n); gain fits int32, and sums fit int64 with room.
    largest = max(float(np.abs(gain).max(initial=0)), 1e-9)
    total = largest * np.sqrt(n) + float(np.abs(bias).max(initial=0)) + 1
    shift = next(
        s for s in range(46, 0, -1) if largest * 2.0 ** (s - FRACTION) < LIMIT - 1 and total * 2.0**s < 2.0**61
    )
    attributes = {
        "axis": axis,
        "groups": groups,
        "centre": 0 if node.op_type in ("RMSNormalization", "LpNormalization") else 1,
        "half_shift": half,
        "epsilon": epsilon,
        "shift": shift,
        "x_zero_point": int(x.params.zero_point),
        "zero_point": int(params.zero_point),
        "format": params.format.token,
    }
    inputs = [
        x.value,
        writer.const(f"{name}_gain", np.rint(gain * 2.0 ** (shift - FRACTION)).astype(np.int32)),
        writer.const(f"{name}_bias", np.rint(bias * 2.0**shift).astype(np.int64)),
    ]
    return writer.emit("Normalize", inputs, attributes, params, graph.shape(node.outputs[0]), name)


_RULE = Rule(_write, _refuses)
RULES = {
    "GroupNormalization": _RULE,
    "InstanceNormalization": _RULE,
    "LayerNormalization": _RULE,
    "LpNormalization": Rule(_write, _refuses_lp),
    f"{DOMAIN}::RMSNormalization": _RULE,
}
