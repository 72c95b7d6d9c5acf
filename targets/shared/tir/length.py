"""The length of vectors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from qcompiler.formats import Int
from qcompiler.targets.shared.machine import Machine
from qcompiler.targets.shared.tir.builder import Expr, Kernel
from qcompiler.targets.shared.tir.nest import Nest, run_nest
from qcompiler.targets.shared.tir.normalize import integer_root


@dataclass(frozen=True)
class Length:
    """ReduceL2 (qcompiler/ops/reduce.py) over some dimensions; operands y, x of `nest`."""

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

        def body(at: list[Expr], n: int, inner: tuple[int, ...]) -> None:
            acc = kernel.local(1, "int64")
            acc.store(0, kernel.const(0, "int64"))

            def visit(depth: int, place: Expr) -> None:
                if depth < len(self.reduced):
                    extent, stride = self.reduced[depth]
                    with kernel.loop(extent) as i:
                        visit(depth + 1, place + i * stride)
                    return
                q = kernel.let(kernel.cast(x.load(place), "int64") - kernel.const(self.x_zero_point, "int64"))
                acc.store(0, acc.load(0) + q * q)

            visit(0, kernel.let(at[1]))
            scaled = kernel.let(acc.load(0) * kernel.const(1 << (2 * self.half_shift), "int64"))
            root = integer_root(kernel, machine, scaled)
            half = kernel.const(1 << (self.shift - 1), "int64")
            product = root * kernel.const(self.multiplier, "int64") + half
            shifted = tirx.shift_right(product, kernel.const(self.shift, "int64"))
            low, high = self.format.min - self.zero_point, self.format.max - self.zero_point
            code = kernel.clamp(shifted, low, high, "int64") + kernel.const(self.zero_point, "int64")
            y.store(at[0], kernel.cast(kernel.cast(code, "int32"), y.dtype))

        run_nest(kernel, self.nest, 1, body)
        return kernel.function()
