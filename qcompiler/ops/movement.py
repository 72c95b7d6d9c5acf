"""Operators of ONNX's own domain that only move codes: the meaning is ONNX's."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qcompiler.graph.model import Graph
from qcompiler.graph.model import attributes as attributes_of
from qcompiler.ops.operator import Operator

Inputs = list[NDArray | None]


def _ints(inputs: Inputs, i: int) -> list[int] | None:
    array = inputs[i] if len(inputs) > i else None
    return None if array is None else [int(v) for v in np.atleast_1d(array)]


def _data(inputs: Inputs) -> NDArray:
    assert inputs[0] is not None
    return inputs[0]


def identity(inputs: Inputs, attributes: dict[str, Any]) -> list[NDArray]:
    """x."""
    return [_data(inputs)]


def reshape(inputs: Inputs, attributes: dict[str, Any]) -> list[NDArray]:
    """x in another shape; 0 keeps an extent (unless allowzero), -1 is what remains."""
    x, shape = _data(inputs), _ints(inputs, 1) or []
    if not attributes.get("allowzero", 0):
        shape = [x.shape[i] if extent == 0 else extent for i, extent in enumerate(shape)]
    return [x.reshape(shape)]


def transpose(inputs: Inputs, attributes: dict[str, Any]) -> list[NDArray]:
    """x with permuted dimensions."""
    return [np.ascontiguousarray(_data(inputs).transpose(attributes.get("perm")))]


def concat(inputs: Inputs, attributes: dict[str, Any]) -> list[NDArray]:
    """All inputs along `axis`."""
    return [np.concatenate([x for x in inputs if x is not None], axis=attributes["axis"])]


def split(inputs: Inputs, attributes: dict[str, Any]) -> list[NDArray]:
    """Parts of the given extents along `axis`."""
    sizes = _ints(inputs, 1) or []
    return np.split(_data(inputs), np.cumsum(sizes)[:-1], axis=attributes.get("axis", 0))


def slice_(inputs: Inputs, attributes: dict[str, Any]) -> list[NDArray]:
    """x[start:end:step] along each of `axes`."""
    x = _data(inputs)
    starts, ends = _ints(inputs, 1) or [], _ints(inputs, 2) or []
    axes, steps = _ints(inputs, 3) or list(range(len(starts))), _ints(inputs, 4) or [1] * len(starts)
    chosen = [slice(None)] * x.ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        extent = x.shape[axis]
        stop: int | None = end
        if step < 0 and end < -extent:
            stop = None  # before the first element, which a negative index of Python cannot say
        chosen[axis] = slice(start, stop, step)
    return [x[tuple(chosen)]]


def pad_amounts(rank: int, pads: Sequence[int], axes: Sequence[int] | None) -> tuple[list[int], list[int]]:
    """Cells before and after every dimension."""
    axes = range(rank) if axes is None else [axis % rank for axis in axes]
    begins, ends = [0] * rank, [0] * rank
    for i, axis in enumerate(axes):
        begins[axis], ends[axis] = pads[i], pads[i + len(pads) // 2]
    return begins, ends


def pad(inputs: Inputs, attributes: dict[str, Any]) -> list[NDArray]:
    """Modes constant (a code), reflect and edge; negative pads crop."""
    x = _data(inputs)
    begins, ends = pad_amounts(x.ndim, _ints(inputs, 1) or [], _ints(inputs, 3))
    cropped = x[tuple(slice(max(-b, 0), n - max(-e, 0)) for b, e, n in zip(begins, ends, x.shape, strict=True))]
    widths = [(max(b, 0), max(e, 0)) for b, e in zip(begins, ends, strict=True)]
    mode = attributes.get("mode", "constant")
    if mode != "constant":
        return [np.pad(cropped, widths, mode=mode)]
    value = inputs[2] if len(inputs) > 2 else None
    return [np.pad(cropped, widths, constant_values=0 if value is None else value.item())]


def depth_to_space(inputs: Inputs, attributes: dict[str, Any]) -> list[NDArray]:
    """Blocks of channels [N, C b b, H, W] become pixels [N, C, H b, W b]."""
    x, b = _data(inputs), attributes["blocksize"]
    n, c, h, w = x.shape
    if attributes.get("mode", "DCR") == "DCR":
        x = x.reshape(n, b, b, c // (b * b), h, w).transpose(0, 3, 4, 1, 5, 2)
    else:
        x = x.reshape(n, c // (b * b), b, b, h, w).transpose(0, 1, 4, 2, 5, 3)
    return [x.reshape(n, c // (b * b), h * b, w * b)]


def expand(inputs: Inputs, attributes: dict[str, Any]) -> list[NDArray]:
    """x broadcast against a shape."""
    x = _data(inputs)
    return [np.broadcast_to(x, np.broadcast_shapes(x.shape, tuple(_ints(inputs, 1) or [])))]


def resize(inputs: Inputs, attributes: dict[str, Any]) -> list[NDArray]:
    """Resize with mode nearest."""
    x = _data(inputs)
    return [x[np.ix_(*_resize_indices(x.shape, inputs, attributes))]]


def nearest_indices(graph: Graph, node: ir.Node) -> list[NDArray[np.int64]]:
    """For each dimension of a nearest Resize node, which input index every output index reads."""
    x = node.inputs[0]
    assert x is not None
    return _resize_indices(graph.shape(x), [None, *(graph.const(v) for v in node.inputs[1:])], attributes_of(node))


_ROUND: dict[str, Callable[[NDArray], NDArray]] = {
    "round_prefer_floor": lambda v: np.ceil(v - 0.5),
    "round_prefer_ceil": lambda v: np.floor(v + 0.5),
    "floor": np.floor,
    "ceil": np.ceil,
}


def resize_axes(
    shape: Sequence[int], inputs: Inputs, attributes: dict[str, Any]
) -> list[tuple[int, int, float, tuple[float, float]]]:
    """(axis, output extent, factor, (start, end) of the region) of every axis that a Resize node names."""
    rank = len(shape)
    axes = [axis % rank for axis in attributes.get("axes") or range(rank)]
    roi, scales, sizes = (inputs[i] if len(inputs) > i else None for i in (1, 2, 3))
    if sizes is not None and sizes.size:
        wanted = [int(v) for v in sizes]
        factors = [size / shape[axis] for size, axis in zip(wanted, axes, strict=True)]
        policy = attributes.get("keep_aspect_ratio_policy", "stretch")
        if policy != "stretch":
            factors = [min(factors) if policy == "not_larger" else max(factors)] * len(axes)
            wanted = [math.floor(shape[axis] * f + 0.5) for axis, f in zip(axes, factors, strict=True)]
    else:
        assert scales is not None
        factors = [float(v) for v in scales]
        wanted = [math.floor(shape[axis] * f) for axis, f in zip(axes, factors, strict=True)]
    regions = [
        (0.0, 1.0) if roi is None or not roi.size else (float(roi[i]), float(roi[i + len(axes)]))
        for i in range(len(axes))
    ]
    return list(zip(axes, wanted, factors, regions, strict=True))


def _resize_indices(shape: Sequence[int], inputs: Inputs, attributes: dict[str, Any]) -> list[NDArray[np.int64]]:
    indices = [np.arange(extent) for extent in shape]
    for axis, size, factor, region in resize_axes(shape, inputs, attributes):
        # float32 throughout, as the implementations that made the models have it: it decides ties.
        at = coordinates(shape[axis], size, factor, region, attributes, np.float32)
        rounded = _ROUND[attributes.get("nearest_mode", "round_prefer_floor")](at)
        indices[axis] = np.clip(rounded, 0, shape[axis] - 1).astype(np.int64)
    return indices


def coordinates(
    extent: int,
    size: int,
    factor: float,
    region: tuple[float, float],
    attributes: dict[str, Any],
    real: type[np.floating[Any]],
) -> NDArray:
    """Where in the input every output of a Resize lies, [size], computed in the type `real`."""
    x, scale = np.arange(size, dtype=real), real(factor)
    half, mode = real(0.5), attributes.get("coordinate_transformation_mode", "half_pixel")
    if mode == "asymmetric":
        at = x / scale
    elif mode == "align_corners":
        at = x * real(extent - 1) / real(size - 1) if size > 1 else np.zeros_like(x)
    elif mode == "pytorch_half_pixel" and size == 1:
        at = np.zeros_like(x)
    elif mode == "half_pixel_symmetric":
        adjustment = real(size) / (scale * real(extent))
        at = real(extent / 2) * (1 - adjustment) + (x + half) / scale - half
    elif mode == "tf_half_pixel_for_nn":
        at = (x + half) / scale
    elif mode == "tf_crop_and_resize":
        start, end = real(region[0]), real(region[1])
        last = real(extent - 1)
        step = (end - start) * last / real(size - 1) if size > 1 else real(0)
        at = start * last + x * step if size > 1 else (start + end) * half * last + x
    else:
        at = (x + half) / scale - half
    return np.asarray(at, real)


def tile(inputs: Inputs, attributes: dict[str, Any]) -> list[NDArray]:
    """x repeated along every dimension."""
    return [np.tile(_data(inputs), _ints(inputs, 1) or [])]


TILE = Operator("Tile", "", tile)
IDENTITY = Operator("Identity", "", identity)
RESHAPE = Operator("Reshape", "", reshape)
TRANSPOSE = Operator("Transpose", "", transpose)
CONCAT = Operator("Concat", "", concat)
SPLIT = Operator("Split", "", split)
SLICE = Operator("Slice", "", slice_)
PAD = Operator("Pad", "", pad)
RESIZE = Operator("Resize", "", resize)
DEPTH_TO_SPACE = Operator("DepthToSpace", "", depth_to_space)
EXPAND = Operator("Expand", "", expand)
