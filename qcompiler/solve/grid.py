"""The values that a weight may take, for solvers: any number format with a scale a row."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qcompiler.formats import Blocks, Int, NumberFormat
from qcompiler.minifloat import Minifloat
from qcompiler.quantizer import round_blocks, round_levels


class Grid:
    """Codes and values of a symmetric format: value = scale * decode(code)."""

    def __init__(self, fmt: NumberFormat) -> None:
        self.format = fmt
        codes = fmt.codes()
        levels = np.asarray(fmt.decode(codes), np.float64)
        self._uniform = isinstance(fmt, Int)
        self._codes, self._levels = codes, levels
        self._middles = (self._levels[1:] + self._levels[:-1]) / 2
        self.largest = float(np.abs(levels).max()) if not self._uniform else float(codes.max())
        """Largest level that both signs have."""

    def levels(self, ratio: NDArray) -> NDArray[np.float64]:
        """The nearest level of every w / scale."""
        if self._uniform:
            return np.asarray(np.clip(np.rint(ratio), self._levels[0], self._levels[-1]))
        if isinstance(self.format, Blocks):  # [M, K]: whole rows, since a block has one step
            return np.asarray(round_blocks(np.asarray(ratio, np.float64), self.format))
        if isinstance(self.format, Minifloat):
            return np.asarray(round_levels(np.asarray(ratio, np.float64), self.format))
        return np.asarray(self._levels[np.searchsorted(self._middles, ratio)])

    def codes(self, levels: NDArray) -> NDArray[np.int64]:
        """The codes of levels."""
        return np.asarray(self._codes[np.searchsorted(self._levels, levels)], np.int64)
