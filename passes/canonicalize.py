"""Rewrite the many spellings of exporters into one, so that later passes match one form each.

1. Identity, Dropout, Cast to the same type, and operators that do nothing at these shapes (Reshape, Transpose, Slice,
   Pad, Expand, Concat of one, Mul by 1, Add of 0) go.
2. Sum becomes Add; Sub and Div by a constant become Add and Mul by a constant.
3. Max and Min with scalar constants become Clip, Clips in a row become one, Clip(0, none) becomes Relu.
   Bounds of Clip are scalar constants.
4. Gemm has alpha = beta = 1, transA = transB = 0 and a bias of shape [N], or none; MatMul of rank 2 with a constant
   becomes Gemm and takes up the Add behind it; a vector times a matrix is a product of matrices.
5. Gather of values by constant indices that follow each other becomes Slice (and Squeeze); GatherND of whole rows
   becomes Gather; integers times 0 and casts of constants are constants.
6. Conv, ConvTranspose and pools say kernel_shape, strides, pads (and dilations, group) and never auto_pad.

Float output is equal up to float32 rounding of Div by a constant and of folded alpha and beta.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from qcompiler.context import Context
from qcompiler.graph.model import Graph, attribute, attributes, operand, set_attributes
from qcompiler.graph.stages import Stage

STAGE = (Stage.FLOAT, Stage.FLOAT)
POOLS = ("MaxPool", "AveragePool", "LpPool")


@dataclass(frozen=True, kw_only=True)
class Options:
    """None."""


def run(graph: Graph, options: Options, context: Context) -> Graph:
    """The same function in canonical spelling."""
    for _ in range(10):
        before = [id(node) for node in graph.ir]
        for node in graph.nodes():
            if node.graph is None or node.domain:
                continue
            for rule in (_drop, _sum, _sub_div, _bounds, _gemm, _matmul, _gather, _gather_nd, _nothing, _window):
                rule(graph, node)
                if node.graph is None:
                    break
        graph.sweep()
        if [id(node) for node in graph.ir] == before:
            break
    return graph


# -- 1: nothing to do ------------------------------------------------------------------------------------------


def _same_type_and_shape(graph: Graph, a: ir.Value, b: ir.Value) -> bool:
    return a.dtype == b.dtype and graph.shape(a) == graph.shape(b)


def _drop(graph: Graph, node: ir.Node) -> None:
    x = node.inputs[0] if node.inputs else None
    if x is None or any(v.uses() or v.is_graph_output() for v in node.outputs[1:]):
        return
    y = node.outputs[0]
    if node.op_type == "Identity":
        if y.is_graph_output() and (x.is_graph_input() or x.is_initializer() or x.is_graph_output()):
            return  # an output must be made by a node of its own
    elif node.op_type == "Dropout":
        training = graph.const(node.inputs[2]) if len(node.inputs) > 2 else None
        if training is not None and bool(training):
            return
    elif not _does_nothing(graph, node, x, y):
        return
    graph.bypass(node, x)


def _does_nothing(graph: Graph, node: ir.Node, x: ir.Value, y: ir.Value) -> bool:
    kind = node.op_type
    if kind not in _NOTHING or x.dtype != y.dtype or graph.shape(x) != graph.shape(y):
        return kind == "Cast" and x.dtype == y.dtype
    if kind == "Transpose":
        perm = attribute(node, "perm", list(range(len(graph.shape(x))))[::-1])
        return perm == sorted(perm)
    if kind == "Slice":
        steps = graph.const(node.inputs[4]) if len(node.inputs) > 4 else np.ones(1)
        return steps is not None and bool((steps > 0).all())
    if kind == "Pad":
        pads = graph.const(node.inputs[1])
        return pads is not None and not pads.any()
    if kind == "Concat":
        return len(node.inputs) == 1
    if kind in ("Mul", "Div", "Add", "Sub"):
        constant = graph.const(node.inputs[1])
        return constant is not None and bool((constant == (1 if kind in ("Mul", "Div") else 0)).all())
    return True


_NOTHING = frozenset({
    "Cast", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Expand", "Transpose", "Slice", "Pad", "Concat", "Mul",
    "Div", "Add", "Sub",
})  # fmt: skip


# -- 2: arithmetic ---------------------------------------------------------------------------------------------


def _sum(graph: Graph, node: ir.Node) -> None:
    if node.op_type != "Sum":
        return
    total = operand(node)
    for i in range(1, len(node.inputs)):
        term = operand(node, i)
        last = i == len(node.inputs) - 1
        shape = np.broadcast_shapes(graph.shape(total), graph.shape(term))
        add = graph.add_node("Add", [total, term], before=node, name=node.name if last else f"{node.name}_{i}")
        total = add.outputs[0]
        total.shape, total.type = ir.Shape(shape), node.outputs[0].type
    graph.bypass(node, total)


def _sub_div(graph: Graph, node: ir.Node) -> None:
    if node.op_type in ("Add", "Mul") and graph.const(node.inputs[0]) is not None:
        a, b = node.inputs
        if graph.const(b) is None:  # the constant comes second
            node.replace_input_with(0, b)
            node.replace_input_with(1, a)
    if node.op_type not in ("Sub", "Div"):
        return
    constant = graph.const(node.inputs[1])
    if constant is None or constant.dtype != np.float32:
        return
    if node.op_type == "Div" and not (constant != 0).all():
        return
    other = -constant if node.op_type == "Sub" else (1 / constant.astype(np.float64)).astype(np.float32)
    value = graph.add_const(f"{operand(node, 1).name}_{'negated' if node.op_type == 'Sub' else 'inverse'}", other)
    new = graph.add_node(
        "Add" if node.op_type == "Sub" else "Mul",
        [node.inputs[0], value],
        before=node,
        name=node.name,
        like=node.outputs[0],
    )
    graph.bypass(node, new.outputs[0])


# -- 3: bounds -------------------------------------------------------------------------------------------------


def _bound(graph: Graph, node: ir.Node, index: int, default: float) -> float | None:
    """A bound of Clip; `default` when absent, None when it is not constant."""
    value = node.inputs[index] if len(node.inputs) > index else None
    if value is None:
        return default
    constant = graph.const(value)
    return float(constant.reshape(())) if constant is not None and constant.size == 1 else None


def _bounds(graph: Graph, node: ir.Node) -> None:
    if node.op_type not in ("Max", "Min", "Clip") or node.outputs[0].dtype != ir.DataType.FLOAT:
        return
    if node.op_type == "Clip":
        x = operand(node)
        low, high = _bound(graph, node, 1, -math.inf), _bound(graph, node, 2, math.inf)
        if low is None or high is None:
            return
        canonical = all(v is None or (graph.const(v) is not None and graph.shape(v) == ()) for v in node.inputs[1:])
    else:
        if len(node.inputs) != 2:
            return
        x, constant = operand(node, 0), operand(node, 1)
        if graph.const(constant) is None:
            x, constant = constant, x
        c = graph.const(constant)
        if c is None or c.size != 1 or graph.const(x) is not None or graph.shape(x) != graph.shape(node.outputs[0]):
            return
        low, high = (float(c.reshape(())), math.inf) if node.op_type == "Max" else (-math.inf, float(c.reshape(())))
        canonical = False
    inner = x.producer()
    if inner is not None and inner.op_type in ("Clip", "Relu") and not inner.domain and graph.sole_user(x) is node:
        a = 0.0 if inner.op_type == "Relu" else _bound(graph, inner, 1, -math.inf)
        b = math.inf if inner.op_type == "Relu" else _bound(graph, inner, 2, math.inf)
        if a is not None and b is not None:  # clip(clip(x, a, b), low, high), inner first
            low, high = min(max(a, low), high), min(max(b, low), high)
            x, canonical = operand(inner), False
    if low == 0 and high == math.inf:
        new = graph.add_node("Relu", [x], before=node, name=node.name, like=node.outputs[0])
    elif not canonical:
        values = [
            None if math.isinf(v) else graph.add_const(f"{node.outputs[0].name}_{side}", np.float32(v))
            for v, side in ((low, "min"), (high, "max"))
        ]
        new = graph.add_node("Clip", [x, *values], before=node, name=node.name, like=node.outputs[0])
    else:
        return
    graph.bypass(node, new.outputs[0])


# -- 4: Gemm ---------------------------------------------------------------------------------------------------


def _gemm(graph: Graph, node: ir.Node) -> None:
    if node.op_type != "Gemm":
        return
    alpha, beta = attribute(node, "alpha", 1.0), attribute(node, "beta", 1.0)
    weight = graph.const(node.inputs[1])
    if attribute(node, "transA", 0):
        a = operand(node)
        turned = graph.add_node("Transpose", [a], {"perm": [1, 0]}, before=node, name=f"{node.name}_transA")
        turned.outputs[0].shape, turned.outputs[0].type = ir.Shape(graph.shape(a)[::-1]), a.type
        node.replace_input_with(0, turned.outputs[0])
        set_attributes(node, transA=None)
    if weight is not None and (attribute(node, "transB", 0) or alpha != 1):
        turned_weight = weight.T if attribute(node, "transB", 0) else weight
        graph.set_input_const(node, 1, (turned_weight * np.float32(alpha)).astype(weight.dtype))
        set_attributes(node, transB=None, alpha=None)
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is None:
        set_attributes(node, beta=None)
        return
    array, n = graph.const(bias), graph.shape(node.outputs[0])[1]
    if array is None:
        return
    if array.ndim == 2 and (array.shape[0] > 1 or array.shape[1] == 1 < n) and (array != array[:1, :1]).any():
        term = graph.add_const(f"{node.outputs[0].name}_term", array * np.float32(beta))
        product = graph.add_node("Gemm", node.inputs[:2], attributes(node), before=node, name=node.name,
                                 like=node.outputs[0])  # fmt: skip
        set_attributes(product, beta=None)
        new = graph.add_node("Add", [product.outputs[0], term], before=node, name=f"{node.name}_term",
                             like=node.outputs[0])  # fmt: skip
        graph.bypass(node, new.outputs[0])
        return
    row = array[:1] if array.ndim == 2 else array
    if beta != 1 or array.shape != (n,):
        graph.set_input_const(node, 2, np.broadcast_to(row * np.float32(beta), (1, n)).reshape(n).astype(array.dtype))
        set_attributes(node, beta=None)


def _matmul(graph: Graph, node: ir.Node) -> None:
    if node.op_type != "MatMul" or node.outputs[0].dtype != ir.DataType.FLOAT:
        return
    weight, y = graph.const(node.inputs[1]), node.outputs[0]
    if 1 in (ranks := [len(graph.shape(value)) for value in node.inputs]):
        _vectors(graph, node, ranks)
        return
    if weight is None or weight.ndim != 2 or len(graph.shape(node.inputs[0])) != 2:
        return
    inputs, last = [node.inputs[0], node.inputs[1]], node
    add = graph.sole_user(y)
    if add is not None and add.op_type == "Add" and not add.domain and graph.shape(add.outputs[0]) == graph.shape(y):
        bias = graph.const(add.inputs[1] if add.inputs[0] is y else add.inputs[0])
        if bias is not None and bias.size in (1, weight.shape[1]) and bias.shape in ((), (bias.size,), (1, bias.size)):
            row = np.broadcast_to(bias.reshape(-1), weight.shape[1:])
            inputs.append(graph.add_const(f"{y.name}_bias", row))
            last = add
    gemm = graph.add_node("Gemm", inputs, before=last, name=node.name, like=last.outputs[0])
    graph.bypass(last, gemm.outputs[0])
    if last is not node:
        graph.remove(node)


def _vectors(graph: Graph, node: ir.Node, ranks: list[int]) -> None:
    """MatMul of a vector is that of a matrix of one row or column."""
    y, full, target = node.outputs[0], [], list(graph.shape(node.outputs[0]))
    for i, value in enumerate(node.inputs):
        shape = graph.shape(value)
        if ranks[i] == 1:
            target.insert(len(target) - (ranks[1] > 1 if i == 0 else 0), 1)
            shape = (1, *shape) if i == 0 else (*shape, 1)
            value = _reshaped(graph, operand(node, i), shape, node, f"{y.name}_matrix{i}")
        full.append(value)
    new = graph.add_node("MatMul", full, before=node, name=node.name, like=y)
    new.outputs[0].shape = ir.Shape(target)
    graph.bypass(node, _reshaped(graph, new.outputs[0], graph.shape(y), node, f"{y.name}_vector"))


def _reshaped(graph: Graph, value: ir.Value, shape: tuple[int, ...], before: ir.Node, name: str) -> ir.Value:
    constant = graph.const(value)
    if constant is not None:
        return graph.add_const(name, constant.reshape(shape))
    target = graph.add_const(f"{name}_shape", np.array(shape, np.int64))
    node = graph.add_node("Reshape", [value, target], {"allowzero": 1}, before=before, name=name, like=value)
    node.outputs[0].shape = ir.Shape(shape)
    return node.outputs[0]


# -- 5: indices ------------------------------------------------------------------------------------------------


def _gather(graph: Graph, node: ir.Node) -> None:
    indices = graph.const(node.inputs[1]) if node.op_type == "Gather" else None
    x, y = operand(node), node.outputs[0]
    if indices is None or indices.ndim > 1 or indices.size == 0 or graph.const(x) is not None:
        return
    shape = graph.shape(x)
    axis = attribute(node, "axis", 0) % len(shape)
    wanted = indices.reshape(-1) % shape[axis]
    if (np.diff(wanted) != 1).any():
        return
    name = y.name
    bounds = [np.array([v], np.int64) for v in (wanted[0], wanted[-1] + 1, axis)]
    names = ("from", "to", "axis")
    inputs = [x, *(graph.add_const(f"{name}_{what}", v) for what, v in zip(names, bounds, strict=True))]
    part = graph.add_node("Slice", inputs, before=node, name=node.name, like=y)
    value = part.outputs[0]
    if indices.ndim == 0:
        value.shape = ir.Shape([1 if i == axis else d for i, d in enumerate(shape)])
        squeezed = graph.add_node("Squeeze", [value, inputs[3]], before=node, name=f"{node.name}_squeeze", like=y)
        value = squeezed.outputs[0]
    graph.bypass(node, value)


def _gather_nd(graph: Graph, node: ir.Node) -> None:
    if node.op_type != "GatherND" or attribute(node, "batch_dims", 0):
        return
    indices = operand(node, 1)
    shape = graph.shape(indices)
    if shape[-1] != 1:
        return
    axes = graph.add_const(f"{node.outputs[0].name}_axes", np.array([-1], np.int64))
    rows = graph.add_node("Squeeze", [indices, axes], before=node, name=f"{node.name}_rows", like=indices)
    rows.outputs[0].shape = ir.Shape(shape[:-1])
    new = graph.add_node("Gather", [node.inputs[0], rows.outputs[0]], {"axis": 0}, before=node, name=node.name,
                         like=node.outputs[0])  # fmt: skip
    graph.bypass(node, new.outputs[0])


def _nothing(graph: Graph, node: ir.Node) -> None:
    y = node.outputs[0]
    if node.op_type == "Cast" and (c := graph.const(node.inputs[0])) is not None and not y.is_graph_output():
        kind = ir.DataType(attribute(node, "to"))
        if kind in (ir.DataType.FLOAT, ir.DataType.INT64, ir.DataType.INT32):
            graph.bypass(node, graph.add_const(f"{y.name}_cast", c.astype(kind.numpy())))
        return
    if node.op_type != "Mul" or y.dtype not in (ir.DataType.INT64, ir.DataType.INT32) or y.is_graph_output():
        return
    if any((c := graph.const(value)) is not None and not c.any() for value in node.inputs):
        zero = graph.add_const(f"{y.name}_zero", np.zeros(graph.shape(y), y.dtype.numpy()))
        graph.bypass(node, zero)


# -- 6: windows ------------------------------------------------------------------------------------------------


def _window(graph: Graph, node: ir.Node) -> None:
    if node.op_type not in ("Conv", "ConvTranspose", *POOLS):
        return
    x, y = graph.shape(node.inputs[0])[2:], graph.shape(node.outputs[0])[2:]
    rank = len(x)
    kernel = attribute(node, "kernel_shape") or list(graph.shape(node.inputs[1])[2:])
    strides = attribute(node, "strides", [1] * rank)
    dilations = attribute(node, "dilations", [1] * rank)
    pads = attribute(node, "pads", [0] * 2 * rank)
    mode = attribute(node, "auto_pad", "NOTSET")
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    values: dict[str, object] = {"kernel_shape": kernel, "strides": strides}
    if node.op_type == "ConvTranspose":
        extra = attribute(node, "output_padding", [0] * rank)
        wanted = attribute(node, "output_shape") or (list(y) if mode.startswith("SAME") else None)
        if wanted is not None:
            total = [
                s * (i - 1) + e + r - o for s, i, e, r, o in zip(strides, x, extra, reach, wanted[-rank:], strict=True)
            ]
            if min(total) < 0:
                return  # padding cannot be negative; the node stays as the exporter wrote it
            pads = _split_padding(total, mode)
        values |= {"output_padding": extra, "output_shape": None}
    elif mode.startswith("SAME"):
        out = [-(-i // s) for i, s in zip(x, strides, strict=True)]
        total = [max((o - 1) * s + r - i, 0) for o, s, r, i in zip(out, strides, reach, x, strict=True)]
        pads = _split_padding(total, mode)
    elif mode == "VALID":
        pads = [0] * 2 * rank
    if node.op_type.startswith("Conv"):
        values["group"] = attribute(node, "group", 1)
    if node.op_type != "AveragePool" or "dilations" in node.attributes:
        values["dilations"] = dilations
    set_attributes(node, pads=list(pads), auto_pad=None, **values)


def _split_padding(total: list[int], mode: str) -> list[int]:
    """Padding at the begins, then at the ends; SAME_UPPER puts the odd cell at the end."""
    small, large = [t // 2 for t in total], [t - t // 2 for t in total]
    return small + large if mode == "SAME_UPPER" else large + small
