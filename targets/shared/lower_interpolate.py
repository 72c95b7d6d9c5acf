"""Lowering of Interpolate."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qcompiler.formats import parse_integers
from qcompiler.graph.model import attribute
from qcompiler.targets.shared.program import Program, as_int32
from qcompiler.targets.shared.tir.interpolate import Interpolate


def lower_interpolate(program: Program, node: ir.Node) -> None:
    """Interpolate: offsets and zero points are in tables, sums are int32 where the weights allow."""
    x, y = program.view(node.inputs[0]), program.view(node.outputs[0])  # type: ignore[arg-type]
    index, weight = (program.graph.const(value) for value in node.inputs[1:3])
    assert index is not None and weight is not None
    program.fill_border(y)
    axis, shift, zero = (attribute(node, name, 0) for name in ("axis", "shift", "x_zero_point"))
    order = sorted(range(len(y.shape)), key=lambda d: -y.strides[d])
    order = [d for d in order if y.shape[d] != 1 or d == axis]
    inner = order[-1] if order[-1] != axis else None
    outer = order[:-1] if inner is not None else order
    extents = (*(y.shape[d] for d in outer), 1 if inner is None else y.shape[inner])
    y_strides = (*(y.strides[d] for d in outer), 1 if inner is None else y.strides[inner])
    x_strides = (*(0 if d == axis else x.strides[d] for d in outer), 1 if inner is None else x.strides[inner])
    info = np.iinfo(x.dtype)
    weights = weight.astype(np.int64)
    half = np.int64(1) << (shift - 1)
    # Of raw codes, any partial sum: zero points are in the bias.
    raw = int(np.abs(weights).sum(axis=1).max()) * max(int(info.max), -int(info.min))
    bias = half - zero * weights.sum(axis=1)
    wide = "int32" if raw + int(np.abs(bias).max()) < 2**31 else "int64"
    spec = Interpolate(
        extents,
        y_strides,
        x_strides,
        outer.index(axis),
        index.shape[1],
        x.dtype,
        wide,
        shift,
        attribute(node, "zero_point", 0),
        parse_integers(attribute(node, "format")),
    )
    tables = [
        program.parameter(as_int32(index.astype(np.int64) * x.strides[axis]).ravel(), f"{node.name}/offsets"),
        program.parameter(weight.astype(np.int32).ravel(), f"{node.name}/weights"),
        program.parameter(bias.astype(wide), f"{node.name}/bias"),
    ]
    program.call(spec, spec.units, y, x, *tables)
