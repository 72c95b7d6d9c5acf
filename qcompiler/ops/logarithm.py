"""LogEncode: codes of a logarithmic format (`Log`) from affine codes, by comparison.

What the codes mean is a Table of the format's levels, whose integers products multiply: ordinary products, with the
accumulator and the overflow proof of every other.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcompiler.formats import parse_format
from qcompiler.ops.operator import Operator


def log_encode(inputs: list[NDArray | None], attributes: dict[str, Any]) -> list[NDArray]:
    """x codes [...], thresholds int32 [2^bits - 1], falling -> how many of them x lies below, uint8 [...]."""
    x, thresholds = inputs
    assert x is not None and thresholds is not None
    fmt = parse_format(attributes["format"])
    above = np.searchsorted(thresholds.astype(np.int64)[::-1], x.astype(np.int64), side="right")
    return [(len(thresholds) - above).astype(fmt.storage)]


LOG_ENCODE = Operator("LogEncode", "qcompiler", log_encode)
