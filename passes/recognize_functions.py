"""Recognize spelled-out functions of one number by their values: Gelu (erf, tanh, sigmoid), Mish, SiLU, Softplus, ...

Whatever elementwise operators with scalar constants make of a single value x, with any number of branches, is a
function of one real number. It is computed in float64 on points from -1e4 to 1e4, most of them within +-30, and
compared with the functions known by name. So one rule stands for every order, association and spelling (Pow(x, 3)
or x x x, x / (1 + exp(-x)), log(1 + exp(x)), 0.5 x + 0.5 x erf, ...).

Equal means: within 2e-6 (1 + |x|) at every point where the spelled form is finite, which float32 constants reach and
other functions do not (the two forms of Gelu differ by 4.7e-4). Refused: a value in the middle that others read or that
is an output. The smallest region that is a known function wins; x is its only input.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qcompiler.context import Context
from qcompiler.graph.functions import define
from qcompiler.graph.model import DOMAIN, Graph, attributes, operand
from qcompiler.graph.stages import Stage
from qcompiler.ops.functions import ARITHMETIC, FUNCTIONS, WITH_CONSTANT

STAGE = (Stage.FLOAT, Stage.FLOAT)
TOLERANCE = 2e-6
LARGEST = 16
"""Nodes of a region, at most."""
BINARY: dict[str, Callable[[NDArray, NDArray], NDArray]] = {
    "Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Div": np.divide,
}  # fmt: skip
KNOWN: dict[str, tuple[str, str, dict[str, Any]]] = {
    "gelu": ("Gelu", "", {"approximate": "none"}),
    "gelu_tanh": ("Gelu", "", {"approximate": "tanh"}),
    "mish": ("Mish", "", {}),
    "quick_gelu": ("QuickGelu", DOMAIN, {}),
    "swish": ("Swish", DOMAIN, {}),
    "sigmoid": ("Sigmoid", "", {}),
    "softplus": ("Softplus", "", {}),
    "tanh": ("Tanh", "", {}),
}
"""Name -> operator, domain, attributes."""
LAST = frozenset({"Mul", "Div", "Add", "Sub", "Reciprocal", "Log"})
"""Operators with which a spelled-out function ends."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """None."""


def run(graph: Graph, options: Options, context: Context) -> Graph:
    """The same function with named operators."""
    found = True
    while found:  # what was recognized may be part of something larger: Mish holds a Softplus
        found = False
        order = {node: i for i, node in enumerate(graph.nodes())}
        for node in list(order):
            if node.graph is None or node.domain or node.op_type not in LAST or not _is_float(node.outputs[0]):
                continue
            match = _recognize(graph, node, order)
            if match is not None:
                name, x = match
                op_type, domain, values = KNOWN[name]
                if domain:
                    define(graph, op_type)
                new = graph.add_node(op_type, [x], values, before=node, name=node.name, domain=domain,
                                     like=node.outputs[0])  # fmt: skip
                order[new] = order[node]
                graph.bypass(node, new.outputs[0])
                found = True
        graph.sweep()
    return graph


def _is_float(value: ir.Value) -> bool:
    return value.dtype == ir.DataType.FLOAT


def _scalar(graph: Graph, value: ir.Value | None) -> float | None:
    constant = graph.const(value)
    return float(constant.reshape(-1)[0]) if constant is not None and constant.size == 1 else None


def _variables(graph: Graph, node: ir.Node) -> list[ir.Value] | None:
    """Inputs that are not scalar constants, of a node that is a function of numbers; else None."""
    if node.domain not in ("", DOMAIN) or node.op_type not in FUNCTIONS or len(node.outputs) > 1:
        return None
    if node.op_type in WITH_CONSTANT and node.op_type not in BINARY:
        return None
    given = [value for value in node.inputs if value is not None]
    variables = [value for value in given if _scalar(graph, value) is None]
    if any(graph.const(value) is not None for value in variables):
        return None  # an array of constants is no function of one number
    limit = 2 if node.op_type in BINARY else 1
    if not 1 <= len(variables) <= limit or (limit == 1 and variables[0] is not node.inputs[0]):
        return None
    shape = node.outputs[0].shape
    return variables if all(value.shape == shape and _is_float(value) for value in variables) else None


def _recognize(graph: Graph, last: ir.Node, order: dict[ir.Node, int]) -> tuple[str, ir.Value] | None:
    """Name and x of the smallest region above `last` that is a known function."""
    variables = _variables(graph, last)
    if variables is None:
        return None
    region, frontier = [last], set(variables)
    while len(region) <= LARGEST:
        if len(frontier) == 1 and len(region) > 1:
            x = next(iter(frontier))
            name = _name_of(graph, region, x)
            if name is not None:
                return name, x
        # The latest value first: then the frontier shrinks to one value wherever that is possible.
        value = max(frontier, key=lambda v: order.get(v.producer(), -1))  # type: ignore[arg-type]
        node = value.producer()
        variables = None if node is None else _variables(graph, node)
        if node is None or variables is None or value.is_graph_output():
            return None
        if not {use.node for use in value.uses()} <= set(region):
            return None
        region.append(node)
        frontier.remove(value)
        frontier.update(variables)
    return None


@cache
def _points() -> NDArray[np.float64]:
    near = np.linspace(-30, 30, 4001)
    return np.concatenate([near, np.array([1e-3, -1e-3, 45.3, -45.3, 85.1, -85.1, 1e3, -1e3, 1e4, -1e4])])


@cache
def _values(name: str) -> NDArray[np.float64]:
    op_type, _, given = KNOWN[name]
    return np.asarray(FUNCTIONS[op_type](_points(), given))


def _name_of(graph: Graph, region: list[ir.Node], x: ir.Value) -> str | None:
    points = _points()
    with np.errstate(all="ignore"):
        y = _evaluate(graph, region, x, points)
    finite = np.isfinite(y)
    if finite[:4001].mean() < 0.5:
        return None
    allowed = TOLERANCE * (1 + np.abs(points))
    for name in KNOWN:
        if (np.abs(y - _values(name))[finite] <= allowed[finite]).all():
            return name
    return None


def _evaluate(graph: Graph, region: list[ir.Node], x: ir.Value, points: NDArray) -> NDArray[np.float64]:
    """Values of the region's last node, region[0], in float64; nodes are listed readers first."""
    values = {x: points}
    for node in reversed(region):
        variables = [value for value in node.inputs if value is not None and value in values]
        if node.op_type in BINARY:
            sides = [values.get(operand(node, i)) for i in range(2)]
            a, b = (_scalar(graph, v) if s is None else s for v, s in zip(node.inputs, sides, strict=True))
            values[node.outputs[0]] = BINARY[node.op_type](np.asarray(a, np.float64), np.asarray(b, np.float64))
            continue
        given = attributes(node)
        if node.op_type not in ARITHMETIC:
            given |= {f"input{i}": _scalar(graph, v) for i, v in enumerate(node.inputs[1:], 1) if v is not None}
        values[node.outputs[0]] = np.asarray(FUNCTIONS[node.op_type](values[variables[0]], given), np.float64)
    return values[region[0].outputs[0]]
