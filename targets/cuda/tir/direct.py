"""Windows and products with one thread an output element: what tensor cores do not do, and what is too small for them.

Channels are innermost, so that neighbouring threads read and write neighbouring elements.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from qcompiler.targets.cuda.grid import GridKernel, Launch
from qcompiler.targets.cuda.tir.epilogue import Codes
from qcompiler.targets.shared.machine import Machine
from qcompiler.targets.shared.tir.builder import Expr, Pointer
from qcompiler.targets.shared.tir.scalar import tap_range

THREADS = 128

WINDOW = (
    *("rows", "columns", "height", "width", "kernel_y", "kernel_x", "stride_y", "stride_x", "dilation_y", "dilation_x"),
    *("before_y", "before_x", "x_image", "x_row", "x_pixel", "y_image", "y_row", "y_pixel"),
    *("inputs", "outputs", "total", "x_zero_point"),
)
"""int32 parameters of a window: extents and strides in elements; channels of x and y that a group has; elements of y;
the zero point of x."""


def elements_launch(elements: int) -> Launch:
    """One thread an element."""
    return Launch((-(-elements // THREADS), 1, 1), THREADS)


class _Window:
    """A thread's place in y, and a walk over its window."""

    def __init__(self, kernel: GridKernel, channels: Expr, n: dict[str, Expr]) -> None:
        self.kernel, self.n = kernel, n
        k, div = kernel, kernel.tirx.truncdiv
        unit = k.let(k.blocks[0] * THREADS + k.thread)
        self.inside = unit < n["total"]
        pixel = k.let(div(unit, channels))
        self.channel = k.let(unit - pixel * channels)
        line = k.let(div(pixel, n["columns"]))
        column = k.let(pixel - line * n["columns"])
        image = k.let(div(line, n["rows"]))
        row = k.let(line - image * n["rows"])
        self.position = k.let(row * n["columns"] + column)
        top, left = k.let(row * n["stride_y"] - n["before_y"]), k.let(column * n["stride_x"] - n["before_x"])
        self.first_y, self.behind_y = tap_range(k, top, n["kernel_y"], n["dilation_y"], n["height"])
        self.first_x, self.behind_x = tap_range(k, left, n["kernel_x"], n["dilation_x"], n["width"])
        self.x_at = k.let(image * n["x_image"] + top * n["x_row"] + left * n["x_pixel"])
        self.y_at = k.let(image * n["y_image"] + row * n["y_row"] + column * n["y_pixel"] + self.channel)

    def each(self, body: Callable[[Expr, Expr], None]) -> None:
        """body(offset in x, number of the tap) for the cells that exist."""
        k, n = self.kernel, self.n
        with k.loop(self.behind_y, self.first_y) as ky:
            line = k.let(self.x_at + ky * (n["dilation_y"] * n["x_row"]))
            with k.loop(self.behind_x, self.first_x) as kx:
                body(k.let(line + kx * (n["dilation_x"] * n["x_pixel"])), ky * n["kernel_x"] + kx)


@dataclass(frozen=True)
class DirectConv:
    """Convolution of any groups; weights [taps][inputs of a group][channels]."""

    storage: str
    weight: str
    codes: Codes

    def build(self, name: str, machine: Machine) -> Any:
        """void name(x, y, w, bias, scales..., WINDOW..., channels, numbers of codes...)."""
        k = GridKernel(name, THREADS)
        wide = "int64" if self.codes.wide else "int32"
        x, y, w = k.pointer("x", self.storage), k.pointer("y", self.codes.storage), k.pointer("w", self.weight)
        bias, scales = k.pointer("bias", wide), self.codes.pointers(k)
        n = {name: k.number(name) for name in WINDOW}
        channels, numbers = k.number("channels"), self.codes.numbers(k)
        window = _Window(k, channels, n)

        def element() -> None:
            acc = k.local(1, wide)
            acc.store(0, bias.load(window.channel))
            group = k.let(k.tirx.truncdiv(window.channel, n["outputs"]))

            def tap(x_at: Expr, number: Expr) -> None:
                start = k.let(x_at + group * n["inputs"])
                row = k.let(number * n["inputs"] * channels + window.channel)
                with k.loop(n["inputs"]) as c:
                    value = k.cast(x.load(start + c), "int32") - n["x_zero_point"]
                    weight = k.cast(w.load(row + c * channels), wide)
                    acc.store(0, acc.load(0) + k.cast(value, wide) * weight)

            window.each(tap)
            parameters = [k.let(p.load(window.channel)) for p in scales]
            code = self.codes.apply(k, acc.load(0), parameters, numbers)
            y.store(window.y_at, k.cast(code, self.codes.storage))

        k.when(window.inside, element)
        return k.function()


@dataclass(frozen=True)
class DirectPool:
    """Max or average pooling; cells outside the image do not exist. codes: None for the maximum."""

    storage: str
    codes: Codes | None
    per_position: bool

    def build(self, name: str, machine: Machine) -> Any:
        """void name(x, y, scales..., WINDOW..., numbers of codes...)."""
        k, codes = GridKernel(name, THREADS), self.codes
        x, y = k.pointer("x", self.storage), k.pointer("y", codes.storage if codes else self.storage)
        scales: list[Pointer] = codes.pointers(k) if codes else []
        n = {name: k.number(name) for name in WINDOW}
        numbers = codes.numbers(k) if codes else []
        window = _Window(k, n["inputs"], n)
        lowest = {"uint8": 0, "int8": -128, "uint16": 0, "int16": -32768}[self.storage]

        def element() -> None:
            acc = k.local(1, "int32")
            acc.store(0, k.const(0 if codes else lowest))

            def tap(x_at: Expr, number: Expr) -> None:
                value = k.cast(x.load(x_at + window.channel), "int32")
                if codes:
                    acc.store(0, acc.load(0) + (value - n["x_zero_point"]))
                else:
                    acc.store(0, k.tirx.max(acc.load(0), value))

            window.each(tap)
            if codes is None:
                y.store(window.y_at, k.cast(acc.load(0), self.storage))
                return
            at = window.position if self.per_position else k.const(0)
            code = codes.apply(k, acc.load(0), [k.let(p.load(at)) for p in scales], numbers)
            y.store(window.y_at, k.cast(code, codes.storage))

        k.when(window.inside, element)
        return k.function()


BATCHED = (
    *("total", "rows", "inner", "columns", "a_zero_point", "b_zero_point", "a_row", "a_k", "b_k", "b_n", "y_row"),
    *("y_n", "extent1", "extent2", "a0", "a1", "a2", "b0", "b1", "b2", "y0", "y1", "y2"),
)
"""int32 parameters of a product of two activations: elements of y, extents, zero points, strides of a matrix, then
three batch dimensions (extents of the inner two, strides of a, b and y)."""


@dataclass(frozen=True)
class DirectProduct:
    """y = requantize(sum over k of (a - za) * (b - zb)), any strides."""

    a_storage: str
    b_storage: str
    codes: Codes

    def build(self, name: str, machine: Machine) -> Any:
        """void name(a, b, y, scales..., BATCHED..., numbers of codes...)."""
        k = GridKernel(name, THREADS)
        wide, div = "int64" if self.codes.wide else "int32", k.tirx.truncdiv
        a, b = k.pointer("a", self.a_storage), k.pointer("b", self.b_storage)
        y, scales = k.pointer("y", self.codes.storage), self.codes.pointers(k)
        n = {name: k.number(name) for name in BATCHED}
        numbers = self.codes.numbers(k)
        unit = k.let(k.blocks[0] * THREADS + k.thread)

        def element() -> None:
            line = k.let(div(unit, n["columns"]))
            column = k.let(unit - line * n["columns"])
            batch = k.let(div(line, n["rows"]))
            row = k.let(line - batch * n["rows"])
            outer = k.let(div(batch, n["extent2"]))
            i2 = k.let(batch - outer * n["extent2"])
            i0 = k.let(div(outer, n["extent1"]))
            i1 = k.let(outer - i0 * n["extent1"])
            a_at, b_at, y_at = (
                k.let(i0 * n[f"{v}0"] + i1 * n[f"{v}1"] + i2 * n[f"{v}2"] + own)
                for v, own in (
                    ("a", row * n["a_row"]),
                    ("b", column * n["b_n"]),
                    ("y", row * n["y_row"] + column * n["y_n"]),
                )
            )
            acc = k.local(1, wide)
            acc.store(0, k.const(0, wide))
            with k.loop(n["inner"]) as i:
                left = k.cast(a.load(a_at + i * n["a_k"]), "int32") - n["a_zero_point"]
                right = k.cast(b.load(b_at + i * n["b_k"]), "int32") - n["b_zero_point"]
                acc.store(0, acc.load(0) + k.cast(left, wide) * k.cast(right, wide))
            code = self.codes.apply(k, acc.load(0), [k.let(p.load(0)) for p in scales], numbers)
            y.store(y_at, k.cast(code, self.codes.storage))

        k.when(unit < n["total"], element)
        return k.function()
