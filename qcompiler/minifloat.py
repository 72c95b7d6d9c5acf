"""Minifloats as a number format: a frozen value, part of qcompiler/formats.py."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from qcompiler.errors import ModelError, RecipeError
from qcompiler.integer import Int

Special = Literal["none", "nan", "ieee"]
"""What codes that stand for no number a minifloat has: none; S.1111.111 alone; those of the largest exponent."""
_OCP = {"nan": (4, 3, True), "ieee": (5, 2, True)}


@dataclass(frozen=True)
class Minifloat:
    """Floating-point numbers of 3 to 8 bits: Minifloat(2, 1) is E2M1. Codes are sign, exponent, mantissa, as stored.

    A code (s, e, m) stands for (-1)^s 2^(e - bias) (1 + m / 2^mantissa), or for e = 0, subnormal, for
    (-1)^s 2^(1 - bias) m / 2^mantissa; bias = 2^(exponent - 1) - 1. Each is an integer times `unit`, the least
    subnormal: `decode` gives that integer, a level, and scales are those of levels. All codes are numbers (with
    `special` of ONNX's two OCP types all but those) and -0 is never written. `signed=False` has no sign bit.

    Sources: Aggarwal et al. 2023, Post-Training Quantization with Low-precision Minifloats and Integers on FPGAs
    (arXiv:2311.12359); OCP 8-bit Floating Point Specification, revision 1.0.
    """

    exponent: int
    mantissa: int
    signed: bool = True
    special: Special = "none"

    def __post_init__(self) -> None:
        if not (1 <= self.exponent <= 5 and self.mantissa >= 0 and 3 <= self.bits <= 8):
            raise RecipeError(
                f"there is no minifloat of {self.exponent} exponent and {self.mantissa} mantissa bits.",
                hint="Minifloats have 3 to 8 bits in all, of which 1 to 5 are exponent.",
            )
        if self.special != "none" and (self.exponent, self.mantissa, self.signed) != _OCP[self.special]:
            raise RecipeError("only ONNX's float8e4m3fn and float8e5m2 have codes that are no numbers.")

    narrow = False
    min = 0
    """Lowest code."""

    @property
    def bits(self) -> int:
        """Of a code, sign included."""
        return self.signed + self.exponent + self.mantissa

    @property
    def max(self) -> int:
        """Highest code."""
        return (1 << self.bits) - 1

    @property
    def storage(self) -> np.dtype:
        """Numpy dtype that holds codes."""
        return np.dtype(np.uint8)

    @property
    def token(self) -> str:
        """The spelling used in files and recipes: e2m1, ue2m2 (no sign), float8e4m3fn and float8e5m2 (OCP)."""
        if self.special != "none":
            return f"float8e{self.exponent}m{self.mantissa}{'fn' if self.special == 'nan' else ''}"
        return f"{'' if self.signed else 'u'}e{self.exponent}m{self.mantissa}"

    @property
    def unit(self) -> float:
        """The least subnormal, which level 1 stands for; a power of two."""
        return float(2.0 ** (2 - (1 << (self.exponent - 1)) - self.mantissa))

    @property
    def largest(self) -> int:
        """The largest level."""
        top = (1 << (self.exponent + self.mantissa)) - 1
        top -= {"none": 0, "nan": 1, "ieee": 1 << self.mantissa}[self.special]
        return int(_magnitudes(self)[top])

    @property
    def level_bits(self) -> int:
        """Of levels, sign included."""
        return self.largest.bit_length() + self.signed

    @property
    def integers(self) -> Int:
        """The smallest format of integers that holds every level. Raises RecipeError above 16 bits."""
        bits = self.level_bits
        if bits > 16:
            raise RecipeError(f"levels of {self.token} have {bits} bits, which no format of integers has.")
        return Int(bits, signed=self.signed, narrow=self.signed)

    def codes(self) -> NDArray[np.int64]:
        """Every code that `encode` gives, in the order of levels."""
        positive = np.arange(np.searchsorted(_magnitudes(self), self.largest) + 1)
        return np.concatenate([positive[:0:-1] | (1 << (self.bits - 1)), positive]) if self.signed else positive

    def decode(self, code: NDArray) -> NDArray[np.int64]:
        """Levels, int64 [...]: a code's number is level * unit. Raises ModelError for Inf and NaN."""
        code = np.asarray(code, np.int64)
        magnitude = code & ((1 << (self.exponent + self.mantissa)) - 1)
        level = _magnitudes(self)[magnitude]
        if self.special != "none" and (level > self.largest).any():
            raise ModelError(f"a code of {self.token} is Inf or NaN.", hint="Export the model with finite weights.")
        return np.asarray(np.where(magnitude != code, -level, level))

    def encode(self, level: NDArray) -> NDArray[np.uint8]:
        """The codes of levels, each of which must be one; 0 gives 0."""
        level = np.asarray(level, np.int64)
        magnitude = np.searchsorted(_magnitudes(self), np.abs(level))
        return (magnitude | ((level < 0).astype(np.int64) << (self.bits - 1))).astype(np.uint8)

    def __str__(self) -> str:
        return self.token


OCP = {fmt.token: fmt for fmt in (Minifloat(4, 3, special="nan"), Minifloat(5, 2, special="ieee"))}
"""The formats of the OCP specification that are ONNX's types of 8 bits, by token."""


MX = ("mxe2m1", "mxe2m3", "mxe3m2")
"""Tokens of weights with block scales (qcompiler/blocks.py) whose elements are MX's."""


def tokens(exponents: int, *, signed: bool = True) -> tuple[str, ...]:
    """Tokens of all minifloats without special codes that have up to so many exponent bits."""
    every = ((e, m) for e in range(1, exponents + 1) for m in range(8 - e + (not signed)))
    return tuple(Minifloat(e, m, signed=signed).token for e, m in every if 3 <= signed + e + m <= 8)


def families(every: Iterable[str]) -> str:
    """Tokens in short: e2m0-5 for e2m0 to e2m5."""
    runs: list[tuple[str, int, int]] = []
    for token in every:
        head, _, digits = token.rpartition("m")
        m = int(digits)
        if runs and runs[-1][0] == head and runs[-1][2] == m - 1:
            runs[-1] = (head, runs[-1][1], m)
        else:
            runs.append((head, m, m))
    return " ".join(f"{head}m{first}" + (f"-{last}" if last > first else "") for head, first, last in runs)


@lru_cache
def _magnitudes(fmt: Minifloat) -> NDArray[np.int64]:
    """Levels of all codes without their sign, rising; Inf and NaN as if they were numbers."""
    code = np.arange(1 << (fmt.exponent + fmt.mantissa), dtype=np.int64)
    e, m = code >> fmt.mantissa, code & ((1 << fmt.mantissa) - 1)
    found = np.where(e > 0, (m + (1 << fmt.mantissa)) << np.maximum(e - 1, 0), m)
    found.flags.writeable = False
    return found
