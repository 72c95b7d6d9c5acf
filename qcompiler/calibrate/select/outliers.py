"""Cover the large values of channels with few samples (COVERCAL: weighted set cover, greedy)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

RHO = 0.85
"""A sample covers a channel if its largest |x| there is at least this share of the pool's."""


def coverage(
    maxima: NDArray, layers: Sequence[int] | None = None, rho: float = RHO
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Which samples cover which channels, bool [n, C], and weights float64 [C] of the channels.

    maxima: float [n, C]; layers: how many channels each layer has, one after another; default: one layer. A channel
    weighs (M_c / m)^2 with M_c its largest value in the pool and m the median of that over the layer's live channels:
    the large ones make the range of the whole tensor. Channels that are always 0 weigh nothing.
    """
    largest = maxima.max(axis=0).astype(np.float64)
    weight = np.zeros(len(largest))
    start = 0
    for width in layers or [len(largest)]:
        own = largest[start : start + width]
        if (own > 0).any():
            weight[start : start + width] = (own / np.median(own[own > 0])) ** 2
        start += width
    return maxima >= rho * largest, weight


def greedy(covers: NDArray[np.bool_], weight: NDArray[np.float64], count: int) -> list[int]:
    """Samples in the order of the weight that each adds, at most `count`; ends when nothing is left to add.

    Covered weight is monotone and submodular, so it is at least 1 - 1/e of the best for as many samples.
    """
    left = weight.astype(np.float64).copy()
    matrix = covers.astype(np.float64)
    chosen: list[int] = []
    while len(chosen) < count:
        gain = matrix @ left
        best = int(gain.argmax())
        if not gain[best] > 0:
            break
        chosen.append(best)
        left[covers[best]] = 0.0
    return chosen


def choose_cover(
    maxima: NDArray, count: int, rng: np.random.Generator, layers: Sequence[int] | None = None, rho: float = RHO
) -> NDArray[np.int64]:
    """int64 [count]: a greedy cover; once all is covered, a draw among the others."""
    covers, weight = coverage(maxima, layers, rho)
    chosen = greedy(covers, weight, count)
    rest = np.setdiff1d(np.arange(len(maxima)), chosen)
    return np.asarray([*chosen, *rng.choice(rest, count - len(chosen), replace=False)], np.int64)
