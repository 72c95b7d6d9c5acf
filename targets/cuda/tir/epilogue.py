"""From sums to codes: the two requantizations as functions of templates/qc_device.h.

What shared kernels have in their code (zero point, bounds of the format) are numbers of the call here, so that layers
share kernels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qcompiler.targets.cuda.grid import GridKernel
from qcompiler.targets.shared.tir.builder import Expr, Pointer
from qcompiler.targets.shared.tir.requantize import Requantize


@dataclass(frozen=True)
class Codes:
    """How sums become codes of a storage. wide: sums are int64."""

    arithmetic: str
    storage: str
    wide: bool = False
    levels: bool = False
    """Whether codes are levels of a minifloat."""

    @classmethod
    def of(cls, requantize: Requantize, *, wide: bool = False) -> Codes:
        """For what a node's attributes name."""
        return cls(requantize.arithmetic, requantize.storage, wide, requantize.minifloat is not None)

    def pointers(self, kernel: GridKernel) -> list[Pointer]:
        """The parameters of channels."""
        if self.arithmetic == "float":
            return [kernel.pointer("scale", "float32")]
        return [kernel.pointer("multiplier", "int32"), kernel.pointer("shift", "int32")]

    @staticmethod
    def numbers(kernel: GridKernel) -> list[Expr]:
        """Lowest and highest code, both less the zero point, and the zero point; of levels the lowest, the highest, and
        the bits of the mantissa."""
        return [kernel.number(name) for name in ("code_low", "code_high", "code_zero")]

    def apply(self, kernel: GridKernel, acc: Expr, scales: list[Expr], numbers: list[Expr]) -> Expr:
        """The code, int32."""
        name = {"float": "qc_requantize", "fixed": "qc_requantize_fixed"}[self.arithmetic]
        if self.levels:
            acc, name = kernel.cast(acc, "int64"), name.replace("requantize", "levels")
        elif self.wide:
            name += "_wide"
        return kernel.let(kernel.value(name, acc, *scales, *numbers))


def code_numbers(requantize: Requantize) -> tuple[int, int, int]:
    """What `Codes.numbers` are in a call."""
    fmt, mini, zero_point = requantize.format, requantize.minifloat, requantize.zero_point
    if mini is not None:
        return -mini.largest if mini.signed else 0, mini.largest, mini.mantissa
    return fmt.min - zero_point, fmt.max - zero_point, zero_point


def itemsize(storage: str) -> int:
    """Bytes of an element."""
    return np.dtype(storage).itemsize
