"""Gather, and Piecewise: a unary function of 16-bit codes as straight lines between table entries."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcompiler.formats import parse_format
from qcompiler.ops.operator import Operator

FRACTION = 8
"""Entries of a piecewise table are output codes in steps of 2^-8."""


def piecewise(inputs: list[NDArray | None], attributes: dict[str, Any]) -> list[NDArray]:
    """x codes of more than 8 bits, table int32 [2^(bits - shift) + 1] -> codes.

    u = x - x_format.min, i = u >> shift, f = u mod 2^shift; T = table, values in steps of 2^-8 without zero point:
    clip(((T[i] * 2^shift + (T[i+1] - T[i]) * f + 2^(shift+7)) >> (shift + 8)) + z). |T| < 2^25, so int64 is exact.
    """
    x, table = inputs
    assert x is not None and table is not None
    fmt, shift = parse_format(attributes["format"]), int(attributes["shift"])
    u = x.astype(np.int64) - parse_format(attributes["x_format"]).min
    i, f = u >> shift, u & ((1 << shift) - 1)
    entries = table.astype(np.int64)
    value = (entries[i] << shift) + (entries[i + 1] - entries[i]) * f
    rounded = (value + (1 << (shift + FRACTION - 1))) >> (shift + FRACTION)
    return [np.clip(rounded + int(attributes.get("zero_point", 0)), fmt.min, fmt.max).astype(fmt.storage)]


def gather(inputs: list[NDArray | None], attributes: dict[str, Any]) -> list[NDArray]:
    """x[..., index, ...] along `axis`. A negative index counts from the end; what still lies outside takes the nearest
    entry, so that no index reads foreign memory."""
    x, index = inputs
    assert x is not None and index is not None
    axis = int(attributes.get("axis", 0))
    extent = x.shape[axis]
    wrapped = np.where(index < 0, index.astype(np.int64) + extent, index.astype(np.int64))
    return [np.take(x, np.clip(wrapped, 0, extent - 1), axis=axis)]


PIECEWISE = Operator("Piecewise", "qcompiler", piecewise)
GATHER = Operator("Gather", "", gather)
