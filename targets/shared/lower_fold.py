"""Lowering of ReduceL2 and Tile."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qcompiler.graph.model import attribute
from qcompiler.targets.shared.lower_movement import gather
from qcompiler.targets.shared.program import Program
from qcompiler.targets.shared.reads import format_of
from qcompiler.targets.shared.tir.length import Length
from qcompiler.targets.shared.tir.nest import collapse


def lower_length(program: Program, node: ir.Node) -> None:
    """ReduceL2."""
    x, y = program.view(node.inputs[0]), program.view(node.outputs[0])  # type: ignore[arg-type]
    program.fill_border(y)
    axes = [a % len(x.shape) for a in attribute(node, "axes")]
    kept = [d for d in range(len(x.shape)) if d not in axes]
    y_strides = [y.strides[d] for d in kept] if attribute(node, "keepdims", 1) else list(y.strides)
    nest = collapse([x.shape[d] for d in kept], y_strides, [x.strides[d] for d in kept])
    reduced = sorted(((x.shape[a], x.strides[a]) for a in axes), key=lambda pair: -pair[1])
    numbers = ("x_zero_point", "half_shift", "multiplier", "shift", "zero_point")
    values = {number: attribute(node, number, 0) for number in numbers}
    spec = Length(nest, tuple(reduced), x.dtype, format_of(node.outputs[0]), **values)  # type: ignore[arg-type]
    program.call(spec, nest.units, y, x)


def lower_tile(program: Program, node: ir.Node) -> None:
    """Tile: an indexed copy."""
    x, y = program.view(node.inputs[0]), program.view(node.outputs[0])  # type: ignore[arg-type]
    repeats = program.graph.const(node.inputs[1])
    assert repeats is not None
    program.fill_border(y)
    gather(program, x, y, [np.tile(np.arange(e), int(r)) for e, r in zip(x.shape, repeats, strict=True)])
