"""Lowering of pools and reductions."""

from __future__ import annotations

from math import prod

import onnx_ir as ir

from qcompiler.graph.model import attribute
from qcompiler.targets.shared.geometry import window_of
from qcompiler.targets.shared.layout import border_code
from qcompiler.targets.shared.lower_clipped import lower_clipped_pool
from qcompiler.targets.shared.lower_pointwise import reduction_of
from qcompiler.targets.shared.program import Argument, Program
from qcompiler.targets.shared.reads import feed, requantize_inputs, requantize_of, settle, target_of
from qcompiler.targets.shared.tir.window import Pool, Reduce
from qcompiler.targets.shared.views import as_image


def lower_pool(program: Program, node: ir.Node) -> None:
    """MaxPool and AveragePool: padding is a border that never wins, or the real 0."""
    value = node.inputs[0]
    assert value is not None
    if not program.machine.borders:
        lower_clipped_pool(program, node, value)
        return
    window, storage = window_of(program.graph, node), program.view(value).dtype
    x = feed(program, value, storage, 0, window.border(), border_code(node, value))
    y = target_of(program, node.outputs[0], 1)
    x4, y4 = as_image(x), as_image(y)
    average = node.op_type == "AveragePool"
    parameters = requantize_inputs(program, node, 1) if average else []
    per_position = bool(parameters) and parameters[0].ndim > 0 and parameters[0].size > 1
    taps = tuple(
        ky * window.dilations[0] * x4.strides[2] + kx * window.dilations[1] * x4.strides[3]
        for ky in range(window.kernel[0])
        for kx in range(window.kernel[1])
    )
    rows = [
        (window.batch, x4.strides[0], y4.strides[0]),
        (window.output[0], window.strides[0] * x4.strides[2], y4.strides[2]),
    ]
    spec = Pool(
        channels=window.channels,
        rows=tuple(rows),
        pixels=window.output[1],
        pixel_x=window.strides[1] * x4.strides[3],
        pixel_y=y4.strides[3],
        taps=taps,
        storage=x.dtype,
        requantize=requantize_of(node, scalar=not per_position) if average else None,
        zero_point=attribute(node, "x_zero_point", 0),
        per_position=per_position,
        positions=prod(window.output),
    )
    start = x4.origin - window.before[0] * x4.strides[2] - window.before[1] * x4.strides[3]
    arguments = [program.parameter(p.ravel(), f"{node.name}/scale") for p in parameters]
    program.call(spec, spec.units(program.machine), Argument(x.buffer, start * x.itemsize), y, *arguments)
    settle(program, node.outputs[0], y)


def lower_reduce_mean(program: Program, node: ir.Node) -> None:
    """ReduceMean over any axes."""
    x, y = program.view(node.inputs[0]), program.view(node.outputs[0])  # type: ignore[arg-type]
    program.fill_border(y)
    nest, reduced = reduction_of(node, y, x)
    spec = Reduce(nest, reduced, x.dtype, attribute(node, "x_zero_point", 0), requantize_of(node, scalar=True))
    scales = [program.parameter(p, f"{node.name}/scale") for p in requantize_inputs(program, node, 1)]
    program.call(spec, nest.units, y, x, *scales)
