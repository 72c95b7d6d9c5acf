"""Piecewise functions of wide codes, and rows picked by indices that are only known at run time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from qcompiler.formats import Int
from qcompiler.ops.lookup import FRACTION
from qcompiler.targets.shared.machine import Machine
from qcompiler.targets.shared.tir.builder import Expr, Kernel
from qcompiler.targets.shared.tir.nest import Nest, for_lanes, run_nest


@dataclass(frozen=True)
class Piecewise:
    """Straight lines between entries of a table (qcompiler/ops/lookup.py); operands y, x."""

    nest: Nest
    storage: str
    x_min: int
    shift: int
    zero_point: int
    format: Int

    def build(self, name: str, machine: Machine) -> Any:
        """void name(lo, hi, y, x, table)."""
        kernel = Kernel(name)
        tirx, storage = kernel.tirx, str(self.format.storage)
        y, x, table = kernel.pointer("y", storage), kernel.pointer("x", self.storage), kernel.pointer("table", "int32")

        def body(at: list[Expr], n: int, inner: tuple[int, ...]) -> None:
            u = kernel.let(kernel.cast(x.load(at[1]), "int32") - kernel.const(self.x_min))
            i = kernel.let(tirx.shift_right(u, kernel.const(self.shift)))
            f = kernel.cast(tirx.bitwise_and(u, kernel.const((1 << self.shift) - 1)), "int64")
            first, second = (kernel.let(kernel.cast(table.load(i + d), "int64")) for d in (0, 1))
            value = first * kernel.const(1 << self.shift, "int64") + (second - first) * f
            half = kernel.const(1 << (self.shift + FRACTION - 1), "int64")
            rounded = tirx.shift_right(value + half, kernel.const(self.shift + FRACTION, "int64"))
            low, high = self.format.min - self.zero_point, self.format.max - self.zero_point
            clipped = kernel.cast(kernel.clamp(rounded, low, high, "int64"), "int32")
            y.store(at[0], kernel.cast(clipped + kernel.const(self.zero_point), storage))

        run_nest(kernel, self.nest, 1, body)
        return kernel.function()


@dataclass(frozen=True)
class Pick:
    """y[o, i, :] = x[o, index[i], :], all dense; a unit is one (o, i). Indices that lie outside are brought inside."""

    count: int
    extent: int
    inner: int
    storage: str
    index: str

    def build(self, name: str, machine: Machine) -> Any:
        """void name(lo, hi, y, x, index)."""
        kernel = Kernel(name)
        tirx = kernel.tirx
        y, x = kernel.pointer("y", self.storage), kernel.pointer("x", self.storage)
        index = kernel.pointer("index", self.index)
        lanes = machine.lanes * 4 // np.dtype(self.storage).itemsize if machine.lanes > 1 else 1
        with kernel.loop(kernel.hi, kernel.lo) as u:
            outer = kernel.let(tirx.truncdiv(u, kernel.const(self.count)))
            given = kernel.let(index.load(u - outer * self.count))
            zero, last = kernel.const(0, self.index), kernel.const(self.extent - 1, self.index)
            # An index may be anything: it is clipped before the extent is added, so that nothing overflows.
            low = kernel.const(-self.extent, self.index)
            inside = kernel.let(tirx.min(tirx.max(given, low), last))
            wrapped = tirx.Select(inside < zero, inside + kernel.const(self.extent, self.index), inside)
            row = kernel.let(kernel.cast(wrapped, "int32"))
            y_at = kernel.let(u * self.inner)
            x_at = kernel.let((outer * self.extent + row) * self.inner)
            for_lanes(kernel, self.inner, lanes, lambda i, n: y.store(y_at + i, x.load(x_at + i, n), n))
        return kernel.function()


@dataclass(frozen=True)
class WriteSlot:
    """y[.., position mod extent, ..] = entry; operands y (its slot 0) and entry of `nest`."""

    nest: Nest
    stride: int
    extent: int
    storage: str
    index: str

    def build(self, name: str, machine: Machine) -> Any:
        """void name(lo, hi, y, entry, position)."""
        kernel = Kernel(name)
        tirx = kernel.tirx
        y, x = kernel.pointer("y", self.storage), kernel.pointer("entry", self.storage)
        position = kernel.pointer("position", self.index)
        extent, zero = kernel.const(self.extent, self.index), kernel.const(0, self.index)
        rest = kernel.let(tirx.truncmod(position.load(0), extent))
        inside = tirx.Select(rest < zero, rest + extent, rest)
        start = kernel.let(kernel.cast(inside, "int32") * self.stride)

        def body(at: list[Expr], n: int, inner: tuple[int, ...]) -> None:
            y.store(start + at[0], x.load(at[1], n, inner[1]), n, inner[0])

        run_nest(kernel, self.nest, machine.lanes, body)
        return kernel.function()
