"""Solvers that round a weight matrix with the second moments of its inputs in mind.

All take W float64 [M, K] (rows are outputs), the moments float64 [K, K] of its inputs, one scale a row [M] and a Grid,
and return levels float64 [M, K]: the quantized weight is scale[:, None] * levels. They lower tr((W - Q) H (W - Q)^T),
H = sum of x^ x^^T, the squared error of the outputs over the calibration data.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from qcompiler.formats import Blocks
from qcompiler.quantizer import block_steps
from qcompiler.solve.grid import Grid

Array = NDArray[np.float64]
Say = Callable[[str], None]
BLOCK = 64
"""Columns after which the columns to come are corrected in one product."""
ROWS = 2048
"""Rows that are worked on at a time, so that a block of them stays in a core's own cache; rows do not depend on each
other."""
DAMPING = 0.01
"""Share of the mean diagonal that is added to the diagonal (the published code's `percdamp`)."""


def _silent(text: str) -> None:
    pass


def nearest(weight: Array, scale: Array, grid: Grid) -> Array:
    """Plain rounding."""
    return grid.levels(weight / scale[:, None])


def damped(gram: Array, damping: float = DAMPING) -> Array:
    """H + damping * mean(diag H) * I; a column that is always 0 gets diagonal 1."""
    diagonal = np.diagonal(gram)
    mean = float(diagonal.mean()) or 1.0
    fixed = gram + np.eye(len(gram)) * (damping * mean)
    dead = diagonal <= 0
    fixed[dead, dead] = np.maximum(fixed[dead, dead], 1.0 if not diagonal.any() else mean)
    return np.asarray(fixed)


def inverse_factor(gram: Array, damping: float = DAMPING, say: Say = _silent) -> Array:
    """U upper triangular with H^-1 = U^T U, of the damped H, in float64.

    Where H is not positive definite even so, the damping grows tenfold until it is, and `say` is told.
    """
    step = damping
    while True:
        try:
            lower = scipy.linalg.cholesky(damped(gram, step), lower=True, check_finite=False)
            inverse = scipy.linalg.cho_solve((lower, True), np.eye(len(gram)), check_finite=False)
            upper = scipy.linalg.cholesky((inverse + inverse.T) / 2, lower=False, check_finite=False)
        except scipy.linalg.LinAlgError:
            step = max(step, 1e-6) * 10
            continue
        if step != damping:
            say(f"the moments of its inputs are not positive definite: damping {step:g} instead of {damping:g}")
        return np.asarray(upper)


def gptq(
    weight: Array,
    gram: Array,
    scale: Array,
    grid: Grid,
    *,
    damping: float = DAMPING,
    act_order: bool = True,
    cross: Array | None = None,
    alpha: float = 0.25,
    group_size: int | None = None,
    say: Say = _silent,
) -> Array:
    """GPTQ: round column by column, and let the columns to come make good for the error.

    act_order: columns with large inputs first. cross: sum of (x - x^) x^^T [K, K], makes it GPTAQ: the target is W x of
    the float input, `alpha` the share of that term. group_size: scale is [M, K / group_size], one for a run of columns.
    Sources: Frantar et al. 2023, GPTQ, algorithm 1; Li et al. 2025, GPTAQ.
    """
    columns = len(gram)
    order = np.argsort(-np.diagonal(gram), kind="stable") if act_order else np.arange(columns)
    w = np.array(weight[:, order], np.float64)
    dead = np.diagonal(gram)[order] <= 0
    w[:, dead] = 0.0
    upper = inverse_factor(gram[np.ix_(order, order)], damping, say)
    pull = None
    if cross is not None:
        pull = alpha * np.triu(cross[np.ix_(order, order)] @ upper.T, 1) @ upper
    scales = scale[:, None] if scale.ndim == 1 else scale
    of_column = np.zeros(columns, int) if group_size is None else order // group_size
    levels = np.empty_like(w)
    for rows in (slice(first, first + ROWS) for first in range(0, len(w), ROWS)):
        levels[rows] = _gptq_columns(w[rows].T.copy(), upper, scales[rows].T[of_column], grid, pull).T
    result = np.empty_like(levels)
    result[:, order] = levels
    return result


def _gptq_columns(w: Array, upper: Array, scales: Array, grid: Grid, pull: Array | None) -> Array:
    """Levels [K, R] of w [K, R], whose columns are the first index here: they are worked on one after the other."""
    levels = np.empty_like(w)
    for start in range(0, len(w), BLOCK):
        end = min(start + BLOCK, len(w))
        errors, rounded = np.empty((end - start, w.shape[1])), w[start:end]
        for at in range(start, end):
            column, done = w[at], at - start
            column -= upper[start:at, at] @ errors[:done]
            if pull is not None:
                column += pull[start:at, at] @ rounded[:done]
            levels[at] = grid.levels(column / scales[at])
            errors[done] = (column - levels[at] * scales[at]) / upper[at, at]
        w[end:] -= upper[start:end, end:].T @ errors
        if pull is not None:
            w[end:] += pull[start:end, end:].T @ rounded
    return levels


def gptq_blocks(
    weight: Array, gram: Array, scale: Array, fmt: Blocks, *, damping: float = DAMPING, act_order: bool = True,
    say: Say = _silent,
) -> Array:  # fmt: skip
    """GPTQ of weights with block scales: the blocks' exponents are those of plain rounding. Returns codes [M, K]."""
    steps = block_steps(weight / scale[:, None], fmt)
    levels = gptq(weight, gram, scale[:, None] * steps, Grid(fmt.element), damping=damping, act_order=act_order,
                  group_size=fmt.size, say=say)  # fmt: skip
    return np.asarray(levels * np.repeat(steps, fmt.size, axis=1)[:, : weight.shape[1]])


def gpfq(weight: Array, gram: Array, scale: Array, grid: Grid, *, cross: Array | None = None) -> Array:
    """Greedy path following: the level of column t is the projection of the error so far, and of w_t x_t, on x^_t.

    cross: sum of x x^^T [K, K] (rows of the float input), by default `gram`. Source: Lybrand and Saab 2021, A Greedy
    Algorithm for Quantizing Neural Networks.
    """
    mixed = gram if cross is None else cross
    levels, solved = np.zeros_like(weight), np.zeros_like(weight)
    for t in range(weight.shape[1]):
        power = gram[t, t]
        if power <= 0:
            levels[:, t] = grid.levels(weight[:, t] / scale)
        else:
            along = weight[:, : t + 1] @ mixed[: t + 1, t] - solved[:, :t] @ gram[:t, t]
            levels[:, t] = grid.levels(along / power / scale)
        solved[:, t] = levels[:, t] * scale
    return levels


def descend(weight: Array, gram: Array, scale: Array, grid: Grid, levels: Array, *, sweeps: int = 4) -> Array:
    """Coordinate descent: every column in turn takes its best level, all others held; ends when nothing moves.

    Never raises the error. Source: the update of Behdin et al. 2023, QuantEase, algorithm 2.
    """
    levels = levels.copy()
    slope = (levels * scale[:, None] - weight) @ gram
    diagonal = np.diagonal(gram)
    for _ in range(sweeps):
        moved = False
        for j in np.flatnonzero(diagonal > 0):
            wanted = grid.levels(levels[:, j] - slope[:, j] / diagonal[j] / scale)
            step = (wanted - levels[:, j]) * scale
            rows = np.flatnonzero(step)
            if rows.size:
                # Only a real gain counts: ties would move for ever.
                gain = -2 * step[rows] * slope[rows, j] - step[rows] ** 2 * diagonal[j]
                rows = rows[gain > 1e-12 * diagonal[j] * scale[rows] ** 2]
            if rows.size:
                levels[rows, j] = wanted[rows]
                slope[rows] += step[rows, None] * gram[j]
                moved = True
        if not moved:
            break
    return levels


def refit(weight: Array, gram: Array, cross: Array, *, ridge: float = 1e-3) -> Array:
    """The float weight V that serves x^ as W serves x: argmin ||W x - V x^||^2 + ridge * mean(diag H) * ||V - W||^2.

    gram: sum x^ x^^T, cross: sum x x^^T. Source: Zhong et al. 2024, ERQ, the ridge regression of its activation step.
    """
    damping = ridge * float(np.diagonal(gram).mean() or 1.0)
    left = gram + damping * np.eye(len(gram))
    right = weight @ cross + damping * weight
    try:
        return np.asarray(scipy.linalg.solve(left, right.T, assume_a="pos", check_finite=False).T)
    except scipy.linalg.LinAlgError:
        return np.asarray(scipy.linalg.lstsq(left, right.T, check_finite=False)[0].T)


def error(weight: Array, gram: Array, scale: Array, levels: Array) -> Array:
    """tr((W - Q) H (W - Q)^T) of every row, float64 [M]."""
    gap = weight - levels * scale[:, None]
    return np.asarray(np.einsum("mk,mk->m", gap @ gram, gap))
