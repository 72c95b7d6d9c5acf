"""From statistics or weights to scale and zero point.

Ranges always include 0, and 0 is always represented exactly. Methods (basic definitions: `minmax` takes everything,
`percentile` drops tails, `percentile_ladder` drops as much of them as of the quantiles of LADDER errs least, `mse`
minimises the squared error over a grid of ranges, `entropy` the Kullback-Leibler divergence). Of a minifloat the end of
a range is its largest number: the same methods, but `entropy`, which knows equal bins alone.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from qcompiler.calibrate.observers import Histogram
from qcompiler.errors import RecipeError
from qcompiler.formats import Blocks, Int, Minifloat, NumberFormat, QuantParams, QuantSpec
from qcompiler.quantizer import round_blocks, round_levels

Method = Literal["minmax", "percentile", "percentile_ladder", "mse", "entropy"]
METHODS: tuple[str, ...] = get_args(Method)
WEIGHTED_METHODS = ("fisher",)
"""Methods of set_ranges that are `mse` on statistics whose elements have weights."""
PERCENTILE = 99.99
LADDER = (1.0, 0.99999, 0.9999, 0.999)
"""Shares of elements within the range that `percentile_ladder` tries (RepQ-ViT's three, and everything)."""
SMALLEST = float(np.finfo(np.float32).tiny)


def params_from_range(low: float, high: float, spec: QuantSpec) -> QuantParams:
    """Per-tensor parameters whose range covers [low, high] and 0; an empty range gets scale 1."""
    fmt = _ranged(spec.format)
    low, high = min(float(low), 0.0), max(float(high), 0.0)
    if isinstance(fmt, Minifloat):
        reach = max(high, -low) if fmt.signed else high
        return QuantParams(fmt, np.float32(_scale(reach / fmt.largest, spec)))
    if spec.symmetric:
        reach = max(high / max(fmt.max, 1), -low / -fmt.min if fmt.min < 0 else 0.0)
        scale, zero_point = _scale(reach, spec), 0
    else:
        scale = _scale((high - low) / (fmt.max - fmt.min), spec)
        zero_point = int(np.clip(np.rint(-low / scale) + fmt.min, fmt.min, fmt.max))
    return QuantParams(fmt, np.float32(scale), np.int64(zero_point))


def find_range(histogram: Histogram, spec: QuantSpec, method: str, percentile: float = PERCENTILE) -> QuantParams:
    """Per-tensor parameters for a value with these statistics. Raises RecipeError for an unknown method."""
    if method not in METHODS:
        raise RecipeError(f"`{method}` is no range method.", hint=f"Methods are {', '.join(METHODS)}.")
    low, high = min(histogram.minimum, 0.0), max(histogram.maximum, 0.0)
    if histogram.exponent is None or method == "minmax":
        return params_from_range(low if np.isfinite(low) else 0.0, high if np.isfinite(high) else 0.0, spec)
    if method == "percentile":
        return params_from_range(*_quantiles(histogram, percentile / 100), spec)
    if method == "percentile_ladder":
        centres = histogram.centres()
        candidates = [params_from_range(low, high, spec)]
        candidates += [params_from_range(*_quantiles(histogram, share), spec) for share in LADDER[1:]]
        return min(candidates, key=lambda params: _error(*centres, params))
    if method == "entropy":
        if isinstance(spec.format, Minifloat):
            hint = "Choose mse, percentile, percentile_ladder or minmax."
            raise RecipeError(f"method entropy finds no range of {spec.format}.", where="set_ranges", hint=hint)
        return params_from_range(*_least_divergence(histogram, _integers(spec.format)), spec)
    return _least_error(histogram, spec)


def away_from_ties(narrow: QuantParams, wide: QuantParams) -> QuantParams:
    """`narrow` with its scale moved by at most 1 %, so that no value on the grid of `wide` lies near a tie of `narrow`.

    A value that is quantized twice is rounded from one grid to the other. Where the ratio of the scales puts points of
    the first half way between points of the second, float32 rounding alone would decide, and executors would differ.
    """
    ratio = float(narrow.scale) / float(wide.scale)
    reach = wide.format.max - wide.format.min
    ties: NDArray
    if isinstance(narrow.format, Minifloat):
        levels = narrow.format.decode(narrow.format.codes())
        ties = (levels[1:] + levels[:-1])[levels[1:] > 0] / 2
        ties = ties[: max(1, int(np.searchsorted(ties, reach / ratio)))]
    else:
        ties = np.arange(min(narrow.format.max - narrow.format.min, int(reach / ratio)) + 1) + 0.5
    factors = 1 + np.linspace(-0.01, 0.01, 201)[np.argsort(np.abs(np.linspace(-1, 1, 201)), kind="stable")]
    places = ties * (ratio * factors[:, None])
    margins = np.abs(places - np.rint(places)).min(1)
    best = int(np.argmax(margins >= min(0.1, margins.max())))  # the least change that keeps clear of ties
    return QuantParams(narrow.format, np.float32(narrow.scale * factors[best]), narrow.zero_point, narrow.axis)


def find_weight_range(
    weight: NDArray,
    spec: QuantSpec,
    method: str,
    power: float = 2.4,
    ratios: int = 40,
    importance: NDArray | None = None,
) -> QuantParams:
    """Parameters for a constant, symmetric or not, per tensor or per channel of `spec.granularity.axis`.

    weight: float32 [...]. `mse` searches the clip ratio in (0.2, 1] that minimises sum |w - w^|^power,
    `percentile_ladder` the quantiles of LADDER, each row by itself; other methods take the full range. importance:
    float [...], not negative, weighs the terms of those sums (of a channel that has none at all, they weigh the same);
    the method is then `mse`.
    """
    axis = spec.granularity.axis if spec.granularity.kind == "channel" else None
    rows = np.asarray(weight, np.float32)
    rows = rows.reshape(1, -1) if axis is None else np.moveaxis(rows, axis, 0).reshape(rows.shape[axis], -1)
    weights = None if importance is None else _row_weights(importance, axis)
    fmt = _ranged(spec.format)
    low, high = np.minimum(rows.min(1), 0.0).astype(np.float64), np.maximum(rows.max(1), 0.0).astype(np.float64)
    best_scale, best_zero = _row_params(low, high, spec)
    ends: list[tuple[NDArray, NDArray]] = []
    if method == "mse" or weights is not None:
        ends = [(low * ratio, high * ratio) for ratio in np.linspace(0.2, 1.0, ratios, endpoint=False)[::-1]]
    elif method == "percentile_ladder":
        shares = [(np.quantile(rows, 1 - share, axis=1), np.quantile(rows, share, axis=1)) for share in LADDER[1:]]
        ends = [(np.minimum(a, 0.0).astype(np.float64), np.maximum(b, 0.0).astype(np.float64)) for a, b in shares]
    if ends:
        best_error = _row_errors(rows, best_scale, best_zero, fmt, power, weights)
        for start, end in ends:
            scale, zero_point = _row_params(start, end, spec)
            error = _row_errors(rows, scale, zero_point, fmt, power, weights)
            better = error < best_error
            best_error = np.where(better, error, best_error)
            best_scale, best_zero = np.where(better, scale, best_scale), np.where(better, zero_point, best_zero)
    if axis is None:
        return QuantParams(fmt, best_scale[0], best_zero[0])
    return QuantParams(fmt, best_scale, best_zero, axis)


def _ranged(fmt: NumberFormat) -> Int | Minifloat | Blocks:
    if not isinstance(fmt, Int | Minifloat | Blocks):
        raise RecipeError(f"{fmt} has no range of integers.", hint="The pass `logarithms` chooses logarithmic formats.")
    return fmt


def _integers(fmt: NumberFormat) -> Int:
    assert isinstance(fmt, Int)
    return fmt


def _scale(reach: float, spec: QuantSpec) -> float:
    if not reach > 0:
        return 1.0
    if spec.scale_type == "power_of_two":
        return float(2.0 ** np.ceil(np.log2(reach)))
    return max(reach, SMALLEST)


def _row_params(low: NDArray, high: NDArray, spec: QuantSpec) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    fmt = spec.format
    if isinstance(fmt, Minifloat):
        reach = (np.maximum(high, -low) if fmt.signed else high) / fmt.largest
        zero_point = np.zeros(len(low), np.int64)
    elif spec.symmetric:
        # A full (not narrow) range is used on both sides: -8 is reached by clipping search only.
        reach = np.maximum(high, -low) / fmt.max
        zero_point = np.zeros(len(low), np.int64)
    else:
        reach = (high - low) / (fmt.max - fmt.min)
        zero_point = None
    scale = np.array([_scale(float(r), spec) for r in reach], np.float32)
    if zero_point is None:
        zero_point = np.clip(np.rint(-low / scale) + fmt.min, fmt.min, fmt.max).astype(np.int64)
    return scale, zero_point


def _row_weights(importance: NDArray, axis: int | None) -> NDArray[np.float64]:
    """[channels, everything else], each channel with mean 1."""
    rows = np.asarray(importance, np.float64)
    rows = rows.reshape(1, -1) if axis is None else np.moveaxis(rows, axis, 0).reshape(rows.shape[axis], -1)
    mean = rows.mean(1, keepdims=True)
    return np.where(mean > 0, rows / np.where(mean > 0, mean, 1.0), 1.0)


def _row_errors(
    rows: NDArray,
    scale: NDArray,
    zero_point: NDArray,
    fmt: Int | Minifloat | Blocks,
    power: float,
    weights: NDArray | None = None,
) -> NDArray:
    if isinstance(fmt, Minifloat):
        codes = round_levels(rows / scale[:, None], fmt)
    elif isinstance(fmt, Blocks):
        codes = round_blocks(rows / scale[:, None], fmt)
    else:
        low, high = ((bound - zero_point)[:, None].astype(np.float32) for bound in (fmt.min, fmt.max))
        codes = np.clip(np.rint(rows / scale[:, None]), low, high)
    error = np.abs(rows - codes * scale[:, None])
    error = error**power if power != 2 else error * error
    return (error if weights is None else error * weights).sum(1, dtype=np.float64)


def _quantiles(histogram: Histogram, share: float) -> tuple[float, float]:
    """The values below and above which a share of 1 - `share` of all elements lies."""
    middle, count = histogram.centres()
    at = int(np.searchsorted(middle, 0.0))
    middle, count = np.insert(middle, at, 0.0), np.insert(count, at, float(histogram.zeros))
    cumulated = np.cumsum(count) / max(count.sum(), 1)
    low = middle[int(np.searchsorted(cumulated, 1 - share))]
    high = middle[min(int(np.searchsorted(cumulated, share)), len(middle) - 1)]
    return float(min(low, 0.0)), float(max(high, 0.0))


def _least_error(histogram: Histogram, spec: QuantSpec) -> QuantParams:
    """Search of lower and upper end, coarse then fine, for the least squared error on the histogram."""
    middle, count = histogram.centres()
    low, high = min(histogram.minimum, 0.0), max(histogram.maximum, 0.0)
    best = params_from_range(low, high, spec)
    best_error = _error(middle, count, best)
    centre, width = (1.0, 1.0), 1.0
    for step in (1 / 16, 1 / 64):
        lows, highs = (
            np.unique(np.clip(np.arange(c - width, c + width + step / 2, step), step, 1.0)) for c in centre
        )
        lows = lows if low < 0 else np.ones(1)
        highs = highs if high > 0 else np.ones(1)
        pairs = [(r, r) for r in (highs if high >= -low else lows)] if spec.symmetric else None
        for a, b in pairs or [(a, b) for a in lows[::-1] for b in highs[::-1]]:
            params = params_from_range(low * a, high * b, spec)
            error = _error(middle, count, params)
            if error < best_error:
                best, best_error, centre = params, error, (float(a), float(b))
        width = step
    return best


def _error(middle: NDArray, count: NDArray, params: QuantParams) -> float:
    scale, zero_point = float(params.scale), int(params.zero_point)
    if isinstance(params.format, Minifloat):
        return float(np.dot(count, (middle - round_levels(middle / scale, params.format) * scale) ** 2))
    codes = np.clip(np.rint(middle / scale), params.format.min - zero_point, params.format.max - zero_point)
    return float(np.dot(count, (middle - codes * scale) ** 2))


def _least_divergence(histogram: Histogram, fmt: Int) -> tuple[float, float]:
    """The clip range [-t, t] (or [0, t]) whose quantized histogram is nearest in Kullback-Leibler divergence.

    Candidate t = every 1/64 of the largest magnitude; outliers are added to the last bin of the clipped distribution
    before it is compared (the usual calibration by entropy; there for signed 8 bits, here with `fmt`'s code count).
    """
    middle, count = histogram.centres()
    magnitude = np.abs(middle)
    bins = 2048
    top = float(magnitude.max())
    full = np.bincount(np.minimum((magnitude / top * bins).astype(int), bins - 1), count, bins)
    levels = max(2, (fmt.max - fmt.min + 1) // (2 if histogram.minimum < 0 else 1))
    best, limit = np.inf, top
    for n in range(max(bins // 16, min(levels, bins)), bins + 1, bins // 64):
        p = full[:n].copy()
        p[-1] += full[n:].sum()
        group = np.arange(n) * levels // n
        occupied = full[:n] > 0
        mass = np.bincount(group, full[:n], levels)
        members = np.maximum(np.bincount(group, occupied, levels), 1)
        q = np.where(occupied, (mass / members)[group], 0.0)
        p, q = p / p.sum(), q / max(q.sum(), 1e-30)
        seen = p > 0
        divergence = float(np.sum(p[seen] * np.log(p[seen] / np.maximum(q[seen], 1e-12))))
        if divergence < best:
            best, limit = divergence, top * n / bins
    return max(histogram.minimum, -limit), min(histogram.maximum, limit)
