"""A histogram that grows with its data: what calibration remembers of one value."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

BINS = 4096
"""Capacity; at least half of it is in use once the data has spread, so ranges are resolved to 1/2048."""


@dataclass(eq=False)
class Histogram:
    """Counts on the grid [k * width, (k + 1) * width), width a power of two; memory is constant.

    When a value falls outside, neighbouring bins merge in pairs until everything fits. Bins are aligned to multiples
    of the width, so 0 is always an edge, merging is exact and the result does not depend on the order of samples.
    Exact zeros (most of what a ReLU writes) are counted apart: every quantizer keeps 0 exact.

    One made by `weighted()` sums weights of elements instead of counting them, in float64.
    """

    counts: NDArray[Any] = field(default_factory=lambda: np.zeros(BINS, np.int64))
    start: int = 0
    """Index k of the first bin."""
    exponent: int | None = None
    """log2 of the width; None before the first value other than 0."""
    minimum: float = np.inf
    maximum: float = -np.inf
    total: int = 0
    zeros: int = 0

    @classmethod
    def weighted(cls) -> Histogram:
        """A histogram for elements with weights."""
        return cls(np.zeros(BINS, np.float64))

    @property
    def width(self) -> float:
        """Width of a bin."""
        return 0.0 if self.exponent is None else 2.0**self.exponent

    def add(self, array: NDArray, weights: NDArray | None = None) -> None:
        """Count all elements of `array` (float32, finite, any shape); weights: float, as many, not negative."""
        flat = np.asarray(array).reshape(-1)
        if not flat.size:
            return
        low, high = float(flat.min()), float(flat.max())
        self.minimum, self.maximum = min(self.minimum, low), max(self.maximum, high)
        self.total += flat.size
        zeros = flat.size - int(np.count_nonzero(flat))
        self.zeros += zeros
        if low == 0.0 == high:
            return
        self._cover(low, high)
        index = np.floor(flat * np.float32(1 / self.width)).astype(np.int32)
        index -= np.int32(self.start)
        np.clip(index, 0, BINS - 1, out=index)  # an element on the upper edge of a subnormal-width grid
        if weights is not None:
            self.counts += np.bincount(index, np.where(flat == 0, 0.0, np.asarray(weights).reshape(-1)), BINS)
            return
        self.counts += np.bincount(index, minlength=BINS)
        self.counts[min(max(-self.start, 0), BINS - 1)] -= zeros

    def merge(self, other: Histogram) -> None:
        """Count what `other` has counted."""
        self.minimum, self.maximum = min(self.minimum, other.minimum), max(self.maximum, other.maximum)
        self.total, self.zeros = self.total + other.total, self.zeros + other.zeros
        if other.exponent is None:
            return
        self._cover(other.minimum, other.maximum, other.exponent)
        assert self.exponent is not None
        occupied = np.flatnonzero(other.counts)
        index = ((occupied + other.start) >> (self.exponent - other.exponent)) - self.start
        np.add.at(self.counts, np.clip(index, 0, BINS - 1), other.counts[occupied])

    def centres(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Middles of the bins in use and their counts, zeros left out: float64 [B], float64 [B]."""
        used = np.flatnonzero(self.counts)
        middle = (used + self.start + 0.5) * self.width
        return np.clip(middle, self.minimum, self.maximum), self.counts[used].astype(np.float64)

    def _cover(self, low: float, high: float, exponent: int | None = None) -> None:
        low, high = min(low, 0.0), max(high, 0.0)
        # float32's smallest normal limits the width, so that 1 / width is finite.
        finest = max(int(np.ceil(np.log2((high - low) / (BINS - 2)))), -120)
        if self.exponent is None:
            self.exponent = finest if exponent is None else max(finest, exponent)
            self.start = int(np.floor(low / self.width))
            return
        first = min(self.start * self.width, low)
        last = max((self.start + self._last()) * self.width, high)
        target = max(self.exponent, exponent if exponent is not None else self.exponent)
        while np.floor(last / 2.0**target) - np.floor(first / 2.0**target) >= BINS:
            target += 1
        used = np.flatnonzero(self.counts)
        kept, absolute = self.counts[used], used + self.start
        absolute >>= target - self.exponent
        self.exponent, self.start = target, int(np.floor(first / 2.0**target))
        self.counts = np.zeros(BINS, self.counts.dtype)
        np.add.at(self.counts, absolute - self.start, kept)

    def _last(self) -> int:
        used = np.flatnonzero(self.counts)
        return int(used[-1]) if used.size else 0
