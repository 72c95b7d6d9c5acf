"""Logarithmic codes by comparison (qcompiler/ops/logarithm.py), and what they stand for at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from qcompiler.targets.shared.machine import Machine
from qcompiler.targets.shared.tir.builder import Expr, Kernel, Pointer
from qcompiler.targets.shared.tir.nest import Nest, load, run_nest


@dataclass(frozen=True)
class Encode:
    """y = how many of the falling thresholds x lies below; operands y, x. thresholds: their count, 2^bits - 1."""

    nest: Nest
    storage: str
    thresholds: int

    def build(self, name: str, machine: Machine) -> Any:
        """void name(lo, hi, y, x, thresholds)."""
        kernel = Kernel(name)
        y, x = kernel.pointer("y", "uint8"), kernel.pointer("x", self.storage)
        table = kernel.pointer("thresholds", "int32")
        if machine.lanes == 1:
            self._halve(kernel, y, x, table)
        else:
            self._count(kernel, machine.lanes, y, x, table)
        return kernel.function()

    def _count(self, kernel: Kernel, lanes: int, y: Pointer, x: Pointer, table: Pointer) -> None:
        """Vectors compare with every threshold."""
        ones = [kernel.const(1)] * self.thresholds
        _compare(kernel, self.nest, lanes, y, x, table, kernel.const(0), ones)

    def _halve(self, kernel: Kernel, y: Pointer, x: Pointer, table: Pointer) -> None:
        """Scalar code halves the thresholds that are left, bit by bit of the code."""

        def body(at: list[Expr], n: int, inner: tuple[int, ...]) -> None:
            value = kernel.let(kernel.cast(x.load(at[1]), "int32"))
            code = kernel.const(0)
            step = (self.thresholds + 1) // 2
            while step:
                below = value < table.load(code + (step - 1))
                code = kernel.let(code + kernel.tirx.Select(below, kernel.const(step), kernel.const(0)))
                step //= 2
            y.store(at[0], kernel.cast(code, "uint8"))

        run_nest(kernel, self.nest, 1, body)


@dataclass(frozen=True)
class Round:
    """y = a table's entry for such a code; operands y, x. thresholds: their count.

    The parameters are the thresholds, the difference of each entry from the one before it, and the first entry.
    """

    nest: Nest
    storage: str
    target: str
    thresholds: int

    def build(self, name: str, machine: Machine) -> Any:
        """void name(lo, hi, y, x, parameters)."""
        kernel = Kernel(name)
        y, x = kernel.pointer("y", self.target), kernel.pointer("x", self.storage)
        table = kernel.pointer("parameters", "int32")
        steps = [kernel.let(table.load(self.thresholds + k)) for k in range(self.thresholds)]
        first = kernel.let(table.load(2 * self.thresholds))
        _compare(kernel, self.nest, machine.lanes, y, x, table, first, steps)
        return kernel.function()


def _compare(
    kernel: Kernel, nest: Nest, lanes: int, y: Pointer, x: Pointer, table: Pointer, first: Expr, steps: list[Expr]
) -> None:
    """y = first + the steps whose thresholds, at the start of `table`, x lies below."""
    limits = [kernel.let(table.load(k)) for k in range(len(steps))]

    def body(at: list[Expr], n: int, inner: tuple[int, ...]) -> None:
        value = kernel.let(kernel.cast(load(kernel, x, at[1], n, inner[1]), "int32", n))
        total = kernel.broadcast(first, n)
        for limit, step in zip(limits, steps, strict=True):
            below = value < kernel.broadcast(limit, n)
            total = total + kernel.tirx.Select(below, kernel.broadcast(step, n), kernel.const(0, "int32", n))
        y.store(at[0], kernel.cast(kernel.let(total), y.dtype, n), n, inner[0])

    run_nest(kernel, nest, lanes, body)
