"""Copies whose source index follows a table in some dimensions: Resize nearest, reflecting and edge padding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from qcompiler.targets.shared.machine import Machine
from qcompiler.targets.shared.tir.builder import Expr, Kernel
from qcompiler.targets.shared.tir.nest import for_lanes


@dataclass(frozen=True)
class Gather:
    """y[i0, i1, ...] = x[table0[i0] + table1[i1] + ...], the innermost dimension affine.

    Tables lie one after another in `offsets`, one entry an index, already multiplied by the stride.
    """

    extents: tuple[int, ...]
    y_strides: tuple[int, ...]
    x_inner: int
    storage: str

    @property
    def units(self) -> int:
        """Everything but the innermost dimension."""
        return int(np.prod(self.extents[:-1]))

    def build(self, name: str, machine: Machine) -> Any:
        """void name(lo, hi, y, x, offsets)."""
        kernel = Kernel(name)
        y, x = kernel.pointer("y", self.storage), kernel.pointer("x", self.storage)
        offsets = kernel.pointer("offsets", "int32")
        outer = self.extents[:-1]
        starts = [sum(outer[:d]) for d in range(len(outer))]
        lanes = machine.lanes * 4 // np.dtype(self.storage).itemsize if machine.lanes > 1 else 1
        with kernel.loop(kernel.hi, kernel.lo) as u:
            x_at, y_at, rest = 0, 0, u
            for d in reversed(range(len(outer))):
                index = kernel.let(rest % outer[d]) if d else rest
                rest = kernel.let(rest // outer[d]) if d else rest
                x_at = x_at + offsets.load(index + starts[d])
                y_at = y_at + index * self.y_strides[d]
            x_at, y_at = kernel.let(x_at), kernel.let(y_at)

            def step(i: Expr, n: int) -> None:
                y.store(
                    y_at + i * self.y_strides[-1],
                    x.load(x_at + i * self.x_inner, n, self.x_inner),
                    n,
                    self.y_strides[-1],
                )

            for_lanes(kernel, self.extents[-1], lanes, step)
        return kernel.function()
