"""Normalize: LayerNorm, RMSNorm, GroupNorm and InstanceNorm in integers, one algorithm.

A run of n codes with q = x - zx has the exact integers S1 = sum q, S2 = sum q^2. With a mean (`centre` = 1)
d = n q - S1 and V = n S2 - S1^2, without it d = n q and V = n S2, so that the real result is

    y = d / sqrt(V + E),   E = n^2 epsilon / s_x^2

Steps, all exact integers of at most 63 bits (h = `half_shift`, `epsilon` = round(E 4^h), at least 1):

    W = V 4^h + epsilon                        0 < W < 2^62
    k = (62 - bit_length(W)) // 2              2^60 <= W 4^k < 2^62
    r = 2^61 // isqrt(W 4^k)                   within 2^-28 (relative) of 2^61 / sqrt(W 4^k)
    t = (d r + 2^(a-1)) >> a                   y in steps of 2^-20; a = max(1, 41 - k - h)
    code = clip(((t * gain + bias + 2^(shift-1)) >> shift) + z)

gain holds round(gain / s_y * 2^(shift-20)) and bias round(bias / s_y * 2^shift).

Error against the real function of the dequantized input, before the last rounding, in steps of the output:
|y| gain / s_y 2^-28 for r, gain / s_y 2^-21 for t, |y| 2^(20 - shift) for gain, and as much as epsilon is rounded. The
last is at most 1/2 in W, and W >= 4^h whenever d is not 0. Altogether below 1/100 of a step for 8-bit outputs, so a
code differs from the correctly rounded one by at most 1 and only where the real value lies within 1/100 of a tie.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcompiler.formats import parse_format
from qcompiler.ops.operator import Operator

FRACTION = 20
"""y is held in steps of 2^-20."""


def root(w: NDArray[np.int64]) -> NDArray[np.int64]:
    """floor(sqrt(w)) for 0 <= w < 2^62, exact."""
    s = np.sqrt(w.astype(np.float64)).astype(np.int64)
    s -= s * s > w
    return s + ((s + 1) * (s + 1) <= w)


def bit_length(w: NDArray[np.int64]) -> NDArray[np.int64]:
    """Bits of positive integers below 2^62, exact (a float64 could round up to the next power of two)."""
    bits = np.zeros(w.shape, np.int64)
    rest = w.copy()
    for step in (32, 16, 8, 4, 2, 1):
        large = rest >= np.int64(1) << step
        bits += np.where(large, step, 0)
        rest = np.where(large, rest >> step, rest)
    return bits + (rest > 0)


def normalize(inputs: list[NDArray | None], attributes: dict[str, Any]) -> list[NDArray]:
    """x codes [N, C, ...], gain int32, bias int64 -> codes of the same shape.

    groups 0: a run is all dimensions from `axis` on, gain and bias have the shape of those dimensions.
    groups G: a run is C / G channels and all positions of one image, gain and bias are [C].
    """
    x, gain, bias = inputs
    assert x is not None and gain is not None and bias is not None
    groups, fmt = int(attributes.get("groups", 0)), parse_format(attributes["format"])
    q = x.astype(np.int64) - int(attributes.get("x_zero_point", 0))
    if groups:
        runs = q.reshape(x.shape[0] * groups, -1)
        gain, bias = (v.reshape(-1, *[1] * (x.ndim - 2)) for v in (gain, bias))
    else:
        runs = q.reshape(int(np.prod(x.shape[: int(attributes["axis"])])), -1)
    n, half, shift = runs.shape[1], int(attributes["half_shift"]), int(attributes["shift"])
    centre = int(attributes.get("centre", 1))
    s1 = runs.sum(axis=1) * centre
    v = n * (runs * runs).sum(axis=1) - s1 * s1
    w = (v << (2 * half)) + int(attributes["epsilon"])
    k = (62 - bit_length(w)) // 2
    r = (np.int64(1) << 61) // root(w << (2 * k))
    a = np.maximum(1, 41 - k - half)[:, None]
    t = ((n * runs - s1[:, None]) * r[:, None] + (np.int64(1) << (a - 1))) >> a
    y = (t.reshape(x.shape) * gain.astype(np.int64) + bias.astype(np.int64) + (np.int64(1) << (shift - 1))) >> shift
    return [np.clip(y + int(attributes.get("zero_point", 0)), fmt.min, fmt.max).astype(fmt.storage)]


NORMALIZE = Operator("Normalize", "qcompiler", normalize)
