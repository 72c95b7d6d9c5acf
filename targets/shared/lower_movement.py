"""Lowering of operators that only move codes: most cost nothing, the rest are strided copies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qcompiler.errors import UnsupportedError
from qcompiler.graph.model import attribute
from qcompiler.targets.shared.layout import pad_amounts
from qcompiler.targets.shared.program import Program
from qcompiler.targets.shared.tir.gather import Gather
from qcompiler.targets.shared.views import View


def _written_in_place(source: View, target: View) -> bool:
    """Whether the producer wrote straight into `target` already (see layout.py)."""
    return source.buffer is target.buffer


def show(program: Program, value: ir.Value, view: View) -> bool:
    """Let `value` be another view of memory that exists, if nothing asks for a border or its own place."""
    own = program.view(value)
    if own.buffer.kind != "arena" or any(b or a for b, a in own.border) or own.buffer.first >= 0:
        return False
    if own.buffer.name != value.name:  # a part of its reader's output: it has to be there
        return False
    program.views[str(value.name)] = view
    return True


def _copy(program: Program, value: ir.Value, source: View) -> None:
    target = program.view(value)
    program.fill_border(target)
    program.copy(source, target)


def lower_reshape(program: Program, node: ir.Node) -> None:
    """Reshape: the same memory where both are dense, else one or two copies."""
    x, value = program.view(node.inputs[0]), node.outputs[0]  # type: ignore[arg-type]
    shape = program.shape(value)
    target = program.view(value)
    if _written_in_place(x, target):
        return
    same = x.regrouped(shape) if program.machine.grid else None
    if same is not None:
        if not show(program, value, same):
            _copy(program, value, same)
        return
    if x.is_dense():
        if not show(program, value, x.reshaped(shape)):
            _copy(program, value, x.reshaped(shape))
        return
    if target.is_dense():
        program.copy(x, target.reshaped(x.shape))
        return
    between = program.scratch(f"{value.name}/dense", x.dtype, x.shape, range(len(x.shape)))
    program.copy(x, between)
    _copy(program, value, between.reshaped(shape))


def lower_transpose(program: Program, node: ir.Node) -> None:
    """Transpose: a permuted view where the memory order is the wanted one."""
    x, value = program.view(node.inputs[0]), node.outputs[0]  # type: ignore[arg-type]
    target = program.view(value)
    if _written_in_place(x, target):
        program.fill_border(target)
        return
    perm = attribute(node, "perm") or list(reversed(range(len(x.shape))))
    permuted = replace(x.permuted(perm), border=())
    wanted = program.machine.grid or permuted.strides == target.strides
    if not wanted or not show(program, value, permuted):
        _copy(program, value, permuted)


def lower_identity(program: Program, node: ir.Node) -> None:
    """Identity."""
    x, value = program.view(node.inputs[0]), node.outputs[0]  # type: ignore[arg-type]
    if _written_in_place(x, program.view(value)):
        return
    if not show(program, value, x):
        _copy(program, value, x)


def lower_concat(program: Program, node: ir.Node) -> None:
    """Concat: inputs that were not written in place are copied to theirs."""
    target = program.view(node.outputs[0])
    axis = attribute(node, "axis") % len(target.shape)
    program.fill_border(target)
    starts = [0] * len(target.shape)
    for value in node.inputs:
        assert value is not None
        x = program.view(value)
        if not _written_in_place(x, target):
            program.copy(x, target.window(starts, x.shape))
        starts[axis] += x.shape[axis]


def lower_split(program: Program, node: ir.Node) -> None:
    """Split: every output is a window of the input."""
    x = program.view(node.inputs[0])  # type: ignore[arg-type]
    axis = attribute(node, "axis", 0) % len(x.shape)
    starts = [0] * len(x.shape)
    for value in node.outputs:
        shape = program.shape(value)
        if value.uses() or value.is_graph_output():
            part = x.window(starts, shape)
            if not show(program, value, part):
                _copy(program, value, part)
        starts[axis] += shape[axis]


def _ints(program: Program, node: ir.Node, i: int) -> list[int] | None:
    value = node.inputs[i] if len(node.inputs) > i else None
    array = program.graph.const(value)
    return None if array is None else [int(v) for v in np.atleast_1d(array)]


def lower_slice(program: Program, node: ir.Node) -> None:
    """Slice with positive or negative steps: a window of the input."""
    x, value = program.view(node.inputs[0]), node.outputs[0]  # type: ignore[arg-type]
    begins, ends = _ints(program, node, 1), _ints(program, node, 2)
    assert begins is not None and ends is not None
    axes = _ints(program, node, 3) or list(range(len(begins)))
    steps = _ints(program, node, 4) or [1] * len(begins)
    starts, strides = [0] * len(x.shape), [1] * len(x.shape)
    for axis, begin, step in zip(axes, begins, steps, strict=True):
        axis %= len(x.shape)
        size = x.shape[axis]
        starts[axis] = slice(begin, None, step).indices(size)[0]
        strides[axis] = step
    part = x.window(starts, program.shape(value), strides)
    if min(part.strides) < 0 or not show(program, value, part):
        _copy(program, value, part)


def lower_expand(program: Program, node: ir.Node) -> None:
    """Expand: a copy with broadcasting strides."""
    x, target = program.view(node.inputs[0]), program.view(node.outputs[0])  # type: ignore[arg-type]
    _copy(program, node.outputs[0], replace(x, shape=target.shape, strides=x.broadcast(target.shape), border=()))


def lower_pad(program: Program, node: ir.Node) -> None:
    """Pad: constant (fill, then copy the inside), reflect and edge (indexed copy)."""
    x, target = program.view(node.inputs[0]), program.view(node.outputs[0])  # type: ignore[arg-type]
    begins, ends = pad_amounts(program, node)
    mode = attribute(node, "mode", "constant")
    program.fill_border(target)
    if mode != "constant":
        tables = [_padded_index(x.shape[d], begins[d], ends[d], mode) for d in range(len(x.shape))]
        gather(program, x, target, tables)
        return
    constant = program.graph.const(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] is not None else None
    code = 0 if constant is None else int(constant.item())
    starts = [max(0, -b) for b in begins]
    shape = [e - max(0, -b) - max(0, -a) for e, b, a in zip(x.shape, begins, ends, strict=True)]
    inside = target.window([max(0, b) for b in begins], shape)
    box = replace(
        inside, border=tuple((max(0, b), max(0, a)) for b, a in zip(begins, ends, strict=True)), border_code=code
    )
    program.fill_border(box)
    if not _written_in_place(x, target):
        program.copy(x.window(starts, shape), inside)


def _padded_index(extent: int, before: int, after: int, mode: str) -> NDArray[np.int64]:
    numpy_mode = {"reflect": "reflect", "edge": "edge", "wrap": "wrap"}[mode]
    if before < 0 or after < 0:
        raise UnsupportedError(f"Pad with mode `{mode}` and negative pads is not lowered.")
    return np.pad(np.arange(extent), (before, after), mode=numpy_mode)  # type: ignore[call-overload]


def gather(program: Program, x: View, target: View, tables: Sequence[NDArray]) -> None:
    """target[i, j, ..] = x[tables[0][i], tables[1][j], ..]."""
    order = sorted(range(len(target.shape)), key=lambda d: -target.strides[d])
    inner = order[-1]
    table = tables[inner]
    steps = np.diff(table)
    # The innermost dimension has to be affine: give it a unit one. On a grid it is every thread's own.
    if len(table) > 1 and (program.machine.grid or not (steps == 1).all()):
        order.append(-1)
    extents = [target.shape[d] if d >= 0 else 1 for d in order]
    y_strides = [target.strides[d] if d >= 0 else 1 for d in order]
    shift = int(tables[order[-1]][0]) * x.strides[order[-1]] if order[-1] >= 0 else 0
    offsets = [tables[d].astype(np.int64) * x.strides[d] for d in order[:-1]]
    if offsets:
        offsets[0] = offsets[0] + shift
    else:
        extents, y_strides, offsets = [1, *extents], [0, *y_strides], [np.array([shift])]
    x_inner = x.strides[order[-1]] if order[-1] >= 0 else 1
    spec = Gather(tuple(extents), tuple(y_strides), x_inner, x.dtype)
    flat = np.concatenate(offsets).astype(np.int32)
    program.call(spec, spec.units, target, x, program.parameter(flat, "offsets"))


def lower_resize(program: Program, node: ir.Node) -> None:
    """Resize, mode nearest: an indexed copy. Indices come from the operator's own definition."""
    from qcompiler.ops.movement import nearest_indices

    x, target = program.view(node.inputs[0]), program.view(node.outputs[0])  # type: ignore[arg-type]
    program.fill_border(target)
    gather(program, x, target, nearest_indices(program.graph, node))


def lower_depth_to_space(program: Program, node: ir.Node) -> None:
    """DepthToSpace: a copy over six dimensions."""
    x, target = program.view(node.inputs[0]), program.view(node.outputs[0])  # type: ignore[arg-type]
    block, mode = attribute(node, "blocksize"), attribute(node, "mode", "DCR")
    n, c, h, w = x.shape
    depth = c // (block * block)
    sn, sc, sh, sw = x.strides
    tn, tc, th, tw = target.strides
    if mode == "DCR":
        by, bx, bc = sc * block * depth, sc * depth, sc
    else:
        by, bx, bc = sc * block, sc, sc * block * block
    shape = (n, h, block, w, block, depth)
    source = replace(x, shape=shape, strides=(sn, sh, by, sw, bx, bc), border=())
    goal = replace(target, shape=shape, strides=(tn, th * block, th, tw * block, tw, tc), border=())
    program.fill_border(target)
    program.copy(source, goal)
