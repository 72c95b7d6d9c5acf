"""Integer softmax along one axis: a table of exponentials, a 64-bit sum, one division an element."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from qcompiler.formats import Int
from qcompiler.targets.shared.machine import Machine
from qcompiler.targets.shared.tir.builder import Expr, Kernel, Pointer
from qcompiler.targets.shared.tir.nest import Nest, for_lanes, unit_offsets

KEPT = 2048
"""Exponentials of an axis of at most this extent are kept on the stack; longer ones are looked up twice."""


@dataclass(frozen=True)
class Softmax:
    """clip((2 e R + S) // (2 S) + z), e = exp(max - x); operands y, x (and mask) of `nest` (innermost extent 1).

    wide: exponentials are products of two table entries. mask: "" for none, "prefix" for the count of visible cells of
    a row, "position" for one number, of which every row shows so many cells and one more, "cells" for one byte a cell,
    1 where it is hidden, "flags" for the same when a whole row may be hidden, which then counts as visible.
    """

    nest: Nest
    length: int
    y_stride: int
    x_stride: int
    storage: str
    numerator: int
    zero_point: int
    format: Int
    wide: bool
    mask: str = ""
    mask_stride: int = 0
    mask_type: str = ""

    def build(self, name: str, machine: Machine) -> Any:
        """void name(lo, hi, y, x, table), or with the mask behind x."""
        kernel = Kernel(name)
        y, x = kernel.pointer("y", str(self.format.storage)), kernel.pointer("x", self.storage)
        mask = kernel.pointer("mask", self.mask_type) if self.mask else None
        table = kernel.pointer("table", "int32")
        keep = machine.lanes > 1 and self.length <= KEPT
        with kernel.loop(kernel.hi, kernel.lo) as u:
            y_at, x_at, *rest = unit_offsets(kernel, self.nest, u)
            count: Expr = self.length
            if mask is not None and self.mask == "prefix":
                count = kernel.let(mask.load(rest[0]))
            elif mask is not None and self.mask == "position":
                last = kernel.clamp(mask.load(0), 0, self.length - 1, self.mask_type)
                count = kernel.let(kernel.cast(last, "int32") + kernel.const(1))
            self._row(kernel, machine, (y, x, table), (y_at, x_at), count, keep, mask, rest[0] if rest else 0)
        return kernel.function()

    def _row(
        self,
        kernel: Kernel,
        machine: Machine,
        pointers: tuple[Pointer, Pointer, Pointer],
        at: tuple[Expr, Expr],
        count: Expr,
        keep: bool,
        mask: Pointer | None,
        mask_at: Expr,
    ) -> None:
        tirx, (y, x, table), (y_at, x_at) = kernel.tirx, pointers, at
        cells = self.mask in ("cells", "flags")
        whole: list[Expr] = []

        def code(i: Expr) -> Expr:
            return kernel.cast(x.load(x_at + i * self.x_stride), "int32")

        def seen(i: Expr) -> Expr:
            assert mask is not None
            shown = tirx.EQ(mask.load(mask_at + i * self.mask_stride), kernel.const(0, "uint8"))
            return tirx.any(shown, *whole) if whole else shown

        if self.mask == "flags":
            visible = kernel.local(1, "int32")
            visible.store(0, kernel.const(0))
            with kernel.loop(count) as i:
                visible.store(0, visible.load(0) + kernel.cast(seen(i), "int32"))
            whole.append(kernel.let(tirx.EQ(visible.load(0), kernel.const(0))))
        top = self._top(kernel, machine, x, x_at, count, seen if cells else None)
        total = kernel.local(1, "int64")
        total.store(0, kernel.const(0, "int64"))
        kept = kernel.local(self.length, "int32") if keep else None

        def term(i: Expr) -> Expr:
            distance = top - code(i)
            if cells:
                distance = tirx.Select(seen(i), distance, kernel.const(0))
            distance = kernel.let(distance)
            e = self.exponential(kernel, table, distance)
            return kernel.let(tirx.Select(seen(i), e, kernel.const(0)) if cells else e)

        with kernel.loop(count) as i:
            e = term(i)
            if kept is not None:
                kept.store(i, e)
            total.store(0, total.load(0) + kernel.cast(e, "int64"))
        sum_ = kernel.let(total.load(0))
        if kept is not None and self.by_reciprocal() and self.y_stride == 1:
            self._divide_by_reciprocal(kernel, machine, y, y_at, kept, sum_, count)
        else:
            with kernel.loop(count) as i:
                e = kept.load(i) if kept is not None else term(i)
                twice = kernel.cast(e, "int64") * kernel.const(2 * self.numerator, "int64") + sum_
                # All operands are positive, so truncation is floor.
                share = tirx.truncdiv(twice, sum_ * kernel.const(2, "int64"))
                shifted = share + kernel.const(self.zero_point, "int64")
                result = kernel.clamp(shifted, self.format.min, self.format.max, "int64")
                y.store(y_at + i * self.y_stride, kernel.cast(kernel.cast(result, "int32"), y.dtype))
        if self.mask in ("prefix", "position"):
            none = min(max(self.zero_point, self.format.min), self.format.max)
            with kernel.loop(self.length, count) as i:
                y.store(y_at + i * self.y_stride, kernel.const(none, y.dtype))

    def _top(self, kernel: Kernel, machine: Machine, x: Pointer, x_at: Expr, count: Expr, seen: Any) -> Expr:
        """The largest visible code of a row."""
        tirx = kernel.tirx
        lanes = machine.lanes * (4 if "8" in self.storage else 2)
        lowest = {"uint8": 0, "int8": -128, "uint16": 0, "int16": -32768}[self.storage]
        top = kernel.local(1, "int32")
        top.store(0, kernel.const(lowest))
        start: Expr = 0
        if machine.lanes > 1 and self.x_stride == 1 and seen is None and isinstance(count, int) and count >= lanes:
            best = kernel.local(lanes, self.storage)
            best.store(0, x.load(x_at, lanes), lanes)
            with kernel.loop(count // lanes, 1) as v:
                best.store(0, tirx.max(best.load(0, lanes), x.load(x_at + v * lanes, lanes)), lanes)
            with kernel.loop(lanes) as i:
                top.store(0, tirx.max(top.load(0), kernel.cast(best.load(i), "int32")))
            start = count // lanes * lanes
            if start == count:
                return kernel.let(top.load(0))
        with kernel.loop(count, start) as i:
            value = kernel.cast(x.load(x_at + i * self.x_stride), "int32")
            if seen is not None:
                value = tirx.Select(seen(i), value, kernel.const(lowest))
            top.store(0, tirx.max(top.load(0), value))
        return kernel.let(top.load(0))

    def exponential(self, kernel: Kernel, table: Pointer, distance: Expr) -> Expr:
        """exp(-distance) in steps of 2^-20, int32."""
        if not self.wide:
            return table.load(distance)
        tirx = kernel.tirx
        low = kernel.cast(table.load(tirx.bitwise_and(distance, kernel.const(255))), "int64")
        high = kernel.cast(table.load(tirx.shift_right(distance, kernel.const(8)) + 256), "int64")
        product = low * high + kernel.const(1 << 39, "int64")
        return kernel.cast(tirx.shift_right(product, kernel.const(40, "int64")), "int32")

    def by_reciprocal(self) -> bool:
        """Whether floor((2 e R + S + 1/2) * (1 / (2 S))) in doubles is the quotient exactly.

        The numerator is at least 1/2 away from multiples of 2 S, so the quotient is at least 1 / (4 S) away from
        integers; rounding moves it by less than (R + 1) 2^-51. S <= n 2^20.
        """
        return (self.numerator + 1) * 4 * (self.length << 20) < 1 << 51

    def _divide_by_reciprocal(
        self, kernel: Kernel, machine: Machine, y: Pointer, y_at: Expr, kept: Pointer, sum_: Expr, count: Expr
    ) -> None:
        real = kernel.let(kernel.cast(sum_, "float64"))
        inverse = kernel.let(kernel.const(0.5, "float64") / real)
        offset = kernel.let(real + kernel.const(0.5, "float64"))

        def write(i: Expr, n: int) -> None:
            e = kernel.cast(kept.load(i, n), "float64", n)
            # Both terms are exact, so it does not matter whether they are fused.
            twice = e * kernel.const(2.0 * self.numerator, "float64", n) + kernel.broadcast(offset, n)
            share = kernel.cast(twice * kernel.broadcast(inverse, n), "int32", n)
            low, high = self.format.min - self.zero_point, self.format.max - self.zero_point
            result = kernel.clamp(share, low, high, "int32", n) + kernel.const(self.zero_point, "int32", n)
            y.store(y_at + i, kernel.cast(result, y.dtype, n), n)

        if isinstance(count, int):
            for_lanes(kernel, count, machine.lanes, write)
            return
        whole = kernel.let(kernel.tirx.truncdiv(count, kernel.const(machine.lanes)))
        with kernel.loop(whole) as v:
            write(v * machine.lanes, machine.lanes)
        with kernel.loop(count, whole * machine.lanes) as i:
            write(i, 1)
