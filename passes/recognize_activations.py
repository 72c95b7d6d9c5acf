"""Recognize piecewise linear activations that exporters spell out: HardSigmoid and HardSwish.

With scalar constants, up to a relative 1e-4 (exporters print 1/6 as 0.1667):

1. k clip(a x + b, 0, h) with k h = 1           -> HardSigmoid(alpha = k a, beta = k b); k and a x + b may be absent
2. x HardSigmoid(x; 1/6, 1/2)                   -> HardSwish(x)
3. k (x clip(x + 3, 0, 6)), (k x) clip(x + 3, 0, 6), k = 1/6  -> HardSwish(x)

Expects canonical spelling (`canonicalize`: constants second, Sub and Div gone, Min/Max as Clip).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from qcompiler.context import Context
from qcompiler.graph.model import Graph, attribute, operand
from qcompiler.graph.stages import Stage

STAGE = (Stage.FLOAT, Stage.FLOAT)
TOLERANCE = 1e-4


@dataclass(frozen=True, kw_only=True)
class Options:
    """None."""


@dataclass(frozen=True)
class Clipped:
    """clip(slope * x + shift, 0, high)."""

    x: ir.Value
    slope: float
    shift: float
    high: float


def run(graph: Graph, options: Options, context: Context) -> Graph:
    """The same function with fewer, named operators."""
    for rule in (_hard_swish_product, _hard_sigmoid, _hard_swish):
        for node in graph.nodes("Mul", "Clip"):
            if node.graph is not None and node.outputs[0].dtype == ir.DataType.FLOAT:
                rule(graph, node)
        graph.sweep()
    return graph


def _close(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=TOLERANCE)


def _scalar(graph: Graph, value: ir.Value | None) -> float | None:
    constant = graph.const(value)
    return float(constant.reshape(())) if constant is not None and constant.size == 1 else None


def _scaled(graph: Graph, value: ir.Value) -> tuple[ir.Value, float]:
    """x and k where value = k x; k = 1 if there is no such Mul."""
    node = value.producer()
    k = _scalar(graph, node.inputs[1]) if node is not None and node.op_type == "Mul" and not node.domain else None
    return (node.inputs[0], k) if node is not None and k is not None else (value, 1.0)  # type: ignore[return-value]


def _clipped(graph: Graph, value: ir.Value) -> Clipped | None:
    """Read `value` as clip(slope x + shift, 0, high)."""
    clip = value.producer()
    if clip is None or clip.op_type != "Clip" or clip.domain or len(clip.inputs) < 3:
        return None
    low, high = _scalar(graph, clip.inputs[1]), _scalar(graph, clip.inputs[2])
    if low != 0 or high is None or high <= 0:
        return None
    x, shift = operand(clip), 0.0
    add = x.producer()
    if add is not None and add.op_type == "Add" and not add.domain:
        constant = _scalar(graph, add.inputs[1])
        if constant is not None:
            x, shift = operand(add), constant
    x, slope = _scaled(graph, x)
    return Clipped(x, slope, shift, high)


def _factors(node: ir.Node) -> Iterator[tuple[ir.Value, ir.Value]]:
    a, b = operand(node, 0), operand(node, 1)
    yield a, b
    yield b, a


def _replace(graph: Graph, node: ir.Node, op_type: str, x: ir.Value, **values: float) -> None:
    new = graph.add_node(op_type, [x], values, before=node, name=node.name, like=node.outputs[0])
    graph.bypass(node, new.outputs[0])


def _hard_swish_product(graph: Graph, node: ir.Node) -> None:
    """Rule 3."""
    if node.op_type != "Mul":
        return
    product, outer = _scaled(graph, node.outputs[0])
    maker = product.producer()
    if maker is None or maker.op_type != "Mul" or maker.domain:
        return
    for plain, gate in _factors(maker):
        (x, inner), clipped = _scaled(graph, plain), _clipped(graph, gate)
        # The gate may be scaled as well: x (clip(x + 3, 0, 6) / 6).
        if clipped is None:
            gate, factor = _scaled(graph, gate)
            clipped, inner = _clipped(graph, gate), inner * factor
        if clipped is None or clipped.x is not x:
            if clipped is None or clipped.x is not plain:
                continue
            x, inner = plain, inner / _scaled(graph, plain)[1]
        k = outer * inner
        if _close(k * clipped.high, 1) and _close(k * clipped.slope, 1 / 6) and _close(k * clipped.shift, 0.5):
            _replace(graph, node, "HardSwish", x)
            return


def _hard_sigmoid(graph: Graph, node: ir.Node) -> None:
    """Rule 1."""
    inner, k = _scaled(graph, node.outputs[0])
    clipped = _clipped(graph, inner)
    if clipped is None or not _close(k * clipped.high, 1):
        return
    if k == 1 and clipped.shift == 0 and clipped.slope == 1:
        return  # a plain Clip(0, 1)
    alpha, beta = k * clipped.slope, k * clipped.shift
    _replace(graph, node, "HardSigmoid", clipped.x, alpha=alpha, beta=beta)


def _hard_swish(graph: Graph, node: ir.Node) -> None:
    """Rule 2."""
    if node.op_type != "Mul":
        return
    for x, gate in _factors(node):
        maker = gate.producer()
        if maker is None or maker.op_type != "HardSigmoid" or maker.domain or maker.inputs[0] is not x:
            continue
        if _close(attribute(maker, "alpha", 0.2), 1 / 6) and _close(attribute(maker, "beta", 0.5), 0.5):
            _replace(graph, node, "HardSwish", x)
            return
