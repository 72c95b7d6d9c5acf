"""Interpolate: every output is a weighted sum of a few inputs along one axis; Resize and GridSample are made of it."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcompiler.formats import parse_format
from qcompiler.ops.operator import Operator, Shape


def interpolate(inputs: list[NDArray | None], attributes: dict[str, Any]) -> list[NDArray]:
    """x codes, index int32 [M, T], weight int32 [M, T] -> codes with extent M along `axis`.

    y[m] = clip(((sum over t of weight[m, t] (x[index[m, t]] - zx) + 2^(shift-1)) >> shift) + z), in int64; the ratio of
    the scales is inside the weights. A weight is off by 2^-(shift+1) at most, so a code is off by less than
    1/2 + T * reach(x) * 2^-(shift+1) steps from the real value.
    """
    x, index, weight = inputs
    assert x is not None and index is not None and weight is not None
    fmt, shift, axis = parse_format(attributes["format"]), int(attributes["shift"]), int(attributes["axis"])
    moved = np.moveaxis(x.astype(np.int64) - int(attributes.get("x_zero_point", 0)), axis, -1)
    acc = np.full((*moved.shape[:-1], len(index)), np.int64(1) << (shift - 1))
    for t in range(index.shape[1]):
        acc += moved[..., index[:, t]] * weight[:, t].astype(np.int64)
    codes = np.moveaxis(acc >> shift, -1, axis) + int(attributes.get("zero_point", 0))
    return [np.clip(codes, fmt.min, fmt.max).astype(fmt.storage)]


def _macs(inputs: Sequence[Shape], outputs: Sequence[Shape], attributes: dict[str, Any]) -> int:
    return prod(outputs[0]) * inputs[1][1]


INTERPOLATE = Operator("Interpolate", "qcompiler", interpolate, _macs)
