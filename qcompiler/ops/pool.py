"""MaxPool and AveragePool, 1-D and 2-D."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcompiler.ops.operator import Operator
from qcompiler.ops.requantize import requantize
from qcompiler.ops.windows import as_2d, pad, taps, window_of


def max_pool(inputs: list[NDArray | None], attributes: dict[str, Any]) -> list[NDArray]:
    """Largest code in the window. The lowest value of the storage type stands in the padding, so it never wins."""
    x = inputs[0]
    assert x is not None
    window = window_of(attributes["kernel_shape"], attributes)
    seen = taps(pad(as_2d(x), window.pads, int(np.iinfo(x.dtype).min)), window)
    codes = seen.max(axis=(0, 1))
    return [codes[:, :, 0] if x.ndim == 3 else codes]


def average_pool(inputs: list[NDArray | None], attributes: dict[str, Any]) -> list[NDArray]:
    """acc = sum over in-bounds cells of (x - zx); *r [] or [spatial...] holds the divisor."""
    x, *parameters = inputs
    assert x is not None
    window = window_of(attributes["kernel_shape"], attributes)
    centred = as_2d(x).astype(np.int64) - int(attributes.get("x_zero_point", 0))
    acc = taps(pad(centred, window.pads, 0), window).sum(axis=(0, 1))
    return [requantize(acc[:, :, 0] if x.ndim == 3 else acc, parameters, attributes, None)]


MAX_POOL = Operator("MaxPool", "qcompiler", max_pool)
AVERAGE_POOL = Operator("AveragePool", "qcompiler", average_pool)
