"""ReduceMean: means and sums over axes, global average pooling among them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcompiler.ops.operator import Operator
from qcompiler.ops.requantize import requantize


def reduce_mean(inputs: list[NDArray | None], attributes: dict[str, Any]) -> list[NDArray]:
    """acc = sum (x - zx) over `axes`; the divisor is inside *r []."""
    x, *parameters = inputs
    assert x is not None
    centred = x.astype(np.int64) - int(attributes.get("x_zero_point", 0))
    acc = centred.sum(axis=tuple(attributes["axes"]), keepdims=bool(attributes.get("keepdims", 1)))
    return [requantize(np.asarray(acc), parameters, attributes, None)]


REDUCE_MEAN = Operator("ReduceMean", "qcompiler", reduce_mean)
