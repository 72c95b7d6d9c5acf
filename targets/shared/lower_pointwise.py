"""Lowering of elementwise operators and of the float boundary."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qcompiler.formats import parse_format, parse_integers
from qcompiler.graph.model import attribute
from qcompiler.targets.shared.program import Program
from qcompiler.targets.shared.reads import requantize_inputs, requantize_of
from qcompiler.targets.shared.tir.logarithm import Encode, Round
from qcompiler.targets.shared.tir.nest import Nest, collapse
from qcompiler.targets.shared.tir.pointwise import Add, Dequantize, Divide, Lookup, Multiply, Quantize, Rescale
from qcompiler.targets.shared.views import View


def nest_of(target: View, *sources: View) -> Nest:
    """Iterate over `target` in its memory order, sources broadcast to it."""
    order = sorted(range(len(target.shape)), key=lambda d: -target.strides[d])
    strides = [target.strides, *(source.broadcast(target.shape) for source in sources)]
    return collapse([target.shape[d] for d in order], *([s[d] for d in order] for s in strides))


def reduction_of(node: ir.Node, target: View, source: View) -> tuple[Nest, tuple[tuple[int, int], ...]]:
    """Iterate over the kept dimensions in the source's memory order, and (extent, stride) of its reduced axes.

    The innermost kept dimension in memory is the vector.
    """
    rank = len(source.shape)
    axes = [a % rank for a in attribute(node, "axes")]
    kept = [d for d in range(rank) if d not in axes]
    strides = [target.strides[d] for d in kept] if attribute(node, "keepdims", 1) else list(target.strides)
    order = sorted(range(len(kept)), key=lambda i: -source.strides[kept[i]])
    nest = collapse(
        [source.shape[kept[i]] for i in order],
        [strides[i] for i in order],
        [source.strides[kept[i]] for i in order],
    )
    reduced = sorted(((source.shape[a], source.strides[a]) for a in axes), key=lambda pair: -pair[1])
    return nest, tuple(reduced)


def lower_add(program: Program, node: ir.Node) -> None:
    """Add, and Sub by a negative multiplier."""
    a, b = (program.view(value) for value in node.inputs[:2] if value is not None)
    y = program.view(node.outputs[0])
    program.fill_border(y)
    nest = nest_of(y, a, b)
    spec = Add(
        nest,
        a.dtype,
        b.dtype,
        attribute(node, "a_zero_point", 0),
        attribute(node, "b_zero_point", 0),
        attribute(node, "a_multiplier"),
        attribute(node, "b_multiplier"),
        attribute(node, "shift"),
        attribute(node, "zero_point", 0),
        parse_integers(attribute(node, "format")),
    )
    program.call(spec, nest.units, y, a, b)


def lower_mul(program: Program, node: ir.Node) -> None:
    """Mul."""
    a, b = (program.view(value) for value in node.inputs[:2] if value is not None)
    y = program.view(node.outputs[0])
    program.fill_border(y)
    nest = nest_of(y, a, b)
    zeros = attribute(node, "a_zero_point", 0), attribute(node, "b_zero_point", 0)
    spec = Multiply(nest, a.dtype, b.dtype, *zeros, requantize_of(node, scalar=True))
    scales = [program.parameter(p, f"{node.name}/scale") for p in requantize_inputs(program, node, 2)]
    program.call(spec, nest.units, y, a, b, *scales)


def lower_div(program: Program, node: ir.Node) -> None:
    """Div of two activations."""
    a, b = (program.view(value) for value in node.inputs[:2] if value is not None)
    y = program.view(node.outputs[0])
    program.fill_border(y)
    nest = nest_of(y, a, b)
    names = ("a_zero_point", "b_zero_point", "multiplier", "shift", "zero_point")
    numbers = {name: attribute(node, name, 0) for name in names}
    spec = Divide(nest, a.dtype, b.dtype, format=parse_integers(attribute(node, "format")), **numbers)
    program.call(spec, nest.units, y, a, b)


def lower_requantize(program: Program, node: ir.Node) -> None:
    """Requantize."""
    x, y = program.view(node.inputs[0]), program.view(node.outputs[0])  # type: ignore[arg-type]
    program.fill_border(y)
    nest = nest_of(y, x)
    spec = Rescale(nest, x.dtype, attribute(node, "x_zero_point", 0), requantize_of(node, scalar=True))
    scales = [program.parameter(p, f"{node.name}/scale") for p in requantize_inputs(program, node, 1)]
    program.call(spec, nest.units, y, x, *scales)


def _rounds(program: Program, encode: ir.Node) -> bool:
    """Whether codes of a LogEncode are made for one Table alone, on a machine with vectors."""
    reader = program.graph.sole_user(encode.outputs[0])
    return program.machine.lanes > 1 and reader is not None and reader.op_type == "Table"


def _lower_levels(program: Program, encode: ir.Node, node: ir.Node) -> None:
    """LogEncode and the Table of its codes."""
    x, y = program.view(encode.inputs[0]), program.view(node.outputs[0])  # type: ignore[arg-type]
    thresholds, table = program.graph.const(encode.inputs[1]), program.graph.const(node.inputs[1])
    assert thresholds is not None and table is not None
    program.fill_border(y)
    nest = nest_of(y, x)
    values = table.astype(np.int64)
    steps = np.concatenate([thresholds, np.diff(values), values[:1]]).astype(np.int32)
    spec = Round(nest, x.dtype, y.dtype, len(thresholds))
    program.call(spec, nest.units, y, x, program.parameter(steps, f"{node.name}/thresholds"))


def byte_table(program: Program, node: ir.Node) -> tuple[NDArray, int]:
    """The entries of a Table node, and the code of the first: 256 of them wherever codes are bytes."""
    table = program.graph.const(node.inputs[1])
    assert table is not None
    fmt = parse_format(attribute(node, "x_format"))
    if fmt.storage.itemsize > 1 or len(table) == 256:
        return table, fmt.min
    info = np.iinfo(fmt.storage)
    full = np.zeros(256, table.dtype)
    full[fmt.min - info.min : fmt.min - info.min + len(table)] = table
    return full, int(info.min)


def lower_table(program: Program, node: ir.Node) -> None:
    """Table: 8-bit tables are widened to 256 entries, so that every stored byte is an index."""
    maker = node.inputs[0].producer()  # type: ignore[union-attr]
    if maker is not None and maker.op_type == "LogEncode" and _rounds(program, maker):
        _lower_levels(program, maker, node)
        return
    x, y = program.view(node.inputs[0]), program.view(node.outputs[0])  # type: ignore[arg-type]
    table, low = byte_table(program, node)
    program.fill_border(y)
    nest = nest_of(y, x)
    spec = Lookup(nest, x.dtype, low, len(table), y.dtype)
    program.call(spec, nest.units, y, x, program.parameter(table.astype(y.dtype), f"{node.name}/table"))


def lower_log_encode(program: Program, node: ir.Node) -> None:
    """LogEncode; where vectors compare, a Table that alone reads the codes is done with it: it becomes one operator."""
    if _rounds(program, node):
        return
    x, y = program.view(node.inputs[0]), program.view(node.outputs[0])  # type: ignore[arg-type]
    thresholds = program.graph.const(node.inputs[1])
    assert thresholds is not None
    program.fill_border(y)
    nest = nest_of(y, x)
    spec = Encode(nest, x.dtype, len(thresholds))
    program.call(spec, nest.units, y, x, program.parameter(thresholds, f"{node.name}/thresholds"))


def _boundary(program: Program, node: ir.Node) -> tuple[float, int]:
    scale = program.graph.const(node.inputs[1])
    zero = program.graph.const(node.inputs[2]) if len(node.inputs) > 2 else None
    assert scale is not None
    return float(np.float32(scale.item())), 0 if zero is None else int(zero.item())


def lower_quantize(program: Program, node: ir.Node) -> None:
    """QuantizeLinear of a graph input."""
    x, y = program.view(node.inputs[0]), program.view(node.outputs[0])  # type: ignore[arg-type]
    program.fill_border(y)
    nest = nest_of(y, x)
    fmt = parse_integers(node.outputs[0].metadata_props["qcompiler.format"])
    scale, zero = _boundary(program, node)
    program.call(Quantize(nest, scale, zero, fmt), nest.units, y, x)


def lower_dequantize(program: Program, node: ir.Node) -> None:
    """DequantizeLinear to a graph output."""
    x, y = program.view(node.inputs[0]), program.view(node.outputs[0])  # type: ignore[arg-type]
    nest = nest_of(y, x)
    scale, zero = _boundary(program, node)
    program.call(Dequantize(nest, scale, zero, x.dtype), nest.units, y, x)
