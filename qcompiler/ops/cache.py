"""CacheWrite: a cache of fixed length with one entry replaced."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcompiler.ops.operator import Operator


def cache_write(inputs: list[NDArray | None], attributes: dict[str, Any]) -> list[NDArray]:
    """past codes [..., L, ...], entry codes [..., 1, ...] of the same meaning, position integer of one element.

    past with slot `position mod L` along `axis` (the remainder is never negative) replaced by entry.
    """
    past, entry, position = inputs
    assert past is not None and entry is not None and position is not None
    axis = int(attributes["axis"]) % past.ndim
    slot = int(position.reshape(())) % past.shape[axis]
    result = past.copy()
    np.moveaxis(result, axis, 0)[slot] = np.moveaxis(entry, axis, 0)[0]
    return [result]


CACHE_WRITE = Operator("CacheWrite", "qcompiler", cache_write)
