"""Lowering of Conv, ConvTranspose and MatMul onto the dense and the depthwise kernel."""

from __future__ import annotations

from dataclasses import replace
from math import prod

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qcompiler.formats import Int
from qcompiler.graph.model import attribute
from qcompiler.targets.shared.geometry import Window, window_of
from qcompiler.targets.shared.lower_clipped import lower_clipped_conv, lower_clipped_matmul
from qcompiler.targets.shared.machine import Machine
from qcompiler.targets.shared.pack import pack_channels, pack_depthwise, pack_matrix
from qcompiler.targets.shared.program import Argument, Program
from qcompiler.targets.shared.reads import (
    feed,
    format_of,
    requantize_inputs,
    requantize_of,
    settle,
    sums_fit,
    target_of,
)
from qcompiler.targets.shared.tile import choose_depthwise_tile, choose_tile
from qcompiler.targets.shared.tir.dot import INT16_MAX, Dot, choose_dot, reach_of
from qcompiler.targets.shared.tir.matrix import Matrix
from qcompiler.targets.shared.tir.requantize import Requantize
from qcompiler.targets.shared.tir.window import Depthwise
from qcompiler.targets.shared.views import View, as_image, channels_last


def dot_shift(dot: Dot, storage: str, zero_point: int) -> int:
    """What is subtracted from codes on their way to the dot product: the zero point, or int8 becomes uint8."""
    if dot.centred:
        return zero_point
    return -128 if dot.activation == "uint8" and storage == "int8" else 0


def wide_dot(program: Program, node: ir.Node, fmt: Int, zero: int, weights: NDArray) -> Dot | None:
    """int16 pairs into int32, where codes of more than 8 bits minus their zero point and weights are int16 and no sum
    can leave int32 (weights: [M, ...]); else None."""
    if not program.machine.madd_s16 or np.abs(weights.astype(np.int64)).max(initial=0) > INT16_MAX:
        return None
    return Dot("madd_s16", "int16", "int16", 2) if sums_fit(program, node, fmt, zero, weights) else None


def lower_conv(program: Program, node: ir.Node) -> None:
    """Conv: depthwise kernel, or dense with groups."""
    value, weights = node.inputs[0], program.graph.const(node.inputs[1])
    assert value is not None and weights is not None
    if weights.ndim == 3:
        weights = weights[:, :, None, :]
    convolve(program, node, value, weights, window_of(program.graph, node), attribute(node, "group", 1))


def convolve(
    program: Program,
    node: ir.Node,
    value: ir.Value,
    weights: NDArray,
    window: Window,
    groups: int,
    source: View | None = None,
) -> None:
    """weights: [M, C/groups, KH, KW]. `source` stands in for the value's view (transposed convolution)."""
    fmt, zero_point = format_of(value), attribute(node, "x_zero_point", 0)
    if source is not None:
        program.views[str(value.name)], own = source, program.views[str(value.name)]
    depthwise = groups == window.channels == weights.shape[0] and groups > 1 and fmt.bits <= 8
    if not program.machine.borders:
        lower_clipped_conv(program, node, value, weights, window, groups, depthwise)
    elif depthwise:
        _depthwise(program, node, value, weights, window, zero_point)
    else:
        _dense(program, node, value, weights, window, groups, fmt, zero_point)
    if source is not None:
        program.views[str(value.name)] = own


def _dense(
    program: Program, node: ir.Node, value: ir.Value, weights: NDArray, window: Window, groups: int, fmt: Int, zero: int
) -> None:
    magnitude = reach_of(weights)
    span = fmt.max - (fmt.min if fmt.signed else 0)
    dot = choose_dot(program.machine, max(span, 255 if fmt.signed else 1), magnitude, fmt.bits)
    if dot.kind == "wide":
        dot = wide_dot(program, node, fmt, zero, weights) or dot
    shift = dot_shift(dot, program.view(value).dtype, zero)
    code = zero - shift
    x = feed(program, value, dot.activation, shift, window.border(), code)
    if dot.kind == "across" and x.buffer.kind in ("input", "state"):  # vectors may read past the end of it
        inside = program.scratch(f"{value.name}/inside", x.dtype, x.shape, channels_last(len(x.shape)))
        program.copy(x, inside)
        x = inside
    y = target_of(program, node.outputs[0], 1)
    x4, y4 = as_image(x), as_image(y)
    m, c, (kh, kw) = weights.shape[0], weights.shape[1], window.kernel
    merged = groups == 1 and window.dilations[1] == 1 and (x4.strides[3] == c or kw == 1)
    taps = [(kh, window.dilations[0] * x4.strides[2])]
    if not merged:
        taps.append((kw, window.dilations[1] * x4.strides[3]))
    ordered = weights.reshape(groups, m // groups, c, kh, kw).transpose(0, 1, 3, 4, 2)
    run = kw * c if merged else c
    rows = [
        (window.batch, x4.strides[0], y4.strides[0]),
        (window.output[0], window.strides[0] * x4.strides[2], y4.strides[2]),
    ]
    spec = Matrix(
        groups=groups,
        group_x=c,
        channels=m // groups,
        rows=tuple(row for row in rows if row[0] > 1),
        pixels=window.output[1],
        pixel_x=window.strides[1] * x4.strides[3],
        pixel_y=y4.strides[3],
        taps=tuple(tap for tap in taps if tap[0] > 1),
        run=run,
        dot=dot,
        requantize=requantize_of(node),
        tile=1,
        vectors=1,
    )
    start = x4.origin - window.before[0] * x4.strides[2] - window.before[1] * x4.strides[3]
    emit_matrix(program, node, spec, ordered.reshape(groups, m // groups, -1, run), x, start, y, code)
    settle(program, node.outputs[0], y)


def emit_matrix(
    program: Program, node: ir.Node, spec: Matrix, weights: NDArray, x: View, start: int, y: View, zero_point: int
) -> None:
    """Choose the tile, pack, call. weights: [groups, channels, taps, run]."""
    machine = program.machine
    spec = choose_tile(_merge_rows(spec), machine)
    bias = program.graph.const(node.inputs[2])
    assert bias is not None
    bias = bias.astype(np.int64)
    if not spec.dot.centred:
        bias = bias - (zero_point - spec.dot.offset) * weights.astype(np.int64).sum(axis=(2, 3)).ravel()
    requantize, scales = _upper(machine, spec.requantize, requantize_inputs(program, node, 3))
    spec = replace(spec, requantize=requantize)
    parameters = [bias.astype(spec.dot.accumulator), *scales]
    program.call(
        spec,
        spec.units(machine),
        Argument(x.buffer, start * x.itemsize),
        y,
        program.parameter(pack_matrix(weights, spec, machine), f"{node.name}/weights"),
        *(
            program.parameter(pack_channels(p, spec.groups, machine.lanes), f"{node.name}/parameters")
            for p in parameters
        ),
    )


def _upper(machine: Machine, requantize: Requantize, scales: list[NDArray]) -> tuple[Requantize, list[NDArray]]:
    """Requantization by upper words, on machines that multiply for them and where all shifts allow it."""
    if not machine.across or len(scales) < 2 or not requantize.upper(scales[1]):
        return requantize, scales
    return replace(requantize, high=True), [scales[0], (scales[1] - 33).astype(np.int8)]


def _merge_rows(spec: Matrix) -> Matrix:
    """One long row where rows follow each other evenly in x and y."""
    rows = list(spec.rows)
    while rows:
        extent, x_stride, y_stride = rows[-1]
        single = spec.pixels == 1
        if not single and (x_stride, y_stride) != (spec.pixels * spec.pixel_x, spec.pixels * spec.pixel_y):
            break
        pixel_x, pixel_y = (x_stride, y_stride) if single else (spec.pixel_x, spec.pixel_y)
        spec = replace(spec, pixels=spec.pixels * extent, pixel_x=pixel_x, pixel_y=pixel_y)
        rows.pop()
        spec = replace(spec, rows=tuple(rows))
    return spec


def _depthwise(program: Program, node: ir.Node, value: ir.Value, weights: NDArray, window: Window, zero: int) -> None:
    x = feed(program, value, program.view(value).dtype, 0, window.border(), zero)
    y = target_of(program, node.outputs[0], 1)
    x4, y4 = as_image(x), as_image(y)
    rows = [
        (window.batch, x4.strides[0], y4.strides[0]),
        (window.output[0], window.strides[0] * x4.strides[2], y4.strides[2]),
    ]
    requantize, scales = _upper(program.machine, requantize_of(node), requantize_inputs(program, node, 3))
    spec = Depthwise(
        channels=window.channels,
        rows=tuple(row for row in rows if row[0] > 1) or ((1, 0, 0),),
        pixels=window.output[1],
        stride=window.strides[1],
        column=x4.strides[3],
        pixel_y=y4.strides[3],
        kernel=window.kernel,
        dilation=window.dilations,
        row=x4.strides[2],
        storage=x.dtype,
        requantize=requantize,
        tile=choose_depthwise_tile(window.output[1], window.kernel[1], program.machine),
        byte_weights=bool(weights.min() >= -128 and weights.max() <= 127),
    )
    bias = program.graph.const(node.inputs[2])
    assert bias is not None
    folded = bias.astype(np.int64) - zero * weights.astype(np.int64).sum(axis=(1, 2, 3))
    start = x4.origin - window.before[0] * x4.strides[2] - window.before[1] * x4.strides[3]
    lanes = program.machine.lanes
    parameters = [folded.astype(np.int32), *scales]
    program.call(
        spec,
        spec.units(program.machine),
        Argument(x.buffer, start * x.itemsize),
        y,
        program.parameter(pack_depthwise(weights[:, 0], spec, program.machine), f"{node.name}/weights"),
        *(program.parameter(pack_channels(p, 1, lanes), f"{node.name}/parameters") for p in parameters),
    )
    settle(program, node.outputs[0], y)


def lower_conv_transpose(program: Program, node: ir.Node) -> None:
    """Spread the input with zeros between, then a convolution with the kernel turned around."""
    value = node.inputs[0]
    assert value is not None
    window, weights, groups, spread = transposed_window(program, node)
    convolve(program, node, value, weights, window, groups, spread)


def transposed_window(program: Program, node: ir.Node) -> tuple[Window, NDArray, int, View]:
    """A ConvTranspose as a convolution: its window, weights [M, C / groups, KH, KW], groups, and the input spread."""
    graph, value = program.graph, node.inputs[0]
    weights = graph.const(node.inputs[1])
    assert value is not None and weights is not None
    groups, view = attribute(node, "group", 1), program.view(value)
    spatial = len(view.shape) - 2
    strides = attribute(node, "strides") or [1] * spatial
    dilations = attribute(node, "dilations") or [1] * spatial
    pads = attribute(node, "pads") or [0] * (2 * spatial)
    zero = attribute(node, "x_zero_point", 0)
    spread = [(extent - 1) * s + 1 for extent, s in zip(view.shape[2:], strides, strict=True)]
    before = [d * (k - 1) - p for d, k, p in zip(dilations, weights.shape[2:], pads, strict=False)]
    pair = (lambda v, fill: (fill, v[0])) if spatial == 1 else (lambda v, fill: (v[0], v[1]))
    window = Window(
        rank=len(view.shape),
        batch=view.shape[0],
        channels=view.shape[1],
        input=pair(spread, 1),
        output=pair(list(program.shape(node.outputs[0])[2:]), 1),
        kernel=pair(list(weights.shape[2:]), 1),
        strides=(1, 1),
        dilations=pair(dilations, 1),
        before=pair(before, 0),
    )
    shape = (*view.shape[:2], *spread)
    wide = program.scratch(f"{value.name}/spread", view.dtype, shape, channels_last(len(shape)), window.border(), zero)
    program.fill_border(wide)
    program.fill(replace(wide, border=()), zero)
    program.copy(view, wide.window([0] * len(shape), view.shape, [1, 1, *strides]))
    c, per_group = weights.shape[:2]
    if spatial == 1:
        weights = weights[:, :, None, :]
    kernel = weights.shape[2:]
    turned = weights.reshape(groups, c // groups, per_group, *kernel)[..., ::-1, ::-1].transpose(0, 2, 1, 3, 4)
    return window, turned.reshape(groups * per_group, c // groups, *kernel), groups, wide


def lower_matmul(program: Program, node: ir.Node) -> None:
    """x [..., K] @ w [K, N]: the dense kernel with one pixel a row of x."""
    value, weights = node.inputs[0], program.graph.const(node.inputs[1])
    assert value is not None and weights is not None
    if not program.machine.borders:
        lower_clipped_matmul(program, node, value, weights)
        return
    fmt, zero = format_of(value), attribute(node, "x_zero_point", 0)
    magnitude = reach_of(weights)
    dot = choose_dot(program.machine, 255 if fmt.signed else fmt.max, magnitude, fmt.bits)
    if dot.kind == "wide":
        dot = wide_dot(program, node, fmt, zero, weights.T) or dot
    view = program.view(value)
    k, n = weights.shape
    rows = prod(view.shape[:-1])
    shift = dot_shift(dot, view.dtype, zero)
    outside = dot.kind == "across" and view.buffer.kind in ("input", "state")
    if view.dtype != dot.activation or shift or not view.is_dense() or outside:
        fed = program.scratch(f"{value.name}/fed", dot.activation, view.shape, range(len(view.shape)))
        program.copy(view, fed, shift)
        view = fed
    target = program.view(node.outputs[0])
    y = target
    if not target.is_dense():
        y = program.scratch(f"{node.outputs[0].name}/dense", target.dtype, target.shape, range(len(target.shape)))
    spec = Matrix(
        groups=1,
        group_x=0,
        channels=n,
        rows=(),
        pixels=rows,
        pixel_x=k,
        pixel_y=n,
        taps=(),
        run=k,
        dot=dot,
        requantize=requantize_of(node),
        tile=1,
        vectors=1,
    )
    emit_matrix(program, node, spec, weights.T.reshape(1, n, 1, k), view, view.origin, y, zero - shift)
    settle(program, node.outputs[0], y)
