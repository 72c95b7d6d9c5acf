"""Max, Min, Clip and Where of activations."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qcompiler.assignment import MASKED
from qcompiler.graph.model import Graph, attribute, operand
from qcompiler.passes.spell_out.build import Build


def _extreme(graph: Graph, node: ir.Node, build: Build) -> ir.Value | None:
    """Max and Min of one or of more than two, pair by pair."""
    if len(node.inputs) == 2 or operand(node).dtype != ir.DataType.FLOAT:
        return None
    best = operand(node)
    if len(node.inputs) == 1:
        return build.op("Identity", [best], graph.shape(best))
    for i in range(1, len(node.inputs)):
        best = build.binary(node.op_type, best, operand(node, i))
    return best


def _clip(graph: Graph, node: ir.Node, build: Build) -> ir.Value | None:
    """Clip between bounds that are computed, or no numbers."""
    bounds = [node.inputs[i] if len(node.inputs) > i else None for i in (1, 2)]
    arrays = [graph.const(bound) for bound in bounds]
    fixed = all(b is None or a is not None and a.size == 1 for a, b in zip(arrays, bounds, strict=True))
    if fixed or operand(node).dtype != ir.DataType.FLOAT:
        return None
    value = operand(node)
    for op_type, bound in zip(("Max", "Min"), bounds, strict=True):
        if bound is not None:
            value = build.binary(op_type, value, bound)
    return value


def _where(graph: Graph, node: ir.Node, build: Build) -> ir.Value | None:
    """Where(shown, scores, far below) in front of a Softmax: scores + mask, which the Softmax takes up."""
    user = graph.sole_user(node.outputs[0])
    if user is None or user.op_type != "Softmax" or user.domain:
        return None
    condition, a, b = (operand(node, i) for i in range(3))
    hidden = [graph.const(value) for value in (a, b)]
    places = [i for i, c in enumerate(hidden) if c is not None and c.size == 1 and c.item() <= MASKED]
    if len(places) != 1:
        return None
    scores = (b, a)[places[0]]
    if graph.shape(scores) != graph.shape(node.outputs[0]):
        return None
    sides = [np.float32(0), np.float32(-1e9)] if places[0] else [np.float32(-1e9), np.float32(0)]
    known = graph.const(condition)
    if known is not None:
        mask = build.const(np.where(known, *sides).astype(np.float32), "mask")
    else:
        values = [build.const(side) for side in sides]
        mask = build.op("Where", [condition, *values], graph.shape(condition))
    return build.binary("Add", scores, mask)


def _trilu(graph: Graph, node: ir.Node, build: Build) -> ir.Value | None:
    x = operand(node)
    k = graph.const(node.inputs[1]) if len(node.inputs) > 1 and node.inputs[1] is not None else np.zeros((), np.int64)
    if k is None or x.dtype != ir.DataType.FLOAT:
        return None
    shape = graph.shape(x)
    ones = np.ones(shape[-2:], bool)
    kept = np.triu(ones, int(k.reshape(()))) if attribute(node, "upper", 1) else np.tril(ones, int(k.reshape(())))
    return build.op("Where", [build.const(kept, "kept"), x, build.const(np.float32(0))], shape)


RULES = {"Clip": _clip, "Max": _extreme, "Min": _extreme, "Trilu": _trilu, "Where": _where}
