"""Integers as a number format: a frozen value, part of qcompiler/formats.py."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qcompiler.errors import RecipeError


@dataclass(frozen=True)
class Int:
    """Two's complement or unsigned integers of 2 to 16 bits: Int(8, signed=False) holds 0..255.

    `narrow` drops the lowest code of a signed format, so that the range is symmetric (-127..127).
    """

    bits: int
    signed: bool = True
    narrow: bool = False

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 16:
            raise RecipeError(f"integers have 2 to 16 bits, not {self.bits}.")
        if self.narrow and not self.signed:
            raise RecipeError("only a signed format can be narrow.")

    @property
    def min(self) -> int:
        """Lowest code."""
        return -(1 << (self.bits - 1)) + self.narrow if self.signed else 0

    @property
    def max(self) -> int:
        """Highest code."""
        return (1 << (self.bits - self.signed)) - 1

    @property
    def storage(self) -> np.dtype:
        """Numpy dtype that holds codes: the 8- or 16-bit integer of the same signedness."""
        return np.dtype(f"{'' if self.signed else 'u'}int{8 if self.bits <= 8 else 16}")

    @property
    def token(self) -> str:
        """The spelling used in files and recipes: int8, uint4, int8n (narrow)."""
        return f"{'' if self.signed else 'u'}int{self.bits}{'n' if self.narrow else ''}"

    @property
    def integers(self) -> Int:
        """The smallest format of integers that holds `decode` of every code: itself."""
        return self

    def codes(self) -> NDArray[np.int64]:
        """Every code, in the order of what they stand for."""
        return np.arange(self.min, self.max + 1)

    def decode(self, code: NDArray) -> NDArray:
        """The value of a code, before scale and zero point: the code itself."""
        return np.asarray(code, dtype=np.int64)

    def __str__(self) -> str:
        return self.token
