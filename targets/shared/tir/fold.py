"""Reductions that are no sums: largest and smallest code, length; and choices by a constant condition."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from qcompiler.formats import Int
from qcompiler.targets.shared.machine import Machine
from qcompiler.targets.shared.tir.builder import Expr, Kernel
from qcompiler.targets.shared.tir.nest import Nest, load, run_nest
from qcompiler.targets.shared.tir.normalize import integer_root


@dataclass(frozen=True)
class Fold:
    """max, min or length (qcompiler/ops/reduce.py) over some dimensions; operands y, x of `nest`."""

    kind: Literal["ReduceMax", "ReduceMin", "ReduceL2"]
    nest: Nest
    reduced: tuple[tuple[int, int], ...]
    """Nested (extent, x stride)."""
    storage: str
    format: Int
    x_zero_point: int = 0
    half_shift: int = 0
    multiplier: int = 0
    shift: int = 0
    zero_point: int = 0

    def build(self, name: str, machine: Machine) -> Any:
        """void name(lo, hi, y, x)."""
        kernel = Kernel(name)
        tirx = kernel.tirx
        y, x = kernel.pointer("y", str(self.format.storage)), kernel.pointer("x", self.storage)
        length = self.kind == "ReduceL2"
        first = {"ReduceL2": 0, "ReduceMax": -(1 << 20), "ReduceMin": 1 << 20}[self.kind]

        def body(at: list[Expr], n: int, inner: tuple[int, ...]) -> None:
            acc = kernel.local(1, "int64")
            acc.store(0, kernel.const(first, "int64"))

            def visit(depth: int, place: Expr) -> None:
                if depth < len(self.reduced):
                    extent, stride = self.reduced[depth]
                    with kernel.loop(extent) as i:
                        visit(depth + 1, place + i * stride)
                    return
                q = kernel.let(kernel.cast(x.load(place), "int64") - kernel.const(self.x_zero_point, "int64"))
                if length:
                    acc.store(0, acc.load(0) + q * q)
                else:
                    acc.store(0, (tirx.max if self.kind == "ReduceMax" else tirx.min)(acc.load(0), q))

            visit(0, kernel.let(at[1]))
            result = kernel.let(acc.load(0))
            if length:
                scaled = kernel.let(result * kernel.const(1 << (2 * self.half_shift), "int64"))
                root = integer_root(kernel, machine, scaled)
                half = kernel.const(1 << (self.shift - 1), "int64")
                product = root * kernel.const(self.multiplier, "int64") + half
                shifted = tirx.shift_right(product, kernel.const(self.shift, "int64"))
                low, high = self.format.min - self.zero_point, self.format.max - self.zero_point
                result = kernel.clamp(shifted, low, high, "int64") + kernel.const(self.zero_point, "int64")
            y.store(at[0], kernel.cast(kernel.cast(result, "int32"), y.dtype))

        run_nest(kernel, self.nest, 1, body)
        return kernel.function()


@dataclass(frozen=True)
class Choose:
    """y = a where the condition is not 0, else b; operands y, condition, a, b."""

    nest: Nest
    storage: str

    def build(self, name: str, machine: Machine) -> Any:
        """void name(lo, hi, y, condition, a, b)."""
        kernel = Kernel(name)
        y, condition = kernel.pointer("y", self.storage), kernel.pointer("condition", "uint8")
        operands = [kernel.pointer(v, self.storage) for v in ("a", "b")]

        def body(at: list[Expr], n: int, inner: tuple[int, ...]) -> None:
            chosen = load(kernel, condition, at[1], n, inner[1])
            a, b = (load(kernel, p, at[i], n, inner[i]) for i, p in enumerate(operands, 2))
            y.store(at[0], kernel.tirx.Select(chosen > kernel.const(0, "uint8", n), a, b), n, inner[0])

        run_nest(kernel, self.nest, machine.lanes, body)
        return kernel.function()
