"""Samples whose second moments add up to the pool's: what GPTQ and reconstruction see of the data."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

SWEEPS = 4


def discrepancy(moments: NDArray, chosen: NDArray) -> float:
    """sum over layers of |C(S) - C(U)|_F^2: rows `chosen` against all rows of moments float [n, F]."""
    x = moments.astype(np.float64)
    return float(np.square(x[chosen].mean(axis=0) - x.mean(axis=0)).sum())


def choose_moments(moments: NDArray, count: int, first: NDArray | None = None) -> NDArray[np.int64]:
    """int64 [count] rows with small discrepancy: greedy herding, then exchanges that lower it, at most SWEEPS rounds.

    first: rows that are in the set whatever they do. Source: Chen, Welling and Smola 2010, herding, on second moments.
    """
    x = moments.astype(np.float64)
    x = x - x.mean(axis=0)  # the aim is then a mean of 0
    norms = (x * x).sum(axis=1)
    fixed = [] if first is None else [int(i) for i in first][:count]
    chosen = list(fixed)
    free = np.ones(len(x), bool)
    free[chosen] = False
    total = x[chosen].sum(axis=0) if chosen else np.zeros(x.shape[1])
    while len(chosen) < count:
        best = int(np.where(free, norms + 2 * (x @ total), np.inf).argmin())
        chosen.append(best)
        free[best] = False
        total = total + x[best]
    for _ in range(SWEEPS):
        changed = False
        for at in range(len(fixed), count):
            old = chosen[at]
            without = total - x[old]
            loss = np.where(free, norms + 2 * (x @ without), np.inf)
            best = int(loss.argmin())
            if loss[best] < norms[old] + 2 * float(x[old] @ without) - 1e-12:
                free[old], free[best] = True, False
                chosen[at], total, changed = best, without + x[best], True
        if not changed:
            break
    return np.asarray(chosen, np.int64)
