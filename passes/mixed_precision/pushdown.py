"""AdaPT's push-down: the smallest fixed-point format that keeps the histogram of a tensor.

Deviations from the published code, whose test is no divergence (see the card): the formula with a floor for empty bins,
the whole tensor, rounding to nearest even, and a search that is monotone: WL upwards, for each all FL.

Source: Kummer et al. 2021, Adaptive Precision Training, section 3 (PushDown).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

BINS = 100
EPSILON = 1e-2
"""With BINS it is the precision that is asked for: Gaussian weights get 9 bits."""
FLOOR = 1e-12


def divergence(x: NDArray, rounded: NDArray, counts: NDArray | None = None, *, bins: int = BINS) -> float:
    """sum p log(p / p_hat) over `bins` equal bins between the least and the largest x. counts: weights of elements."""
    x, rounded = np.asarray(x, np.float64).reshape(-1), np.asarray(rounded, np.float64).reshape(-1)
    low, high = float(x.min()), float(x.max())
    if low == high:
        return 0.0
    mass = None if counts is None else np.asarray(counts, np.float64).reshape(-1)
    p, _ = np.histogram(x, bins, (low, high), weights=mass)
    q, _ = np.histogram(np.clip(rounded, low, high), bins, (low, high), weights=mass)
    p, q = p / p.sum(), np.maximum(q / q.sum(), FLOOR)
    used = p > 0
    return max(float((p[used] * np.log(p[used] / q[used])).sum()), 0.0)


def fixed_point(x: NDArray, word: int, fraction: int) -> NDArray[np.float64]:
    """x in the format <WL, FL>: step 2^-FL, WL bits in two's complement, round half to even, saturating."""
    step, half = 2.0**-fraction, 2.0 ** (word - 1)
    return np.asarray(np.clip(np.rint(np.asarray(x, np.float64) / step), -half, half - 1) * step)


def push_down(x: NDArray, *, epsilon: float = EPSILON, bins: int = BINS, most: int = 32) -> tuple[int, int]:
    """The smallest (WL, FL) with divergence <= epsilon; of equal WL the least divergence, then the least FL.

    x: float [...]. WL is at most `most`, which is taken where nothing smaller does.
    """
    reach = float(np.abs(x).max(initial=0.0))
    top = int(np.ceil(np.log2(reach))) if reach > 0 else 0  # bits before the point, without sign
    last = (most, most - 1 - top)
    for word in range(2, most + 1):
        # A range far below the largest value, or steps above it, cannot keep the histogram.
        found = [(divergence(x, fixed_point(x, word, f), bins=bins), f) for f in range(word - 3 - top, word + 1 - top)]
        least, fraction = min(found)
        if least <= epsilon:
            return word, fraction
    return last
