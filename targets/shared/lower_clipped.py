"""Lowering of convolutions, products and pools for machines that keep no borders in memory (tir/scalar.py)."""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qcompiler.graph.model import attribute
from qcompiler.targets.shared.geometry import Window, window_of
from qcompiler.targets.shared.program import Program
from qcompiler.targets.shared.reads import feed, format_of, requantize_inputs, requantize_of, settle, target_of
from qcompiler.targets.shared.tir.requantize import Requantize
from qcompiler.targets.shared.tir.scalar import ScalarConv, ScalarDepthwise, ScalarPool, shape_table
from qcompiler.targets.shared.views import View, as_image


def _weight_type(weights: NDArray) -> str:
    return "int8" if weights.min(initial=0) >= -128 and weights.max(initial=0) <= 127 else "int16"


def _late(node: ir.Node, *, scalar: bool = False) -> Requantize:
    """The node's requantization with its zero point left to the shape table, so that layers share code."""
    return replace(requantize_of(node, scalar=scalar), zero_point=0)


def _table(
    node: ir.Node, window: Window, x: View, y: View, groups: int, inputs: int, outputs: int
) -> NDArray[np.int32]:
    xs, ys = as_image(x).strides, as_image(y).strides
    return shape_table(
        window,
        (xs[0], xs[2], xs[3]),
        (ys[0], ys[2], ys[3]),
        groups=groups,
        inputs=inputs,
        outputs=outputs,
        x_zero_point=attribute(node, "x_zero_point", 0),
        zero_point=attribute(node, "zero_point", 0),
    )


def _dot(program: Program, storage: str, weight: str, accumulator: str) -> str:
    """The external dot product for these types, if the machine has one."""
    fitting = storage == "uint8" and weight == "int8" and accumulator == "int32"
    return program.machine.dot_u8s8 if fitting else ""


def lower_clipped_conv(
    program: Program, node: ir.Node, value: ir.Value, weights: NDArray, window: Window, groups: int, depthwise: bool
) -> None:
    """weights: [M, C/groups, KH, KW]."""
    x = feed(program, value, program.view(value).dtype, 0, ((0, 0),) * window.rank, 0)
    y = target_of(program, node.outputs[0], 1)
    kind = _weight_type(weights)
    spec: ScalarConv | ScalarDepthwise
    if depthwise:
        packed = weights[:, 0].transpose(1, 2, 0)
        spec = ScalarDepthwise(x.dtype, kind, _late(node))
        table = _table(node, window, x, y, 1, window.channels, window.channels)
    else:
        packed = weights.transpose(0, 2, 3, 1)
        inputs = weights.shape[1]
        accumulator = "int64" if format_of(value).bits > 8 else "int32"
        merged = groups == 1 and window.dilations[1] == 1 and as_image(x).strides[3] == inputs
        dot = _dot(program, x.dtype, kind, accumulator)
        spec = ScalarConv(x.dtype, kind, accumulator, _late(node), merged, dot)
        table = _table(node, window, x, y, groups, inputs, weights.shape[0] // groups)
    _emit(program, node, spec, window.batch * window.output[0], table, x, y, packed.astype(kind))
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
    kind = _weight_type(weights)
    accumulator = "int64" if format_of(value).bits > 8 else "int32"
    spec = ScalarConv(x.dtype, kind, accumulator, _late(node), True, _dot(program, x.dtype, kind, accumulator))
    line = replace(x, shape=(1, k, 1, rows), strides=(0, 1, 0, k), border=())
    out = replace(y, shape=(1, n, 1, rows), strides=(0, 1, 0, n), border=())
    table = _table(node, window, line, out, 1, k, n)
    _emit(program, node, spec, 1, table, x, y, np.ascontiguousarray(weights.T).astype(kind))
    settle(program, node.outputs[0], y)


def _emit(
    program: Program, node: ir.Node, spec: Any, units: int, table: NDArray, x: View, y: View, weights: NDArray
) -> None:
    bias = program.graph.const(node.inputs[2])
    assert bias is not None
    parameters = [weights, bias, *requantize_inputs(program, node, 3)]
    program.call(
        spec,
        units,
        program.parameter(table, f"{node.name}/shape"),
        x,
        y,
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
    # One entry is read at index 0 either way, so `scalar` (a broadcast) would only split the code.
    spec = ScalarPool(x.dtype, _late(node) if average else None, per_position)
    arguments = [program.parameter(p.ravel(), f"{node.name}/scale") for p in parameters]
    table = program.parameter(_table(node, window, x, y, 1, window.channels, window.channels), f"{node.name}/shape")
    program.call(spec, window.batch * window.output[0], table, x, y, *arguments)
    settle(program, node.outputs[0], y)
