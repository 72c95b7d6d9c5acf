"""From sums to codes: the two requantizations as functions of templates/qc_device.h.

What shared kernels have in their code (zero point, bounds of the format) are numbers of the call here, so that layers
share kernels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qcompiler.formats import Int
from qcompiler.targets.cuda.grid import GridKernel
from qcompiler.targets.shared.tir.builder import Expr, Pointer
from qcompiler.targets.shared.tir.requantize import Requantize


@dataclass(frozen=True)
class Codes:
    """How sums become codes of a storage. wide: sums are int64."""

    arithmetic: str
    storage: str
    wide: bool = False

    @classmethod
    def of(cls, requantize: Requantize, *, wide: bool = False) -> Codes:
        """For what a node's attributes name."""
        return cls(requantize.arithmetic, requantize.storage, wide)

    def pointers(self, kernel: GridKernel) -> list[Pointer]:
        """The parameters of channels."""
        if self.arithmetic == "float":
            return [kernel.pointer("scale", "float32")]
        return [kernel.pointer("multiplier", "int32"), kernel.pointer("shift", "int32")]

    @staticmethod
    def numbers(kernel: GridKernel) -> list[Expr]:
        """Lowest and highest code, both less the zero point, and the zero point."""
        return [kernel.number(name) for name in ("code_low", "code_high", "code_zero")]

    def apply(self, kernel: GridKernel, acc: Expr, scales: list[Expr], numbers: list[Expr]) -> Expr:
        """The code, int32."""
        name = {"float": "qc_requantize", "fixed": "qc_requantize_fixed"}[self.arithmetic]
        return kernel.let(kernel.value(name + ("_wide" if self.wide else ""), acc, *scales, *numbers))


def code_numbers(fmt: Int, zero_point: int) -> tuple[int, int, int]:
    """What `Codes.numbers` are in a call."""
    return fmt.min - zero_point, fmt.max - zero_point, zero_point


def itemsize(storage: str) -> int:
    """Bytes of an element."""
    return np.dtype(storage).itemsize
