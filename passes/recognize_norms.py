"""Recognize normalizations that exporters spell out: LayerNormalization, RMSNormalization, Instance- and GroupNorm.

With d = x - mean(x), q = mean(d d) (or of x x) over the same constant axes, keepdims, and a scalar epsilon:

1. d / sqrt(q + epsilon), also as d rsqrt, with rsqrt = 1 / sqrt, sqrt of 1 / or a power -0.5    -> LayerNormalization,
   or InstanceNormalization when the axes are those of an image;
2. x rsqrt(mean(x x) + epsilon)                                      -> qcompiler::RMSNormalization (function body)
3. x s + (b - mean(x) s), s = rsqrt(q + epsilon) gain                                        -> as 1 (TensorFlow)
4. a constant factor behind, and then a constant term, become scale and bias where their shapes are those of the
   operator (one number a channel for InstanceNormalization)
5. Reshape [N,C,...] -> [N,G,...], Layer- or InstanceNormalization of each group, Reshape back, constants a channel
   behind                                                            -> GroupNormalization (the form of opset 21)
6. ONNX's own RMSNormalization (opset 23)                            -> qcompiler::RMSNormalization

Axes in the middle are brought to the end by Transposes. Refused: a value in the middle that others read or that is an
output, axes or epsilon that are not constant or differ between mean and q. Expects canonical spelling.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qcompiler.context import Context
from qcompiler.graph.functions import define
from qcompiler.graph.model import DOMAIN, Graph, attribute, operand, set_attributes
from qcompiler.graph.stages import Stage

STAGE = (Stage.FLOAT, Stage.FLOAT)
EPSILON = 1e-2
"""What is added under the root is at most this: more is no guard against zero."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """None."""


@dataclass(frozen=True)
class Norm:
    """y = scale * (x - mean) / sqrt(var + epsilon) + bias, or without mean; `nodes` make it, y is the last's output."""

    x: ir.Value
    axes: tuple[int, ...]
    epsilon: float
    centred: bool
    nodes: tuple[ir.Node, ...]
    scale: NDArray | None = None
    bias: NDArray | None = None


def run(graph: Graph, options: Options, context: Context) -> Graph:
    """The same function with whole normalizations."""
    for node in graph.nodes("Div", "Mul", "Add"):
        if node.graph is not None and node.outputs[0].dtype == ir.DataType.FLOAT and not node.domain:
            for rule in (_plain, _shifted):
                found = rule(graph, node)
                if found is not None and _own(found):
                    _write(graph, found)
                    break
    for node in graph.nodes("InstanceNormalization", "LayerNormalization"):
        _group(graph, node)
    for node in graph.nodes("RMSNormalization", domain=""):
        _own_domain(graph, node)
    graph.sweep()
    return graph


# -- reading ---------------------------------------------------------------------------------------------------


def _made_by(value: ir.Value | None, *op_types: str) -> ir.Node | None:
    node = None if value is None else value.producer()
    return node if node is not None and node.op_type in op_types and not node.domain else None


def _scalar(graph: Graph, value: ir.Value | None) -> float | None:
    constant = graph.const(value)
    return float(constant.reshape(())) if constant is not None and constant.size == 1 else None


def _pairs(node: ir.Node) -> Iterator[tuple[ir.Value, ir.Value]]:
    a, b = operand(node, 0), operand(node, 1)
    yield a, b
    if a is not b:
        yield b, a


def _mean(graph: Graph, value: ir.Value) -> tuple[ir.Value, tuple[int, ...], ir.Node] | None:
    """x, axes and node of value = mean(x), keepdims, over constant axes."""
    node = _made_by(value, "ReduceMean")
    if node is None or not attribute(node, "keepdims", 1):
        return None
    x = operand(node)
    axes = graph.const(node.inputs[1]) if len(node.inputs) > 1 else attribute(node, "axes")
    if axes is None or np.size(axes) == 0:
        return None
    rank = len(graph.shape(x))
    return x, tuple(sorted(int(a) % rank for a in np.ravel(axes))), node


def _centred(graph: Graph, value: ir.Value) -> tuple[ir.Value, tuple[int, ...], list[ir.Node]] | None:
    """x, axes and nodes of value = x - mean(x)."""
    node = _made_by(value, "Sub")
    found = _mean(graph, operand(node, 1)) if node is not None else None
    if node is None or found is None or found[0] is not node.inputs[0]:
        return None
    return found[0], found[1], [node, found[2]]


def _square(graph: Graph, value: ir.Value) -> tuple[ir.Value, ir.Node] | None:
    node = _made_by(value, "Mul", "Pow")
    if node is None:
        return None
    same = node.inputs[0] is node.inputs[1] if node.op_type == "Mul" else _scalar(graph, node.inputs[1]) == 2
    return (operand(node), node) if same else None


def _root(graph: Graph, value: ir.Value) -> tuple[ir.Value, list[ir.Node]] | None:
    """v and nodes of value = sqrt(v)."""
    node = _made_by(value, "Sqrt", "Pow")
    if node is None or (node.op_type == "Pow" and _scalar(graph, node.inputs[1]) != 0.5):
        return None
    return operand(node), [node]


def _inverse_root(graph: Graph, value: ir.Value) -> tuple[ir.Value, list[ir.Node]] | None:
    """v and nodes of value = 1 / sqrt(v)."""
    node = _made_by(value, "Reciprocal", "Pow", "Sqrt", "Div")
    if node is None:
        return None
    if node.op_type == "Pow":
        return (operand(node), [node]) if _scalar(graph, node.inputs[1]) == -0.5 else None
    below = operand(node, 1) if node.op_type == "Div" else operand(node)
    if node.op_type == "Sqrt":
        inner = _made_by(below, "Reciprocal")
        return (operand(inner), [node, inner]) if inner is not None else None
    if node.op_type == "Div" and _scalar(graph, node.inputs[0]) != 1:
        return None
    found = _root(graph, below)
    return None if found is None else (found[0], [node, *found[1]])


def _variance(graph: Graph, value: ir.Value) -> tuple[ir.Value, tuple[int, ...], float, list[ir.Node]] | None:
    """d, axes, epsilon and nodes of value = mean(d d) + epsilon."""
    add = _made_by(value, "Add")
    if add is None:
        return None
    for other, constant in _pairs(add):
        epsilon, mean = _scalar(graph, constant), _mean(graph, other)
        square = _square(graph, mean[0]) if mean is not None else None
        if epsilon is not None and 0 <= epsilon <= EPSILON and mean is not None and square is not None:
            return square[0], mean[1], epsilon, [add, mean[2], square[1]]
    return None


def _normal(graph: Graph, top: ir.Value, under: ir.Value, nodes: list[ir.Node]) -> Norm | None:
    """`top` / sqrt(`under`) as a normalization; nodes are those between."""
    found = _variance(graph, under)
    if found is None:
        return None
    d, axes, epsilon, more = found
    nodes = [*nodes, *more]
    above, inside = _centred(graph, top), _centred(graph, d)
    if above is not None and inside is not None and above[:2] == inside[:2] and above[1] == axes:
        nodes += [*above[2], *inside[2]]
        return Norm(above[0], axes, epsilon, True, tuple(dict.fromkeys(nodes)))
    return Norm(d, axes, epsilon, False, tuple(nodes)) if d is top else None


def _plain(graph: Graph, node: ir.Node) -> Norm | None:
    """Rules 1 and 2, and x (rsqrt gain)."""
    if node.op_type == "Div":
        found = _root(graph, operand(node, 1))
        return None if found is None else _normal(graph, operand(node), found[0], [node, *found[1]])
    if node.op_type != "Mul":
        return None
    for top, factor in _pairs(node):
        read = _gain(graph, factor)
        if read is None:
            continue
        under, gain, nodes = read
        norm = _normal(graph, top, under, [node, *nodes])
        if norm is not None:
            return _with(norm, scale=gain)
    return None


def _gain(graph: Graph, value: ir.Value) -> tuple[ir.Value, NDArray | None, list[ir.Node]] | None:
    """v, gain and nodes of value = gain / sqrt(v); gain is constant, or None for 1."""
    found = _inverse_root(graph, value)
    if found is not None:
        return found[0], None, found[1]
    mul = _made_by(value, "Mul")
    if mul is None:
        return None
    for root, constant in _pairs(mul):
        found, gain = _inverse_root(graph, root), graph.const(constant)
        if found is not None and gain is not None:
            return found[0], gain, [mul, *found[1]]
    return None


def _shifted(graph: Graph, node: ir.Node) -> Norm | None:
    """Rule 3."""
    if node.op_type != "Add":
        return None
    for product, term in _pairs(node):
        left, sub = _made_by(product, "Mul"), _made_by(term, "Sub")
        right = _made_by(operand(sub, 1), "Mul") if sub is not None else None
        bias = graph.const(sub.inputs[0]) if sub is not None else None
        if left is None or sub is None or right is None or bias is None:
            continue
        for x, factor in _pairs(left):
            other = next((mean for mean, same in _pairs(right) if same is factor), None)
            mean, read = (_mean(graph, other), _gain(graph, factor)) if other is not None else (None, None)
            found = _variance(graph, read[0]) if read is not None else None
            if mean is None or read is None or found is None or mean[0] is not x:
                continue
            inside = _centred(graph, found[0])
            if inside is None or inside[0] is not x or not inside[1] == mean[1] == found[1]:
                continue
            nodes = [node, left, sub, right, mean[2], *read[2], *found[3], *inside[2]]
            return Norm(x, mean[1], found[2], True, tuple(dict.fromkeys(nodes)), read[1], bias)
    return None


def _own(norm: Norm) -> bool:
    """Whether nobody else reads what is between x and y."""
    inside = set(norm.nodes)
    return all(
        not value.is_graph_output() and {use.node for use in value.uses()} <= inside
        for node in norm.nodes[1:]
        for value in node.outputs
    )


# -- writing ---------------------------------------------------------------------------------------------------


def _with(norm: Norm, **changed: NDArray | None) -> Norm:
    return Norm(**{**norm.__dict__, **changed})


def _write(graph: Graph, norm: Norm) -> None:
    """Replace the nodes by one operator with the constants behind it; Transposes around it for axes in the middle."""
    shape = graph.shape(norm.x)
    rank, axes = len(shape), norm.axes
    channels = norm.centred and rank >= 3 and axes == tuple(range(2, rank))
    if channels and rank == 3:
        channels = _reads_channels(graph, norm, shape)
    kept = tuple(a for a in range(rank) if a not in axes)
    # Constants broadcast against the whole of x: [.., C, .., 1], with 1 wherever the operator has no parameter.
    free = (1,) if channels else axes
    if any(c is not None and not _along(c, shape, free) for c in (norm.scale, norm.bias)):
        return
    norm, last = _absorb(graph, norm, shape, free)
    numbers = [_parameter(c, shape, free, d) for c, d in ((norm.scale, 1.0), (norm.bias, 0.0))]
    name = norm.nodes[0].name or norm.nodes[0].outputs[0].name or "norm"
    scale = graph.add_const(f"{name}_scale", numbers[0])
    x, perm = norm.x, (*kept, *axes)
    if not channels and perm != tuple(range(rank)):
        x = _transposed(graph, x, perm, last, f"{name}_in")
    if channels:
        bias = graph.add_const(f"{name}_bias", numbers[1])
        new = graph.add_node("InstanceNormalization", [x, scale, bias], {"epsilon": norm.epsilon}, before=last,
                             name=name, like=x)  # fmt: skip
    else:
        values = {"axis": -len(axes), "epsilon": norm.epsilon}
        op_type, domain, inputs = "LayerNormalization", "", [x, scale]
        if norm.centred:
            inputs.append(graph.add_const(f"{name}_bias", numbers[1]))
        else:
            define(graph, "RMSNormalization")
            op_type, domain = "RMSNormalization", DOMAIN
        new = graph.add_node(op_type, inputs, values, before=last, name=name, domain=domain, like=x)
    y = new.outputs[0]
    if x is not norm.x:
        y = _transposed(graph, y, tuple(int(i) for i in np.argsort(perm)), last, f"{name}_out")
    graph.replace_uses(last.outputs[0], y)
    graph.sweep()


def _transposed(graph: Graph, x: ir.Value, perm: tuple[int, ...], before: ir.Node, name: str) -> ir.Value:
    node = graph.add_node("Transpose", [x], {"perm": list(perm)}, before=before, name=name, outputs=[name])
    shape = graph.shape(x)
    node.outputs[0].shape, node.outputs[0].type = ir.Shape([shape[p] for p in perm]), x.type
    return node.outputs[0]


def _reads_channels(graph: Graph, norm: Norm, shape: tuple[int, ...]) -> bool:
    """For x [N,C,L]: whether what scales it has one number a channel and not one an element of the last axis."""
    user = graph.sole_user(norm.nodes[0].outputs[0])
    constant = norm.scale
    if constant is None and user is not None and user.op_type == "Mul" and not user.domain:
        constant = graph.const(user.inputs[1])
    return constant is not None and constant.size > 1 and _along(constant, shape, (1,))


def _along(constant: NDArray, shape: tuple[int, ...], axes: tuple[int, ...]) -> bool:
    """Whether `constant` broadcasts against `shape` and varies along `axes` only."""
    full = (1,) * (len(shape) - constant.ndim) + constant.shape
    return len(full) == len(shape) and all(
        d == 1 or (d == s and a in axes) for a, (d, s) in enumerate(zip(full, shape, strict=True))
    )


def _parameter(constant: NDArray | None, shape: tuple[int, ...], axes: tuple[int, ...], default: float) -> NDArray:
    """float32 of the shape of `axes`."""
    target = tuple(shape[a] for a in axes)
    if constant is None:
        return np.full(target, default, np.float32)
    full = constant.reshape((1,) * (len(shape) - constant.ndim) + constant.shape)
    squeezed = full.reshape([full.shape[a] for a in axes])
    return np.array(np.broadcast_to(squeezed, target), np.float32)


def _absorb(graph: Graph, norm: Norm, shape: tuple[int, ...], free: tuple[int, ...]) -> tuple[Norm, ir.Node]:
    """Rule 4: the Mul and the Add behind, if they are parameters; and the node whose output is now y."""
    last = norm.nodes[0]
    for op_type in ("Mul", "Add"):
        user = graph.sole_user(last.outputs[0])
        if user is None or user.op_type != op_type or user.domain or (op_type == "Add" and not norm.centred):
            continue
        constant = next((graph.const(c) for v, c in _pairs(user) if v is last.outputs[0]), None)
        if constant is None or not _along(constant, shape, free):
            continue
        if op_type == "Add":
            norm = _with(norm, bias=constant if norm.bias is None else norm.bias + constant)
        else:
            if norm.bias is not None:
                norm = _with(norm, bias=norm.bias * constant)
            norm = _with(norm, scale=constant if norm.scale is None else norm.scale * constant)
        last = user
    return norm, last


# -- groups ----------------------------------------------------------------------------------------------------


def _group(graph: Graph, node: ir.Node) -> None:
    """Rule 5."""
    before, after = _made_by(node.inputs[0], "Reshape"), graph.sole_user(node.outputs[0])
    if before is None or after is None or after.op_type != "Reshape" or after.domain:
        return
    x, grouped = operand(before), graph.shape(node.inputs[0])
    shape = graph.shape(x)
    if graph.sole_user(before.outputs[0]) is not node or graph.shape(after.outputs[0]) != shape or len(shape) < 3:
        return
    groups, channels = grouped[1], shape[1]
    if len(grouped) < 3 or grouped[0] != shape[0] or channels % groups:
        return
    scale = graph.const(node.inputs[1])
    bias = graph.const(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] is not None else np.zeros(1)
    if scale is None or bias is None:
        return
    if node.op_type == "LayerNormalization":
        whole = attribute(node, "axis", -1) % len(grouped) == 2
        if not whole or (scale != scale.flat[0]).any() or (bias != bias.flat[0]).any():
            return
        scale, bias = (np.full(groups, c.flat[0], np.float32) for c in (scale, bias))
    scale, bias = (np.repeat(c, channels // groups).reshape(-1, *[1] * (len(shape) - 2)) for c in (scale, bias))
    norm = Norm(x, (1,), attribute(node, "epsilon", 1e-5), True, (after,), scale, bias)
    norm, last = _absorb(graph, norm, shape, (1,))
    name = last.name or last.outputs[0].name
    inputs = [x]
    for what, constant in (("scale", norm.scale), ("bias", norm.bias)):
        inputs.append(graph.add_const(f"{name}_{what}", _parameter(constant, shape, (1,), 0)))
    values = {"num_groups": groups, "epsilon": norm.epsilon}
    new = graph.add_node("GroupNormalization", inputs, values, before=last, name=name, like=last.outputs[0])
    graph.replace_uses(last.outputs[0], new.outputs[0])
    graph.sweep()


def _own_domain(graph: Graph, node: ir.Node) -> None:
    """Rule 6."""
    rank = len(graph.shape(node.inputs[0]))
    define(graph, "RMSNormalization")
    node.domain = DOMAIN
    graph.model.opset_imports.setdefault(DOMAIN, 1)
    axis = attribute(node, "axis", -1) % rank - rank
    set_attributes(node, axis=axis, epsilon=attribute(node, "epsilon", 1e-5), stash_type=None)
