"""Choices among codes: Max, Min, comparisons, Select, and PRelu with a slope for each channel."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcompiler.formats import parse_format
from qcompiler.ops.operator import Operator

COMPARISONS = {
    "Equal": np.equal,
    "NotEqual": np.not_equal,
    "Greater": np.greater,
    "GreaterOrEqual": np.greater_equal,
}
"""`kind` of Compare; less is greater with the operands changed over."""
Inputs = list[NDArray | None]


def _array(inputs: Inputs, i: int = 0) -> NDArray:
    x = inputs[i]
    assert x is not None
    return x


def largest(inputs: Inputs, attributes: dict[str, Any]) -> list[NDArray]:
    """max(a, b) of codes of the same parameters; broadcast."""
    return [np.maximum(_array(inputs), _array(inputs, 1))]


def smallest(inputs: Inputs, attributes: dict[str, Any]) -> list[NDArray]:
    """min(a, b) of codes of the same parameters; broadcast."""
    return [np.minimum(_array(inputs), _array(inputs, 1))]


def compare(inputs: Inputs, attributes: dict[str, Any]) -> list[NDArray]:
    """(a - za) * ma `kind` (b - zb) * mb in int64: uint8 0 or 1; broadcast. With equal scales ma = mb = 1, and it is
    exact; else they are the scales in 31 bits. Integers that are no codes come as they are, clipped to +-2^32."""
    limit = 1 << 32
    sides = []
    for i, name in enumerate("ab"):
        x = np.clip(_array(inputs, i).astype(np.int64), -limit, limit) - int(attributes.get(f"{name}_zero_point", 0))
        sides.append(x * int(attributes.get(f"{name}_multiplier", 1)))
    return [np.asarray(COMPARISONS[attributes["kind"]](*sides)).astype(np.uint8)]


def select(inputs: Inputs, attributes: dict[str, Any]) -> list[NDArray]:
    """a where the condition (uint8) is not 0, else b; codes of the same parameters; broadcast."""
    return [np.where(_array(inputs) != 0, _array(inputs, 1), _array(inputs, 2))]


def slope(inputs: Inputs, attributes: dict[str, Any]) -> list[NDArray]:
    """x codes, slope int32 (broadcast to x) -> clip((((x - zx) * m + 2^(shift-1)) >> shift) + z), in int64.

    m = `multiplier` where x >= zx, else the slope: PRelu, and both multipliers hold s_x / s_y in steps of 2^-shift. A
    multiplier of b bits is off by 2^-b at most, so codes of 8 bits are rounded correctly but for ties within 2^-20.
    """
    x, slopes = _array(inputs), _array(inputs, 1)
    fmt, shift = parse_format(attributes["format"]), int(attributes["shift"])
    centred = x.astype(np.int64) - int(attributes.get("x_zero_point", 0))
    product = centred * np.where(centred >= 0, int(attributes["multiplier"]), slopes.astype(np.int64))
    rounded = (product + (1 << (shift - 1))) >> shift
    return [np.clip(rounded + int(attributes.get("zero_point", 0)), fmt.min, fmt.max).astype(fmt.storage)]


COMPARE = Operator("Compare", "qcompiler", compare)
MAX = Operator("Max", "", largest)
MIN = Operator("Min", "", smallest)
SELECT = Operator("Select", "qcompiler", select)
SLOPE = Operator("Slope", "qcompiler", slope)
