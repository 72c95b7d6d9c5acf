"""Rules of the cuda target: products on tensor cores, windows and products of activations with a thread an element.

Everything else is the shared lowering's, one thread a unit (grid.py).
"""

from __future__ import annotations

from dataclasses import replace
from math import gcd, prod

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qcompiler.formats import Int
from qcompiler.graph.model import attribute
from qcompiler.targets.cuda.tile import choose_tile
from qcompiler.targets.cuda.tir.depthwise import Depthwise
from qcompiler.targets.cuda.tir.direct import BATCHED, WINDOW, DirectConv, DirectPool, DirectProduct, elements_launch
from qcompiler.targets.cuda.tir.epilogue import Codes, code_numbers, itemsize
from qcompiler.targets.cuda.tir.product import Product
from qcompiler.targets.cuda.tir.staging import CHUNK, NUMBERS, OUTSIDE
from qcompiler.targets.shared.geometry import Window, window_of
from qcompiler.targets.shared.lower import RULES, Rule
from qcompiler.targets.shared.lower_attention import batch_nest, batched, sums_of_products_fit
from qcompiler.targets.shared.lower_clipped import evenly, flat
from qcompiler.targets.shared.lower_products import transposed_window
from qcompiler.targets.shared.program import Program
from qcompiler.targets.shared.reads import (
    feed,
    format_of,
    requantize_inputs,
    requantize_of,
    settle,
    sums_fit,
    target_of,
)
from qcompiler.targets.shared.views import View, as_image

LEAST_INPUTS, LEAST_OUTPUTS = 4, 8
"""Channels of a group from which on its products go to tensor cores."""
LEAST_INNER = 16
"""The same of the inner dimension, without groups."""


def _format(node: ir.Node) -> Int:
    return format_of(node.outputs[0])


def lower_conv(program: Program, node: ir.Node) -> None:
    """Conv."""
    value, weights = node.inputs[0], program.graph.const(node.inputs[1])
    assert value is not None and weights is not None
    if weights.ndim == 3:
        weights = weights[:, :, None, :]
    _convolve(program, node, value, weights, window_of(program.graph, node), attribute(node, "group", 1))


def lower_conv_transpose(program: Program, node: ir.Node) -> None:
    """ConvTranspose: a convolution of the input with zeros between its cells."""
    value = node.inputs[0]
    assert value is not None
    window, weights, groups, spread = transposed_window(program, node)
    own = program.view(value)
    program.views[str(value.name)] = spread
    _convolve(program, node, value, weights, window, groups)
    program.views[str(value.name)] = own


def _convolve(program: Program, node: ir.Node, value: ir.Value, weights: NDArray, window: Window, groups: int) -> None:
    """weights: [M, C / groups, KH, KW]."""
    x = feed(program, value, program.view(value).dtype, 0, ((0, 0),) * window.rank, 0)
    bytes_ = format_of(value).bits <= 8 and weights.min() >= -128 and weights.max() <= 127
    enough = weights.shape[1] >= LEAST_INPUTS and len(weights) // groups >= LEAST_OUTPUTS
    if bytes_ and (enough or groups == 1 and weights.shape[1] * prod(window.kernel) >= LEAST_INNER):
        y = evenly(program, node.outputs[0], window)
        _product(program, node, x, y, weights, window, groups)
    else:
        y = target_of(program, node.outputs[0], 1)
        depthwise = bytes_ and groups == window.channels == len(weights) and _fours(x, y)
        (_depthwise if depthwise else _direct)(program, node, value, x, y, weights, window, groups)
    settle(program, node.outputs[0], y)


def _fours(x: View, y: View) -> bool:
    """Whether four channels are a word, in x and in y."""
    size = itemsize(y.dtype)
    return x.shape[1] % 4 == 0 and _grain(x, x.shape[1]) >= 4 and _store(y, y.shape[1], size) >= 4 * size


def _depthwise(
    program: Program, node: ir.Node, value: ir.Value, x: View, y: View, weights: NDArray, window: Window, groups: int
) -> None:
    rows, columns = window.output
    pixels = min(columns, 4 if window.strides[1] == 1 else 2)
    codes = Codes.of(requantize_of(node))
    spec = Depthwise(x.dtype, codes, window.kernel, window.strides[1], window.dilations, pixels)
    zero, taps = attribute(node, "x_zero_point", 0), weights[:, 0]
    bias = program.graph.const(node.inputs[2])
    assert bias is not None
    folded = (bias.astype(np.int64) - zero * taps.astype(np.int64).sum(axis=(1, 2))).astype(np.int32)
    total = window.batch * rows * columns * groups
    fill = int(np.full(4, zero, x.dtype).view(np.int32)[0])
    arrays = [spec.pack(taps), folded, *requantize_inputs(program, node, 3)]
    program.call(
        spec,
        total,
        x,
        y,
        *(program.parameter(p, f"{node.name}/parameters") for p in arrays),
        numbers=[
            *_window_numbers(node, window, x, y, 1, 1, total),
            groups,
            -(-columns // pixels),
            fill,
            *code_numbers(_format(node), attribute(node, "zero_point", 0)),
        ],
        launch=spec.launch(window.batch, rows, columns, groups),
    )


def _grain(x: View, inputs: int) -> int:
    """Bytes of x that may be copied at once, wherever a run begins."""
    image = as_image(x)
    distances = [stride for extent, stride in zip(image.shape, image.strides, strict=True) if extent > 1]
    common = gcd(inputs, x.origin, *(d for d in distances if d != 1), CHUNK)
    return common if common >= 4 else 1


def _store(y: View, channels: int, size: int) -> int:
    """Bytes of y that may be written at once."""
    image = as_image(y)
    distances = [stride for extent, stride in zip(image.shape, image.strides, strict=True) if extent > 1]
    return gcd(channels * size, y.origin * size, *(d * size for d in distances if d != 1), CHUNK)


def _product(program: Program, node: ir.Node, x: View, y: View, weights: NDArray, window: Window, groups: int) -> None:
    m, c, *kernel = weights.shape
    codes, size = Codes.of(requantize_of(node)), itemsize(y.dtype)
    pixels, channels = window.batch * prod(window.output), m // groups
    tile = choose_tile(program.machine.name, pixels, channels, c * prod(kernel), groups)
    tiles = -(-c * prod(kernel) // tile.step)
    grain = _grain(x, c)
    direct = flat(window, x) and grain >= 4
    spec = Product(x.dtype, codes, tile, grain, _store(y, channels, size), direct)
    zero = attribute(node, "x_zero_point", 0)
    ordered = weights.transpose(0, 2, 3, 1).reshape(m, -1).astype(np.int64)
    bias = program.graph.const(node.inputs[2])
    assert bias is not None
    # Sums may wrap around on the way: only the last one has to be the oracle's.
    folded = (bias.astype(np.int64) - zero * ordered.sum(axis=1)).astype(np.int32)
    padded = -(-channels // tile.channels) * tile.channels
    packed = np.zeros((groups, padded, tiles * tile.step), np.int8)
    packed[:, :channels, : ordered.shape[1]] = ordered.reshape(groups, channels, -1)
    xi, yi = as_image(x), as_image(y)
    table = np.zeros(2, np.int32) if direct else _runs(window, xi, c, grain, tiles * tile.step)
    values = {
        "pixels": pixels,
        "channels": channels,
        "tiles": tiles,
        "y_pixel": yi.strides[3] if window.output[1] > 1 or yi.shape[2] == 1 else yi.strides[2],
        "columns": window.output[1],
        "positions": prod(window.output),
        **dict(zip(("stride_y", "stride_x"), window.strides, strict=True)),
        **dict(zip(("before_y", "before_x"), window.before, strict=True)),
        **dict(zip(("height", "width"), window.input, strict=True)),
        **{f"x_{name}": xi.strides[d] for name, d in (("image", 0), ("row", 2), ("pixel", 3))},
        "x_group": c,
        "y_group": channels,
        "w_group": padded * tiles * tile.step,
        "p_group": padded,
    }
    if direct and window.output[1] == 1:
        values["x_pixel"] = xi.strides[2] if window.output[0] > 1 else xi.strides[0]
    if window.output[1] == 1:
        values["y_pixel"] = yi.strides[2] if window.output[0] > 1 else yi.strides[0]
    program.call(
        spec,
        0,
        x,
        y,
        program.parameter(packed, f"{node.name}/weights"),
        *(
            program.parameter(_padded(p, groups, padded), f"{node.name}/parameters")
            for p in (folded, *requantize_inputs(program, node, 3))
        ),
        program.parameter(table, f"{node.name}/table"),
        program.parameter(np.full(CHUNK, zero, x.dtype), f"{node.name}/line"),
        numbers=[*(values[name] for name in NUMBERS), *code_numbers(_format(node), attribute(node, "zero_point", 0))],
        launch=spec.launch(groups, pixels, channels),
    )


def _padded(values: NDArray, groups: int, padded: int) -> NDArray:
    """[M] -> [groups, padded]; shifts of channels that are not there have to be legal ones."""
    found = np.ones((groups, padded), values.dtype)
    found[:, : values.size // groups] = values.reshape(groups, -1)
    return found


def _runs(window: Window, x: View, inputs: int, grain: int, inner: int) -> NDArray[np.int32]:
    """Pairs (offset from the first tap, row << 16 | column) of every run; those behind the last one lie outside."""
    k = np.arange(inner // grain) * grain
    tap, channel = np.divmod(k, inputs)
    ky, kx = np.divmod(tap, window.kernel[1])
    row, column = ky * window.dilations[0], kx * window.dilations[1]
    offset = row * x.strides[2] + column * x.strides[3] + channel
    row = np.where(tap < prod(window.kernel), row, OUTSIDE)
    where = (row << 16) | (column & 0xFFFF)
    return np.stack([offset, where], axis=1).astype(np.int32).ravel()


def _window_numbers(
    node: ir.Node, window: Window, x: View, y: View, inputs: int, outputs: int, total: int
) -> list[int]:
    xi, yi = as_image(x).strides, as_image(y).strides
    values = [
        *window.output, *window.input, *window.kernel, *window.strides, *window.dilations, *window.before,
        xi[0], xi[2], xi[3], yi[0], yi[2], yi[3], inputs, outputs, total, attribute(node, "x_zero_point", 0),
    ]  # fmt: skip
    assert len(values) == len(WINDOW)
    return values


def _direct(
    program: Program, node: ir.Node, value: ir.Value, x: View, y: View, weights: NDArray, window: Window, groups: int
) -> None:
    m, c = weights.shape[:2]
    fmt, zero = format_of(value), attribute(node, "x_zero_point", 0)
    wide = fmt.bits > 8 and not sums_fit(program, node, fmt, zero, weights)
    kind = "int8" if weights.min() >= -128 and weights.max() <= 127 else "int16"
    spec = DirectConv(x.dtype, kind, Codes.of(requantize_of(node), wide=wide))
    bias = program.graph.const(node.inputs[2])
    assert bias is not None
    arrays = [weights.transpose(2, 3, 1, 0).astype(kind), bias.astype("int64" if wide else "int32")]
    total = window.batch * prod(window.output) * m
    program.call(
        spec,
        total,
        x,
        y,
        *(program.parameter(p, f"{node.name}/parameters") for p in (*arrays, *requantize_inputs(program, node, 3))),
        numbers=[
            *_window_numbers(node, window, x, y, c, m // groups, total),
            m,
            *code_numbers(_format(node), attribute(node, "zero_point", 0)),
        ],
        launch=elements_launch(total),
    )


def lower_matmul(program: Program, node: ir.Node) -> None:
    """x [..., K] @ w [K, N]: a 1x1 convolution over a line of pixels."""
    value, weights = node.inputs[0], program.graph.const(node.inputs[1])
    assert value is not None and weights is not None
    x, target = program.view(value), program.view(node.outputs[0])
    (k, n), rows = weights.shape, prod(x.shape[:-1])
    if not x.is_dense():
        dense = program.scratch(f"{value.name}/dense", x.dtype, x.shape, range(len(x.shape)))
        program.copy(x, dense)
        x = dense
    y = target
    if not target.is_dense():
        y = program.scratch(f"{node.outputs[0].name}/dense", target.dtype, target.shape, range(len(target.shape)))
    line = replace(x, shape=(1, k, 1, rows), strides=(rows * k, 1, rows * k, k), border=())
    out = replace(y, shape=(1, n, 1, rows), strides=(rows * n, 1, rows * n, n), border=())
    window = Window(4, 1, k, (1, rows), (1, rows), (1, 1), (1, 1), (1, 1), (0, 0))
    product = np.ascontiguousarray(weights.T)[:, :, None, None]
    if format_of(value).bits <= 8 and weights.min() >= -128 and weights.max() <= 127:
        _product(program, node, line, out, product, window, 1)
    else:
        _direct(program, node, value, line, out, product, window, 1)
    settle(program, node.outputs[0], y)


def lower_batch_matmul(program: Program, node: ir.Node) -> None:
    """a [..., M, K] @ b [..., K, N]."""
    a, b = (program.view(value) for value in node.inputs[:2])  # type: ignore[arg-type]
    y = program.view(node.outputs[0])
    batch = y.shape[:-2]
    a, b = batched(a, batch), batched(b, batch)
    nest = batch_nest(batch, a.strides[:-2], b.strides[:-2], y.strides[:-2])
    wide = max(format_of(v).bits for v in node.inputs[:2]) > 8 and not sums_of_products_fit(node, a.shape[-1])  # type: ignore[arg-type]
    spec = DirectProduct(a.dtype, b.dtype, Codes.of(requantize_of(node), wide=wide))
    total = prod(y.shape)
    values = {
        "total": total,
        "rows": a.shape[-2],
        "inner": a.shape[-1],
        "columns": b.shape[-1],
        "a_zero_point": attribute(node, "a_zero_point", 0),
        "b_zero_point": attribute(node, "b_zero_point", 0),
        **dict(zip(("a_row", "a_k"), a.strides[-2:], strict=True)),
        **dict(zip(("b_k", "b_n"), b.strides[-2:], strict=True)),
        **dict(zip(("y_row", "y_n"), y.strides[-2:], strict=True)),
        "extent1": nest.extents[1],
        "extent2": nest.extents[2],
        **{f"{v}{d}": nest.strides[i][d] for i, v in enumerate("aby") for d in range(3)},
    }
    scales = [program.parameter(p, f"{node.name}/scale") for p in requantize_inputs(program, node, 2)]
    codes = code_numbers(_format(node), attribute(node, "zero_point", 0))
    numbers = [*(values[name] for name in BATCHED), *codes]
    program.call(spec, total, a, b, y, *scales, numbers=numbers, launch=elements_launch(total))


def lower_pool(program: Program, node: ir.Node) -> None:
    """MaxPool and AveragePool."""
    value = node.inputs[0]
    assert value is not None
    window = window_of(program.graph, node)
    x = feed(program, value, program.view(value).dtype, 0, ((0, 0),) * window.rank, 0)
    y = target_of(program, node.outputs[0], 1)
    average = node.op_type == "AveragePool"
    scales = requantize_inputs(program, node, 1) if average else []
    per_position = bool(scales) and scales[0].size > 1
    spec = DirectPool(x.dtype, Codes.of(requantize_of(node)) if average else None, per_position)
    total = window.batch * prod(window.output) * window.channels
    codes = code_numbers(_format(node), attribute(node, "zero_point", 0)) if average else ()
    program.call(
        spec,
        total,
        x,
        y,
        *(program.parameter(p.ravel(), f"{node.name}/scale") for p in scales),
        numbers=[*_window_numbers(node, window, x, y, window.channels, window.channels, total), *codes],
        launch=elements_launch(total),
    )
    settle(program, node.outputs[0], y)


OWN: dict[str, Rule] = {
    "qcompiler::AveragePool": lower_pool,
    "qcompiler::BatchMatMul": lower_batch_matmul,
    "qcompiler::Conv": lower_conv,
    "qcompiler::ConvTranspose": lower_conv_transpose,
    "qcompiler::MatMul": lower_matmul,
    "qcompiler::MaxPool": lower_pool,
}
CUDA_RULES: dict[str, Rule] = {**RULES, **OWN}
