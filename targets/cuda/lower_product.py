"""Products on tensor cores as calls: packed weights, tables of runs, numbers."""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd, prod

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qcompiler.graph.model import attribute
from qcompiler.targets.cuda.fuse import Step
from qcompiler.targets.cuda.pack import bits_of, pack_weights
from qcompiler.targets.cuda.tile import Shape, choose_tile
from qcompiler.targets.cuda.tir.epilogue import Codes, code_numbers, itemsize
from qcompiler.targets.cuda.tir.product import PARTS, Product
from qcompiler.targets.cuda.tir.staging import NUMBERS, OUTSIDE
from qcompiler.targets.cuda.tir.tile import CHUNK, LINE, LINES, Tile
from qcompiler.targets.shared.geometry import Window
from qcompiler.targets.shared.lower_clipped import flat
from qcompiler.targets.shared.program import Argument, Program
from qcompiler.targets.shared.reads import format_of, requantize_inputs, requantize_of
from qcompiler.targets.shared.views import Buffer, View, as_image


def grain_of(x: View, inputs: int) -> int:
    """Bytes of x that may be copied at once, wherever a run begins."""
    image = as_image(x)
    distances = [stride for extent, stride in zip(image.shape, image.strides, strict=True) if extent > 1]
    common = gcd(inputs, x.origin, *(d for d in distances if d != 1), CHUNK)
    return common if common >= 4 else 1


def store_of(y: View, channels: int, size: int) -> int:
    """Bytes of y that may be written at once."""
    image = as_image(y)
    distances = [stride for extent, stride in zip(image.shape, image.strides, strict=True) if extent > 1]
    return gcd(channels * size, y.origin * size, *(d * size for d in distances if d != 1), CHUNK)


def product(
    program: Program,
    node: ir.Node,
    x: View,
    y: View,
    weights: NDArray,
    window: Window,
    groups: int,
    steps: Sequence[Step] = (),
) -> None:
    """Conv or MatMul of bytes on tensor cores, with what follows it (`steps`). weights: [M, C / groups, KH, KW]."""
    m, c, *kernel = weights.shape
    codes, size, tails = Codes.of(requantize_of(node)), itemsize(y.dtype), tuple(step.tail for step in steps)
    pixels, channels = window.batch * prod(window.output), m // groups
    inner = c * prod(kernel)
    narrow = format_of(node.inputs[0]).bits <= 4  # type: ignore[arg-type]
    shape = Shape(pixels, channels, inner, groups)
    choice = choose_tile(program.machine.name, shape, bits_of(weights, inner), narrow=narrow)
    tile, bits, split = choice.tile, choice.bits, choice.parts > 1
    tiles = -(-inner // tile.step)
    grain = grain_of(x, c)
    direct = flat(window, x) and grain >= 4
    store = store_of(y, channels, size)
    spec = Product(x.dtype, codes, tile, grain, store, direct, tails, bits, choice.narrow, split)
    zero = attribute(node, "x_zero_point", 0)
    ordered = weights.transpose(0, 2, 3, 1).reshape(m, -1).astype(np.int64)
    bias = program.graph.const(node.inputs[2])
    assert bias is not None
    # Sums may wrap around on the way: only the last one has to be the oracle's.
    folded = (bias.astype(np.int64) - zero * ordered.sum(axis=1)).astype(np.int32)
    padded = -(-channels // tile.channels) * tile.channels
    packed = pack_weights(ordered.reshape(groups, channels, -1), tile, bits)
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
        "w_group": packed.size // groups,
        "p_group": padded,
        "parts": choice.parts,
        "part_tiles": -(-tiles // choice.parts),
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
        program.parameter(np.full(CHUNK if direct else LINES * LINE, zero, x.dtype), f"{node.name}/line"),
        *(step.pointer for step in steps),
        *(_meeting(program, node, tile, prod(spec.launch(groups, pixels, channels).grid), choice.parts)),
        numbers=[
            *(values[name] for name in (*NUMBERS, *(PARTS if split else ()))),
            *code_numbers(requantize_of(node)),
            *(number for step in steps for number in step.numbers),
        ],
        launch=spec.launch(groups, pixels, channels, choice.parts),
    )


def _meeting(program: Program, node: ir.Node, tile: Tile, blocks: int, parts: int) -> list[View | Argument]:
    """Where blocks with parts of the same sums put them, and count; nothing where there is one part.

    Counters are 0 when a kernel begins and when it ends, so that all kernels have the same ones.
    """
    if parts == 1:
        return []
    sums = program.scratch(f"{node.name}/sums", "int32", (blocks * parts * tile.pixels * tile.channels,), (0,))
    known = {a.buffer for call in program.calls for a in call.arguments if a.buffer.kind == "counters"}
    counters = next(iter(known), None) or Buffer("counters", 0, "counters")
    counters.bytes = max(counters.bytes, 4 * blocks)
    return [sums, Argument(counters)]


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
