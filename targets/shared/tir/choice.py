"""Kernels that choose among codes (qcompiler/ops/choice.py)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from qcompiler.formats import Int
from qcompiler.targets.shared.machine import Machine
from qcompiler.targets.shared.tir.builder import Expr, Kernel
from qcompiler.targets.shared.tir.nest import Nest, for_lanes, load, run_nest, unit_offsets

REACH = 1 << 32
"""Integers that are no codes are clipped to +-this before they are compared."""


@dataclass(frozen=True)
class Extreme:
    """max(a, b) or min(a, b); operands y, a, b in one storage."""

    nest: Nest
    storage: str
    largest: bool

    def build(self, name: str, machine: Machine) -> Any:
        """void name(lo, hi, y, a, b)."""
        kernel = Kernel(name)
        y, a, b = (kernel.pointer(letter, self.storage) for letter in "yab")
        choose = kernel.tirx.max if self.largest else kernel.tirx.min

        def body(at: list[Expr], n: int, inner: tuple[int, ...]) -> None:
            wide = [kernel.cast(load(kernel, p, at[i], n, inner[i]), "int32", n) for i, p in ((1, a), (2, b))]
            y.store(at[0], kernel.cast(choose(*wide), self.storage, n), n, inner[0])

        run_nest(kernel, self.nest, machine.lanes, body)
        return kernel.function()


@dataclass(frozen=True)
class ReduceExtreme:
    """The largest or smallest code over some dimensions; operands y, x of `nest` iterate over the kept ones."""

    nest: Nest
    reduced: tuple[tuple[int, int], ...]
    """Nested (extent, x stride)."""
    storage: str
    largest: bool

    def build(self, name: str, machine: Machine) -> Any:
        """void name(lo, hi, y, x)."""
        kernel = Kernel(name)
        y, x = kernel.pointer("y", self.storage), kernel.pointer("x", self.storage)
        choose = kernel.tirx.max if self.largest else kernel.tirx.min
        inner = tuple(strides[-1] for strides in self.nest.strides)
        with kernel.loop(kernel.hi, kernel.lo) as u:
            y_at, x_at = unit_offsets(kernel, self.nest, u)

            def step(i: Expr, n: int) -> None:
                first = kernel.let(x_at + i * inner[1])

                def read(at: Expr) -> Expr:
                    return kernel.cast(load(kernel, x, at, n, inner[1]), "int32", n)

                best = kernel.local(n, "int32")
                best.store(0, read(first), n)

                def visit(depth: int, at: Expr) -> None:
                    if depth == len(self.reduced):
                        best.store(0, choose(best.load(0, n), read(at)), n)
                        return
                    extent, stride = self.reduced[depth]
                    with kernel.loop(extent) as r:
                        visit(depth + 1, at + r * stride)

                visit(0, first)
                y.store(y_at + i * inner[0], kernel.cast(best.load(0, n), self.storage, n), n, inner[0])

            for_lanes(kernel, self.nest.extents[-1], machine.lanes, step)
        return kernel.function()


@dataclass(frozen=True)
class Compare:
    """(a - za) ma `kind` (b - zb) mb as 0 or 1; operands y, a, b."""

    nest: Nest
    a_storage: str
    b_storage: str
    a_zero_point: int
    b_zero_point: int
    a_multiplier: int
    b_multiplier: int
    kind: str

    def build(self, name: str, machine: Machine) -> Any:
        """void name(lo, hi, y, a, b)."""
        kernel = Kernel(name)
        tirx = kernel.tirx
        y = kernel.pointer("y", "uint8")
        a, b = kernel.pointer("a", self.a_storage), kernel.pointer("b", self.b_storage)

        def side(value: Expr, storage: str, zero_point: int, multiplier: int) -> Expr:
            wide = kernel.cast(value, "int64")
            if np.dtype(storage).itemsize > 2:
                wide = kernel.clamp(wide, -REACH, REACH, "int64")
            return kernel.let((wide - kernel.const(zero_point, "int64")) * kernel.const(multiplier, "int64"))

        def body(at: list[Expr], n: int, inner: tuple[int, ...]) -> None:
            left = side(a.load(at[1]), self.a_storage, self.a_zero_point, self.a_multiplier)
            right = side(b.load(at[2]), self.b_storage, self.b_zero_point, self.b_multiplier)
            holds = {
                "Equal": tirx.EQ, "NotEqual": tirx.NE, "Greater": tirx.GT, "GreaterOrEqual": tirx.GE,
            }[self.kind](left, right)  # fmt: skip
            y.store(at[0], kernel.cast(tirx.Select(holds, kernel.const(1), kernel.const(0)), "uint8"))

        run_nest(kernel, self.nest, 1, body)
        return kernel.function()


@dataclass(frozen=True)
class Select:
    """a where the condition is not 0, else b; operands y, condition, a, b."""

    nest: Nest
    storage: str

    def build(self, name: str, machine: Machine) -> Any:
        """void name(lo, hi, y, condition, a, b)."""
        kernel = Kernel(name)
        y, condition = kernel.pointer("y", self.storage), kernel.pointer("condition", "uint8")
        a, b = kernel.pointer("a", self.storage), kernel.pointer("b", self.storage)

        def body(at: list[Expr], n: int, inner: tuple[int, ...]) -> None:
            shown = kernel.cast(load(kernel, condition, at[1], n, inner[1]), "int32", n)
            sides = [kernel.cast(load(kernel, p, at[i], n, inner[i]), "int32", n) for i, p in ((2, a), (3, b))]
            chosen = kernel.tirx.Select(kernel.tirx.NE(shown, kernel.const(0, "int32", n)), *sides)
            y.store(at[0], kernel.cast(chosen, self.storage, n), n, inner[0])

        run_nest(kernel, self.nest, machine.lanes, body)
        return kernel.function()


@dataclass(frozen=True)
class Slope:
    """PRelu: (x - zx) times `multiplier`, below zero times a slope; operands y, x, slope (int32)."""

    nest: Nest
    storage: str
    x_zero_point: int
    multiplier: int
    shift: int
    zero_point: int
    format: Int
    wide: str
    """int32 where no product leaves it, else int64."""

    def build(self, name: str, machine: Machine) -> Any:
        """void name(lo, hi, y, x, slope)."""
        kernel = Kernel(name)
        tirx, wide, storage = kernel.tirx, self.wide, str(self.format.storage)
        y, x = kernel.pointer("y", storage), kernel.pointer("x", self.storage)
        slope = kernel.pointer("slope", "int32")

        def body(at: list[Expr], n: int, inner: tuple[int, ...]) -> None:
            value = kernel.cast(load(kernel, x, at[1], n, inner[1]), wide, n)
            centred = kernel.let(value - kernel.const(self.x_zero_point, wide, n))
            below = kernel.cast(load(kernel, slope, at[2], n, inner[2]), wide, n)
            above = kernel.const(self.multiplier, wide, n)
            factor = tirx.Select(tirx.GE(centred, kernel.const(0, wide, n)), above, below)
            half = kernel.const(1 << (self.shift - 1), wide, n)
            shifted = tirx.shift_right(centred * factor + half, kernel.const(self.shift, wide, n))
            low, high = self.format.min - self.zero_point, self.format.max - self.zero_point
            code = kernel.cast(kernel.clamp(shifted, low, high, wide, n), "int32", n)
            y.store(at[0], kernel.cast(code + kernel.const(self.zero_point, "int32", n), storage, n), n, inner[0])

        run_nest(kernel, self.nest, machine.lanes, body)
        return kernel.function()
