"""Add, Mul, Div, Requantize and Table."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcompiler.formats import parse_format
from qcompiler.ops.operator import Operator, Shape
from qcompiler.ops.requantize import requantize

WHOLE = 1 << 24


def _centred(x: NDArray | None, zero_point: int) -> NDArray[np.int64]:
    assert x is not None
    return x.astype(np.int64) - zero_point


def add(inputs: list[NDArray | None], attributes: dict[str, Any]) -> list[NDArray]:
    """clip((((a - za) * ma + (b - zb) * mb + 2^(shift-1)) >> shift) + z); a and b broadcast.

    int64 here; integerize chose multipliers for which int32 gives the same (both inputs of at most 8 bits).
    """
    fmt, shift = parse_format(attributes["format"]), int(attributes["shift"])
    a = _centred(inputs[0], int(attributes.get("a_zero_point", 0))) * int(attributes["a_multiplier"])
    b = _centred(inputs[1], int(attributes.get("b_zero_point", 0))) * int(attributes["b_multiplier"])
    rounded = (a + b + (1 << (shift - 1))) >> shift
    return [np.clip(rounded + int(attributes.get("zero_point", 0)), fmt.min, fmt.max).astype(fmt.storage)]


def mul(inputs: list[NDArray | None], attributes: dict[str, Any]) -> list[NDArray]:
    """requantize((a - za) * (b - zb)); a and b broadcast."""
    a = _centred(inputs[0], int(attributes.get("a_zero_point", 0)))
    b = _centred(inputs[1], int(attributes.get("b_zero_point", 0)))
    return [requantize(a * b, inputs[2:], attributes, None)]


def div(inputs: list[NDArray | None], attributes: dict[str, Any]) -> list[NDArray]:
    """(a - za) * multiplier / ((b - zb) 2^shift), rounded half up, + z, saturated; a and b broadcast, all in int64.

    Over 0 it is the largest code for a positive, the lowest for a negative numerator, and z for 0.
    """
    fmt, zero = parse_format(attributes["format"]), int(attributes.get("zero_point", 0))
    a = _centred(inputs[0], int(attributes.get("a_zero_point", 0))) * int(attributes["multiplier"])
    b = _centred(inputs[1], int(attributes.get("b_zero_point", 0))) << int(attributes["shift"])
    a, b = np.where(b < 0, -a, a), np.abs(b)
    quotient = (2 * a + b) // np.where(b == 0, 1, 2 * b)
    endless = np.sign(a) * np.int64(1 << 20)
    codes = np.where(b == 0, endless, quotient)
    return [np.clip(codes + zero, fmt.min, fmt.max).astype(fmt.storage)]


def rescale(inputs: list[NDArray | None], attributes: dict[str, Any]) -> list[NDArray]:
    """requantize(x - zx). Integers that are no codes (int32, int64) are clipped to +-2^24, which float32 holds."""
    x = inputs[0]
    assert x is not None
    given = np.clip(x, -WHOLE, WHOLE) if x.dtype.itemsize > 2 else x
    return [requantize(_centred(given, int(attributes.get("x_zero_point", 0))), inputs[1:], attributes, None)]


def table(inputs: list[NDArray | None], attributes: dict[str, Any]) -> list[NDArray]:
    """table[x - x_format.min]."""
    entries = inputs[1]
    assert entries is not None
    return [entries[_centred(inputs[0], parse_format(attributes["x_format"]).min)]]


def _product_macs(inputs: Sequence[Shape], outputs: Sequence[Shape], attributes: dict[str, Any]) -> int:
    return prod(outputs[0])


ADD = Operator("Add", "qcompiler", add)
DIV = Operator("Div", "qcompiler", div, _product_macs)
MUL = Operator("Mul", "qcompiler", mul, _product_macs)
REQUANTIZE = Operator("Requantize", "qcompiler", rescale)
TABLE = Operator("Table", "qcompiler", table)
