"""Lowering of choices among codes, of places of the largest, and of integers that leave the graph."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qcompiler.formats import parse_integers
from qcompiler.graph.model import attribute
from qcompiler.targets.shared.lower_pointwise import nest_of, reduction_of
from qcompiler.targets.shared.program import Program
from qcompiler.targets.shared.tir.choice import Compare, Extreme, ReduceExtreme, Select, Slope
from qcompiler.targets.shared.tir.nest import Nest
from qcompiler.targets.shared.tir.order import ArgExtreme, TopK
from qcompiler.targets.shared.views import View


def _views(program: Program, node: ir.Node, count: int) -> list[View]:
    """The output, with its border filled, and the first inputs."""
    y = program.view(node.outputs[0])
    program.fill_border(y)
    return [y, *(program.view(value) for value in node.inputs[:count] if value is not None)]


def lower_extreme(program: Program, node: ir.Node) -> None:
    """Max and Min."""
    y, a, b = _views(program, node, 2)
    nest = nest_of(y, a, b)
    program.call(Extreme(nest, y.dtype, node.op_type == "Max"), nest.units, y, a, b)


def lower_reduce_extreme(program: Program, node: ir.Node) -> None:
    """ReduceMax and ReduceMin over any axes."""
    y, x = _views(program, node, 1)
    nest, reduced = reduction_of(node, y, x)
    program.call(ReduceExtreme(nest, reduced, x.dtype, node.op_type == "ReduceMax"), nest.units, y, x)


def lower_compare(program: Program, node: ir.Node) -> None:
    """Compare."""
    y, a, b = _views(program, node, 2)
    nest = nest_of(y, a, b)
    spec = Compare(
        nest,
        a.dtype,
        b.dtype,
        attribute(node, "a_zero_point", 0),
        attribute(node, "b_zero_point", 0),
        attribute(node, "a_multiplier", 1),
        attribute(node, "b_multiplier", 1),
        attribute(node, "kind"),
    )
    program.call(spec, nest.units, y, a, b)


def lower_select(program: Program, node: ir.Node) -> None:
    """Select."""
    y, condition, a, b = _views(program, node, 3)
    nest = nest_of(y, condition, a, b)
    program.call(Select(nest, y.dtype), nest.units, y, condition, a, b)


def lower_slope(program: Program, node: ir.Node) -> None:
    """Slope."""
    y, x, slope = _views(program, node, 2)
    slopes = program.graph.const(node.inputs[1])
    assert slopes is not None
    nest = nest_of(y, x, slope)
    fmt, zero = np.iinfo(x.dtype), attribute(node, "x_zero_point", 0)
    shift, multiplier = attribute(node, "shift"), attribute(node, "multiplier")
    reach = max(fmt.max - zero, zero - fmt.min)
    largest = max(abs(multiplier), int(np.abs(slopes.astype(np.int64)).max(initial=0)))
    wide = "int32" if reach * largest + (1 << (shift - 1)) < 2**31 else "int64"
    numbers = (zero, multiplier, shift, attribute(node, "zero_point", 0))
    spec = Slope(nest, x.dtype, *numbers, parse_integers(attribute(node, "format")), wide)
    program.call(spec, nest.units, y, x, slope)


def lower_arg_extreme(program: Program, node: ir.Node) -> None:
    """ArgMax and ArgMin."""
    y, x = _views(program, node, 1)
    axis = attribute(node, "axis", 0) % len(x.shape)
    kept = [d for d in range(len(x.shape)) if d != axis]
    y_strides = [y.strides[d] for d in kept] if attribute(node, "keepdims", 1) else list(y.strides)
    extents = (*(x.shape[d] for d in kept), 1)
    nest = Nest(extents, ((*y_strides, 1), (*(x.strides[d] for d in kept), 1)))
    last = bool(attribute(node, "select_last_index", 0))
    spec = ArgExtreme(nest, x.shape[axis], x.strides[axis], x.dtype, node.op_type == "ArgMax", last)
    program.call(spec, nest.units, y, x)


def lower_top_k(program: Program, node: ir.Node) -> None:
    """TopK; an output that nothing reads goes to scratch memory."""
    x = program.view(node.inputs[0])  # type: ignore[arg-type]
    axis = attribute(node, "axis", -1) % len(x.shape)
    targets = []
    for value, kind in zip(node.outputs, (x.dtype, "int64"), strict=True):
        if value.uses() or value.is_graph_output():
            program.fill_border(program.view(value))
            targets.append(program.view(value))
        else:
            shape = program.shape(value)
            targets.append(program.scratch(f"{node.name}/unread", kind, shape, range(len(shape))))
    views = [*targets, x]
    kept = [d for d in range(len(x.shape)) if d != axis]
    nest = Nest((*(x.shape[d] for d in kept), 1), tuple((*(v.strides[d] for d in kept), 1) for v in views))
    along = tuple(v.strides[axis] for v in views)
    k = targets[0].shape[axis]
    spec = TopK(nest, x.shape[axis], k, along, x.dtype, bool(attribute(node, "largest", 1)))  # type: ignore[arg-type]
    program.call(spec, nest.units, *views)


def lower_cast(program: Program, node: ir.Node) -> None:
    """Cast between integers: a copy that narrows or widens."""
    y, x = _views(program, node, 1)
    program.copy(x, y)
