"""Softmax in integers: a table of exponentials and one rounded division.

With a table of 2^20 exp(-d s) every term is off by at most 1/2, so a probability differs from the exact softmax of the
dequantized input by less than (n + 1) 2^-21 besides the rounding to 1/R, n being the extent of the axis.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcompiler.formats import Int, parse_format
from qcompiler.ops.operator import Operator

ONE = 1 << 20
"""What exp(0) is in the table."""


def exponentials(fmt: Int, scale: float) -> NDArray[np.int32]:
    """table[d] = round(2^20 exp(-d * scale)), d = 0 .. 2^bits - 1, computed in float64."""
    return np.rint(ONE * np.exp(-np.arange(1 << fmt.bits) * float(scale))).astype(np.int32)


def softmax(inputs: list[NDArray | None], attributes: dict[str, Any]) -> list[NDArray]:
    """e = table[max(x) - x]; clip((2 e R + S) // (2 S) + z) with S = sum e along `axis`, all in int64."""
    x, table = inputs
    assert x is not None and table is not None
    fmt, axis = parse_format(attributes["format"]), int(attributes["axis"])
    codes = x.astype(np.int64)
    e = table.astype(np.int64)[codes.max(axis=axis, keepdims=True) - codes]
    total = e.sum(axis=axis, keepdims=True)
    shares = (2 * e * int(attributes["numerator"]) + total) // (2 * total)
    return [np.clip(shares + int(attributes.get("zero_point", 0)), fmt.min, fmt.max).astype(fmt.storage)]


SOFTMAX = Operator("Softmax", "qcompiler", softmax)
