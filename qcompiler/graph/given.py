"""Grids that constants came with: the weights of a model that was quantized before it came here.

A quantized weight is read as float32 values; metadata `qcompiler.given` of the initializer says format, scale, zero
point and axis. Float passes may scale channels (BatchNormalization) or transpose: `given_params` finds the grid again
from the values, channel by channel, and hands it out only if every value lies on it.
"""

from __future__ import annotations

import json

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qcompiler.formats import Blocks, Int, Minifloat, NumberFormat, QuantParams, parse_format
from qcompiler.quantizer import fake_quantize, round_levels

GIVEN_KEY = "qcompiler.given"
"""Metadata key of an initializer: JSON with format, scale, zero_point, axis."""
TOLERANCE = 2e-3
"""Distance of value / scale from an integer that float32 rounding explains at 8 bits."""
MOST_STEPS = 255
"""Largest centred code of a grid that is searched for anew."""


def mark_given(value: ir.Value, params: QuantParams) -> None:
    """Remember the grid of an initializer's values."""
    value.metadata_props[GIVEN_KEY] = json.dumps({
        "format": params.format.token,
        "scale": params.scale.reshape(-1).astype(float).tolist(),
        "zero_point": params.zero_point.reshape(-1).tolist(),
        "axis": params.axis,
    })  # fmt: skip


def given_params(value: ir.Value, array: NDArray, axis: int | None) -> QuantParams | None:
    """Format, scale and zero point on which all values of the initializer lie; None if it has none or they left it.

    array: float32, the values as they are now; axis: that of output channels, None where one scale is allowed only.
    """
    text = value.metadata_props.get(GIVEN_KEY)
    if text is None:
        return None
    told = json.loads(text)
    fmt, scale = parse_format(told["format"]), np.asarray(told["scale"], np.float32)
    zero_point = np.asarray(told["zero_point"], np.int64)
    if scale.size == 1:
        own = QuantParams(fmt, scale.reshape(()), zero_point.reshape(-1)[0])
        if _fits(array, own):
            return own
    if axis is None or not array.ndim:
        return None
    channels = array.shape[axis]
    zeros = np.broadcast_to(zero_point, (channels,)) if zero_point.size in (1, channels) else zero_point[:1]
    if scale.size == channels:
        own = QuantParams(fmt, scale, zeros, axis)
        if _fits(array, own):
            return own
    return _searched(array, fmt, np.unique(zeros), axis)


def _fits(array: NDArray, params: QuantParams) -> bool:
    shape = [1] * array.ndim
    if params.axis is not None:
        shape[params.axis] = -1
    steps = array.astype(np.float64) / params.scale.reshape(shape) + params.zero_point.reshape(shape)
    if isinstance(params.format, Blocks):
        return np.array_equal(fake_quantize(array, params), array)
    if isinstance(params.format, Minifloat):
        return bool(_on_levels(steps, params.format).all())
    codes = np.rint(steps)
    inside = (codes >= params.format.min).all() and (codes <= params.format.max).all()
    return bool(inside and (np.abs(steps - codes) <= TOLERANCE).all())


def _on_levels(steps: NDArray, fmt: Minifloat) -> NDArray[np.bool_]:
    """Whether each is a level, within what float32 rounding explains: below half a step between levels."""
    levels = round_levels(steps, fmt)
    return np.asarray(np.abs(steps - levels) <= TOLERANCE * np.maximum(np.abs(levels) * 2.0**-fmt.mantissa, 1.0))


def _searched(array: NDArray, fmt: NumberFormat, zeros: NDArray, axis: int) -> QuantParams | None:
    """A grid for every channel: the coarsest whose steps hold all values. Zero points as given, or mirrored."""
    if isinstance(fmt, Blocks):
        return None
    tried = _largest_steps(fmt)
    rows = np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1).astype(np.float64)
    scales = np.ones(len(rows))
    for i, row in enumerate(rows):
        largest = np.abs(row).max(initial=0)
        if largest == 0:
            continue
        steps = row[None, :] / largest * tried[:, None]
        near = _on_levels(steps, fmt) if isinstance(fmt, Minifloat) else np.abs(steps - np.rint(steps)) <= TOLERANCE
        good = near.all(axis=1)
        if not good.any():
            return None
        scales[i] = largest / tried[good.argmax()]
    scales = np.where(np.abs(rows).max(axis=1, initial=0) == 0, scales.max(), scales)
    mirrored = () if isinstance(fmt, Minifloat) else fmt.min + fmt.max - zeros
    for zero in (*zeros, *mirrored):
        found = QuantParams(fmt, scales.astype(np.float32), np.full(len(rows), zero), axis)
        if _fits(array, found):
            return found
    return None


def _largest_steps(fmt: NumberFormat) -> NDArray[np.int64]:
    """What the largest value of a channel may be in steps: of integers the coarsest grid first; of minifloats the
    finest, where most values have all their mantissa bits."""
    if isinstance(fmt, Minifloat):
        levels = fmt.decode(fmt.codes())
        return np.asarray(levels[levels > 0][::-1])
    assert isinstance(fmt, Int)
    return np.arange(1, min(MOST_STEPS, fmt.max - fmt.min) + 1)
