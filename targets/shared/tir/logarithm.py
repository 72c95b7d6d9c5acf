"""Logarithmic codes by comparison (qcompiler/ops/logarithm.py)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from qcompiler.targets.shared.machine import Machine
from qcompiler.targets.shared.tir.builder import Expr, Kernel
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

    def _count(self, kernel: Kernel, lanes: int, y: Any, x: Any, table: Any) -> None:
        """Vectors compare with every threshold."""
        limits = [kernel.let(table.load(k)) for k in range(self.thresholds)]

        def body(at: list[Expr], n: int, inner: tuple[int, ...]) -> None:
            value = kernel.let(kernel.cast(load(kernel, x, at[1], n, inner[1]), "int32", n))
            code = kernel.const(0, "int32", n)
            for limit in limits:
                below = value < kernel.broadcast(limit, n)
                code = code + kernel.tirx.Select(below, kernel.const(1, "int32", n), kernel.const(0, "int32", n))
            y.store(at[0], kernel.cast(kernel.let(code), "uint8", n), n, inner[0])

        run_nest(kernel, self.nest, lanes, body)

    def _halve(self, kernel: Kernel, y: Any, x: Any, table: Any) -> None:
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
