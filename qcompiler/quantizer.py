"""The quantizers in numpy: the one definition that every target and executor agrees with.

Int   q = clip(rint(x / scale) + zero_point): float32 division, round half to even, integer zero point added after,
      then saturation (ONNX QuantizeLinear-21)
Log   q = the number of `thresholds` that x lies below: float32 comparisons, no logarithm (NaN: 0)
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qcompiler.formats import Log, QuantParams


def _along(values: NDArray, axis: int | None, rank: int) -> NDArray:
    """[C] -> [1, .., C, .., 1] so that it broadcasts along `axis`; scalars pass."""
    if values.ndim == 0 or axis is None:
        return values
    shape = [1] * rank
    shape[axis] = -1
    return values.reshape(shape)


def quantize(x: NDArray, params: QuantParams) -> NDArray:
    """Codes of x. x: float32 [...]; returns params.format.storage [...]."""
    fmt = params.format
    if isinstance(fmt, Log):
        rising = thresholds(params)[::-1]
        return (fmt.max - np.searchsorted(rising, np.asarray(x, np.float32), side="right")).astype(fmt.storage)
    scale = _along(params.scale, params.axis, np.ndim(x))
    zero_point = _along(params.zero_point, params.axis, np.ndim(x))
    # Clip in float first: rint of a huge ratio would not fit an integer.
    codes = np.rint(np.asarray(x, np.float32) / scale).astype(np.float64) + zero_point
    return np.clip(codes, fmt.min, fmt.max).astype(fmt.storage)


def dequantize(codes: NDArray, params: QuantParams) -> NDArray[np.float32]:
    """Values of codes: float32(decode(code) - zero_point) * scale, one float32 multiply."""
    scale = _along(params.scale, params.axis, np.ndim(codes))
    zero_point = _along(params.zero_point, params.axis, np.ndim(codes))
    return (params.format.decode(codes) - zero_point).astype(np.float32) * scale


def fake_quantize(x: NDArray, params: QuantParams) -> NDArray[np.float32]:
    """quantize, then dequantize."""
    return dequantize(quantize(x, params), params)


def thresholds(params: QuantParams) -> NDArray[np.float32]:
    """Where the codes of a logarithmic format change, falling: x < t[k] has a code above k. float32 [2^bits - 1].

    t[k] = scale * (one * 2^(-(k + 1/2) q / r) - zero_point), computed in float64, rounded once.
    """
    fmt = params.format
    assert isinstance(fmt, Log)
    real = np.float64(params.scale) * (fmt.one * fmt.boundaries() - np.float64(params.zero_point))
    return real.astype(np.float32)
