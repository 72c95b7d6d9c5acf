"""Windows that slide over space: their strides and pads, pooling, Resize, GridSample and pixels from channels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from qcompiler.execute.torch.site import Function, Rule, Site
from qcompiler.graph.model import attributes
from qcompiler.ops.movement import coordinates, nearest_indices, resize_axes
from qcompiler.ops.taps import grid_taps, resize_taps

_MAX = (F.max_pool1d, F.max_pool2d, F.max_pool3d)
_AVERAGE = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)


@dataclass(frozen=True)
class Window:
    """Numbers of a window, one a spatial axis."""

    kernel: list[int]
    strides: list[int]
    dilations: list[int]
    begin: list[int]
    end: list[int]


def window(site: Site, kernel: Sequence[int]) -> Window:
    """What Conv and pools say; auto_pad becomes pads."""
    rank = len(kernel)
    strides, dilations = site.attr("strides", [1] * rank), site.attr("dilations", [1] * rank)
    pads, mode = site.attr("pads", [0] * 2 * rank), site.attr("auto_pad", "NOTSET")
    begin, end = pads[:rank], pads[rank:]
    if mode.startswith("SAME"):
        reach = [d * (k - 1) + 1 for k, d in zip(kernel, dilations, strict=True)]
        parts = zip(site.shape(0)[2:], strides, reach, strict=True)
        total = [max((-(-n // s) - 1) * s + r - n, 0) for n, s, r in parts]
        less, more = [t // 2 for t in total], [t - t // 2 for t in total]
        begin, end = (less, more) if mode == "SAME_UPPER" else (more, less)
    elif mode == "VALID":
        begin = end = [0] * rank
    return Window(list(kernel), strides, dilations, begin, end)


def padded(x: Tensor, begin: Sequence[int], end: Sequence[int], value: float = 0.0) -> Tensor:
    """Constant padding of the last axes."""
    if not any((*begin, *end)):
        return x
    flat = [n for pair in zip(reversed(begin), reversed(end), strict=True) for n in pair]
    return F.pad(x, flat, value=value)


def _to_the_end(site: Site, shape: Window) -> list[int]:
    """Pads at the end up to the last window: with ceil_mode it may leave the padded input, or stop before its end."""
    sizes, out = site.shape(0)[2:], site.out_shape[2:]
    return [
        (o - 1) * s + d * (k - 1) + 1 - n - b
        for o, s, d, k, n, b in zip(out, shape.strides, shape.dilations, shape.kernel, sizes, shape.begin, strict=True)
    ]


def _max_pool(site: Site) -> Function:
    site.only_first_output()
    shape = window(site, site.attr("kernel_shape"))
    end, run = _to_the_end(site, shape), _MAX[len(shape.kernel) - 1]

    def pool(x: Tensor) -> Tensor:
        y = padded(x.flatten(0, 1), shape.begin, end, float("-inf"))
        return run(y, shape.kernel, shape.strides, 0, shape.dilations).unflatten(0, x.shape[:2])

    return pool


def _average_pool(site: Site) -> Function:
    shape = window(site, site.attr("kernel_shape"))
    if any(d != 1 for d in shape.dilations):
        raise site.refuse("has dilations")
    end, run, sizes = _to_the_end(site, shape), _AVERAGE[len(shape.kernel) - 1], site.shape(0)[2:]
    count = None
    if any((*shape.begin, *end)):
        # Windows count the cells of the input (and of its pads, if asked), never what ceil_mode adds behind them.
        cells = torch.ones(1, 1, *sizes, dtype=torch.float64)
        if site.attr("count_include_pad", 0):
            within = [min(a, b) for a, b in zip(shape.end, end, strict=True)]
            cells = padded(cells, shape.begin, within, 1.0)
            rest = [a - b for a, b in zip(end, within, strict=True)]
            cells = padded(cells, [0] * len(rest), rest)
        else:
            cells = padded(cells, shape.begin, end)
        count = run(cells, shape.kernel, shape.strides)

    def pool(x: Tensor) -> Tensor:
        y = run(padded(x.flatten(0, 1), shape.begin, end), shape.kernel, shape.strides)
        return (y if count is None else y / count.to(y)).unflatten(0, x.shape[:2])

    return pool


def _lp_pool(site: Site) -> Function:
    shape, p = window(site, site.attr("kernel_shape")), site.attr("p", 2)
    if any(d != 1 for d in shape.dilations):
        raise site.refuse("has dilations")
    end, run = _to_the_end(site, shape), _AVERAGE[len(shape.kernel) - 1]
    cells = float(np.prod(shape.kernel))

    def pool(x: Tensor) -> Tensor:
        y = padded(x.flatten(0, 1).abs() ** p, shape.begin, end)
        return ((run(y, shape.kernel, shape.strides) * cells) ** (1 / p)).unflatten(0, x.shape[:2])

    return pool


def _over_space(function: Function) -> Rule:
    return lambda site: lambda x: function(x, tuple(range(3, x.dim())))


def _global_lp(site: Site) -> Function:
    p = site.attr("p", 2)
    return lambda x: (x.abs() ** p).sum(tuple(range(3, x.dim())), keepdim=True) ** (1 / p)


def _resize(site: Site) -> Function:
    values = attributes(site.node)
    constants = [None, *(site.const(i) for i in range(1, len(site.node.inputs)))]
    mode, shape = values.get("mode", "nearest"), site.shape(0)
    beyond = values.get("coordinate_transformation_mode") == "tf_crop_and_resize"
    if mode == "nearest" and not beyond:
        indices = [torch.from_numpy(index) for index in nearest_indices(site.graph, site.node)]
        moves = [(axis + 1, index) for axis, index in enumerate(indices) if index.tolist() != list(range(shape[axis]))]

        def select(x: Tensor, *rest: Tensor) -> Tensor:
            for axis, index in moves:
                x = x.index_select(axis, index.to(x.device))
            return x

        return select
    if beyond:
        raise site.refuse("crops (tf_crop_and_resize)")
    matrices = []
    for axis, size, factor, region in resize_axes(shape, constants, values):
        if size == shape[axis] and factor == 1.0:
            continue
        at = coordinates(shape[axis], size, factor, region, values, np.float64)
        index, weight = resize_taps(shape[axis], at, factor, values)
        matrix = np.zeros((size, shape[axis]))
        np.add.at(matrix, (np.arange(size)[:, None], index), weight)
        matrices.append((axis + 1, torch.from_numpy(matrix)))

    def interpolate(x: Tensor, *rest: Tensor) -> Tensor:
        for axis, matrix in matrices:
            x = F.linear(x.movedim(axis, -1), matrix.to(x)).movedim(-1, axis)
        return x

    return interpolate


def _grid_sample(site: Site) -> Function:
    grid = site.const(1)
    assert grid is not None
    sizes = site.shape(0)[2:]
    if grid.shape[0] != 1:
        raise site.refuse("has a grid for each picture of a batch")
    index, weight = (torch.from_numpy(array) for array in grid_taps(sizes, grid, attributes(site.node)))

    def run(x: Tensor, *rest: Tensor) -> Tensor:
        cells = x.flatten(3)[..., index.to(x.device)]  # [n, N, C, M, T]
        return (cells * weight.to(x)).sum(-1).reshape(*x.shape[:3], *grid.shape[1:-1])

    return run


def _depth_to_space(site: Site) -> Function:
    b, first = site.attr("blocksize"), site.attr("mode", "DCR") == "DCR"

    def run(x: Tensor) -> Tensor:
        n, batch, c, h, w = x.shape
        if first:
            y = x.reshape(n, batch, b, b, c // b**2, h, w).permute(0, 1, 4, 5, 2, 6, 3)
        else:
            y = x.reshape(n, batch, c // b**2, b, b, h, w).permute(0, 1, 2, 5, 3, 6, 4)
        return y.reshape(n, batch, c // b**2, h * b, w * b)

    return run


def _space_to_depth(site: Site) -> Function:
    b = site.attr("blocksize")

    def run(x: Tensor) -> Tensor:
        n, batch, c, h, w = x.shape
        y = x.reshape(n, batch, c, h // b, b, w // b, b).permute(0, 1, 4, 6, 2, 3, 5)
        return y.reshape(n, batch, c * b * b, h // b, w // b)

    return run


RULES: dict[str, Rule] = {
    "MaxPool": _max_pool, "AveragePool": _average_pool, "LpPool": _lp_pool, "GlobalLpPool": _global_lp,
    "GlobalAveragePool": _over_space(lambda x, axes: x.mean(axes, keepdim=True)),
    "GlobalMaxPool": _over_space(lambda x, axes: x.amax(axes, keepdim=True)),
    "Resize": _resize, "GridSample": _grid_sample,
    "DepthToSpace": _depth_to_space, "SpaceToDepth": _space_to_depth,
}  # fmt: skip
