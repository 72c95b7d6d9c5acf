"""Number formats, granularities and scale types: frozen values.

A format is defined by `decode(code)`; everything else (range, storage, spelling) follows from it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Literal

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

    def decode(self, code: NDArray) -> NDArray:
        """The value of a code, before scale and zero point: the code itself."""
        return np.asarray(code, dtype=np.int64)

    def __str__(self) -> str:
        return self.token


NumberFormat = Int  # joined by Minifloat, Log and Codebook as their operators arrive


def parse_format(token: str) -> NumberFormat:
    """The format that `token` spells ('int8', 'uint4', 'int8n'). Raises RecipeError."""
    match = re.fullmatch(r"(u?)int(\d+)(n?)", token)
    if match is None:
        raise RecipeError(f"`{token}` is not a number format.", hint="Formats look like int8, uint4 or int8n.")
    return Int(int(match[2]), signed=not match[1], narrow=bool(match[3]))


@dataclass(frozen=True)
class Granularity:
    """Which elements share a scale: the whole tensor, a channel of `axis`, or runs of `group_size`."""

    kind: Literal["tensor", "channel", "group"] = "tensor"
    axis: int | None = None
    group_size: int | None = None


PER_TENSOR = Granularity()


def per_channel(axis: int) -> Granularity:
    """One scale for every index of `axis`."""
    return Granularity("channel", axis)


ScaleType = Literal["float32", "power_of_two"]


@dataclass(frozen=True)
class QuantSpec:
    """How one value is quantized: format, who shares a scale, what a scale may be.

    `symmetric` fixes the zero point at 0.
    """

    format: NumberFormat
    granularity: Granularity = PER_TENSOR
    scale_type: ScaleType = "float32"
    symmetric: bool = False


@dataclass(frozen=True, eq=False)
class QuantParams:
    """A QuantSpec with numbers: real = scale * (code - zero_point).

    scale: float32, [] or [C]; zero_point: int64, same shape; both given as anything that converts to such an array.
    axis: the kept axis if scale is [C].
    """

    format: NumberFormat
    scale: Any
    zero_point: Any = field(default_factory=lambda: np.zeros((), np.int64))
    axis: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", np.asarray(self.scale, np.float32))
        object.__setattr__(self, "zero_point", np.broadcast_to(np.asarray(self.zero_point, np.int64), self.scale.shape))

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, QuantParams)
            and (self.format, self.axis) == (other.format, other.axis)
            and np.array_equal(self.scale, other.scale)
            and np.array_equal(self.zero_point, other.zero_point)
        )

    __hash__ = None  # type: ignore[assignment]
