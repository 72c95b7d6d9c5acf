"""Schedules for processors without vectors: no borders in memory, windows are clipped instead.

The same operators as `matrix.py` and `window.py`. Padding costs no RAM: at the rim the loops over kernel rows and
columns are shorter. Activations stay in their own storage, and the zero point is subtracted as they are read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from qcompiler.targets.shared.geometry import Window
from qcompiler.targets.shared.machine import Machine
from qcompiler.targets.shared.tir.builder import Expr, Kernel, Pointer
from qcompiler.targets.shared.tir.requantize import Requantize


@dataclass(frozen=True)
class Clipped:
    """A window over channels-last images without borders. Strides in elements, channels contiguous."""

    window: Window
    x_strides: tuple[int, int, int]
    """(image, row, pixel) of x; x points at its first element."""
    y_strides: tuple[int, int, int]

    @property
    def units(self) -> int:
        """Output rows of all images."""
        return self.window.batch * self.window.output[0]

    def range_of(self, kernel: Kernel, out: Expr, d: int) -> tuple[Expr, Expr, Expr]:
        """(first input index, first tap, behind the last tap) of output index `out` in dimension d (0 rows)."""
        w, tirx = self.window, kernel.tirx
        start = out * w.strides[d] - w.before[d]
        size, step, extent = w.kernel[d], w.dilations[d], w.input[d]
        first: Expr = 0
        behind: Expr = size
        if w.before[d] > 0:
            first = kernel.let(
                tirx.max(kernel.const(0), tirx.truncdiv(kernel.const(step - 1) - start, kernel.const(step)))
            )
        if w.after()[d] > 0:
            room = kernel.const(extent + step - 1) - start
            behind = kernel.let(tirx.min(kernel.const(size), tirx.truncdiv(room, kernel.const(step))))
        return start if isinstance(start, int) else kernel.let(start), first, behind

    def pixels(self, kernel: Kernel, body: Callable[[Expr, Expr, Expr, tuple[Expr, Expr, Expr, Expr]], None]) -> None:
        """body(x offset of tap (0, 0), y offset, position, (ky0, ky1, kx0, kx1)) for every output pixel."""
        rows, columns = self.window.output
        with kernel.loop(kernel.hi, kernel.lo) as u:
            image = kernel.let(u // rows) if self.window.batch > 1 else 0
            oy = kernel.let(u % rows) if self.window.batch > 1 else u
            iy, ky0, ky1 = self.range_of(kernel, oy, 0)
            x_row = kernel.let(image * self.x_strides[0] + iy * self.x_strides[1])
            y_row = kernel.let(image * self.y_strides[0] + oy * self.y_strides[1])
            with kernel.loop(columns) as ox:
                ix, kx0, kx1 = self.range_of(kernel, ox, 1)
                x_at = kernel.let(x_row + ix * self.x_strides[2])
                y_at = kernel.let(y_row + ox * self.y_strides[2])
                body(x_at, y_at, oy * columns + ox, (ky0, ky1, kx0, kx1))


@dataclass(frozen=True)
class ScalarConv:
    """Dense or grouped convolution; weights [M][KH][KW][C / groups] as they are, `tile` output channels at a time."""

    clipped: Clipped
    groups: int
    group_channels: int
    outputs: int
    """Output channels of one group."""
    storage: str
    zero_point: int
    weight: str
    accumulator: str
    requantize: Requantize
    tile: int

    def build(self, name: str, machine: Machine) -> Any:
        """void name(lo, hi, x, y, w, bias, requantization...)."""
        kernel = Kernel(name)
        x, y = kernel.pointer("x", self.storage), kernel.pointer("y", self.requantize.storage)
        w, bias = kernel.pointer("w", self.weight), kernel.pointer("bias", self.accumulator)
        scales = self.requantize.parameters(kernel)
        window, c = self.clipped.window, self.group_channels
        kh, kw = window.kernel
        panel = kh * kw * c
        pixel = self.clipped.x_strides[2]
        merged = self.groups == 1 and window.dilations[1] == 1 and pixel == c

        def at_pixel(x_at: Expr, y_at: Expr, position: Expr, taps: tuple[Expr, Expr, Expr, Expr]) -> None:
            ky0, ky1, kx0, kx1 = taps

            def block(first: Expr, count: int, x_group: Expr) -> None:
                acc = kernel.local(count, self.accumulator)
                for t in range(count):
                    acc.store(t, bias.load(first + t))

                def run(x_from: Expr, w_from: Expr, begin: Expr, end: Expr) -> None:
                    with kernel.loop(end, begin) as k:
                        value = kernel.cast(x.load(x_from + k), self.accumulator)
                        value = kernel.let(value - kernel.const(self.zero_point, self.accumulator))
                        for t in range(count):
                            weight = kernel.cast(w.load(w_from + t * panel + k), self.accumulator)
                            acc.store(t, acc.load(t) + value * weight)

                with kernel.loop(ky1, ky0) as ky:
                    x_ky = kernel.let(x_group + ky * (window.dilations[0] * self.clipped.x_strides[1]))
                    w_ky = kernel.let(first * panel + ky * (kw * c))
                    if merged:
                        run(x_ky, w_ky, kx0 * c, kx1 * c)
                    else:
                        with kernel.loop(kx1, kx0) as kx:
                            run(kernel.let(x_ky + kx * (window.dilations[1] * pixel)), kernel.let(w_ky + kx * c), 0, c)
                for t in range(count):
                    parameters = self.requantize.load(kernel, scales, first + t, 1)
                    y.store(y_at + first + t, self.requantize.apply(kernel, acc.load(t), parameters, 1))

            with kernel.loop(self.groups) as g:
                x_group = kernel.let(x_at + g * c) if self.groups > 1 else x_at
                whole, rest = divmod(self.outputs, self.tile)
                if whole:
                    with kernel.loop(whole) as b:
                        block(kernel.let(g * self.outputs + b * self.tile), self.tile, x_group)
                if rest:
                    block(kernel.let(g * self.outputs + whole * self.tile), rest, x_group)

        self.clipped.pixels(kernel, at_pixel)
        return kernel.function()


@dataclass(frozen=True)
class ScalarDepthwise:
    """Depthwise convolution; weights [KH][KW][C]."""

    clipped: Clipped
    channels: int
    storage: str
    zero_point: int
    weight: str
    requantize: Requantize

    def build(self, name: str, machine: Machine) -> Any:
        """void name(lo, hi, x, y, w, bias, requantization...)."""
        kernel = Kernel(name)
        x, y = kernel.pointer("x", self.storage), kernel.pointer("y", self.requantize.storage)
        w, bias = kernel.pointer("w", self.weight), kernel.pointer("bias", "int32")
        scales = self.requantize.parameters(kernel)
        window, strides = self.clipped.window, self.clipped.x_strides

        def at_pixel(x_at: Expr, y_at: Expr, position: Expr, taps: tuple[Expr, Expr, Expr, Expr]) -> None:
            with kernel.loop(self.channels) as c:
                acc = kernel.local(1, "int32")
                acc.store(0, bias.load(c))
                with kernel.loop(taps[1], taps[0]) as ky, kernel.loop(taps[3], taps[2]) as kx:
                    offset = ky * (window.dilations[0] * strides[1]) + kx * (window.dilations[1] * strides[2])
                    value = kernel.cast(x.load(x_at + offset + c), "int32") - kernel.const(self.zero_point)
                    weight = kernel.cast(w.load((ky * window.kernel[1] + kx) * self.channels + c), "int32")
                    acc.store(0, acc.load(0) + value * weight)
                parameters = self.requantize.load(kernel, scales, c, 1)
                y.store(y_at + c, self.requantize.apply(kernel, acc.load(0), parameters, 1))

        self.clipped.pixels(kernel, at_pixel)
        return kernel.function()


@dataclass(frozen=True)
class ScalarPool:
    """Max or average pooling; cells outside the image do not exist."""

    clipped: Clipped
    channels: int
    storage: str
    requantize: Requantize | None
    zero_point: int
    per_position: bool

    def build(self, name: str, machine: Machine) -> Any:
        """void name(lo, hi, x, y, requantization...)."""
        kernel = Kernel(name)
        requantize = self.requantize
        x = kernel.pointer("x", self.storage)
        y = kernel.pointer("y", requantize.storage if requantize else self.storage)
        scales: list[Pointer] = requantize.parameters(kernel) if requantize else []
        window, strides = self.clipped.window, self.clipped.x_strides
        lowest = {"uint8": 0, "int8": -128, "uint16": 0, "int16": -32768}[self.storage]

        def at_pixel(x_at: Expr, y_at: Expr, position: Expr, taps: tuple[Expr, Expr, Expr, Expr]) -> None:
            with kernel.loop(self.channels) as c:
                acc = kernel.local(1, "int32")
                acc.store(0, kernel.const(0 if requantize else lowest))
                with kernel.loop(taps[1], taps[0]) as ky, kernel.loop(taps[3], taps[2]) as kx:
                    offset = ky * (window.dilations[0] * strides[1]) + kx * (window.dilations[1] * strides[2])
                    value = kernel.cast(x.load(x_at + offset + c), "int32")
                    if requantize:
                        acc.store(0, acc.load(0) + (value - kernel.const(self.zero_point)))
                    else:
                        acc.store(0, kernel.tirx.max(acc.load(0), value))
                if requantize is None:
                    y.store(y_at + c, kernel.cast(acc.load(0), self.storage))
                    return
                parameters = requantize.load(kernel, scales, position if self.per_position else 0, 1)
                y.store(y_at + c, requantize.apply(kernel, acc.load(0), parameters, 1))

        self.clipped.pixels(kernel, at_pixel)
        return kernel.function()
