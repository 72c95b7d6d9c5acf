"""Weighted sums of a few cells along one axis (qcompiler/ops/interpolate.py)."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

from qcompiler.formats import Int
from qcompiler.targets.shared.machine import Machine
from qcompiler.targets.shared.tir.builder import Expr, Kernel
from qcompiler.targets.shared.tir.nest import for_lanes, load

UNROLLED = 16
"""Up to so many taps stand side by side, their weights in registers."""


@dataclass(frozen=True)
class Interpolate:
    """y[.., m, ..] = clip(((bias[m] + sum over t of weight[m, t] x[.., offset[m, t], ..]) >> shift) + z).

    Dimensions outermost first in the memory order of y; the last one is the vector and never the axis.
    """

    extents: tuple[int, ...]
    y_strides: tuple[int, ...]
    x_strides: tuple[int, ...]
    """0 at the axis, whose offsets are in a table."""
    axis: int
    taps: int
    storage: str
    wide: str
    """int32 where no sum leaves it, else int64."""
    shift: int
    zero_point: int
    format: Int

    @property
    def units(self) -> int:
        """Everything but the innermost dimension."""
        return prod(self.extents[:-1])

    def build(self, name: str, machine: Machine) -> Any:
        """void name(lo, hi, y, x, offset, weight, bias)."""
        kernel = Kernel(name)
        storage, wide, taps = str(self.format.storage), self.wide, self.taps
        y, x = kernel.pointer("y", storage), kernel.pointer("x", self.storage)
        offset, weight = kernel.pointer("offset", "int32"), kernel.pointer("weight", "int32")
        bias = kernel.pointer("bias", wide)
        low, high = self.format.min - self.zero_point, self.format.max - self.zero_point
        with kernel.loop(kernel.hi, kernel.lo) as u:
            rest, x_at, y_at, m = u, kernel.const(0), kernel.const(0), kernel.const(0)
            for d in reversed(range(len(self.extents) - 1)):
                index = kernel.let(rest % self.extents[d]) if d else rest
                rest = kernel.let(rest // self.extents[d]) if d else rest
                x_at, y_at = x_at + index * self.x_strides[d], y_at + index * self.y_strides[d]
                m = index if d == self.axis else m
            x_at, y_at = kernel.let(x_at), kernel.let(y_at)
            first, row = kernel.let(bias.load(m)), kernel.let(m * taps)

            def tap(t: Expr) -> tuple[Expr, Expr]:
                return kernel.let(x_at + offset.load(row + t)), kernel.let(kernel.cast(weight.load(row + t), wide))

            known = [tap(t) for t in range(taps)] if taps <= UNROLLED else []

            def step(i: Expr, n: int) -> None:
                acc = kernel.local(n, wide)
                acc.store(0, kernel.broadcast(first, n), n)

                def add(at: Expr, factor: Expr) -> None:
                    cell = load(kernel, x, at + i * self.x_strides[-1], n, self.x_strides[-1])
                    acc.store(0, acc.load(0, n) + kernel.cast(cell, wide, n) * kernel.broadcast(factor, n), n)

                for at, factor in known:
                    add(at, factor)
                if not known:
                    with kernel.loop(taps) as t:
                        add(*tap(t))
                shifted = kernel.tirx.shift_right(acc.load(0, n), kernel.const(self.shift, wide, n))
                code = kernel.cast(kernel.clamp(shifted, low, high, wide, n), "int32", n)
                code = kernel.cast(code + kernel.const(self.zero_point, "int32", n), storage, n)
                y.store(y_at + i * self.y_strides[-1], code, n, self.y_strides[-1])

            for_lanes(kernel, self.extents[-1], machine.lanes, step)
        return kernel.function()
