"""Softmax in integers: a table of exponentials and one rounded division.

With exponentials in steps of 2^-20 every term is off by at most 1/2 (by 1 for inputs above 8 bits, whose exponentials
are products of two table entries), so a probability differs from the exact softmax of the dequantized input by less
than (n + 1) 2^-20 besides the rounding to 1/R, n being the extent of the axis.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcompiler.formats import Int, parse_format, parse_integers
from qcompiler.ops.operator import Operator

ONE = 1 << 20
"""What exp(0) is."""
PART = 1 << 30
"""What exp(0) is in each of the two tables of inputs above 8 bits."""


def exponentials(fmt: Int, scale: float) -> NDArray[np.int32]:
    """Up to 8 bits table[d] = round(2^20 exp(-d * scale)), d = 0 .. 2^bits - 1, computed in float64.

    Above, round(2^30 exp(-j * scale)), j = 0 .. 255, and then round(2^30 exp(-256 j * scale)).
    """
    if fmt.bits <= 8:
        return np.rint(ONE * np.exp(-np.arange(1 << fmt.bits) * float(scale))).astype(np.int32)
    steps = np.concatenate([np.arange(256), 256 * np.arange(1 << (fmt.bits - 8))])
    return np.rint(PART * np.exp(-steps * float(scale))).astype(np.int32)


def terms(distance: NDArray[np.int64], table: NDArray, fmt: Int) -> NDArray[np.int64]:
    """2^20 exp(-distance * scale) from the table, int64."""
    entries = table.astype(np.int64)
    if fmt.bits <= 8:
        return entries[distance]
    return (entries[distance & 255] * entries[256 + (distance >> 8)] + (1 << 39)) >> 40


def softmax(inputs: list[NDArray | None], attributes: dict[str, Any]) -> list[NDArray]:
    """e = exp(x - max(x)) in steps of 2^-20; clip((2 e R + S) // (2 S) + z) with S = sum e along `axis`, int64.

    An optional third input `mask` uint8, broadcast: where it is 1, e = 0 and x counts for no maximum. A row that is
    masked throughout counts as not masked. An optional fourth input `position`, an integer of one element: only the
    first position + 1 cells are seen, at least one, at most all.
    """
    x, table, mask, position = (*inputs, None, None)[:4]
    assert x is not None and table is not None
    fmt, axis = parse_format(attributes["format"]), int(attributes["axis"])
    codes = x.astype(np.int64)
    hidden = np.zeros(codes.shape, bool) if mask is None else np.broadcast_to(mask.astype(bool), codes.shape)
    if position is not None:
        extent = codes.shape[axis]
        seen = min(max(int(position.reshape(())), 0), extent - 1) + 1
        hidden = hidden | np.moveaxis(np.broadcast_to(np.arange(extent) >= seen, hidden.shape), -1, axis)
    hidden = hidden & ~hidden.all(axis=axis, keepdims=True)
    top = np.where(hidden, np.iinfo(np.int64).min, codes).max(axis=axis, keepdims=True)
    e = np.where(hidden, 0, terms(np.where(hidden, 0, top - codes), table, parse_integers(attributes["x_format"])))
    total = e.sum(axis=axis, keepdims=True)
    shares = (2 * e * int(attributes["numerator"]) + total) // (2 * total)
    return [np.clip(shares + int(attributes.get("zero_point", 0)), fmt.min, fmt.max).astype(fmt.storage)]


SOFTMAX = Operator("Softmax", "qcompiler", softmax)
