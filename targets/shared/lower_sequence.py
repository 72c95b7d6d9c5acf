"""Lowering of what transformers have besides products: normalizations, softmax, embeddings, wide functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qcompiler.errors import UnsupportedError
from qcompiler.formats import parse_integers
from qcompiler.graph.model import Graph, attribute
from qcompiler.targets.shared.lower_movement import gather, show
from qcompiler.targets.shared.lower_pointwise import nest_of
from qcompiler.targets.shared.program import Argument, Program
from qcompiler.targets.shared.tir.lookup import Pick, Piecewise, WriteSlot
from qcompiler.targets.shared.tir.nest import Nest
from qcompiler.targets.shared.tir.normalize import Normalize
from qcompiler.targets.shared.tir.softmax import Softmax
from qcompiler.targets.shared.views import View, dense_strides


def lower_normalize(program: Program, node: ir.Node) -> None:
    """Normalize: one unit a run."""
    x, y = program.view(node.inputs[0]), program.view(node.outputs[0])  # type: ignore[arg-type]
    program.fill_border(y)
    gain, bias = (program.graph.const(value) for value in node.inputs[1:3])
    assert gain is not None and bias is not None
    groups, rank = attribute(node, "groups", 0), len(x.shape)
    # Dimensions as (extent, y stride, x stride, parameter stride).
    dims = list(zip(x.shape, y.strides, x.strides, [0] * rank, strict=True))
    if groups:
        per_group = x.shape[1] // groups
        step = [stride * per_group for stride in (y.strides[1], x.strides[1])]
        outer = [dims[0], (groups, *step, per_group)]
        run = [(per_group, y.strides[1], x.strides[1], 1), *dims[2:]]
    else:
        axis = attribute(node, "axis")
        strides = dense_strides(x.shape[axis:])
        outer = dims[:axis]
        run = [(*dim[:3], stride) for dim, stride in zip(dims[axis:], strides, strict=True)]
    outer = [*outer, (1, 1, 1, 1)]
    nest = Nest(tuple(dim[0] for dim in outer), tuple(tuple(dim[i] for dim in outer) for i in (1, 2, 3)))
    spec = Normalize(
        nest,
        _merged(run),
        x.dtype,
        attribute(node, "x_zero_point", 0),
        bool(attribute(node, "centre", 1)),
        attribute(node, "half_shift"),
        attribute(node, "epsilon"),
        attribute(node, "shift"),
        attribute(node, "zero_point", 0),
        parse_integers(attribute(node, "format")),
    )
    parameters = [program.parameter(p.ravel(), f"{node.name}/parameters") for p in (gain, bias)]
    program.call(spec, nest.units, y, x, *parameters)


def _merged(run: Sequence[tuple[int, ...]]) -> tuple[tuple[int, int, int, int], ...]:
    """A run in the memory order of x, with as few loops as the strides allow."""
    ordered = sorted((dim for dim in run if dim[0] != 1), key=lambda dim: -abs(dim[2]))
    loops: list[tuple[int, ...]] = []
    for dim in ordered:
        if loops and all(outer == inner * dim[0] for outer, inner in zip(loops[-1][1:], dim[1:], strict=True)):
            dim = (loops.pop()[0] * dim[0], *dim[1:])
        loops.append(dim)
    return tuple(loops) or ((1, 1, 1, 1),)  # type: ignore[arg-type,return-value]


def lower_softmax(program: Program, node: ir.Node) -> None:
    """Softmax along one axis."""
    spec, arguments = softmax_of(program, node)
    x, y = program.view(node.inputs[0]), program.view(node.outputs[0])  # type: ignore[arg-type]
    program.fill_border(y)
    program.call(spec, spec.nest.units, y, x, *arguments)


def softmax_of(program: Program, node: ir.Node) -> tuple[Softmax, list[View | Argument]]:
    """What a Softmax node does, and what its kernel reads besides x: the mask, if there is one, and exponentials."""
    x, y = program.view(node.inputs[0]), program.view(node.outputs[0])  # type: ignore[arg-type]
    table = program.graph.const(node.inputs[1])
    assert table is not None
    axis = attribute(node, "axis", -1) % len(x.shape)
    kept = [d for d in range(len(x.shape)) if d != axis]
    arguments: list[View | Argument] = []
    mask_type = ""
    strides = [y.strides, x.strides]
    kind, mask_stride = "", 0
    if len(node.inputs) > 3 and node.inputs[3] is not None:
        if node.inputs[2] is not None:
            raise UnsupportedError(f"Softmax `{node.name}` has both a mask and a position.")
        kind = "position"
        strides.append((0,) * len(x.shape))
        arguments.append(program.view(node.inputs[3]))
        mask_type = program.view(node.inputs[3]).dtype
    elif len(node.inputs) > 2 and node.inputs[2] is not None:
        hidden = program.graph.const(node.inputs[2])
        if hidden is None:
            kind, view = "flags", program.view(node.inputs[2])
        else:
            kind, array = _mask(hidden, x.shape, axis)
            view = program.constant(array, f"{node.name}/mask")
        strides.append(view.broadcast(x.shape))
        mask_stride = strides[-1][axis]
        arguments.append(view)
        mask_type = view.dtype
    nest = Nest((*(x.shape[d] for d in kept), 1), tuple((*(s[d] for d in kept), 1) for s in strides))
    fmt = parse_integers(attribute(node, "x_format"))
    spec = Softmax(
        nest,
        x.shape[axis],
        y.strides[axis],
        x.strides[axis],
        x.dtype,
        attribute(node, "numerator"),
        attribute(node, "zero_point", 0),
        parse_integers(attribute(node, "format")),
        fmt.bits > 8,
        kind,
        mask_stride,
        mask_type,
    )
    arguments.append(program.parameter(table.astype(np.int32), f"{node.name}/table"))
    return spec, arguments


def mask_of(graph: Graph, node: ir.Node) -> str:
    """What kind of mask the third input of a Softmax node is: prefix, cells or flags."""
    hidden = graph.const(node.inputs[2])
    shape = graph.shape(node.inputs[0])
    return "flags" if hidden is None else _mask(hidden, shape, attribute(node, "axis", -1) % len(shape))[0]


def _mask(hidden: NDArray, shape: tuple[int, ...], axis: int) -> tuple[str, NDArray]:
    """("prefix", int32 counts with extent 1 at `axis`) where every row shows its first cells, else ("cells", uint8)."""
    mask = hidden.reshape((1,) * (len(shape) - hidden.ndim) + hidden.shape).astype(bool)
    if mask.shape[axis] != shape[axis]:
        mask = np.broadcast_to(mask, (*mask.shape[:axis], shape[axis], *mask.shape[axis + 1 :]))
    mask = mask & ~mask.all(axis=axis, keepdims=True)  # a row that is hidden throughout counts as visible
    if (np.diff(mask.astype(np.int8), axis=axis) >= 0).all():
        return "prefix", (~mask).sum(axis=axis, keepdims=True).astype(np.int32)
    return "cells", mask.astype(np.uint8)


def lower_piecewise(program: Program, node: ir.Node) -> None:
    """Piecewise."""
    x, y = program.view(node.inputs[0]), program.view(node.outputs[0])  # type: ignore[arg-type]
    table = program.graph.const(node.inputs[1])
    assert table is not None
    program.fill_border(y)
    nest = nest_of(y, x)
    fmt = parse_integers(attribute(node, "x_format"))
    spec = Piecewise(
        nest,
        x.dtype,
        fmt.min,
        attribute(node, "shift"),
        attribute(node, "zero_point", 0),
        parse_integers(attribute(node, "format")),
    )
    program.call(spec, nest.units, y, x, program.parameter(table, f"{node.name}/table"))


def lower_gather(program: Program, node: ir.Node) -> None:
    """Gather: a window for one constant index, an indexed copy for several, rows picked at run time for others."""
    x, value = program.view(node.inputs[0]), node.outputs[0]  # type: ignore[arg-type]
    axis = attribute(node, "axis", 0) % len(x.shape)
    index = program.graph.const(node.inputs[1])
    y = program.view(value)
    if index is None:
        _pick(program, node, x, y, axis)
        return
    places = np.where(index < 0, index + x.shape[axis], index).clip(0, x.shape[axis] - 1)
    lined = _lined(y, x.shape, axis, places.size)
    if places.size == 1 and index.ndim == 0:
        box = [extent if d != axis else 1 for d, extent in enumerate(x.shape)]
        part = x.window([int(places) if d == axis else 0 for d in range(len(box))], box)
        kept = [d for d in range(len(box)) if d != axis]
        part = replace(part, shape=tuple(box[d] for d in kept), strides=tuple(part.strides[d] for d in kept))
        if show(program, value, part):
            return
        program.fill_border(y)
        program.copy(part, y)
        return
    program.fill_border(y)
    tables = [np.arange(extent) if d != axis else places.ravel() for d, extent in enumerate(x.shape)]
    line = _line(x.shape, axis, places.size)
    target = lined or program.scratch(f"{value.name}/gathered", y.dtype, line, range(len(line)))
    gather(program, x, target, tables)
    if lined is None:
        program.copy(target.reshaped(y.shape), y)


def _line(shape: tuple[int, ...], axis: int, count: int) -> tuple[int, ...]:
    return (*shape[:axis], count, *shape[axis + 1 :])


def _lined(y: View, shape: tuple[int, ...], axis: int, count: int) -> View | None:
    """y with the dimensions of the index as one, if they lie like that."""
    line = _line(shape, axis, count)
    if len(y.shape) == len(line):
        return replace(y, border=())
    return y.reshaped(line) if y.is_dense() else None


def _pick(program: Program, node: ir.Node, x: View, y: View, axis: int) -> None:
    if not x.is_dense():
        dense = program.scratch(f"{node.name}/dense", x.dtype, x.shape, range(len(x.shape)))
        program.copy(x, dense)
        x = dense
    index = program.view(node.inputs[1])  # type: ignore[arg-type]
    target = y
    if not y.is_dense():
        target = program.scratch(f"{node.outputs[0].name}/dense", y.dtype, y.shape, range(len(y.shape)))
    count, inner = prod(index.shape), prod(x.shape[axis + 1 :])
    spec = Pick(count, x.shape[axis], inner, x.dtype, index.dtype)
    program.call(spec, prod(x.shape[:axis]) * count, target, x, index)
    if target is not y:
        program.fill_border(y)
        program.copy(target, y)


def lower_cache_write(program: Program, node: ir.Node) -> None:
    """CacheWrite: the whole cache, unless it is written where it lies, then the entry over its slot."""
    past, entry = program.view(node.inputs[0]), program.view(node.inputs[1])  # type: ignore[arg-type]
    y, position = program.view(node.outputs[0]), program.view(node.inputs[2])  # type: ignore[arg-type]
    axis = attribute(node, "axis")
    program.fill_border(y)
    if past.buffer is not y.buffer:
        program.copy(past, y)
    slot = y.window([0] * len(y.shape), [1 if d == axis else e for d, e in enumerate(y.shape)])
    nest = nest_of(slot, entry)
    spec = WriteSlot(nest, y.strides[axis], y.shape[axis], y.dtype, position.dtype)
    program.call(spec, nest.units, y, entry, position)
