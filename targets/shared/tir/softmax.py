"""Integer softmax along one axis: table of exponentials, 64-bit sum, one division an element."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from qcompiler.formats import Int
from qcompiler.targets.shared.machine import Machine
from qcompiler.targets.shared.tir.builder import Kernel
from qcompiler.targets.shared.tir.nest import Nest, unit_offsets


@dataclass(frozen=True)
class Softmax:
    """clip((2 e R + S) // (2 S) + z), e = table[max - x]; operands y, x of `nest` (its innermost extent is 1)."""

    nest: Nest
    length: int
    y_stride: int
    x_stride: int
    storage: str
    numerator: int
    zero_point: int
    format: Int

    def build(self, name: str, machine: Machine) -> Any:
        """void name(lo, hi, y, x, table)."""
        kernel = Kernel(name)
        tirx = kernel.tirx
        y, x = kernel.pointer("y", str(self.format.storage)), kernel.pointer("x", self.storage)
        table = kernel.pointer("table", "int32")
        with kernel.loop(kernel.hi, kernel.lo) as u:
            y_at, x_at = unit_offsets(kernel, self.nest, u)
            top = kernel.local(1, "int32")
            total = kernel.local(1, "int64")
            top.store(0, kernel.cast(x.load(x_at), "int32"))
            with kernel.loop(self.length) as i:
                top.store(0, tirx.max(top.load(0), kernel.cast(x.load(x_at + i * self.x_stride), "int32")))
            total.store(0, kernel.const(0, "int64"))
            with kernel.loop(self.length) as i:
                e = table.load(top.load(0) - kernel.cast(x.load(x_at + i * self.x_stride), "int32"))
                total.store(0, total.load(0) + kernel.cast(e, "int64"))
            with kernel.loop(self.length) as i:
                e = table.load(top.load(0) - kernel.cast(x.load(x_at + i * self.x_stride), "int32"))
                twice = kernel.cast(e, "int64") * kernel.const(2 * self.numerator, "int64") + total.load(0)
                # All operands are positive, so truncation is floor.
                share = tirx.truncdiv(twice, total.load(0) * kernel.const(2, "int64"))
                shifted = share + kernel.const(self.zero_point, "int64")
                code = kernel.clamp(shifted, self.format.min, self.format.max, "int64")
                y.store(y_at + i * self.y_stride, kernel.cast(code, str(self.format.storage)))
        return kernel.function()
