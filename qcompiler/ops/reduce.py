"""ReduceMean (means and sums over axes, global average pooling among them), ReduceMax, ReduceMin, ReduceL2."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcompiler.formats import parse_format
from qcompiler.ops.normalize import root
from qcompiler.ops.operator import Operator
from qcompiler.ops.requantize import requantize


def reduce_mean(inputs: list[NDArray | None], attributes: dict[str, Any]) -> list[NDArray]:
    """acc = sum (x - zx) over `axes`; the divisor is inside *r []."""
    x, *parameters = inputs
    assert x is not None
    centred = x.astype(np.int64) - int(attributes.get("x_zero_point", 0))
    acc = centred.sum(axis=tuple(attributes["axes"]), keepdims=bool(attributes.get("keepdims", 1)))
    return [requantize(np.asarray(acc), parameters, attributes, None)]


def _extreme(pick: Any) -> Any:
    def reduce(inputs: list[NDArray | None], attributes: dict[str, Any]) -> list[NDArray]:
        x = inputs[0]
        assert x is not None
        return [np.asarray(pick(x, axis=tuple(attributes["axes"]), keepdims=bool(attributes.get("keepdims", 1))))]

    return reduce


reduce_max, reduce_min = _extreme(np.max), _extreme(np.min)


def reduce_l2(inputs: list[NDArray | None], attributes: dict[str, Any]) -> list[NDArray]:
    """Length: clip(((isqrt(S 4^h) multiplier + 2^(shift-1)) >> shift) + z), S = sum (x - zx)^2 over `axes`, int64.

    h = `half_shift`; S 4^h stays below 2^60. The root is off by less than 2^-h of a step of the input.
    """
    x = inputs[0]
    assert x is not None
    fmt, shift = parse_format(attributes["format"]), int(attributes["shift"])
    q = x.astype(np.int64) - int(attributes.get("x_zero_point", 0))
    total = np.asarray((q * q).sum(axis=tuple(attributes["axes"]), keepdims=bool(attributes.get("keepdims", 1))))
    length = root(total << (2 * int(attributes["half_shift"])))
    codes = ((length * int(attributes["multiplier"]) + (1 << (shift - 1))) >> shift) + int(attributes["zero_point"])
    return [np.clip(codes, fmt.min, fmt.max).astype(fmt.storage)]


REDUCE_L2 = Operator("ReduceL2", "qcompiler", reduce_l2)
REDUCE_MAX = Operator("ReduceMax", "qcompiler", reduce_max)
REDUCE_MIN = Operator("ReduceMin", "qcompiler", reduce_min)
REDUCE_MEAN = Operator("ReduceMean", "qcompiler", reduce_mean)
