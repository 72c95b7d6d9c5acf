"""Which inputs an output of a linear or cubic Resize or of a GridSample is made of, and with which weights: float64, as
ONNX defines them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Taps = tuple[NDArray[np.int64], NDArray[np.float64]]
"""(index [M, T], weight [M, T])."""


def kernel(mode: str, distance: NDArray, a: float) -> NDArray[np.float64]:
    """Weight of a cell at a distance: the triangle of linear, the cubic convolution (Keys) with coefficient `a`."""
    d = np.abs(distance)
    if mode == "linear":
        return np.maximum(0.0, 1 - d)
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return np.where(d <= 1, near, np.where(d < 2, far, 0.0))


def resize_taps(extent: int, at: NDArray[np.float64], scale: float, attributes: dict[str, Any]) -> Taps:
    """Taps of one axis. at: coordinates [M] in the input. With `antialias` the kernel widens when it shrinks; cells
    beyond the edge count as the edge, or not at all with `exclude_outside`."""
    mode, a = attributes["mode"], attributes.get("cubic_coeff_a", -0.75)
    wide = min(scale, 1.0) if attributes.get("antialias", 0) else 1.0
    support = (1 if mode == "linear" else 2) / wide
    first = np.floor(at - support).astype(np.int64) + 1
    count = int(np.ceil(2 * support)) + (0 if wide == 1.0 else 1)
    cells = first[:, None] + np.arange(count)
    weight = kernel(mode, (cells - at[:, None]) * wide, a)
    if attributes.get("exclude_outside", 0):
        weight = np.where((cells >= 0) & (cells < extent), weight, 0.0)
    if attributes.get("exclude_outside", 0) or wide != 1.0:
        weight = weight / weight.sum(axis=1, keepdims=True)
    return merged(np.clip(cells, 0, extent - 1), weight)


def merged(index: NDArray[np.int64], weight: NDArray[np.float64]) -> Taps:
    """The same with every input once, inputs without weight left out, as few taps as the longest row needs."""
    rows = []
    for cells, weights in zip(index, weight, strict=True):
        unique, place = np.unique(cells, return_inverse=True)
        total = np.zeros(len(unique))
        np.add.at(total, place.reshape(-1), weights)
        keep = np.flatnonzero(np.abs(total) > 1e-12)
        rows.append((unique[keep], total[keep]))
    taps = max(1, max((len(cells) for cells, _ in rows), default=1))
    places, weights = np.zeros((len(rows), taps), np.int64), np.zeros((len(rows), taps))
    for m, (cells, values) in enumerate(rows):
        places[m, : len(cells)], weights[m, : len(cells)] = cells, values
    return places, weights


def grid_taps(shape: Sequence[int], grid: NDArray, attributes: dict[str, Any]) -> Taps:
    """Taps of an image [H, W] (or a volume) for a grid [..., 2] of (x, y) in -1..1, flat over both: ONNX GridSample."""
    padding, corners = attributes.get("padding_mode", "zeros"), bool(attributes.get("align_corners", 0))
    mode = str(attributes.get("mode", "linear"))
    points = grid.reshape(-1, len(shape)).astype(np.float64)
    index, weight = np.zeros((len(points), 1), np.int64), np.ones((len(points), 1))
    for extent, given in zip(shape, points.T[::-1], strict=True):
        at = (given + 1) / 2 * (extent - 1) if corners else ((given + 1) * extent - 1) / 2
        if "cubic" not in mode and padding != "zeros":
            at = _inside(at, extent, padding, corners)
        if mode == "nearest":
            cells, factor = np.rint(at)[:, None], np.ones((len(at), 1))
        else:
            reach = 2 if "cubic" in mode else 1
            cells = np.floor(at)[:, None] + np.arange(1 - reach, 1 + reach)
            factor = kernel("cubic" if reach == 2 else "linear", cells - at[:, None], -0.75)
        if padding != "zeros":
            cells = _inside(cells, extent, padding, corners)
        visible = (cells >= 0) & (cells <= extent - 1)
        places = np.clip(np.rint(cells), 0, extent - 1).astype(np.int64)
        index = (index[:, :, None] * extent + places[:, None, :]).reshape(len(points), -1)
        weight = (weight[:, :, None] * np.where(visible, factor, 0.0)[:, None, :]).reshape(len(points), -1)
    return merged(index, weight)


def _inside(at: NDArray, extent: int, padding: str, corners: bool) -> NDArray:
    """Coordinates clamped to the border, or reflected at it (at the cells' outer edges unless `corners`)."""
    if padding == "border":
        return np.clip(at, 0, extent - 1)
    low, high = (0.0, extent - 1.0) if corners else (-0.5, extent - 0.5)
    span = high - low
    if span == 0:
        return np.zeros_like(at)
    offset = np.mod(at - low, 2 * span)
    return np.clip(low + np.where(offset > span, 2 * span - offset, offset), 0, extent - 1)
