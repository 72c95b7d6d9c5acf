"""The values that a weight may take, for solvers: any number format with a scale a row."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qcompiler.formats import Int, NumberFormat


class Grid:
    """Codes and values of a symmetric format: value = scale * decode(code)."""

    def __init__(self, fmt: NumberFormat) -> None:
        self.format = fmt
        low = getattr(fmt, "min", 0)
        codes = np.arange(low, low + (1 << fmt.bits) - bool(getattr(fmt, "narrow", False)))
        levels = np.asarray(fmt.decode(codes), np.float64)
        order = np.argsort(levels, kind="stable")
        self._uniform = isinstance(fmt, Int)
        self._codes, self._levels = codes[order], levels[order]
        self._middles = (self._levels[1:] + self._levels[:-1]) / 2
        self.largest = float(np.abs(levels).max()) if not self._uniform else float(codes.max())
        """Largest level that both signs have."""

    def levels(self, ratio: NDArray) -> NDArray[np.float64]:
        """The nearest level of every w / scale."""
        if self._uniform:
            return np.asarray(np.clip(np.rint(ratio), self._levels[0], self._levels[-1]))
        return np.asarray(self._levels[np.searchsorted(self._middles, ratio)])

    def codes(self, levels: NDArray) -> NDArray[np.int64]:
        """The codes of levels."""
        return np.asarray(self._codes[np.searchsorted(self._levels, levels)], np.int64)
