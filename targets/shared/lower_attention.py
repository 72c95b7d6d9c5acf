"""Lowering of products of two activations: the right operand is packed at run time for the dense kernel."""

from __future__ import annotations

from dataclasses import replace
from math import prod

import numpy as np
import onnx_ir as ir

from qcompiler.errors import UnsupportedError
from qcompiler.graph.model import attribute
from qcompiler.targets.shared.program import Argument, Program
from qcompiler.targets.shared.reads import format_of, requantize_inputs, requantize_of, settle
from qcompiler.targets.shared.tile import choose_tile
from qcompiler.targets.shared.tir.dot import Dot, choose_dot
from qcompiler.targets.shared.tir.matrix import Matrix, padded_channels
from qcompiler.targets.shared.tir.nest import Nest, collapse
from qcompiler.targets.shared.tir.pack_right import PackRight
from qcompiler.targets.shared.tir.scalar_product import FIELDS, ScalarProduct
from qcompiler.targets.shared.views import View


def lower_batch_matmul(program: Program, node: ir.Node) -> None:
    """a [..., M, K] @ b [..., K, N]."""
    a, b = (program.view(value) for value in node.inputs[:2])  # type: ignore[arg-type]
    y = program.view(node.outputs[0])
    batch = y.shape[:-2]
    a = batched(a, batch)
    b = batched(b, batch)
    if program.machine.lanes == 1:
        _scalar(program, node, a, b, y)
    else:
        _vectors(program, node, a, b, y)


def batched(view: View, batch: tuple[int, ...]) -> View:
    """The view with all batch dimensions, stride 0 where it is broadcast."""
    shape = (*batch, *view.shape[-2:])
    return replace(view, shape=shape, strides=view.broadcast(shape), border=())


def _scalar(program: Program, node: ir.Node, a: View, b: View, y: View) -> None:
    program.fill_border(y)
    batch = batch_nest(y.shape[:-2], a.strides[:-2], b.strides[:-2], y.strides[:-2])
    wide = max(format_of(value).bits for value in node.inputs[:2]) > 8 and not sums_of_products_fit(node, a.shape[-1])  # type: ignore[arg-type]
    requantize = replace(requantize_of(node, scalar=True), zero_point=0)
    spec = ScalarProduct(a.dtype, b.dtype, "int64" if wide else "int32", requantize)
    (m, k), n = a.shape[-2:], b.shape[-1]
    values = {
        "rows": m,
        "inner": k,
        "columns": n,
        "a_zero_point": attribute(node, "a_zero_point", 0),
        "b_zero_point": attribute(node, "b_zero_point", 0),
        "zero_point": attribute(node, "zero_point", 0),
        **dict(zip(("a_row", "a_k"), a.strides[-2:], strict=True)),
        **dict(zip(("b_k", "b_n"), b.strides[-2:], strict=True)),
        **dict(zip(("y_row", "y_n"), y.strides[-2:], strict=True)),
        "extent1": batch.extents[1],
        "extent2": batch.extents[2],
        **{f"{v}{d}": batch.strides[i][d] for i, v in enumerate("aby") for d in range(3)},
    }
    table = np.array([values[field] for field in FIELDS], np.int32)
    scales = [program.parameter(p, f"{node.name}/scale") for p in requantize_inputs(program, node, 2)]
    shape = program.parameter(table, f"{node.name}/shape")
    program.call(spec, prod(batch.extents) * m, shape, a, b, y, *scales)


def batch_nest(extents: tuple[int, ...], *strides: tuple[int, ...]) -> Nest:
    """Three dimensions that iterate like these, merged where all strides allow."""
    nest = collapse([*extents, 1], *([*s, 1] for s in strides))
    kept = [d for d, extent in enumerate(nest.extents) if extent != 1]
    if len(kept) > 3:
        raise UnsupportedError("a product of two activations has more than three batch dimensions that do not merge.")
    lead = 3 - len(kept)
    columns = [[0] * lead + [s[d] for d in kept] for s in nest.strides]
    return Nest((*[1] * lead, *(nest.extents[d] for d in kept)), tuple(map(tuple, columns)))


def sums_of_products_fit(node: ir.Node, k: int) -> bool:
    """Whether both operands less their zero points are int16, and no sum of `k` products leaves int32."""
    worst = k
    for value, zero in zip(node.inputs[:2], ("a_zero_point", "b_zero_point"), strict=True):
        fmt, z = format_of(value), attribute(node, zero, 0)  # type: ignore[arg-type]
        if fmt.max - z >= 2**15 or fmt.min - z < -(2**15):
            return False
        worst *= max(fmt.max - z, z - fmt.min)
    return worst < 2**31


def _choose(program: Program, node: ir.Node, k: int) -> tuple[Dot, int, int]:
    """(dot, what is subtracted from b, what is subtracted from a)."""
    a, b = node.inputs[:2]
    za, zb = attribute(node, "a_zero_point", 0), attribute(node, "b_zero_point", 0)
    formats = format_of(a), format_of(b)  # type: ignore[arg-type]
    if max(f.bits for f in formats) > 8:
        if sums_of_products_fit(node, k):
            kind, pairs = ("madd_s16", 2) if program.machine.madd_s16 else ("plain", 1)
            return Dot(kind, "int16", "int16", pairs), zb, za  # type: ignore[arg-type]
        return Dot("wide", "int32", "int32", 1), zb, za
    offset = 0 if formats[1].signed else 128
    # Bytes serve if b - offset is centred already; otherwise rows of a would have to be summed.
    dot = choose_dot(program.machine, 255, 128 if zb == offset else 256, 8)
    if dot.centred:
        return dot, zb, za
    return dot, offset, 0 if not formats[0].signed else -128


def _vectors(program: Program, node: ir.Node, a: View, b: View, y: View) -> None:
    machine, (m, k), n = program.machine, a.shape[-2:], b.shape[-1]
    dot, b_shift, a_shift = _choose(program, node, k)
    batch = prod(y.shape[:-2])
    uncentred = 0 if dot.centred else attribute(node, "a_zero_point", 0) - a_shift
    x, x_group, x_row = _left(program, node, a, dot, a_shift)
    target, y_group, y_row = _target(program, node, y)
    spec = Matrix(
        groups=batch,
        group_x=x_group,
        channels=n,
        rows=(),
        pixels=m,
        pixel_x=x_row,
        pixel_y=y_row,
        taps=(),
        run=k,
        dot=dot,
        requantize=requantize_of(node, scalar=True),
        tile=1,
        vectors=1,
        group_y=y_group,
        one_bias=not uncentred,
    )
    spec = choose_tile(spec, machine)
    strides = b.strides[:-2] or (0,)
    nest = Nest((*(y.shape[:-2] or (1,)), 1), ((*([0] * len(strides)), 0), (*strides, 0)))
    pack = PackRight(spec, nest, b.strides[-2], b.strides[-1], b.dtype, b_shift, uncentred)
    panels = program.scratch(f"{node.name}/packed", dot.weight, (batch * pack.elements(machine),), (0,))
    lanes = padded_channels(n, machine.lanes)
    bias: Argument | View
    if uncentred:
        bias = program.scratch(f"{node.name}/bias", "int32", (batch * lanes,), (0,))
        program.call(pack, pack.units(machine), panels, bias, b)
    else:
        bias = program.parameter(np.zeros(lanes, dot.accumulator), f"{node.name}/bias")
        program.call(pack, pack.units(machine), panels, b)
    scales = [program.parameter(p, f"{node.name}/scale") for p in requantize_inputs(program, node, 2)]
    program.call(spec, spec.units(machine), x, target, panels, bias, *scales)
    settle(program, node.outputs[0], target)


def _left(program: Program, node: ir.Node, a: View, dot: Dot, shift: int) -> tuple[View, int, int]:
    """The left operand as the dot product reads it: (view, elements between matrices, between rows)."""
    batch = _one_stride(a)
    if (
        a.dtype == dot.activation
        and not shift
        and a.strides[-1] == 1
        and batch is not None
        and a.buffer.kind == "arena"
    ):
        return a, batch, a.strides[-2]
    fed = program.scratch(f"{node.name}/left", dot.activation, a.shape, range(len(a.shape)))
    program.copy(a, fed, shift)
    return fed, a.shape[-1] * a.shape[-2], a.shape[-1]


def _target(program: Program, node: ir.Node, y: View) -> tuple[View, int, int]:
    batch = _one_stride(y)
    if y.strides[-1] == 1 and batch is not None and (batch or prod(y.shape[:-2]) == 1):
        program.fill_border(y)
        return y, batch, y.strides[-2]
    dense = program.scratch(f"{node.outputs[0].name}/dense", y.dtype, y.shape, range(len(y.shape)))
    return dense, y.shape[-1] * y.shape[-2], y.shape[-1]


def _one_stride(view: View) -> int | None:
    """Elements between consecutive matrices, if that is one number."""
    kept = [(e, s) for e, s in zip(view.shape[:-2], view.strides[:-2], strict=True) if e != 1]
    for (_, outer), (extent, inner) in zip(kept, kept[1:], strict=False):
        if outer != inner * extent:
            return None
    return kept[-1][1] if kept else 0
