"""Operators over rows with a warp a row: normalizations and softmax, as the shared specs define them.

Lanes take every 32nd element; sums and maxima meet by shuffles. Integers throughout, so that their order is no matter.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from qcompiler.targets.cuda.grid import GridKernel, Launch
from qcompiler.targets.cuda.machine import THREAD
from qcompiler.targets.shared.machine import Machine
from qcompiler.targets.shared.tir.builder import Expr, Pointer
from qcompiler.targets.shared.tir.nest import unit_offsets
from qcompiler.targets.shared.tir.normalize import Normalize
from qcompiler.targets.shared.tir.softmax import Softmax

WARPS = 4
"""Rows of a block."""
LANES = 32
DOUBLES = replace(THREAD, name="cuda-double", lanes=2)
"""What tells shared code that roots and quotients may go by doubles (with their exact corrections)."""


def rows_launch(rows: int) -> Launch:
    """One warp a row."""
    return Launch((-(-rows // WARPS), 1, 1), WARPS * LANES)


class _Rows:
    """The row of a warp, and walks over its elements."""

    def __init__(self, kernel: GridKernel, rows: int) -> None:
        self.kernel = kernel
        self.lane = kernel.let(kernel.thread % LANES)
        warp = kernel.let(kernel.blocks[0] * WARPS + kernel.thread // LANES)
        # Warps behind the last row do it again: all lanes of all warps must meet.
        self.row = kernel.let(kernel.tirx.min(warp, kernel.const(rows - 1)))

    def each(self, extent: Expr, body: Callable[[Expr], None]) -> None:
        """body(i) for this lane's elements of 0..extent."""
        k = self.kernel
        count = k.let(k.tirx.truncdiv(extent - self.lane + (LANES - 1), k.const(LANES)))
        with k.loop(count) as step:
            body(k.let(step * LANES + self.lane))

    def total(self, sums: Pointer) -> Expr:
        """Over all lanes, of int64 [1]."""
        return self.kernel.let(self.kernel.value("qc_warp_sum64", sums.load(0), dtype="int64"))


@dataclass(frozen=True)
class RowNormalize:
    """Normalize with a warp a run."""

    spec: Normalize
    roomy = True

    def build(self, name: str, machine: Machine) -> Any:
        """void name(y, x, gain, bias)."""
        k, spec = GridKernel(name, WARPS * LANES), self.spec
        tirx, n = k.tirx, spec.length
        y, x = k.pointer("y", str(spec.format.storage)), k.pointer("x", spec.storage)
        gain, bias = k.pointer("gain", "int32"), k.pointer("bias", "int64")
        rows = _Rows(k, spec.nest.units)
        y_at, x_at, p_at = unit_offsets(k, spec.nest, rows.row)

        def places(i: Expr) -> tuple[Expr, Expr, Expr]:
            """Offsets of element i in y, x and the parameters."""
            at = [y_at, x_at, p_at]
            for depth in reversed(range(len(spec.run))):
                extent, *strides = spec.run[depth]
                rest = k.let(tirx.truncdiv(i, k.const(extent))) if depth else i
                index = k.let(i - rest * extent) if depth else i
                at = [a + index * stride for a, stride in zip(at, strides, strict=True)]
                i = rest
            y_to, x_to, p_to = (k.let(a) for a in at)
            return y_to, x_to, p_to

        s1, s2 = k.local(1, "int64"), k.local(1, "int64")
        for sums in (s1, s2):
            sums.store(0, k.const(0, "int64"))

        def add(i: Expr) -> None:
            q = k.let(k.cast(k.cast(x.load(places(i)[1]), "int32") - spec.x_zero_point, "int64"))
            if spec.centre:
                s1.store(0, s1.load(0) + q)
            s2.store(0, s2.load(0) + q * q)

        rows.each(n, add)
        squares = rows.total(s2)
        total = rows.total(s1) if spec.centre else k.const(0, "int64")
        v = k.let(squares * k.const(n, "int64") - total * total)
        w = k.let(v * k.const(1 << (2 * spec.half_shift), "int64") + k.const(spec.epsilon, "int64"))
        r, a = spec.reciprocal(k, DOUBLES, w)
        half = k.let(tirx.shift_left(k.const(1, "int64"), a - k.const(1, "int64")))

        def write(i: Expr) -> None:
            to, at, p = places(i)
            q = k.cast(k.cast(x.load(at), "int32") - spec.x_zero_point, "int64")
            t = tirx.shift_right((q * k.const(n, "int64") - total) * r + half, a)
            scaled = t * k.cast(gain.load(p), "int64") + bias.load(p) + k.const(1 << (spec.shift - 1), "int64")
            shifted = tirx.shift_right(scaled, k.const(spec.shift, "int64"))
            low, high = spec.format.min - spec.zero_point, spec.format.max - spec.zero_point
            code = k.cast(k.clamp(shifted, low, high, "int64"), "int32") + k.const(spec.zero_point)
            y.store(to, k.cast(code, y.dtype))

        rows.each(n, write)
        return k.function()


@dataclass(frozen=True)
class RowSoftmax:
    """Softmax with a warp a row."""

    spec: Softmax
    roomy = True

    def build(self, name: str, machine: Machine) -> Any:
        """void name(y, x, table), or with the mask behind x."""
        k, spec = GridKernel(name, WARPS * LANES), self.spec
        tirx = k.tirx
        y, x = k.pointer("y", str(spec.format.storage)), k.pointer("x", spec.storage)
        mask = k.pointer("mask", spec.mask_type) if spec.mask else None
        table = k.pointer("table", "int32")
        rows = _Rows(k, spec.nest.units)
        y_at, x_at, *rest = unit_offsets(k, spec.nest, rows.row)
        count, seen = self._visible(k, rows, mask, rest[0] if rest else 0)
        lowest = {"uint8": 0, "int8": -128, "uint16": 0, "int16": -32768}[spec.storage]
        top = k.local(1, "int32")
        top.store(0, k.const(lowest))

        def code(i: Expr) -> Expr:
            return k.cast(x.load(x_at + i * spec.x_stride), "int32")

        def largest(i: Expr) -> None:
            value = code(i) if seen is None else tirx.Select(seen(i), code(i), k.const(lowest))
            top.store(0, tirx.max(top.load(0), value))

        rows.each(count, largest)
        most = k.let(k.value("qc_warp_max", top.load(0)))
        total = k.local(1, "int64")
        total.store(0, k.const(0, "int64"))

        def exponential(i: Expr) -> Expr:
            distance = most - code(i)
            if seen is None:
                return k.let(spec.exponential(k, table, k.let(distance)))
            shown = k.let(seen(i))
            e = k.let(spec.exponential(k, table, k.let(tirx.Select(shown, distance, k.const(0)))))
            return k.let(tirx.Select(shown, e, k.const(0)))

        rows.each(count, lambda i: total.store(0, total.load(0) + k.cast(exponential(i), "int64")))
        sum_ = rows.total(total)
        share = share_of(spec, k, sum_)
        low, high = spec.format.min - spec.zero_point, spec.format.max - spec.zero_point

        def write(i: Expr) -> None:
            result = k.clamp(share(exponential(i)), low, high, "int32") + k.const(spec.zero_point)
            y.store(y_at + i * spec.y_stride, k.cast(result, y.dtype))

        rows.each(count, write)
        if not isinstance(count, int):  # hidden cells are 0
            zero = k.cast(k.clamp(k.const(0), low, high, "int32") + k.const(spec.zero_point), y.dtype)

            def clear(i: Expr) -> None:
                k.when(i >= count, lambda: y.store(y_at + i * spec.y_stride, zero))

            rows.each(spec.length, clear)
        return k.function()

    def _visible(
        self, k: GridKernel, rows: _Rows, mask: Pointer | None, mask_at: Expr
    ) -> tuple[Expr, Callable[[Expr], Expr] | None]:
        """(how many cells of the row count, whether cell i does; None: all of them)."""
        spec = self.spec
        if mask is None:
            return spec.length, None
        if spec.mask == "prefix":
            return k.let(mask.load(mask_at)), None
        if spec.mask == "position":
            last = k.clamp(mask.load(0), 0, spec.length - 1, spec.mask_type)
            return k.let(k.cast(last, "int32") + k.const(1)), None

        def shown(i: Expr) -> Expr:
            return k.tirx.EQ(mask.load(mask_at + i * spec.mask_stride), k.const(0, "uint8"))

        if spec.mask == "cells":
            return spec.length, shown
        visible = k.local(1, "int64")
        visible.store(0, k.const(0, "int64"))
        rows.each(spec.length, lambda i: visible.store(0, visible.load(0) + k.cast(shown(i), "int64")))
        none = k.let(k.tirx.EQ(rows.total(visible), k.const(0, "int64")))
        return spec.length, lambda i: k.tirx.any(shown(i), none)


def share_of(spec: Softmax, k: GridKernel, sum_: Expr) -> Callable[[Expr], Expr]:
    """e -> (2 e R + S) // (2 S), int32; by doubles where that is exact (see Softmax)."""
    if spec.by_reciprocal():
        real = k.let(k.cast(sum_, "float64"))
        inverse, offset = k.let(k.const(0.5, "float64") / real), k.let(real + k.const(0.5, "float64"))

        def share(e: Expr) -> Expr:
            twice = k.cast(e, "float64") * k.const(2.0 * spec.numerator, "float64") + offset
            return k.let(k.cast(twice * inverse, "int32"))

        return share
    double = k.let(sum_ * k.const(2, "int64"))

    def quotient(e: Expr) -> Expr:
        twice = k.cast(e, "int64") * k.const(2 * spec.numerator, "int64") + sum_
        return k.let(k.cast(k.tirx.truncdiv(twice, double), "int32"))

    return quotient


def rowwise(spec: Any) -> tuple[RowNormalize | RowSoftmax, Launch] | None:
    """A warp a row, for specs that have rows."""
    if isinstance(spec, Normalize):
        return RowNormalize(spec), rows_launch(spec.nest.units)
    if isinstance(spec, Softmax):
        return RowSoftmax(spec), rows_launch(spec.nest.units)
    return None
