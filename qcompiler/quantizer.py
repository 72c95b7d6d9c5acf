"""The quantizers in numpy: the one definition that every target and executor agrees with.

Int   q = clip(rint(x / scale) + zero_point): float32 division, round half to even, integer zero point added after,
      then saturation (ONNX QuantizeLinear-21)
Log   q = the number of `thresholds` that x lies below: float32 comparisons, no logarithm (NaN: 0)
Blocks      round_blocks(x / scale), row by row
Minifloat   the code of round_levels(x / scale): float32 division, nearest level, half to even, saturation (NaN: 0)
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qcompiler.formats import Blocks, Log, Minifloat, QuantParams


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
    if isinstance(fmt, Minifloat):
        return fmt.encode(round_levels(np.asarray(x, np.float32) / scale, fmt).astype(np.int64))
    if isinstance(fmt, Blocks):
        ratio = np.asarray(x, np.float32) / scale
        moved = np.moveaxis(ratio, params.axis, 0) if params.axis is not None else ratio[None]
        codes = round_blocks(moved.reshape(len(moved), -1), fmt).reshape(moved.shape)
        whole = np.moveaxis(codes, 0, params.axis) if params.axis is not None else codes[0]
        return np.ascontiguousarray(whole, fmt.storage)
    zero_point = _along(params.zero_point, params.axis, np.ndim(x))
    # Clip in float first: rint of a huge ratio would not fit an integer.
    codes = np.rint(np.asarray(x, np.float32) / scale).astype(np.float64) + zero_point
    return np.clip(codes, fmt.min, fmt.max).astype(fmt.storage)


def round_levels(ratio: NDArray[np.floating], fmt: Minifloat) -> NDArray[np.floating]:
    """The nearest level of every ratio, as a float of the same dtype.

    Half to even (without mantissa bits half to the larger, as IEEE 754-2019 4.3.1 says of a precision of 1), saturated;
    NaN gives 0.

    Between 2^e and 2^(e+1) levels are 2^max(e - mantissa, 0) apart, a power of two: divided by it, rounded to an
    integer and multiplied again, nothing but that one rounding changes a bit.
    """
    low = -fmt.largest if fmt.signed else 0
    ratio = np.clip(np.where(np.isnan(ratio), ratio.dtype.type(0), ratio), low, fmt.largest)
    exponent = np.frexp(ratio)[1] - 1
    step = np.ldexp(ratio.dtype.type(1), np.maximum(exponent - fmt.mantissa, 0))
    return np.asarray(np.rint(ratio / step) * step, ratio.dtype)


def round_blocks(ratio: NDArray[np.floating], fmt: Blocks) -> NDArray[np.floating]:
    """Codes of rows [C, N], in blocks of fmt.size along each, as floats of the same dtype; saturated, NaN gives 0.

    Rounding what it has rounded changes nothing.
    """
    blocks, steps = _blocks(ratio, fmt), block_steps(ratio, fmt)[..., None]
    codes = round_levels(blocks / steps, fmt.element) * steps
    return np.asarray(codes.reshape(len(ratio), -1)[:, : ratio.shape[1]], ratio.dtype)


def block_steps(ratio: NDArray[np.floating], fmt: Blocks) -> NDArray[np.floating]:
    """2^e of every block of rows [C, N]: [C, blocks], as floats of the same dtype.

    e is floor(log2(largest ratio)) less that of the largest level, or one more where that has the smaller squared
    error, within 0 .. fmt.shifts.
    """
    blocks = _blocks(ratio, fmt)
    top = np.frexp(np.abs(blocks).max(axis=2, initial=0))[1] - fmt.element.largest.bit_length()
    steps, errors = [], []
    for more in (0, 1):
        step = np.ldexp(ratio.dtype.type(1), np.clip(top + more, 0, fmt.shifts))
        codes = round_levels(blocks / step[..., None], fmt.element) * step[..., None]
        steps.append(step)
        errors.append(np.square((codes - blocks).astype(np.float64)).sum(axis=2))
    return np.where(errors[1] < errors[0], steps[1], steps[0])


def _blocks(ratio: NDArray[np.floating], fmt: Blocks) -> NDArray[np.floating]:
    """[C, N] -> [C, blocks, fmt.size], filled up with zeros."""
    known = np.nan_to_num(ratio, posinf=fmt.max, neginf=fmt.min)
    padded = np.pad(known, [(0, 0), (0, -ratio.shape[1] % fmt.size)])
    return np.asarray(padded.reshape(len(ratio), -1, fmt.size))


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
