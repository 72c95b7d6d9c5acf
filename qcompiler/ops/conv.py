"""Conv and ConvTranspose, 1-D and 2-D, any groups, strides, dilations and pads.

acc = bias + sum (x - zx) * w, exact: accumulators are computed in the fastest type that provably holds them.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcompiler.ops.operator import Operator, Shape
from qcompiler.ops.requantize import exact_dtype, requantize
from qcompiler.ops.windows import Window, as_2d, pad, taps, window_of


def conv(inputs: list[NDArray | None], attributes: dict[str, Any]) -> list[NDArray]:
    """x codes [N, C, *D], w int8/int16 [M, C/group, *K], bias int32/int64 [M], *r [M] -> codes [N, M, *D']."""
    x, w, bias, *parameters = inputs
    assert x is not None and w is not None and bias is not None
    rank, groups = x.ndim, int(attributes.get("group", 1))
    window = window_of(w.shape[2:], attributes)
    x, w = as_2d(x).astype(np.int64) - int(attributes.get("x_zero_point", 0)), as_2d(w)
    dtype = _dtype(x, np.abs(w.astype(np.int64)).sum(axis=(1, 2, 3)), bias)
    acc = _correlate(pad(x.astype(dtype), window.pads, 0), w.astype(dtype), window, groups)
    acc += bias.astype(dtype)[:, None, None]
    codes = requantize(acc, parameters, attributes, 1)
    return [codes[:, :, 0] if rank == 3 else codes]


def _dtype(x: NDArray, weights: NDArray, bias: NDArray) -> Any:
    """weights: sum of |w| that an output can meet, by output channel."""
    products = int(np.abs(x).max(initial=0)) * int(weights.max(initial=0))
    return exact_dtype(products + int(np.abs(bias.astype(np.int64)).max(initial=0)))


def _correlate(x: NDArray, w: NDArray, window: Window, groups: int) -> NDArray:
    """x: [N, C, H, W], padded; w: [M, C/g, KH, KW]. Returns [N, M, OH, OW] in the same type."""
    n, c = x.shape[:2]
    m, per_group = w.shape[:2]
    seen = taps(x, window)
    output = seen.shape[4:]
    if per_group == 1:  # depthwise: a sum over the few cells of the kernel, on whole channels
        acc = np.zeros((n, c, m // groups, *output), x.dtype)
        weights = w.reshape(c, m // groups, *window.kernel)
        for ky, kx in np.ndindex(*window.kernel):
            acc += seen[ky, kx][:, :, None] * weights[:, :, ky, kx, None, None]
        return acc.reshape(n, m, *output)
    columns = np.ascontiguousarray(seen.transpose(2, 3, 0, 1, 4, 5)).reshape(n, groups, -1, prod(output))
    acc = w.reshape(groups, m // groups, -1) @ columns
    return acc.reshape(n, m, *output)


def conv_transpose(inputs: list[NDArray | None], attributes: dict[str, Any]) -> list[NDArray]:
    """x codes [N, C, *D], w [C, M/group, *K], bias [M], *r [M] -> codes [N, M, *D']: each cell of x stamps w."""
    x, w, bias, *parameters = inputs
    assert x is not None and w is not None and bias is not None
    rank, groups = x.ndim, int(attributes.get("group", 1))
    window = window_of(w.shape[2:], attributes)
    extra = attributes.get("output_padding") or [0] * (rank - 2)
    extra = [0, *extra] if rank == 3 else extra
    x, w = as_2d(x).astype(np.int64) - int(attributes.get("x_zero_point", 0)), as_2d(w)
    n, c, *extents = x.shape
    per_group, kernel = w.shape[1], w.shape[2:]
    weights = w.reshape(groups, c // groups, per_group, *kernel)
    dtype = _dtype(x, np.abs(weights.astype(np.int64)).sum(axis=(1, 3, 4)), bias)
    columns = weights.astype(dtype).reshape(groups, c // groups, -1).transpose(0, 2, 1) @ x.astype(dtype).reshape(
        n, groups, c // groups, -1
    )
    columns = columns.reshape(n, groups * per_group, *kernel, *extents)
    full = [
        (extent - 1) * s + d * (k - 1) + 1 + e
        for extent, s, d, k, e in zip(extents, window.strides, window.dilations, kernel, extra, strict=True)
    ]
    acc = np.zeros((n, groups * per_group, *full), dtype)
    for ky, kx in np.ndindex(*kernel):
        y0, x0 = ky * window.dilations[0], kx * window.dilations[1]
        rows = slice(y0, y0 + (extents[0] - 1) * window.strides[0] + 1, window.strides[0])
        acc[:, :, rows, x0 : x0 + (extents[1] - 1) * window.strides[1] + 1 : window.strides[1]] += columns[:, :, ky, kx]
    top, left, bottom, right = window.pads
    acc = pad(acc, (-top, -left, -bottom, -right), 0) + bias.astype(dtype)[:, None, None]
    codes = requantize(acc, parameters, attributes, 1)
    return [codes[:, :, 0] if rank == 3 else codes]


def _conv_macs(inputs: Sequence[Shape], outputs: Sequence[Shape], attributes: dict[str, Any]) -> int:
    return prod(outputs[0]) * prod(inputs[1][1:])


def _conv_transpose_macs(inputs: Sequence[Shape], outputs: Sequence[Shape], attributes: dict[str, Any]) -> int:
    return prod(inputs[0]) * prod(inputs[1][1:])


CONV = Operator("Conv", "qcompiler", conv, _conv_macs)
CONV_TRANSPOSE = Operator("ConvTranspose", "qcompiler", conv_transpose, _conv_transpose_macs)
