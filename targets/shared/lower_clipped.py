"""Lowering of convolutions, products and pools for machines that keep no borders in memory (tir/scalar.py)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qcompiler.graph.model import attribute
from qcompiler.targets.shared.geometry import Window, window_of
from qcompiler.targets.shared.pack import pack_bits
from qcompiler.targets.shared.paired import paired_form
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
from qcompiler.targets.shared.tir.columns import (
    PIXELS,
    ColumnConv,
    PackedLine,
    PlaneDepthwise,
    padded_run,
)
from qcompiler.targets.shared.tir.requantize import Requantize
from qcompiler.targets.shared.tir.scalar import ScalarConv, ScalarDepthwise, ScalarPool, shape_table
from qcompiler.targets.shared.views import View, as_image, channels_last


@dataclass(frozen=True)
class Piece:
    """A part of a node's output rows, in a loop (see Program.repeated)."""

    start: int
    """First row, where the kernel is told the whole image; of a part of its own, 0."""
    rows: int
    """Rows from there on; 0: all of the window."""
    advance: int
    """Rows by which `start` moves on each time."""
    x_step: int
    """Bytes by which x moves on each time."""
    y_step: int
    share: float
    """How much of the node's work it is, all times together."""


_WHOLE = Piece(0, 0, 0, 0, 0, 1.0)
_PLANES = 3072
"""Bytes that the channels which a depthwise convolution copies out may take."""


def _weight_type(weights: NDArray) -> str:
    return "int8" if weights.min(initial=0) >= -128 and weights.max(initial=0) <= 127 else "int16"


def _requantization(program: Program, node: ir.Node, first: int) -> tuple[Requantize, list[NDArray]]:
    """The node's requantization and its parameters, inputs `first` and on.

    The zero point is left to the shape table, so that layers share code; one entry is read at index 0 either way, so
    `scalar` (a broadcast) would only split the code.
    """
    requantize = replace(requantize_of(node), zero_point=0)
    multiplier, shift = requantize_inputs(program, node, first)
    if not requantize.upper(shift):
        return requantize, [multiplier, shift]
    return replace(requantize, high=True), [multiplier, (shift - 33).astype(np.int8)]


def _table(
    node: ir.Node,
    window: Window,
    x: View,
    y: View,
    groups: int,
    inputs: int,
    outputs: int,
    band: int = 0,
    *,
    centred: bool = True,
) -> NDArray[np.int32]:
    xs, ys = as_image(x).strides, as_image(y).strides
    return shape_table(
        window,
        (xs[0], xs[2], xs[3]),
        (ys[0], ys[2], ys[3]),
        groups=groups,
        inputs=inputs,
        outputs=outputs,
        x_zero_point=attribute(node, "x_zero_point", 0) if centred else 0,
        zero_point=attribute(node, "zero_point", 0),
        band=band,
    )


def evenly(program: Program, value: ir.Value, window: Window) -> View:
    """Where a product writes whose pixels must lie at one distance from each other: the value's view, or scratch."""
    y = target_of(program, value, 1)
    if _even(y, window):
        return y
    return program.scratch(f"{value.name}/dense", y.dtype, y.shape, channels_last(len(y.shape)))


def _even(view: View, window: Window) -> bool:
    """Whether the pixels of an image of the output's extents lie at one distance from each other."""
    strides = as_image(view).strides
    rows, columns = window.output
    even = rows == 1 or strides[2] == columns * strides[3]
    return even and (window.batch == 1 or strides[0] == rows * columns * strides[3])


def flat(window: Window, x: View) -> bool:
    """Whether output pixels read the input pixels of the same number."""
    single = window.kernel == (1, 1) and window.strides == (1, 1) and window.before == (0, 0)
    return single and window.input == window.output and _even(x, window)


def lower_clipped_conv(
    program: Program, node: ir.Node, value: ir.Value, weights: NDArray, window: Window, groups: int, depthwise: bool
) -> None:
    """weights: [M, C/groups, KH, KW]."""
    x = feed(program, value, program.view(value).dtype, 0, ((0, 0),) * window.rank, 0)
    if depthwise:
        y = target_of(program, node.outputs[0], 1)
        _depthwise(program, node, value, weights, window, x, y, _WHOLE)
    else:
        y = evenly(program, node.outputs[0], window)
        _product(program, node, value, weights, window, groups, x, y, _WHOLE)
    settle(program, node.outputs[0], y)


def lower_piece(program: Program, node: ir.Node, window: Window, x: View, y: View, piece: Piece) -> None:
    """Some rows of a Conv without groups or a depthwise one, from and to views whose channels are contiguous.

    window: what the kernel is told of the image; y: of the first row that is done.
    """
    value, weights = node.inputs[0], program.graph.const(node.inputs[1])
    assert value is not None and weights is not None
    if attribute(node, "group", 1) > 1:
        _depthwise(program, node, value, weights, window, x, y, piece)
    else:
        _product(program, node, value, weights, window, 1, x, y, piece)


def _depthwise(
    program: Program, node: ir.Node, value: ir.Value, weights: NDArray, window: Window, x: View, y: View, piece: Piece
) -> None:
    channels = (1, window.channels, window.channels)
    paired = paired_form(program, node, value, weights) if _slides(window) else None
    if paired is not None:
        taps = paired.weights[:, 0]
        if _slides(turned := _turned(window)) and _work(turned) < _work(window):
            window, taps, x, y = turned, taps.transpose(0, 2, 1), _turned_view(x), _turned_view(y)
        band = _band(window)
        planes = program.scratch(f"{node.name}/planes", "int16", (_plane(window, band) * PIXELS,), (0,))
        table = _table(node, window, x, y, *channels, band)
        spec = PlaneDepthwise(x.dtype, paired.requantize, window.strides[1])
        _emit(program, node, spec, window.batch, table, [x, y, planes], [taps, paired.bias, *paired.scales], piece)
        return
    kind, bias = _weight_type(weights), program.graph.const(node.inputs[2])
    assert bias is not None
    requantize, scales = _requantization(program, node, 3)
    arrays = [weights[:, 0].transpose(1, 2, 0).astype(kind), bias, *scales]
    table = _table(node, window, x, y, *channels)
    single = ScalarDepthwise(x.dtype, kind, requantize)
    _emit(program, node, single, window.batch * window.output[0], table, [x, y], arrays, piece)


def _product(
    program: Program,
    node: ir.Node,
    value: ir.Value,
    weights: NDArray,
    window: Window,
    groups: int,
    x: View,
    y: View,
    piece: Piece,
) -> None:
    inputs, units = weights.shape[1], window.batch * window.output[0]
    table = _table(node, window, x, y, groups, inputs, weights.shape[0] // groups)
    merged = groups == 1 and window.dilations[1] == 1 and as_image(x).strides[3] == inputs
    paired, pixels = paired_form(program, node, value, weights, pack=True), window.batch * prod(window.output)
    if paired is not None and pixels >= PIXELS:
        runs = _runs(paired.weights, merged)
        columns = program.scratch(f"{node.name}/columns", "int16", (runs[0].size * PIXELS,), (0,))
        packed = pack_bits(runs.reshape(len(runs), -1), paired.packing) if paired.packing else runs
        spec = ColumnConv(x.dtype, paired.requantize, merged, flat(window, x), paired.packing)
        _emit(program, node, spec, units, table, [x, y, columns], [packed, paired.bias, *paired.scales], piece)
        return
    if paired is not None and paired.packing and groups == 1 and flat(window, x):
        packed = pack_bits(_runs(paired.weights, merged).reshape(len(weights), -1), paired.packing)
        line = PackedLine(x.dtype, paired.requantize, paired.packing)
        _emit(program, node, line, units, table, [x, y], [packed, paired.bias, *paired.scales], piece)
        return
    if paired is not None and not paired.packing and x.dtype == "uint8" and _inside(window):
        table = _table(node, window, x, y, groups, inputs, weights.shape[0] // groups, centred=False)
        single = ScalarConv(x.dtype, "int8", "int32", paired.requantize, merged, "qc_dot_u8s8_x4")
        arrays = [paired.weights.transpose(0, 2, 3, 1), paired.bias, *paired.scales]
        _emit(program, node, single, units, table, [x, y], arrays, piece)
        return
    bias = program.graph.const(node.inputs[2])
    assert bias is not None
    requantize, scales = _requantization(program, node, 3)
    fmt, zero = format_of(value), attribute(node, "x_zero_point", 0)
    narrow = fmt.bits <= 8 or sums_fit(program, node, fmt, zero, weights)
    kind, accumulator = _weight_type(weights), "int32" if narrow else "int64"
    single = ScalarConv(x.dtype, kind, accumulator, requantize, merged)
    arrays = [weights.transpose(0, 2, 3, 1).astype(kind), bias.astype(accumulator), *scales]
    _emit(program, node, single, units, table, [x, y], arrays, piece)


def overwrites(program: Program, node: ir.Node) -> bool:
    """Whether this Conv is done by PlaneDepthwise such that its output may lie on its input."""
    value, weights = node.inputs[0], program.graph.const(node.inputs[1])
    assert value is not None and weights is not None
    window, groups = window_of(program.graph, node), attribute(node, "group", 1)
    depthwise = window.rank == 4 and groups == window.channels == len(weights) > 1 and window.channels % PIXELS == 0
    same = window.input == window.output and window.strides == (1, 1)
    return depthwise and same and _slides(window) and paired_form(program, node, value, weights) is not None


def _inside(window: Window) -> bool:
    """Whether no cell outside the image is read."""
    return max(window.before) <= 0 and window.after() == (0, 0)


def _slides(window: Window) -> bool:
    """Whether PlaneDepthwise does this window."""
    return (
        window.kernel == (3, 3)
        and window.dilations == (1, 1)
        and window.strides[1] in (1, 2)
        and window.channels >= PIXELS
    )


def _work(window: Window) -> int:
    """Instructions of a plane, about: windows in fours, single ones, rows."""
    rows, columns = window.output
    return rows * (70 * (columns // PIXELS) + 35 * (columns % PIXELS) + 20)


def _turned(window: Window) -> Window:
    """Rows and columns exchanged."""
    pairs = ("input", "output", "kernel", "strides", "dilations", "before")
    return replace(window, **{name: getattr(window, name)[::-1] for name in pairs})


def _turned_view(view: View) -> View:
    return as_image(view).permuted((0, 1, 3, 2))


def _band(window: Window) -> int:
    """Output rows of four channels that are held at a time: all, or as many as the memory allows."""
    rows = window.output[0]
    while rows > 1 and 2 * PIXELS * _plane(window, rows) > _PLANES:
        rows = -(-rows // 2)
    return rows


def _plane(window: Window, rows: int) -> int:
    """Elements of so many output rows' windows in one channel, rows of an even length."""
    height, width = (rows - 1) * window.strides[0] + 3, (window.output[1] - 1) * window.strides[1] + 3
    return height * (-(-width // 2) * 2)


def _runs(weights: NDArray, merged: bool) -> NDArray[np.int8]:
    """[M, C/groups, KH, KW] -> [M, runs, elements of a run padded to fours]."""
    ordered = weights.transpose(0, 2, 3, 1)
    ordered = ordered.reshape(*ordered.shape[:2], -1) if merged else ordered.reshape(len(weights), -1, ordered.shape[3])
    padding = padded_run(ordered.shape[2]) - ordered.shape[2]
    return np.pad(ordered, ((0, 0), (0, 0), (0, padding)))


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
    line = replace(x, shape=(1, k, 1, rows), strides=(0, 1, 0, k), border=())
    out = replace(y, shape=(1, n, 1, rows), strides=(0, 1, 0, n), border=())
    window = Window(4, 1, k, (1, rows), (1, rows), (1, 1), (1, 1), (1, 1), (0, 0))
    product = np.ascontiguousarray(weights.T)[:, :, None, None]
    _product(program, node, value, product, window, 1, line, out, _WHOLE)
    settle(program, node.outputs[0], y)


def _emit(
    program: Program,
    node: ir.Node,
    spec: Any,
    units: int,
    table: NDArray,
    views: list[View],
    parameters: Sequence[Any],
    piece: Piece,
) -> None:
    steps = [piece.x_step, piece.y_step, *[0] * len(views)]
    program.call(
        spec,
        piece.rows or units,
        program.parameter(table, f"{node.name}/shape"),
        *(Argument(v.buffer, v.origin * v.itemsize, step) for v, step in zip(views, steps, strict=False)),
        *(program.parameter(p, f"{node.name}/parameters") for p in parameters),
        start=piece.start,
        advance=piece.advance,
        share=piece.share,
    )


def lower_clipped_pool(program: Program, node: ir.Node, value: ir.Value) -> None:
    """MaxPool and AveragePool."""
    window = window_of(program.graph, node)
    x = feed(program, value, program.view(value).dtype, 0, ((0, 0),) * window.rank, 0)
    y = target_of(program, node.outputs[0], 1)
    average = node.op_type == "AveragePool"
    requantize, parameters = _requantization(program, node, 1) if average else (None, [])
    spec = ScalarPool(x.dtype, requantize, bool(parameters) and parameters[0].size > 1)
    arguments = [program.parameter(p.ravel(), f"{node.name}/scale") for p in parameters]
    table = program.parameter(_table(node, window, x, y, 1, window.channels, window.channels), f"{node.name}/shape")
    program.call(spec, window.batch * window.output[0], table, x, y, *arguments)
    settle(program, node.outputs[0], y)
