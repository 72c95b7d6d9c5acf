"""Operators that move elements: shapes, order, pieces, and choice by index."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from qcompiler.execute.torch.site import Function, Rule, Site, along, common_samples, lift


def _reshape(site: Site) -> Function:
    """The static shapes say what 0 and -1 mean; samples stay in front of them."""
    shape = site.out_shape
    return lambda x, *rest: x.reshape(x.shape[0], *shape)


def _transpose(site: Site) -> Function:
    perm = site.attr("perm") or list(reversed(range(len(site.shape()))))
    order = (0, *(axis + 1 for axis in perm))
    return lambda x: x.permute(order)


def _concat(site: Site) -> Function:
    axis = site.attr("axis")
    return lambda *tensors: torch.cat(common_samples(tensors), along(axis, tensors[0]))


def _split(site: Site) -> Function:
    axis = site.attr("axis", 0)
    sizes = [site.graph.shape(value)[axis] for value in site.node.outputs]
    return lambda x, *rest: tuple(x.split(sizes, along(axis, x)))


def _slice(site: Site) -> Function:
    starts, ends, axes, steps = (site.ints(i) for i in (1, 2, 3, 4))
    assert starts is not None and ends is not None
    axes = axes if axes is not None else list(range(len(starts)))
    ranges = list(zip(axes, starts, ends, steps or [1] * len(starts), strict=True))

    def run(x: Tensor, *rest: Tensor) -> Tensor:
        for axis, start, end, step in ranges:
            dim = along(axis, x)
            kept = range(x.shape[dim])[slice(start, None if step < 0 and end < -x.shape[dim] else end, step)]
            if step > 0:
                index: list[slice] = [slice(None)] * x.dim()
                index[dim] = slice(kept.start, kept.stop, step)
                x = x[tuple(index)]
            else:
                x = x.index_select(dim, torch.tensor(list(kept), dtype=torch.int64, device=x.device))
        return x

    return run


def _pad(site: Site) -> Function:
    mode, pads, axes = site.attr("mode", "constant"), site.ints(1), site.ints(3)
    assert pads is not None
    rank = len(site.shape())
    axes = [axis % rank for axis in axes] if axes is not None else list(range(rank))
    begin, end = [0] * rank, [0] * rank
    for i, axis in enumerate(axes):
        begin[axis], end[axis] = pads[i], pads[i + len(axes)]
    flat = [n for pair in zip(reversed(begin), reversed(end), strict=True) for n in pair]
    if mode == "constant":
        fill = site.const(2)
        value = 0 if fill is None else fill.item()
        return lambda x, *rest: F.pad(x, flat, value=value)
    if min(pads) < 0:
        raise site.refuse(f"crops with mode {mode}")
    indices = [_padded_indices(site, mode, n, b, e) for n, b, e in zip(site.shape(), begin, end, strict=True)]

    def run(x: Tensor, *rest: Tensor) -> Tensor:
        for axis, index in enumerate(indices):
            if len(index) != x.shape[axis + 1]:
                x = x.index_select(axis + 1, torch.tensor(index, dtype=torch.int64, device=x.device))
        return x

    return run


def _padded_indices(site: Site, mode: str, size: int, begin: int, end: int) -> list[int]:
    places = range(-begin, size + end)
    if mode == "edge":
        return [min(max(i, 0), size - 1) for i in places]
    if mode == "wrap":
        return [i % size for i in places]
    if mode == "reflect":
        period = max(2 * size - 2, 1)
        return [min(i % period, period - i % period) if size > 1 else 0 for i in places]
    raise site.refuse(f"has mode {mode}")


def _expand(site: Site) -> Function:
    shape = site.out_shape
    return lambda x, *rest: lift(x, len(shape) + 1).expand(x.shape[0], *shape)


def _tile(site: Site) -> Function:
    repeats = site.ints(1)
    assert repeats is not None
    return lambda x, *rest: x.repeat(1, *repeats)


def _gather(site: Site) -> Function:
    axis = site.attr("axis", 0)

    def run(x: Tensor, index: Tensor) -> Tensor:
        dim, index = along(axis, x), index.long()
        index = torch.where(index < 0, index + x.shape[dim], index)
        shape = index.shape[1:]
        if index.shape[0] == 1:
            y = x.index_select(dim, index.reshape(-1))
            return y.reshape(*x.shape[:dim], *shape, *x.shape[dim + 1 :])
        if x.shape[0] == 1:  # a table that all samples read
            y = x[0].index_select(dim - 1, index.reshape(-1))
            y = y.reshape(*x.shape[1:dim], index.shape[0], *shape, *x.shape[dim + 1 :])
            return y.movedim(dim - 1, 0)
        flat = index.reshape(index.shape[0], *[1] * (dim - 1), -1, *[1] * (x.dim() - dim - 1))
        count = flat.shape[dim]
        y = x.gather(dim, flat.expand(*x.shape[:dim], count, *x.shape[dim + 1 :]))
        return y.reshape(*x.shape[:dim], *shape, *x.shape[dim + 1 :])

    return run


def _gather_elements(site: Site) -> Function:
    axis = site.attr("axis", 0)

    def run(x: Tensor, index: Tensor) -> Tensor:
        x, index = common_samples([x, index.long()])
        dim = along(axis, x)
        return x.gather(dim, torch.where(index < 0, index + x.shape[dim], index))

    return run


def _scatter_elements(site: Site) -> Function:
    axis, how = site.attr("axis", 0), site.attr("reduction", "none")
    if how not in ("none", "add"):
        raise site.refuse(f"has reduction {how}")

    def run(x: Tensor, index: Tensor, updates: Tensor) -> Tensor:
        x, index, updates = common_samples([x, index.long(), updates])
        dim = along(axis, x)
        index = torch.where(index < 0, index + x.shape[dim], index)
        return x.scatter(dim, index, updates) if how == "none" else x.scatter_add(dim, index, updates)

    return run


def _gather_nd(site: Site) -> Function:
    batch, depth = site.attr("batch_dims", 0), site.shape(1)[-1]
    if batch:
        raise site.refuse("has batch_dims")
    shape = site.shape()[:depth]

    def run(x: Tensor, index: Tensor) -> Tensor:
        flat, places = x.reshape(x.shape[0], -1, *x.shape[1 + depth :]), _flat(index, shape)
        if places.shape[0] == 1:
            y = flat.index_select(1, places.reshape(-1))
        else:
            flat, places = common_samples([flat, places])
            y = torch.stack([a.index_select(0, b.reshape(-1)) for a, b in zip(flat, places, strict=True)])
        return y.reshape(y.shape[0], *places.shape[1:], *x.shape[1 + depth :])

    return run


def _scatter_nd(site: Site) -> Function:
    depth, how = site.shape(1)[-1], site.attr("reduction", "none")
    if how not in ("none", "add"):
        raise site.refuse(f"has reduction {how}")
    shape = site.shape()[:depth]

    def run(x: Tensor, index: Tensor, updates: Tensor) -> Tensor:
        x, places, updates = common_samples([x, _flat(index, shape), updates])
        flat = x.reshape(x.shape[0], -1, *x.shape[1 + depth :])
        places = places.reshape(places.shape[0], -1, *[1] * (flat.dim() - 2)).expand(-1, -1, *flat.shape[2:])
        updates = updates.reshape(places.shape)
        y = flat.scatter(1, places, updates) if how == "none" else flat.scatter_add(1, places, updates)
        return y.reshape(x.shape)

    return run


def _flat(index: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Index tuples [n, ..., depth] as places in the flattened first axes."""
    index, place = index.long(), torch.zeros_like(index[..., 0], dtype=torch.int64)
    for i, size in enumerate(shape):
        one = index[..., i]
        place = place * size + torch.where(one < 0, one + size, one)
    return place


def _top_k(site: Site) -> Function:
    k = (site.ints(1) or [1])[0]
    axis, largest = site.attr("axis", -1), bool(site.attr("largest", 1))

    def run(x: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor]:
        dim = along(axis, x)
        values, places = x.sort(dim=dim, descending=largest, stable=True)  # ties: the lower index, as ONNX says
        return values.narrow(dim, 0, k), places.narrow(dim, 0, k)

    return run


def _trilu(site: Site) -> Function:
    k, upper = (site.ints(1) or [0])[0], site.attr("upper", 1)
    function = torch.triu if upper else torch.tril
    return lambda x, *rest: function(x, k)


RULES: dict[str, Rule] = {
    "Reshape": _reshape, "Flatten": _reshape, "Squeeze": _reshape, "Unsqueeze": _reshape, "Transpose": _transpose,
    "Concat": _concat, "Split": _split, "Slice": _slice, "Pad": _pad, "Expand": _expand, "Tile": _tile,
    "Gather": _gather, "GatherElements": _gather_elements, "GatherND": _gather_nd,
    "ScatterElements": _scatter_elements, "ScatterND": _scatter_nd,
    "TopK": _top_k, "Trilu": _trilu,
}  # fmt: skip
