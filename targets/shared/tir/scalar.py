"""Schedules for processors without vectors: small code, no borders in memory.

The same operators as `matrix.py` and `window.py`. Shapes are not in the code but in a table of int32 that each call
passes, so all layers of a kind share one function. Padding costs no RAM: at the rim the loops over kernel rows and
columns are shorter. Activations stay in their own storage, and the zero point is subtracted as they are read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcompiler.targets.shared.geometry import Window
from qcompiler.targets.shared.machine import Machine
from qcompiler.targets.shared.tir.builder import Expr, Kernel, Pointer
from qcompiler.targets.shared.tir.requantize import Requantize

FIELDS = (
    *("rows", "columns", "height", "width", "kernel_y", "kernel_x", "stride_y", "stride_x", "dilation_y", "dilation_x"),
    *("before_y", "before_x", "x_image", "x_row", "x_pixel", "y_image", "y_row", "y_pixel"),
    *("groups", "inputs", "outputs", "x_zero_point", "zero_point", "band"),
)
"""The table of a call, in this order. rows, columns: of the output; inputs, outputs: channels of one group; band:
output rows that PlaneDepthwise holds at a time."""


def shape_table(
    window: Window,
    x_strides: tuple[int, int, int],
    y_strides: tuple[int, int, int],
    *,
    groups: int,
    inputs: int,
    outputs: int,
    x_zero_point: int,
    zero_point: int,
    band: int,
) -> NDArray[np.int32]:
    """FIELDS of one call. Strides (image, row, pixel) in elements."""
    values = [
        *window.output,
        *window.input,
        *window.kernel,
        *window.strides,
        *window.dilations,
        *window.before,
        *x_strides,
        *y_strides,
        groups,
        inputs,
        outputs,
        x_zero_point,
        zero_point,
        band,
    ]
    return np.array(values, np.int32)


class Shape:
    """The fields of the table as named expressions."""

    def __init__(self, kernel: Kernel, table: Pointer) -> None:
        self._kernel, self._table = kernel, table
        self._loaded: dict[str, Expr] = {}

    def load(self, *names: str) -> None:
        """Read fields once, here."""
        for name in names:
            self._loaded[name] = self._kernel.let(self._table.load(FIELDS.index(name)))

    def __getattr__(self, name: str) -> Expr:
        return self._loaded[name]


Taps = tuple[Expr, Expr, Expr, Expr]
"""First and behind-the-last tap: rows, then columns."""


def tap_range(kernel: Kernel, start: Expr, taps: Expr, step: Expr, extent: Expr) -> tuple[Expr, Expr]:
    """Taps k of 0..taps for which 0 <= start + k * step < extent."""
    tirx = kernel.tirx
    one = kernel.const(1)
    skipped = tirx.truncdiv(step - one - start, step)
    first = kernel.let(tirx.max(kernel.const(0), skipped))
    behind = kernel.let(tirx.min(taps, tirx.truncdiv(extent + step - one - start, step)))
    return first, behind


@contextmanager
def _pixels(kernel: Kernel, shape: Shape) -> Iterator[tuple[Expr, Expr, Expr, Taps]]:
    """Loop over output pixels of units lo..hi (rows of all images): (x offset of tap 0, y offset, position, taps).

    y is where row `lo` goes; with several images lo is 0.
    """
    shape.load(*FIELDS[:18])
    with kernel.loop(kernel.hi, kernel.lo) as u:
        image = kernel.let(kernel.tirx.truncdiv(u, shape.rows))
        oy = kernel.let(u - image * shape.rows)
        iy = kernel.let(oy * shape.stride_y - shape.before_y)
        ky0, ky1 = tap_range(kernel, iy, shape.kernel_y, shape.dilation_y, shape.height)
        x_row = kernel.let(image * shape.x_image + iy * shape.x_row)
        y_row = kernel.let(image * shape.y_image + (oy - kernel.lo) * shape.y_row)
        with kernel.loop(shape.columns) as ox:
            ix = kernel.let(ox * shape.stride_x - shape.before_x)
            kx0, kx1 = tap_range(kernel, ix, shape.kernel_x, shape.dilation_x, shape.width)
            x_at = kernel.let(x_row + ix * shape.x_pixel)
            yield x_at, kernel.let(y_row + ox * shape.y_pixel), oy * shape.columns + ox, (ky0, ky1, kx0, kx1)


def finish(kernel: Kernel, requantize: Requantize, acc: Expr, scales: list[Pointer], at: Expr, zero: Expr) -> Expr:
    """The code of an accumulator, with the parameters that stand at index `at`."""
    return requantize.apply(kernel, acc, requantize.load(kernel, scales, at, 1), 1, zero)


@dataclass(frozen=True)
class ScalarConv:
    """Dense or grouped convolution; weights [M][KH][KW][C / groups] as they are, four output channels at a time."""

    storage: str
    weight: str
    accumulator: str
    requantize: Requantize
    merged: bool
    """Whether a row of taps (kx, c) is one contiguous run."""
    dot: str = ""
    """External function for four channels: (x, w, run, panel, sums); the table's zero point of x is then 0."""

    TILE = 4

    def build(self, name: str, machine: Machine) -> Any:
        """void name(lo, hi, shape, x, y, w, bias, requantization...)."""
        kernel = Kernel(name)
        shape = Shape(kernel, kernel.pointer("shape", "int32"))
        x, y = kernel.pointer("x", self.storage), kernel.pointer("y", self.requantize.storage)
        w, bias = kernel.pointer("w", self.weight), kernel.pointer("bias", self.accumulator)
        scales = self.requantize.parameters(kernel)
        shape.load(*FIELDS)
        panel = kernel.let(shape.kernel_y * shape.kernel_x * shape.inputs)
        zero = kernel.let(kernel.cast(shape.x_zero_point, self.accumulator))

        def run(x_from: Expr, w_from: Expr, length: Expr, acc: Pointer, count: int) -> None:
            if self.dot and count == self.TILE:
                kernel.extern(self.dot, (x, x_from), (w, w_from), length, panel, (acc, 0))
                return
            with kernel.loop(length) as k:
                value = kernel.let(kernel.cast(x.load(x_from + k), self.accumulator) - zero)
                for t in range(count):
                    weight = kernel.cast(w.load(w_from + t * panel + k), self.accumulator)
                    acc.store(t, acc.load(t) + value * weight)

        with _pixels(kernel, shape) as (x_at, y_at, _, (ky0, ky1, kx0, kx1)):

            def block(first: Expr, count: int, x_group: Expr) -> None:
                acc = kernel.local(count, self.accumulator)
                for t in range(count):
                    acc.store(t, bias.load(first + t))
                with kernel.loop(ky1, ky0) as ky:
                    x_ky = kernel.let(x_group + ky * (shape.dilation_y * shape.x_row))
                    w_ky = kernel.let(first * panel + ky * (shape.kernel_x * shape.inputs))
                    if self.merged:
                        begin = kernel.let(kx0 * shape.inputs)
                        run(kernel.let(x_ky + begin), kernel.let(w_ky + begin), (kx1 - kx0) * shape.inputs, acc, count)
                    else:
                        with kernel.loop(kx1, kx0) as kx:
                            x_kx = kernel.let(x_ky + kx * (shape.dilation_x * shape.x_pixel))
                            run(x_kx, kernel.let(w_ky + kx * shape.inputs), shape.inputs, acc, count)
                for t in range(count):
                    code = finish(kernel, self.requantize, acc.load(t), scales, first + t, shape.zero_point)
                    y.store(y_at + first + t, code)

            with kernel.loop(shape.groups) as g:
                x_group = kernel.let(x_at + g * shape.inputs)
                whole = kernel.let(kernel.tirx.truncdiv(shape.outputs, kernel.const(self.TILE)))
                with kernel.loop(whole) as b:
                    block(kernel.let(g * shape.outputs + b * self.TILE), self.TILE, x_group)
                with kernel.loop(shape.outputs, whole * self.TILE) as m:
                    block(kernel.let(g * shape.outputs + m), 1, x_group)
        return kernel.function()


@dataclass(frozen=True)
class ScalarDepthwise:
    """Depthwise convolution; weights [KH][KW][C]."""

    storage: str
    weight: str
    requantize: Requantize

    def build(self, name: str, machine: Machine) -> Any:
        """void name(lo, hi, shape, x, y, w, bias, requantization...)."""
        kernel = Kernel(name)
        shape = Shape(kernel, kernel.pointer("shape", "int32"))
        x, y = kernel.pointer("x", self.storage), kernel.pointer("y", self.requantize.storage)
        w, bias = kernel.pointer("w", self.weight), kernel.pointer("bias", "int32")
        scales = self.requantize.parameters(kernel)
        shape.load(*FIELDS)
        with _pixels(kernel, shape) as (x_at, y_at, _, taps), kernel.loop(shape.inputs) as c:
            acc = kernel.local(1, "int32")
            acc.store(0, bias.load(c))

            def tap(x_tap: Expr, w_tap: Expr) -> None:
                value = kernel.cast(x.load(x_tap + c), "int32") - shape.x_zero_point
                acc.store(0, acc.load(0) + value * kernel.cast(w.load(w_tap * shape.inputs + c), "int32"))

            _window(kernel, shape, x_at, taps, tap)
            y.store(y_at + c, finish(kernel, self.requantize, acc.load(0), scales, c, shape.zero_point))
        return kernel.function()


@dataclass(frozen=True)
class ScalarPool:
    """Max or average pooling; cells outside the image do not exist."""

    storage: str
    requantize: Requantize | None
    per_position: bool

    def build(self, name: str, machine: Machine) -> Any:
        """void name(lo, hi, shape, x, y, requantization...)."""
        kernel = Kernel(name)
        requantize = self.requantize
        shape = Shape(kernel, kernel.pointer("shape", "int32"))
        x = kernel.pointer("x", self.storage)
        y = kernel.pointer("y", requantize.storage if requantize else self.storage)
        scales: list[Pointer] = requantize.parameters(kernel) if requantize else []
        lowest = {"uint8": 0, "int8": -128, "uint16": 0, "int16": -32768}[self.storage]
        shape.load(*FIELDS)
        with _pixels(kernel, shape) as (x_at, y_at, position, taps), kernel.loop(shape.inputs) as c:
            acc = kernel.local(1, "int32")
            acc.store(0, kernel.const(0 if requantize else lowest))

            def tap(x_tap: Expr, w_tap: Expr) -> None:
                value = kernel.cast(x.load(x_tap + c), "int32")
                if requantize:
                    acc.store(0, acc.load(0) + (value - shape.x_zero_point))
                else:
                    acc.store(0, kernel.tirx.max(acc.load(0), value))

            _window(kernel, shape, x_at, taps, tap)
            if requantize is None:
                y.store(y_at + c, kernel.cast(acc.load(0), self.storage))
            else:
                at = position if self.per_position else kernel.const(0)
                y.store(y_at + c, finish(kernel, requantize, acc.load(0), scales, at, shape.zero_point))
        return kernel.function()


def _window(kernel: Kernel, shape: Shape, x_at: Expr, taps: Taps, tap: Callable[[Expr, Expr], None]) -> None:
    """tap(x offset, index of the tap) for every cell of the clipped window."""
    ky0, ky1, kx0, kx1 = taps
    with kernel.loop(ky1, ky0) as ky:
        x_ky = kernel.let(x_at + ky * (shape.dilation_y * shape.x_row))
        with kernel.loop(kx1, kx0) as kx:
            tap(kernel.let(x_ky + kx * (shape.dilation_x * shape.x_pixel)), ky * shape.kernel_x + kx)
