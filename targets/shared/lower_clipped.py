"""Lowering of convolutions, products and pools for machines that keep no borders in memory (tir/scalar.py)."""

from __future__ import annotations

from math import prod

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qcompiler.graph.model import attribute
from qcompiler.targets.shared.geometry import Window, window_of
from qcompiler.targets.shared.program import Program
from qcompiler.targets.shared.reads import feed, format_of, requantize_inputs, requantize_of, settle, target_of
from qcompiler.targets.shared.tir.scalar import Clipped, ScalarConv, ScalarDepthwise, ScalarPool
from qcompiler.targets.shared.views import View, as_image

TILE = 4
"""Output channels that share one load of an activation; more would not fit the registers of a Cortex-M."""


def _clipped(window: Window, x: View, y: View) -> Clipped:
    xs, ys = as_image(x).strides, as_image(y).strides
    return Clipped(window, (xs[0], xs[2], xs[3]), (ys[0], ys[2], ys[3]))


def _weight_type(weights: NDArray) -> str:
    return "int8" if weights.min(initial=0) >= -128 and weights.max(initial=0) <= 127 else "int16"


def lower_clipped_conv(
    program: Program, node: ir.Node, value: ir.Value, weights: NDArray, window: Window, groups: int, depthwise: bool
) -> None:
    """weights: [M, C/groups, KH, KW]."""
    zero = attribute(node, "x_zero_point", 0)
    no_border = ((0, 0),) * window.rank
    x = feed(program, value, program.view(value).dtype, 0, no_border, 0)
    y = target_of(program, node.outputs[0], 1)
    clipped = _clipped(window, x, y)
    kind = _weight_type(weights)
    spec: ScalarConv | ScalarDepthwise
    if depthwise:
        packed = weights[:, 0].transpose(1, 2, 0)
        spec = ScalarDepthwise(clipped, window.channels, x.dtype, zero, kind, requantize_of(node))
    else:
        packed = weights.transpose(0, 2, 3, 1)
        outputs = weights.shape[0] // groups
        wide = format_of(value).bits > 8
        spec = ScalarConv(
            clipped,
            groups,
            weights.shape[1],
            outputs,
            x.dtype,
            zero,
            kind,
            "int64" if wide else "int32",
            requantize_of(node),
            min(TILE, outputs),
        )
    _emit(program, node, spec, clipped.units, x, y, packed.astype(kind))
    settle(program, node.outputs[0], y)


def lower_clipped_matmul(program: Program, node: ir.Node, value: ir.Value, weights: NDArray) -> None:
    """x [..., K] @ w [K, N] as a 1x1 convolution over a line of pixels."""
    x, target = program.view(value), program.view(node.outputs[0])
    k, n = weights.shape
    rows = prod(x.shape[:-1])
    if not x.is_dense():
        dense = program.scratch(f"{value.name}/dense", x.dtype, x.shape, range(len(x.shape)))
        program.copy(x, dense)
        x = dense
    y = target
    if not target.is_dense():
        y = program.scratch(f"{node.outputs[0].name}/dense", target.dtype, target.shape, range(len(target.shape)))
    window = Window(4, 1, k, (1, rows), (1, rows), (1, 1), (1, 1), (1, 1), (0, 0))
    kind, wide = _weight_type(weights), format_of(value).bits > 8
    spec = ScalarConv(
        Clipped(window, (0, 0, k), (0, 0, n)),
        1,
        k,
        n,
        x.dtype,
        attribute(node, "x_zero_point", 0),
        kind,
        "int64" if wide else "int32",
        requantize_of(node),
        min(TILE, n),
    )
    _emit(program, node, spec, 1, x, y, np.ascontiguousarray(weights.T).astype(kind))
    settle(program, node.outputs[0], y)


def _emit(
    program: Program, node: ir.Node, spec: ScalarConv | ScalarDepthwise, units: int, x: View, y: View, weights: NDArray
) -> None:
    bias = program.graph.const(node.inputs[2])
    assert bias is not None
    parameters = [bias, *requantize_inputs(program, node, 3)]
    program.call(
        spec,
        units,
        x,
        y,
        program.parameter(weights, f"{node.name}/weights"),
        *(program.parameter(p, f"{node.name}/parameters") for p in parameters),
    )


def lower_clipped_pool(program: Program, node: ir.Node, value: ir.Value) -> None:
    """MaxPool and AveragePool."""
    window = window_of(program.graph, node)
    x = feed(program, value, program.view(value).dtype, 0, ((0, 0),) * window.rank, 0)
    y = target_of(program, node.outputs[0], 1)
    average = node.op_type == "AveragePool"
    parameters = requantize_inputs(program, node, 1) if average else []
    per_position = bool(parameters) and parameters[0].size > 1
    spec = ScalarPool(
        _clipped(window, x, y),
        window.channels,
        x.dtype,
        requantize_of(node, scalar=not per_position) if average else None,
        attribute(node, "x_zero_point", 0),
        per_position,
    )
    arguments = [program.parameter(p.ravel(), f"{node.name}/scale") for p in parameters]
    program.call(spec, spec.clipped.units, x, y, *arguments)
    settle(program, node.outputs[0], y)
