"""Schedules for cores with paired multiplies and no vectors: copy inputs once as int16, then multiply for many outputs.

`ColumnConv` gathers the inputs of four output pixels (their columns, im2col for four pixels at a time) and runs every
output channel over them. `PlaneDepthwise` takes four channels out of the image, with their padding, and slides the 3x3
windows over them. Cells outside the image hold the zero point, which the bias makes up for. The inner loops are
functions of targets/c/templates/; both schedules read their shapes from the table of `scalar.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from qcompiler.targets.shared.machine import Machine
from qcompiler.targets.shared.tir.builder import Expr, Kernel, Pointer
from qcompiler.targets.shared.tir.requantize import Requantize
from qcompiler.targets.shared.tir.scalar import FIELDS, Shape, finish, tap_range

PIXELS = 4
"""Output pixels that share a load of weights."""
CHANNELS = 16
"""Output channels whose sums wait for requantization together."""
SUFFIX = {"uint8": "u8", "int8": "s8"}
"""Of functions, by storage of the activations."""


@dataclass(frozen=True)
class Packing:
    """Weights of one format in blocks of `steps` times four, `size` bytes each (qc_dot.h)."""

    steps: int
    size: int
    bits: int
    lift: int
    """Products are larger by 2^lift: what is unpacked are the upper bits of a byte."""

    def row(self, kernel: Kernel, steps: Expr) -> Expr:
        """Bytes of so many steps."""
        return kernel.tirx.truncdiv(steps + (self.steps - 1), kernel.const(self.steps)) * self.size


PACKINGS = {
    "4": Packing(2, 4, 4, 4),
    "3": Packing(8, 12, 3, 5),
    "2": Packing(4, 4, 2, 6),
    "e2m1": Packing(2, 4, 4, 3),
    "e3m0": Packing(2, 4, 4, 0),
}
"""By bits of integers, or token of a minifloat."""


def padded_run(count: int) -> int:
    """Elements of a run in a column: whole groups of four."""
    return -(-count // 4) * 4


@dataclass(frozen=True)
class ColumnConv:
    """Dense or grouped convolution; weights int8 [M][runs][elements of a run, padded with zeros to fours].

    A run is a row of taps (kx, c) where that is contiguous in memory (`merged`), else the channels of one tap. Units
    are output rows; there are at least four pixels in a call, and they lie evenly in y, which is where row `lo` goes.
    """

    storage: str
    requantize: Requantize
    merged: bool
    flat: bool
    """Whether the window is one cell without stride or padding and pixels lie evenly in x as they do in y."""
    packing: str = ""
    """Of packed weights (pack.py), uint8 [M][blocks][bytes of a block]."""

    def build(self, name: str, machine: Machine) -> Any:
        """void name(lo, hi, shape, x, y, columns, w, bias, requantization...)."""
        kernel = Kernel(name)
        shape = Shape(kernel, kernel.pointer("shape", "int32"))
        x, y = kernel.pointer("x", self.storage), kernel.pointer("y", self.requantize.storage)
        columns = kernel.pointer("columns", "int16")
        packing = PACKINGS.get(self.packing)
        w, bias = kernel.pointer("w", "uint8" if packing else "int8"), kernel.pointer("bias", "int32")
        scales = self.requantize.parameters(kernel)
        shape.load(*FIELDS)
        tirx = kernel.tirx
        run = kernel.let(shape.kernel_x * shape.inputs) if self.merged else shape.inputs
        steps = kernel.let(tirx.truncdiv(run + 3, kernel.const(4)))
        runs = shape.kernel_y if self.merged else kernel.let(shape.kernel_y * shape.kernel_x)
        all_steps = kernel.let(runs * steps)
        row, dot = kernel.let(all_steps * 4), "qc_dot_x4"
        if packing:
            row, dot = kernel.let(packing.row(kernel, all_steps)), f"qc_dot_x4_w{self.packing}"
        first = kernel.let(kernel.lo * shape.columns)
        behind = kernel.let(kernel.hi * shape.columns)
        gather = f"qc_column_{SUFFIX[self.storage]}"

        def column(t: Expr, pixel: Expr, x_group: Expr) -> None:
            row = kernel.let(tirx.truncdiv(pixel, shape.columns))
            ox = kernel.let(pixel - row * shape.columns)
            image = kernel.let(tirx.truncdiv(row, shape.rows))
            iy = kernel.let((row - image * shape.rows) * shape.stride_y - shape.before_y)
            ix = kernel.let(ox * shape.stride_x - shape.before_x)
            ky0, ky1 = tap_range(kernel, iy, shape.kernel_y, shape.dilation_y, shape.height)
            kx0, kx1 = tap_range(kernel, ix, shape.kernel_x, shape.dilation_x, shape.width)
            x_at = kernel.let(image * shape.x_image + iy * shape.x_row + ix * shape.x_pixel + x_group)
            taken = kernel.let(tirx.max(kernel.const(0), kx1 - kx0))

            def put(index: Expr, source: Expr, lead: Expr, count: Expr, tail: Expr) -> None:
                to = kernel.let(index * (steps * 16) + t * 2)
                kernel.extern(gather, (columns, to), (x, source), lead, count, tail, shape.x_zero_point)

            with kernel.loop(shape.kernel_y) as ky:
                inside = kernel.let(tirx.And(ky >= ky0, ky < ky1))
                x_row = kernel.let(x_at + ky * (shape.dilation_y * shape.x_row))
                if self.merged:
                    count = kernel.let(tirx.Select(inside, taken * shape.inputs, kernel.const(0)))
                    lead = kernel.let(tirx.Select(count > 0, kx0 * shape.inputs, kernel.const(0)))
                    source = kernel.let(tirx.Select(count > 0, x_row + lead, kernel.const(0)))
                    put(ky, source, lead, count, run - lead - count)
                else:
                    with kernel.loop(shape.kernel_x) as kx:
                        here = kernel.let(tirx.And(inside, tirx.And(kx >= kx0, kx < kx1)))
                        count = kernel.let(tirx.Select(here, run, kernel.const(0)))
                        source = kernel.let(
                            tirx.Select(here, x_row + kx * (shape.dilation_x * shape.x_pixel), kernel.const(0))
                        )
                        put(ky * shape.kernel_x + kx, source, kernel.const(0), count, run - count)

        blocks = kernel.let(tirx.truncdiv(shape.outputs + (CHANNELS - 1), kernel.const(CHANNELS)))
        with kernel.loop(shape.groups) as g:
            x_group, channel = kernel.let(g * shape.inputs), kernel.let(g * shape.outputs)
            with kernel.loop(tirx.truncdiv(behind - first + (PIXELS - 1), kernel.const(PIXELS))) as i:
                # The last four pixels of a call reach back over pixels that were done already.
                pixel = kernel.let(tirx.min(first + i * PIXELS, behind - PIXELS))
                with kernel.loop(PIXELS) as t:
                    if self.flat:
                        source = kernel.let(x_group + (pixel + t) * shape.x_pixel)
                        kernel.extern(gather, (columns, t * 2), (x, source), 0, run, 0, shape.x_zero_point)
                    else:
                        column(t, kernel.let(pixel + t), x_group)
                y_at = kernel.let((pixel - first) * shape.y_pixel)
                with kernel.loop(blocks) as b:
                    m = kernel.let(channel + b * CHANNELS)
                    count = kernel.let(tirx.min(channel + shape.outputs - m, kernel.const(CHANNELS)))
                    acc = kernel.local(PIXELS * CHANNELS, "int32")
                    kernel.extern(dot, (columns, 0), (w, m * row), all_steps, (bias, m), count, (acc, 0))
                    with kernel.loop(count) as c:
                        parameters = self.requantize.load(kernel, scales, m + c, 1)
                        to = kernel.let(y_at + m + c)
                        for t in range(PIXELS):
                            total = acc.load(c * PIXELS + t)
                            code = self.requantize.apply(kernel, total, parameters, 1, shape.zero_point)
                            y.store(to + t * shape.y_pixel, code)
        return kernel.function()


@dataclass(frozen=True)
class PackedLine:
    """A matrix product for few rows, weights packed as in ColumnConv. Units are rows of x."""

    storage: str
    requantize: Requantize
    packing: str

    def build(self, name: str, machine: Machine) -> Any:
        """void name(lo, hi, shape, x, y, w, bias, requantization...)."""
        kernel = Kernel(name)
        shape = Shape(kernel, kernel.pointer("shape", "int32"))
        x, y = kernel.pointer("x", self.storage), kernel.pointer("y", self.requantize.storage)
        w, bias = kernel.pointer("w", "uint8"), kernel.pointer("bias", "int32")
        scales = self.requantize.parameters(kernel)
        shape.load("columns", "x_pixel", "y_pixel", "inputs", "outputs", "zero_point")
        steps = kernel.tirx.truncdiv(shape.inputs + 3, kernel.const(4))
        row = kernel.let(PACKINGS[self.packing].row(kernel, steps))
        with (
            kernel.loop(kernel.hi * shape.columns, kernel.lo * shape.columns) as pixel,
            kernel.loop(shape.outputs) as m,
        ):
            acc = kernel.local(1, "int32")
            name = f"qc_line_{SUFFIX[self.storage]}_w{self.packing}"
            kernel.extern(name, (x, pixel * shape.x_pixel), (w, m * row), shape.inputs, bias.load(m), (acc, 0))
            code = finish(kernel, self.requantize, acc.load(0), scales, m, shape.zero_point)
            y.store(pixel * shape.y_pixel + m, code)
        return kernel.function()


@dataclass(frozen=True)
class PlaneDepthwise:
    """Depthwise 3x3 convolution, dilation 1, at least four channels; weights int8 [C][3][3]. Units are images.

    Windows slide along what the table calls a row; a table with rows and columns exchanged slides them down the image.
    Four channels at a time are copied out, a band of rows after the other, before their outputs are written: y may lie
    on x where their shapes are equal and the channels a multiple of four (else the last four channels reach back).
    """

    storage: str
    requantize: Requantize
    stride: int
    """Along a row, 1 or 2."""

    KERNEL = 3

    def build(self, name: str, machine: Machine) -> Any:
        """void name(lo, hi, shape, x, y, planes, w, bias, requantization...)."""
        kernel = Kernel(name)
        shape = Shape(kernel, kernel.pointer("shape", "int32"))
        x, y = kernel.pointer("x", self.storage), kernel.pointer("y", self.requantize.storage)
        planes = kernel.pointer("planes", "int16")
        w, bias = kernel.pointer("w", "int8"), kernel.pointer("bias", "int32")
        scales = self.requantize.parameters(kernel)
        shape.load(*FIELDS)
        tirx, zero = kernel.tirx, kernel.const(0)
        width = kernel.let((shape.columns - 1) * self.stride + self.KERNEL)
        pitch = kernel.let(tirx.truncdiv(width + 1, kernel.const(2)) * 2)
        plane = kernel.let(((shape.band - 1) * shape.stride_y + self.KERNEL) * pitch)
        overlap = kernel.let(tirx.max(zero, self.KERNEL - shape.stride_y))
        outside = kernel.let(kernel.cast(shape.x_zero_point, "int16"))
        ix0 = kernel.let(tirx.max(zero, zero - shape.before_x))
        ix1 = kernel.let(tirx.min(shape.width, width - shape.before_x))
        bands = kernel.let(tirx.truncdiv(shape.rows + shape.band - 1, shape.band))
        blocks = kernel.let(tirx.truncdiv(shape.inputs + (PIXELS - 1), kernel.const(PIXELS)))

        def clear(start: Expr, count: Expr) -> None:
            """Elements start .. start + count - 1 of all planes = the zero point."""
            with kernel.loop(count) as i, kernel.loop(PIXELS) as t:
                planes.store(t * plane + start + i, outside)

        def fill(first: Expr, rows: Expr, skipped: Expr, image_at: Expr) -> None:
            """Planes of the windows of output rows first.., but for the `skipped` rows that are there already."""
            with kernel.loop((rows - 1) * shape.stride_y + self.KERNEL, skipped) as j:
                iy = kernel.let(first * shape.stride_y - shape.before_y + j)
                to = kernel.let(j * pitch + ix0 + shape.before_x)
                inside = kernel.let(tirx.And(iy >= 0, iy < shape.height))
                function = f"qc_planes_{SUFFIX[self.storage]}"
                source = (x, image_at + iy * shape.x_row)
                kernel.when(
                    inside, lambda: kernel.extern(function, (planes, to), plane, source, shape.x_pixel, ix1 - ix0)
                )
                # A single band finds the rows outside as they were filled at first.
                kernel.when(tirx.And(tirx.Not(inside), bands > 1), lambda: clear(to, ix1 - ix0))

        kernel.extern("qc_planes_fill", (planes, 0), plane * PIXELS, shape.x_zero_point)
        with kernel.loop(kernel.hi, kernel.lo) as image, kernel.loop(blocks) as block:
            c = kernel.let(tirx.min(block * PIXELS, shape.inputs - PIXELS))
            image_at = kernel.let(image * shape.x_image + ix0 * shape.x_pixel + c)
            with kernel.loop(bands) as band:
                first = kernel.let(band * shape.band)
                rows = kernel.let(tirx.min(shape.band, shape.rows - first))
                kept = kernel.let(tirx.Select(band > 0, overlap, zero))
                with kernel.loop(kept * pitch) as i, kernel.loop(PIXELS) as t:
                    moved = planes.load(t * plane + shape.band * (shape.stride_y * pitch) + i)
                    planes.store(t * plane + i, moved)
                fill(first, rows, kept, image_at)
                with kernel.loop(PIXELS) as t:
                    y_at = kernel.let(image * shape.y_image + first * shape.y_row + c + t)
                    self._outputs(kernel, shape, planes, (w, bias, scales), kernel.let(c + t), t * plane, rows, y, y_at)
        return kernel.function()

    def _outputs(
        self,
        kernel: Kernel,
        shape: Shape,
        planes: Pointer,
        constants: tuple[Pointer, Pointer, list[Pointer]],
        c: Expr,
        plane_at: Expr,
        rows: Expr,
        y: Pointer,
        y_at: Expr,
    ) -> None:
        """Some rows of one channel, out of its plane."""
        w, bias, scales = constants
        tirx = kernel.tirx
        width = (shape.columns - 1) * self.stride + self.KERNEL
        pitch = kernel.let(tirx.truncdiv(width + 1, kernel.const(2)) * 2)
        fmt, block = self.requantize.format, kernel.local(11, "uint32")
        kernel.extern("qc_taps_3x3", (w, c * (self.KERNEL * self.KERNEL)), (block, 0))
        parameters = self.requantize.load(kernel, scales, c, 1)
        words = [bias.load(c), *parameters, shape.zero_point * 2 + 1, shape.y_pixel]
        for i, word in enumerate(words if self._whole else words[:1]):
            block.store(6 + i, kernel.cast(word, "uint32"))
        with kernel.loop(rows) as oy:
            x_row = kernel.let(plane_at + oy * (shape.stride_y * pitch))
            y_row = kernel.let(y_at + oy * shape.y_row)

            def pixels(ox: Expr, count: int) -> None:
                acc = kernel.local(count, "int32")
                name = "qc_window_3x3_x1" if count == 1 else f"qc_window_3x3_s{self.stride}_x{count}"
                kernel.extern(name, (planes, x_row + ox * self.stride), pitch, (block, 0), (acc, 0))
                for i in range(count):
                    code = self.requantize.apply(kernel, acc.load(i), parameters, 1, shape.zero_point)
                    y.store(y_row + (ox + i) * shape.y_pixel, code)

            if self._whole:
                name = f"qc_row_3x3_s{self.stride}_{SUFFIX[str(fmt.storage)]}"
                kernel.extern(name, (planes, x_row), pitch, (block, 0), (y, y_row), shape.columns)
            else:
                fours = kernel.let(tirx.truncdiv(shape.columns, kernel.const(PIXELS)))
                with kernel.loop(fours) as four:
                    pixels(kernel.let(four * PIXELS), PIXELS)
                with kernel.loop(shape.columns, fours * PIXELS) as ox:
                    pixels(ox, 1)

    @property
    def _whole(self) -> bool:
        """Whether qc_planes.h has a function for a row of these codes."""
        fmt = self.requantize.format
        return self.requantize.high and fmt.bits == 8 and fmt.max - fmt.min == 255
