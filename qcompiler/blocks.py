"""Block scales (MX): runs of weights share a power of two. A frozen value, part of qcompiler/formats.py."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qcompiler.errors import RecipeError
from qcompiler.integer import Int
from qcompiler.minifloat import Minifloat

WIDTH = 12
"""Bits of the largest code: what is left of int16, so that products of long rows fit 32 bits."""


@dataclass(frozen=True)
class Blocks:
    """Minifloats in blocks of 32 weights: a code is level * 2^e, and e, 0 .. `shifts`, is one for all of a block.

    Blocks run along what one scale is for (an output channel, in the order of memory); the last may be shorter. e is
    the exponent of the block's largest weight, or one more where that has the smaller squared error.

    Deviations from OCP's MX: beside the exponent of a block there is the scale of the channel, float32 (a power of two
    with scales that are powers of two: then 2^e times it is MX's E8M0 scale); blocks more than 2^shifts below the
    channel's largest one have e = 0 and fewer bits. Source: OCP Microscaling Formats (MX) Specification, version 1.0.
    """

    element: Minifloat
    size: int = 32

    def __post_init__(self) -> None:
        fmt = self.element
        if not fmt.signed or fmt.special != "none" or fmt.largest.bit_length() > WIDTH - 1:
            raise RecipeError(
                f"there are no blocks of {fmt.token}.", hint="Elements are signed, of at most 3 exponent bits: mxe2m1."
            )

    signed = True
    narrow = False

    @property
    def bits(self) -> int:
        """Of an element; 8 more a block."""
        return self.element.bits

    @property
    def shifts(self) -> int:
        """The largest e."""
        return WIDTH - self.element.largest.bit_length()

    @property
    def max(self) -> int:
        """Highest code."""
        return self.element.largest << self.shifts

    @property
    def min(self) -> int:
        """Lowest code."""
        return -self.max

    @property
    def storage(self) -> np.dtype:
        """Numpy dtype that holds codes."""
        return np.dtype(np.int16)

    @property
    def token(self) -> str:
        """The spelling used in files and recipes: mxe2m1."""
        return f"mx{self.element.token}"

    @property
    def integers(self) -> Int:
        """The smallest format of integers that holds every code."""
        return Int(WIDTH + 1, narrow=True)

    def codes(self) -> NDArray[np.int64]:
        """Every code, rising."""
        levels = self.element.decode(self.element.codes())
        return np.unique(levels[:, None] << np.arange(self.shifts + 1))

    def decode(self, code: NDArray) -> NDArray[np.int64]:
        """The value of a code, before the scale: the code itself."""
        return np.asarray(code, np.int64)

    def __str__(self) -> str:
        return self.token
