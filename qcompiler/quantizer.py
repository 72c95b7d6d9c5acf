"""The affine quantizer in numpy: the one definition that every target and executor agrees with.

q = clip(rint(x / scale) + zero_point): float32 division, round half to even, integer zero point added after,
then saturation (ONNX QuantizeLinear-21).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qcompiler.formats import QuantParams


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
    scale = _along(params.scale, params.axis, np.ndim(x))
    zero_point = _along(params.zero_point, params.axis, np.ndim(x))
    # Clip in float first: rint of a huge ratio would not fit an integer.
    codes = np.rint(np.asarray(x, np.float32) / scale).astype(np.float64) + zero_point
    return np.clip(codes, fmt.min, fmt.max).astype(fmt.storage)


def dequantize(codes: NDArray, params: QuantParams) -> NDArray[np.float32]:
    """Values of codes: float32(code - zero_point) * scale, one float32 multiply."""
    scale = _along(params.scale, params.axis, np.ndim(codes))
    zero_point = _along(params.zero_point, params.axis, np.ndim(codes))
    return (np.asarray(codes, np.int64) - zero_point).astype(np.float32) * scale


def fake_quantize(x: NDArray, params: QuantParams) -> NDArray[np.float32]:
    """quantize, then dequantize."""
    return dequantize(quantize(x, params), params)
