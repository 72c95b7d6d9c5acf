"""Number formats, granularities and scale types: frozen values.

A format is defined by `decode(code)`; everything else (range, storage, spelling) follows from it.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from decimal import Context as DecimalContext
from decimal import Decimal
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from qcompiler.blocks import Blocks
from qcompiler.errors import RecipeError
from qcompiler.integer import Int as Int
from qcompiler.minifloat import OCP, Minifloat

LEVEL_BITS = 15
"""The levels of a logarithmic format are integers below 2^15: int16 holds them, less any of them."""
ROOT = 1 << 14
"""What 1 is among the levels of base sqrt 2, whose odd codes are irrational."""
_DECIMAL = DecimalContext(prec=40)


@dataclass(frozen=True)
class Log:
    """Logarithms of 2 to 6 bits: code k stands for 2^(-k q / r), the top code for 0. Base 2^(q/r), q/r reduced.

    Log(4, 1) is log2, Log(4, 1, 2) log sqrt 2, Log(4, 25, 37) AdaLog of base 2^(25/37). In integers

        decode(k) = M 2^Tmax 2^-T1[k] T2[k] / M        T1[k] = floor(k q / r)    T2[k] = round(M 2^-((k q mod r) / r))

    with M = 1 for whole exponents, 2^(bits+1) - 2 for others (so a mantissa has bits + 1 bits), and 2^14 for r = 2.
    Tmax = T1[2^bits - 2], or less where that would take decode(0) to 2^15: terms of a larger T1 are rounded, half up.

    Deviations: the paper lets the top code stand for two values; here 0 owns it. Its T2 of base sqrt 2 would be off by
    1 %, and an exact sqrt 2 takes two accumulators, of even and of odd codes; with 14 bits of sqrt 2 (off by 2^-15 of
    the largest level, a 10^4-th of a step) one does. Sources: Wu et al. 2024, AdaLog, section 3.2; Li et al. 2023,
    RepQ-ViT, section 3.4 (log sqrt 2).
    """

    bits: int
    q: int = 1
    r: int = 1

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 6:
            raise RecipeError(f"logarithms have 2 to 6 bits, not {self.bits}.")
        if not (1 <= self.q <= 1024 and 1 <= self.r <= 1024):
            raise RecipeError(f"a base of 2^({self.q}/{self.r}) is not one: both numbers are 1 to 1024.")
        common = math.gcd(self.q, self.r)
        object.__setattr__(self, "q", self.q // common)
        object.__setattr__(self, "r", self.r // common)

    signed = False
    narrow = False
    min = 0
    """Lowest code."""

    @property
    def max(self) -> int:
        """Highest code, which stands for 0."""
        return (1 << self.bits) - 1

    @property
    def storage(self) -> np.dtype:
        """Numpy dtype that holds codes."""
        return np.dtype(np.uint8)

    @property
    def token(self) -> str:
        """The spelling used in files and recipes: log4:25/37."""
        return f"log{self.bits}:{self.q}/{self.r}"

    @property
    def one(self) -> int:
        """decode(0), the largest level."""
        return int(_levels(self)[0])

    @property
    def integers(self) -> Int:
        """The smallest format of integers that holds `decode` of every code."""
        return Int(self.one.bit_length(), signed=False)

    @property
    def mantissa(self) -> int:
        """M: what a mantissa of 1 is."""
        return {1: 1, 2: ROOT}.get(self.r, (1 << (self.bits + 1)) - 2)

    def tables(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """T1 and T2 of every code, int64 [2^bits] each; the top code's are not used."""
        k = np.arange(1 << self.bits, dtype=np.int64) * self.q
        t2 = [int((_power(int(rest), self.r) * self.mantissa).to_integral_value()) for rest in k % self.r]
        return k // self.r, np.array(t2, np.int64)

    def boundaries(self) -> NDArray[np.float64]:
        """2^(-(k + 1/2) q / r) for k = 0 .. 2^bits - 2: between code k and the next. float64, correctly rounded."""
        return _boundaries(self)

    def codes(self) -> NDArray[np.int64]:
        """Every code, in the order of what they stand for."""
        return np.arange(self.max, -1, -1)

    def decode(self, code: NDArray) -> NDArray:
        """The value of a code, before scale and zero point: a level, int64."""
        return _levels(self)[np.asarray(code, np.int64)]

    def __str__(self) -> str:
        return self.token


def _power(numerator: int, denominator: int) -> Decimal:
    """2^(-numerator / denominator), the same on every machine."""
    exponent = _DECIMAL.divide(Decimal(-numerator), Decimal(denominator))
    return _DECIMAL.power(Decimal(2), exponent)


@lru_cache(maxsize=1024)
def _boundaries(fmt: Log) -> NDArray[np.float64]:
    found = np.array([float(_power((2 * k + 1) * fmt.q, 2 * fmt.r)) for k in range(fmt.max)])
    found.flags.writeable = False
    return found


@lru_cache(maxsize=1024)
def _levels(fmt: Log) -> NDArray[np.int64]:
    shift, mantissa = fmt.tables()
    most = min(int(shift[fmt.max - 1]), LEVEL_BITS - fmt.mantissa.bit_length())
    down = np.minimum(np.maximum(shift - most, 0), 32)
    half = np.where(down > 0, np.int64(1) << np.maximum(down - 1, 0), 0)
    levels = ((mantissa << np.maximum(most - shift, 0)) + half) >> down
    levels[fmt.max] = 0
    levels.flags.writeable = False
    return levels


NumberFormat = Int | Log | Minifloat | Blocks  # joined by Codebook as its operators arrive


def parse_format(token: str) -> NumberFormat:
    """The format that `token` spells ('int8', 'uint4', 'int8n', 'log4:1/2', 'e2m1', 'mxe2m1'). Raises RecipeError.

    `float4e2m1`, ONNX's name of e2m1, is read as well.
    """
    if token in OCP:
        return OCP[token]
    if match := re.fullmatch(r"mxe(\d)m(\d)", token):
        return Blocks(Minifloat(int(match[1]), int(match[2])))
    if match := re.fullmatch(r"(u?)e(\d)m(\d)", token.removeprefix("float4") if token == "float4e2m1" else token):
        return Minifloat(int(match[2]), int(match[3]), signed=not match[1])
    if match := re.fullmatch(r"log(\d+):(\d{1,4})/(\d{1,4})", token):
        return Log(*(int(number) for number in match.groups()))
    match = re.fullmatch(r"(u?)int(\d+)(n?)", token)
    if match is None:
        raise RecipeError(
            f"`{token}` is not a number format.", hint="Formats look like int8, uint4, int8n, log4:25/37 or e2m1."
        )
    return Int(int(match[2]), signed=not match[1], narrow=bool(match[3]))


def parse_integers(token: str) -> Int:
    """The format of integers that `token` spells. Raises RecipeError."""
    fmt = parse_format(token)
    if not isinstance(fmt, Int):
        raise RecipeError(f"`{token}` is no format of integers.", hint="Such formats look like int8, uint4 or int8n.")
    return fmt


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
    """A QuantSpec with numbers: real = scale * (format.decode(code) - zero_point).

    scale: float32, [] or [C]; zero_point: int64, same shape; both given as anything that converts to such an array.
    axis: the kept axis if scale is [C]. Of a logarithmic format, whose largest real value is then
    scale * (format.one - zero_point), both are scalars and the zero point is 0 .. format.one: it shifts values that are
    bounded from below (c = scale * zero_point of AdaLog's bias reparameterization). Of a minifloat the zero point is 0
    and the scale is that of levels: `format.unit` times what ONNX's float8 types call the scale.
    """

    format: NumberFormat
    scale: Any
    zero_point: Any = field(default_factory=lambda: np.zeros((), np.int64))
    axis: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", np.asarray(self.scale, np.float32))
        object.__setattr__(self, "zero_point", np.broadcast_to(np.asarray(self.zero_point, np.int64), self.scale.shape))
        if isinstance(self.format, Log) and self.scale.ndim:
            raise RecipeError(f"{self.format} has one scale for a whole tensor, not one for each channel.")
        if isinstance(self.format, Minifloat | Blocks) and self.zero_point.any():
            raise RecipeError(f"{self.format} has no zero point.")

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, QuantParams)
            and (self.format, self.axis) == (other.format, other.axis)
            and np.array_equal(self.scale, other.scale)
            and np.array_equal(self.zero_point, other.zero_point)
        )

    __hash__ = None  # type: ignore[assignment]
