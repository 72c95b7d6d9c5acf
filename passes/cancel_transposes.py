"""Cancel the Transposes that NHWC exports put around every convolution.

A Transpose sinks towards the outputs until it meets its inverse:

1. Transpose(Transpose(x)) is one Transpose, or nothing.
2. op(Transpose(a), Transpose(b), constant) -> Transpose(op(a, b, constant')) where op works elementwise, or along axes
   that can be renumbered (Pad, Concat, Split, Slice, Softmax, Reduce*); constants are transposed inversely.
3. Transpose -> Flatten/Reshape to [N, K] -> Gemm: the rows of the constant weight are permuted instead.
4. A Transpose that moves only axes of size 1 is a Reshape.

Sinking is tried on a copy; it is kept if fewer Transposes remain. Outputs are bit-identical (up to the order of sums
in reductions and Gemm).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from qcompiler.context import Context
from qcompiler.graph.model import DOMAIN, Graph, attribute, attributes, operand, set_attributes
from qcompiler.graph.stages import Stage

STAGE = (Stage.FLOAT, Stage.FLOAT)

UNARY = frozenset({
    "Relu", "LeakyRelu", "Clip", "Sigmoid", "HardSigmoid", "HardSwish", "Swish", "Tanh", "Elu", "Selu", "Celu",
    "Softplus", "Softsign", "Mish", "Gelu", "Erf", "Exp", "Log", "Sqrt", "Abs", "Neg", "Reciprocal", "Floor",
    "Ceil", "Round", "Sign", "Cast", "Identity", "Not", "ThresholdedRelu", "FakeQuantize", "QuickGelu",
})  # fmt: skip
BROADCAST = frozenset({
    "Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "PRelu", "Equal", "Greater", "Less", "Where",
})  # fmt: skip
REDUCE = frozenset({
    "ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceSumSquare",
})  # fmt: skip
AXIS = frozenset({"Concat", "Split", "Softmax", "LogSoftmax"})
SINKABLE = UNARY | BROADCAST | REDUCE | AXIS | {"Pad", "Slice"}


@dataclass(frozen=True, kw_only=True)
class Options:
    """None."""


def run(graph: Graph, options: Options, context: Context) -> Graph:
    """The same function with fewer Transposes."""
    _merge(graph)
    trial = graph.clone()
    while _sink_one(trial):
        _merge(trial)
    _absorb(trial)
    before, after = len(graph.nodes("Transpose")), len(trial.nodes("Transpose"))
    if after < before:
        graph = trial
        context.note("graph", f"{before - after} of {before} Transposes cancelled")
    else:
        _absorb(graph)
    graph.sweep()
    return graph


def _perm(node: ir.Node | None, rank: int | None = None) -> list[int] | None:
    if node is None or node.op_type != "Transpose" or node.domain:
        return None
    default = list(range(rank or len(node.outputs[0].shape or ())))[::-1]
    return [int(p) for p in attribute(node, "perm", default)]


def _inverse(perm: Sequence[int]) -> list[int]:
    return [int(i) for i in np.argsort(perm)]


def _merge(graph: Graph) -> None:
    """Rules 1 and 4 where the outer Transpose can go."""
    for node in graph.nodes("Transpose"):
        perm = _perm(node)
        inner = operand(node).producer()
        first = _perm(inner)
        if perm is None or first is None or inner is None:
            continue
        both = [first[p] for p in perm]
        if both == sorted(both):
            graph.bypass(node, operand(inner))
        else:
            node.replace_input_with(0, inner.inputs[0])
            set_attributes(node, perm=both)
    graph.sweep()


def _sink_one(graph: Graph) -> bool:
    """Apply rule 2 once; whether it did."""
    for node in graph.nodes(*SINKABLE):
        if node.domain not in ("", DOMAIN):
            continue
        perm = _common_perm(graph, node)
        if perm is not None and _rewrite(graph, node, perm):
            return True
    return False


def _data_inputs(node: ir.Node) -> list[ir.Value | None]:
    """Inputs that have the layout; the rest are parameters."""
    return list(node.inputs) if node.op_type in BROADCAST or node.op_type == "Concat" else list(node.inputs[:1])


def _common_perm(graph: Graph, node: ir.Node) -> list[int] | None:
    """The permutation that all inputs which are not constant come through, or None."""
    found: list[int] | None = None
    for value in _data_inputs(node):
        if value is None or graph.const(value) is not None:
            continue
        perm = _perm(value.producer())
        if perm is None or (found is not None and perm != found):
            return None
        found = perm
    if found is not None and len(graph.shape(node.outputs[0])) != len(found):
        return found if node.op_type in REDUCE else None
    return found


def _rewrite(graph: Graph, node: ir.Node, perm: list[int]) -> bool:
    """Let `node` work on the layout before `perm`, and transpose its outputs instead."""
    kind, rank = node.op_type, len(perm)
    inputs = list(node.inputs)
    values = attributes(node)
    out_perm = perm
    if kind in AXIS:
        values["axis"] = perm[values.get("axis", 0 if kind in ("Concat", "Split") else -1) % rank]
    elif kind in REDUCE:
        axes_value = inputs[1] if len(inputs) > 1 else None
        axes = graph.const(axes_value)
        if axes is None:
            return False
        kept = [i for i in range(rank) if i not in {int(a) % rank for a in axes}]
        moved = sorted(perm[int(a) % rank] for a in axes)
        inputs[1] = graph.add_const(f"{node.outputs[0].name}_axes", np.array(moved, np.int64))
        if not values.get("keepdims", 1):
            order = [i for i in range(rank) if i not in moved]
            out_perm = [order.index(perm[i]) for i in kept]
    elif kind in ("Pad", "Slice") and not _move_parameters(graph, node, inputs, perm):
        return False
    shapes = [graph.shape(v) for v in node.outputs]
    for i, value in enumerate(_data_inputs(node)):
        if value is None:
            continue
        constant = graph.const(value)
        if constant is None:
            inputs[i] = value.producer().inputs[0]  # type: ignore[union-attr]
        elif constant.size > 1 or kind == "Concat":
            full = constant.reshape((1,) * (rank - constant.ndim) + constant.shape)
            inputs[i] = graph.add_const(f"{value.name}_turned", full.transpose(_inverse(perm)))
    new = graph.add_node(
        kind, inputs, values, before=node, name=node.name, domain=node.domain, outputs=len(node.outputs)
    )
    for old, value, shape in zip(list(node.outputs), new.outputs, shapes, strict=True):
        value.type = old.type
        value.shape = ir.Shape([shape[out_perm.index(i)] for i in range(len(shape))])
        if out_perm == sorted(out_perm):
            result = value
        else:
            turned = graph.add_node("Transpose", [value], {"perm": out_perm}, before=node, like=old)
            turned.name = f"{old.name}_transpose"
            result = turned.outputs[0]
        graph.replace_uses(old, result)
    graph.remove(node)
    graph.sweep()
    return True


def _move_parameters(graph: Graph, node: ir.Node, inputs: list[ir.Value | None], perm: list[int]) -> bool:
    """Renumber the axes that Pad and Slice name, in `inputs`; False when they are computed."""
    rank, name = len(perm), node.outputs[0].name
    first = 1 if node.op_type == "Pad" else 3
    axes_at = 3
    given = inputs[axes_at] if len(inputs) > axes_at else None
    count = graph.shape(inputs[1])[0] if node.op_type == "Slice" else rank  # type: ignore[arg-type]
    axes = graph.const(given) if given is not None else np.arange(count)
    if axes is None or graph.const(inputs[first] if first == 1 else inputs[1]) is None:
        return False
    while len(inputs) <= axes_at:
        inputs.append(None)
    moved = np.array([perm[int(a) % rank] for a in axes], np.int64)
    inputs[axes_at] = graph.add_const(f"{name}_axes", moved)
    return True


def _absorb(graph: Graph) -> None:
    """Rules 3 and 4."""
    for node in graph.nodes("Transpose"):
        perm, x, y = _perm(node), node.inputs[0], node.outputs[0]
        if perm is None or x is None:
            continue
        shape = graph.shape(x)
        moving = [p for p in perm if shape[p] != 1]
        if moving == sorted(moving):
            target = graph.add_const(f"{y.name}_shape", np.array(graph.shape(y), np.int64))
            new = graph.add_node("Reshape", [x, target], before=node, name=node.name, like=y)
            graph.bypass(node, new.outputs[0])
            continue
        flat = graph.sole_user(y)
        if flat is None or flat.op_type not in ("Flatten", "Reshape") or flat.domain or perm[0] != 0:
            continue
        out = graph.shape(flat.outputs[0])
        gemm = graph.sole_user(flat.outputs[0])
        if len(out) != 2 or out[0] != shape[0] or gemm is None or gemm.op_type not in ("Gemm", "MatMul"):
            continue
        weight = graph.const(gemm.inputs[1])
        plain = not attribute(gemm, "transA", 0) and not attribute(gemm, "transB", 0)
        if weight is None or weight.ndim != 2 or gemm.inputs[0] is not flat.outputs[0] or not plain:
            continue
        # rows[j]: the old row that reads what lies at position j before the Transpose
        turned = np.arange(out[1]).reshape([shape[p] for p in perm[1:]])
        rows = turned.transpose([p - 1 for p in _inverse(perm)[1:]]).reshape(-1)
        graph.set_input_const(gemm, 1, weight[rows])
        flat.replace_input_with(0, x)
        graph.remove(node)
