"""Reductions over axes, and what is made of them."""

from __future__ import annotations

from math import prod

import numpy as np
import onnx_ir as ir

from qcompiler.graph.model import Graph, attribute, operand
from qcompiler.passes.integerize.windows import reduced_axes
from qcompiler.passes.spell_out.build import Build

FACTORS = 16
"""Most factors of a ReduceProd."""


def _sum_of(graph: Graph, node: ir.Node, build: Build) -> ir.Value | None:
    """Norms and sums of squares, logarithms of sums."""
    x, axes, op = operand(node), reduced_axes(graph, node), node.op_type
    if axes is None or x.dtype != ir.DataType.FLOAT:
        return None
    keep, shape = bool(attribute(node, "keepdims", 1)), graph.shape(x)
    if not axes:  # noop_with_empty_axes: each element is its own sum
        return None
    if op == "ReduceLogSumExp":
        top = build.reduce("ReduceMax", x, axes)
        terms = build.op("Exp", [build.binary("Sub", x, top, wide="uint16")], shape, wide="uint16")
        total = build.reduce("ReduceSum", terms, axes, wide="uint16")
        log = build.op("Log", [total], graph.shape(total), wide="uint16")
        return build.reshape(build.binary("Add", log, top), graph.shape(node.outputs[0]))
    terms = x
    if op == "ReduceL1":
        terms = build.op("Abs", [x], shape)
    elif op == "ReduceSumSquare":
        terms = build.op("Mul", [x, x], shape, wide="uint16")
    total = build.reduce("ReduceSum", terms, axes, keep, wide="" if op in ("ReduceL1", "ReduceSumSquare") else "uint16")
    return build.op("Log", [total], graph.shape(total)) if op == "ReduceLogSum" else total


def _prod(graph: Graph, node: ir.Node, build: Build) -> ir.Value | None:
    x, axes = operand(node), reduced_axes(graph, node)
    if axes is None or not axes or x.dtype != ir.DataType.FLOAT:
        return None
    shape = graph.shape(x)
    count = prod(shape[a] for a in axes)
    if not 1 <= count <= FACTORS:
        return None
    kept = [d for d in range(len(shape)) if d not in axes]
    lined = build.reshape(build.transpose(x, [*kept, *axes]), [*(shape[d] for d in kept), count])
    last = len(kept)
    parts = [build.slice(lined, last, i, i + 1) for i in range(count)]
    while len(parts) > 1:  # a tree: fewer roundings between an input and the output
        left = parts[len(parts) & ~1 :]
        parts = [build.binary("Mul", a, b, wide="int16") for a, b in zip(parts[::2], parts[1::2], strict=False)] + left
    return build.reshape(parts[0], graph.shape(node.outputs[0]))


def _log_softmax(graph: Graph, node: ir.Node, build: Build) -> ir.Value | None:
    """x - max(x) - log(sum(exp(x - max(x)))): at most half a step more than rounding, from 16-bit values between."""
    x = operand(node)
    shape = graph.shape(x)
    axes = [attribute(node, "axis", -1) % len(shape)]
    below = build.binary("Sub", x, build.reduce("ReduceMax", x, axes), wide="uint16")
    total = build.reduce("ReduceSum", build.op("Exp", [below], shape, wide="uint16"), axes, wide="uint16")
    return build.binary("Sub", below, build.op("Log", [total], graph.shape(total), wide="uint16"))


def _hardmax(graph: Graph, node: ir.Node, build: Build) -> ir.Value | None:
    """1 at the first place of the largest value: OneHot(ArgMax)."""
    x = operand(node)
    shape = graph.shape(x)
    axis = attribute(node, "axis", -1) % len(shape)
    line = build.transpose(x, [*(d for d in range(len(shape)) if d != axis), axis])
    kept = [e for d, e in enumerate(shape) if d != axis]
    place = build.op("ArgMax", [line], kept, dtype=ir.DataType.INT64, axis=len(shape) - 1, keepdims=0)
    hot = build.op("Gather", [build.const(np.eye(shape[axis], dtype=np.float32)), place], [*kept, shape[axis]], axis=0)
    back = list(range(len(shape) - 1))
    back.insert(axis, len(shape) - 1)
    return build.transpose(hot, back)


def _cumsum(graph: Graph, node: ir.Node, build: Build) -> ir.Value | None:
    x, axis = operand(node), graph.const(node.inputs[1])
    if axis is None or x.dtype != ir.DataType.FLOAT:
        return None
    shape = graph.shape(x)
    a, n = int(axis.reshape(())) % len(shape), shape[int(axis.reshape(())) % len(shape)]
    rest = [d for d in range(len(shape)) if d != a]
    ones = np.triu(np.ones((n, n), np.float32), 1 if attribute(node, "exclusive", 0) else 0)
    triangle = ones.T if attribute(node, "reverse", 0) else ones
    line = build.transpose(x, [*rest, a])
    extents = graph.shape(line)
    flat = build.reshape(line, [prod(extents[:-1]), n])
    total = build.op("MatMul", [flat, build.const(triangle, "triangle")], graph.shape(flat))
    back = list(range(len(rest)))
    back.insert(a, len(rest))
    return build.transpose(build.reshape(total, extents), back)


def _mean(graph: Graph, node: ir.Node, build: Build) -> ir.Value | None:
    if any(value is None or value.dtype != ir.DataType.FLOAT for value in node.inputs):
        return None
    total = operand(node)
    for i in range(1, len(node.inputs)):
        total = build.binary("Add", total, operand(node, i), wide="uint16")
    return build.op("Mul", [total, build.const(np.float32(1 / len(node.inputs)))], graph.shape(total))


def _lp_normalization(graph: Graph, node: ir.Node, build: Build) -> ir.Value | None:
    """x / |x| over the last axis stays; another axis is moved there, and p = 1 divides by the sum."""
    x, p = operand(node), attribute(node, "p", 2)
    shape = graph.shape(x)
    axis, last = attribute(node, "axis", -1) % len(shape), len(shape) - 1
    if p == 1:
        return build.binary("Div", x, build.reduce("ReduceL1", x, [axis], wide="uint16"))
    if axis == last:
        return None
    perm = [d for d in range(len(shape)) if d != axis] + [axis]
    line = build.transpose(x, perm)
    normal = build.op("LpNormalization", [line], graph.shape(line), axis=last, p=p)
    return build.transpose(normal, [perm.index(d) for d in range(len(shape))])


def _mean_variance(graph: Graph, node: ir.Node, build: Build) -> ir.Value | None:
    """(x - mean) / deviation over `axes`: a LayerNormalization of these axes, moved to the end."""
    x, shape = operand(node), graph.shape(operand(node))
    axes = sorted(a % len(shape) for a in attribute(node, "axes", [0, 2, 3]))
    perm = [d for d in range(len(shape)) if d not in axes] + axes
    line = build.transpose(x, perm)
    first = len(shape) - len(axes)
    one = build.const(np.ones([shape[a] for a in axes], np.float32), "one")
    normal = build.op("LayerNormalization", [line, one], graph.shape(line), axis=first, epsilon=1e-9)
    return build.transpose(normal, [perm.index(d) for d in range(len(shape))])


RULES = {
    "CumSum": _cumsum,
    "Hardmax": _hardmax,
    "LogSoftmax": _log_softmax,
    "LpNormalization": _lp_normalization,
    "Mean": _mean,
    "MeanVarianceNormalization": _mean_variance,
    "ReduceL1": _sum_of,
    "ReduceLogSum": _sum_of,
    "ReduceLogSumExp": _sum_of,
    "ReduceProd": _prod,
    "ReduceSumSquare": _sum_of,
}
