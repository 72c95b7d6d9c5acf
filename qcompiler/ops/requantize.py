"""Integer accumulator -> code: the two requantizations of docs/integer_operators.md, and who computes exactly what.

Accumulators reach these functions as int32, int64, float32 or float64 arrays whose elements are integers, exact.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from qcompiler.errors import UnsupportedError
from qcompiler.formats import Int, Minifloat, parse_format
from qcompiler.quantizer import round_levels

MULTIPLIER_BITS = 31
"""A fixed multiplier lies in [2^30, 2^31)."""
MAX_SHIFT = 62


def exact_dtype(bound: float) -> DTypeLike:
    """The fastest type in which integers up to `bound`, and sums of them in any order, are exact.

    float32 holds every integer up to 2^24 and float64 up to 2^53, and BLAS only adds and multiplies (also fused, which
    rounds less), so that a matrix product whose absolute values sum below that has no rounding at all. int64 beyond.
    """
    if bound < 2**24:
        return np.float32
    return np.float64 if bound < 2**53 else np.int64


def requantize_float(acc: NDArray, scale: NDArray[np.float32], zero_point: int, fmt: Int) -> NDArray:
    """clip(rint(float32(acc) * scale), min - z, max - z) + z, one float32 multiply, round half to even.

    acc: integers [...]; above 2^24 they round to nearest even on their way to float32. scale: float32, broadcast
    against acc. Returns fmt.storage [...].
    """
    scaled = np.rint(acc.astype(np.float32) * np.asarray(scale, np.float32))
    clipped = np.clip(scaled, np.float32(fmt.min - zero_point), np.float32(fmt.max - zero_point))
    return (clipped.astype(np.int32) + np.int32(zero_point)).astype(fmt.storage)


def requantize_fixed(acc: NDArray, multiplier: NDArray, shift: NDArray, zero_point: int, fmt: Int) -> NDArray:
    """clip(((acc * multiplier + 2^(shift-1)) >> shift) + z, min, max): round half up, in int64.

    acc: integers [...]; multiplier: int32, 0 or in [2^30, 2^31), less if acc may leave int32 (`fixed_multiplier`);
    shift: int32 1..62; both broadcast against acc. Products and sums fit int64. Returns fmt.storage [...].
    """
    shift = np.asarray(shift, np.int64)
    product = acc.astype(np.int64) * np.asarray(multiplier, np.int64)
    rounded = (product + (np.int64(1) << (shift - 1))) >> shift
    return np.clip(rounded + zero_point, fmt.min, fmt.max).astype(fmt.storage)


def levels_float(acc: NDArray, scale: NDArray[np.float32], fmt: Minifloat) -> NDArray:
    """The level nearest to float32(acc) * scale, one float32 multiply, half to even, saturated.

    acc, scale: as of `requantize_float`. Returns fmt.integers.storage [...].
    """
    product = acc.astype(np.float32) * np.asarray(scale, np.float32)
    return round_levels(np.asarray(product, np.float32), fmt).astype(fmt.integers.storage)


def levels_fixed(acc: NDArray, multiplier: NDArray, shift: NDArray, fmt: Minifloat) -> NDArray:
    """The level nearest to acc * multiplier / 2^shift, half to even, saturated, in int64.

    With p = |acc * multiplier|, whose highest bit has place b: levels there are 2^k apart, k = max(b - shift -
    mantissa, 0), at most that of the largest; t = shift + k low bits go, (p + 2^(t-1) - 1 + bit t of p) >> t remain.
    acc, multiplier, shift: as of `requantize_fixed`. Returns fmt.integers.storage [...].
    """
    shift = np.asarray(shift, np.int64)
    product = acc.astype(np.int64) * np.asarray(multiplier, np.int64)
    size = np.abs(product)
    apart = np.zeros(np.broadcast_shapes(size.shape, shift.shape), np.int64)
    for k in range(1, fmt.largest.bit_length() - fmt.mantissa):
        apart += size >= np.int64(1) << np.minimum(shift + fmt.mantissa + k, MAX_SHIFT)
    below = shift + apart
    one = np.int64(1)
    rounded = (size + (one << (below - 1)) - 1 + ((size >> below) & 1)) >> below
    level = np.where(product < 0, -1, 1) * np.minimum(rounded << apart, fmt.largest)
    return np.maximum(level, -fmt.largest if fmt.signed else 0).astype(fmt.integers.storage)


def requantize(
    acc: NDArray, parameters: list[NDArray | None], attributes: dict[str, Any], channel: int | None
) -> NDArray:
    """The requantization that `attributes` name. acc: integers [...]; parameters: the node's last inputs `*r`.

    channel: axis of acc that an array [M] in `parameters` belongs to; None for parameters that broadcast as they are.
    """
    fmt, zero_point = parse_format(attributes["format"]), int(attributes.get("zero_point", 0))
    arrays = [_along(array, channel, acc.ndim) for array in parameters]
    if isinstance(fmt, Minifloat):
        if attributes.get("arithmetic", "float") == "float":
            return levels_float(acc, arrays[0], fmt)
        return levels_fixed(acc, arrays[0], arrays[1], fmt)
    assert isinstance(fmt, Int)
    if attributes.get("arithmetic", "float") == "float":
        return requantize_float(acc, arrays[0], zero_point, fmt)
    return requantize_fixed(acc, arrays[0], arrays[1], zero_point, fmt)


def _along(array: NDArray | None, channel: int | None, rank: int) -> NDArray:
    if array is None:
        raise ValueError("a parameter of the requantization is absent")
    if channel is None or array.ndim == 0:
        return array
    shape = [1] * rank
    shape[channel] = -1
    return array.reshape(shape)


def fixed_multiplier(scale: float, acc_bits: int = 31) -> tuple[int, int]:
    """(multiplier, shift) with multiplier / 2^shift nearest to `scale` (half to even).

    multiplier has 31 bits, that is 2^30 <= multiplier < 2^31, and shift is 1..62. acc_bits: every accumulator lies
    within +-2^acc_bits; above 31 the multiplier has 62 - acc_bits bits, so that products fit int64 with room for the
    rounding term. A scale that needs a shift above 62 brings every accumulator below 1/2: it gives (0, 1), which is
    0 exactly. Raises UnsupportedError for a scale that needs a shift below 1, or is not positive and finite.
    """
    if not (math.isfinite(scale) and scale > 0):
        raise UnsupportedError(f"{scale!r} is not a positive, finite scale of a requantization.")
    bits = min(MULTIPLIER_BITS, MAX_SHIFT - acc_bits)
    if bits < 2:
        raise UnsupportedError(f"accumulators of {acc_bits} bits leave no room for a multiplier in int64.")
    mantissa, exponent = math.frexp(scale)  # scale = mantissa * 2^exponent, mantissa in [1/2, 1)
    multiplier, shift = round(math.ldexp(mantissa, bits)), bits - exponent
    if multiplier == 1 << bits:
        multiplier, shift = multiplier >> 1, shift - 1
    if shift > MAX_SHIFT:
        return 0, 1
    if shift < 1:
        raise UnsupportedError(
            f"the scale {scale:g} of a requantization is too large for a {bits}-bit multiplier.",
            hint="The output's range is far too small for its inputs; calibrate again or use --arithmetic float.",
        )
    return multiplier, shift
