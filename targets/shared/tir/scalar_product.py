"""Products of two activations for processors without vectors: shapes and strides are data (see tir/scalar.py)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from qcompiler.targets.shared.machine import Machine
from qcompiler.targets.shared.tir.builder import Kernel
from qcompiler.targets.shared.tir.requantize import Requantize

FIELDS = (
    *("rows", "inner", "columns", "a_zero_point", "b_zero_point", "zero_point"),
    *("a_row", "a_k", "b_k", "b_n", "y_row", "y_n"),
    *("extent1", "extent2", "a0", "a1", "a2", "b0", "b1", "b2", "y0", "y1", "y2"),
)
"""The table of a call, in this order: extents, zero points, strides of a matrix, then three batch dimensions (extents
of the inner two, strides of a, b and y)."""


@dataclass(frozen=True)
class ScalarProduct:
    """y = requantize(sum over k of (a - za) * (b - zb)); a unit is one row of one matrix."""

    a_storage: str
    b_storage: str
    accumulator: str
    requantize: Requantize

    def build(self, name: str, machine: Machine) -> Any:
        """void name(lo, hi, shape, a, b, y, requantization...)."""
        kernel = Kernel(name)
        table = kernel.pointer("shape", "int32")
        a, b = kernel.pointer("a", self.a_storage), kernel.pointer("b", self.b_storage)
        y = kernel.pointer("y", self.requantize.storage)
        scales = self.requantize.parameters(kernel)
        at = {field: kernel.let(table.load(i)) for i, field in enumerate(FIELDS)}
        parameters = self.requantize.load(kernel, scales, 0, 1)
        div = kernel.tirx.truncdiv
        with kernel.loop(kernel.hi, kernel.lo) as u:
            batch = kernel.let(div(u, at["rows"]))
            row = kernel.let(u - batch * at["rows"])
            outer = kernel.let(div(batch, at["extent2"]))
            i2 = kernel.let(batch - outer * at["extent2"])
            i0 = kernel.let(div(outer, at["extent1"]))
            i1 = kernel.let(outer - i0 * at["extent1"])
            starts = [
                kernel.let(i0 * at[f"{v}0"] + i1 * at[f"{v}1"] + i2 * at[f"{v}2"] + own)
                for v, own in (("a", row * at["a_row"]), ("b", kernel.const(0)), ("y", row * at["y_row"]))
            ]
            with kernel.loop(at["columns"]) as n:
                acc = kernel.local(1, self.accumulator)
                acc.store(0, kernel.const(0, self.accumulator))
                b_at = kernel.let(starts[1] + n * at["b_n"])
                with kernel.loop(at["inner"]) as k:
                    left = kernel.cast(a.load(starts[0] + k * at["a_k"]), "int32") - at["a_zero_point"]
                    right = kernel.cast(b.load(b_at + k * at["b_k"]), "int32") - at["b_zero_point"]
                    product = kernel.cast(left, self.accumulator) * kernel.cast(right, self.accumulator)
                    acc.store(0, acc.load(0) + product)
                code = self.requantize.apply(kernel, acc.load(0), parameters, 1, at["zero_point"])
                y.store(starts[2] + n * at["y_n"], code)
        return kernel.function()
