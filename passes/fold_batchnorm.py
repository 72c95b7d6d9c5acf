"""Fold per-channel scale and shift (BatchNormalization, Mul and Add by constants) into the layers beside them.

BatchNormalization is y = a x + b with a = gamma / sqrt(var + epsilon), b = beta - mean a, per channel (axis 1),
computed in float64. Mul and Add by a constant that is a scalar or one number a channel are the same thing; a run of
them is one a, b. In order of preference:

1. forwards, into the Conv, ConvTranspose or Gemm that made x: W <- a W, bias <- a bias + b;
2. backwards, into the only reader if it is a Conv or Gemm: W <- W a, bias <- bias + W b. Zero padding of the Conv
   forbids it unless b = 0: the padded cells are 0 behind the shift, not before it;
3. x of rank 3 or 4: a depthwise 1x1 Conv, which a target knows how to compute; of rank 2: Mul and Add.

A run of nothing but scalars is left where only rule 3 would take it. A constant shared with other nodes is copied.
The value that holds the output of a BatchNormalization from then on remembers mean and deviation of its channels, beta
and |gamma| (`qcompiler.graph.normal`), for passes that correct quantized layers.
Float output is equal up to float32 rounding. Run `recognize_activations` first: x * (x + 3) is not a shift.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qcompiler.context import Context
from qcompiler.graph.model import Graph, attribute
from qcompiler.graph.normal import mark_normal, scale_normal
from qcompiler.graph.stages import Stage

STAGE = (Stage.FLOAT, Stage.FLOAT)
LAYERS = ("Conv", "ConvTranspose", "Gemm")
Normal = tuple[NDArray, NDArray] | None
"""Mean and deviation by channel, float64 [C] each, of a value that a BatchNormalization made."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """None."""


def run(graph: Graph, options: Options, context: Context) -> Graph:
    """The same function without BatchNormalization."""
    for node in graph.nodes("BatchNormalization", "Mul", "Add"):
        if node.graph is None:
            continue
        run_of = _run_from(graph, node)
        if run_of is None:
            continue
        x, nodes, a, b, normal = run_of
        maker, reader = x.producer(), graph.sole_user(nodes[-1].outputs[0])
        if maker is not None and graph.sole_user(x) is node and _is_layer(graph, maker):
            _into_maker(graph, maker, a, b)
            _bypass(graph, nodes, x)
            _remember(x, a, b, normal)
        elif reader is not None and _can_precede(graph, reader, nodes[-1].outputs[0], b):
            _into_reader(graph, reader, a, b)
            _bypass(graph, nodes, x)
        elif any(n.op_type == "BatchNormalization" for n in nodes) or _per_channel(graph, nodes):
            _alone(graph, nodes, x, a, b, normal, context)
    graph.sweep()
    return graph


def _remember(value: ir.Value, a: NDArray, b: NDArray, normal: Normal) -> None:
    """What is known of a value that has become a x + b: by a BatchNormalization among the folded nodes, or else by one
    that made x."""
    if normal is not None:
        mark_normal(value, *normal)
    else:
        scale_normal(value, a, b)


def _bypass(graph: Graph, nodes: list[ir.Node], x: ir.Value) -> None:
    graph.replace_uses(nodes[-1].outputs[0], x)
    graph.remove(*nodes)


# -- reading scale and shift -----------------------------------------------------------------------------------


def _run_from(graph: Graph, node: ir.Node) -> tuple[ir.Value, list[ir.Node], NDArray, NDArray, Normal] | None:
    """The longest run of scales and shifts that starts at `node`: its input, nodes, a and b (float64 [C]), and what its
    last BatchNormalization says of its output."""
    first = _scale_shift(graph, node)
    if first is None:
        return None
    x, a, b = first
    nodes, normal = [node], _normal(graph, node)
    while (after := graph.sole_user(nodes[-1].outputs[0])) is not None:
        step = _scale_shift(graph, after)
        if step is None or step[0] is not nodes[-1].outputs[0]:
            break
        nodes.append(after)
        a, b = a * step[1], b * step[1] + step[2]
        if after.op_type == "BatchNormalization":
            normal = _normal(graph, after)
        elif normal is not None:
            normal = normal[0] * step[1] + step[2], normal[1] * step[1]
    return x, nodes, a, b, normal


def _normal(graph: Graph, node: ir.Node) -> Normal:
    """beta, and |gamma| less what epsilon takes from the deviation: sqrt(var / (var + epsilon))."""
    if node.op_type != "BatchNormalization":
        return None
    gamma, beta, _, variance = (graph.const(value).astype(np.float64) for value in node.inputs[1:])  # type: ignore[union-attr]
    return beta, gamma * np.sqrt(variance / (variance + attribute(node, "epsilon", 1e-5)))


def _scale_shift(graph: Graph, node: ir.Node) -> tuple[ir.Value, NDArray, NDArray] | None:
    """x, a and b of y = a x + b, both float64 [C], or None."""
    if node.domain or node.op_type not in ("BatchNormalization", "Mul", "Add"):
        return None
    x = node.inputs[0]
    if x is None or x.dtype != ir.DataType.FLOAT or not 2 <= len(graph.shape(x)) <= 4:
        return None
    channels = graph.shape(x)[1]
    constants = [graph.const(value) for value in node.inputs[1:]]
    if any(c is None for c in constants) or attribute(node, "training_mode", 0) or len(node.outputs) > 1:
        return None
    if node.op_type == "BatchNormalization":
        gamma, beta, mean, variance = (c.astype(np.float64) for c in constants if c is not None)
        a = gamma / np.sqrt(variance + attribute(node, "epsilon", 1e-5))
        return x, a, beta - mean * a
    c = _channel_vector(constants[0], graph.shape(x))  # type: ignore[arg-type]
    if c is None:
        return None
    return (x, c, np.zeros(channels)) if node.op_type == "Mul" else (x, np.ones(channels), c)


def _channel_vector(constant: NDArray, shape: tuple[int, ...]) -> NDArray | None:
    """A constant as float64 [C] if it broadcasts against `shape` with at most one number a channel, else None."""
    if constant.ndim > len(shape):
        return None
    full = constant.reshape((1,) * (len(shape) - constant.ndim) + constant.shape)
    if any(d != 1 for i, d in enumerate(full.shape) if i != 1) or full.shape[1] not in (1, shape[1]):
        return None
    return np.broadcast_to(full.reshape(-1), shape[1:2]).astype(np.float64)


def _per_channel(graph: Graph, nodes: list[ir.Node]) -> bool:
    constants = [graph.const(node.inputs[1]) for node in nodes]
    return any(c is not None and c.size > 1 for c in constants)


# -- the three places ------------------------------------------------------------------------------------------


def _is_layer(graph: Graph, node: ir.Node) -> bool:
    if node.domain or node.op_type not in LAYERS or graph.const(node.inputs[1]) is None:
        return False
    if len(node.inputs) > 2 and node.inputs[2] is not None and graph.const(node.inputs[2]) is None:
        return False
    defaults = {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 0}
    return all(attribute(node, name, value) == value for name, value in defaults.items())


def _weight(graph: Graph, node: ir.Node) -> NDArray:
    """The weight as float64 with the output channel first: [M, ...]; Gemm [N, K], ConvTranspose [M, C/group, *K]."""
    w = graph.const(node.inputs[1]).astype(np.float64)  # type: ignore[union-attr]
    if node.op_type == "Gemm":
        return w.T
    if node.op_type == "ConvTranspose":  # stored [C, M/group, *K]
        groups = attribute(node, "group", 1)
        split = w.reshape(groups, w.shape[0] // groups, *w.shape[1:])
        return np.swapaxes(split, 1, 2).reshape(groups * w.shape[1], -1, *w.shape[2:])
    return w


def _set_weight(graph: Graph, node: ir.Node, w: NDArray) -> None:
    """Inverse of `_weight`."""
    if node.op_type == "Gemm":
        w = w.T
    elif node.op_type == "ConvTranspose":
        groups = attribute(node, "group", 1)
        split = w.reshape(groups, w.shape[0] // groups, *w.shape[1:])
        w = np.swapaxes(split, 1, 2).reshape(groups * w.shape[1], -1, *w.shape[2:])
    graph.set_input_const(node, 1, w.astype(np.float32))


def _bias(graph: Graph, node: ir.Node, channels: int) -> NDArray:
    bias = graph.const(node.inputs[2]) if len(node.inputs) > 2 else None
    return np.zeros(channels) if bias is None else np.broadcast_to(bias.reshape(-1), (channels,)).astype(np.float64)


def _into_maker(graph: Graph, maker: ir.Node, a: NDArray, b: NDArray) -> None:
    w = _weight(graph, maker)
    bias = _bias(graph, maker, len(w))
    _set_weight(graph, maker, w * a.reshape(-1, *[1] * (w.ndim - 1)))
    graph.set_input_const(maker, 2, (bias * a + b).astype(np.float32))


def _can_precede(graph: Graph, reader: ir.Node, value: ir.Value, b: NDArray) -> bool:
    if not _is_layer(graph, reader) or reader.op_type == "ConvTranspose" or reader.inputs[0] is not value:
        return False
    unpadded = not any(attribute(reader, "pads", [])) and attribute(reader, "auto_pad", "NOTSET") in ("NOTSET", "VALID")
    return reader.op_type == "Gemm" or unpadded or not b.any()


def _into_reader(graph: Graph, reader: ir.Node, a: NDArray, b: NDArray) -> None:
    w = _weight(graph, reader)  # [M, C/group, *K]
    bias = _bias(graph, reader, len(w))
    groups = attribute(reader, "group", 1) if reader.op_type == "Conv" else 1
    # Row m of the weight reads the channels of its group.
    mine = np.repeat(np.arange(groups), len(w) // groups)
    scale, shift = a.reshape(groups, -1)[mine], b.reshape(groups, -1)[mine]  # [M, C/group]
    tail = [1] * (w.ndim - 2)
    total = w.reshape(*w.shape[:2], -1).sum(axis=2)  # [M, C/group]
    _set_weight(graph, reader, w * scale.reshape(*scale.shape, *tail))
    graph.set_input_const(reader, 2, (bias + (total * shift).sum(axis=1)).astype(np.float32))


def _alone(
    graph: Graph, nodes: list[ir.Node], x: ir.Value, a: NDArray, b: NDArray, normal: Normal, context: Context
) -> None:
    last = nodes[-1]
    shape, name = graph.shape(x), nodes[0].outputs[0].name
    rank = len(shape) - 2
    if graph.shape(last.outputs[0]) != shape:
        return  # the constants broadcast x itself
    if rank:
        ones = [1] * rank
        w = graph.add_const(f"{name}_scale", a.astype(np.float32).reshape(-1, 1, *ones))
        bias = graph.add_const(f"{name}_shift", b.astype(np.float32))
        spec = {"group": shape[1], "kernel_shape": ones, "strides": ones, "dilations": ones, "pads": [0] * 2 * rank}
        new = graph.add_node("Conv", [x, w, bias], spec, before=last, name=nodes[0].name, like=last.outputs[0])
        context.note(nodes[0], f"{nodes[0].op_type} stands alone: now a depthwise 1x1 Conv")
    elif [node.op_type for node in nodes] in (["Mul"], ["Add"], ["Mul", "Add"]):
        return
    else:
        w = graph.add_const(f"{name}_scale", a.astype(np.float32))
        bias = graph.add_const(f"{name}_shift", b.astype(np.float32))
        mul = graph.add_node("Mul", [x, w], before=last, name=nodes[0].name, like=x)
        new = graph.add_node("Add", [mul.outputs[0], bias], before=last, name=f"{nodes[0].name}_shift", like=x)
        context.note(nodes[0], f"{nodes[0].op_type} stands alone: now Mul and Add")
    graph.replace_uses(last.outputs[0], new.outputs[0])
    graph.remove(*nodes)
    if normal is not None:
        mark_normal(new.outputs[0], *normal)
