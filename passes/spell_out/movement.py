"""Operators that only move values, as Reshape, Transpose, Expand, Concat and Gather."""

from __future__ import annotations

from math import prod

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qcompiler.graph.model import Graph, attribute, operand
from qcompiler.passes.spell_out.build import Build


def _space_to_depth(graph: Graph, node: ir.Node, build: Build) -> ir.Value | None:
    x, b = operand(node), attribute(node, "blocksize")
    n, c, h, w = graph.shape(x)
    blocks = build.reshape(x, [n, c, h // b, b, w // b, b])
    return build.reshape(build.transpose(blocks, [0, 3, 5, 1, 2, 4]), [n, c * b * b, h // b, w // b])


def _pick(build: Build, x: ir.Value, places: NDArray, shape: tuple[int, ...]) -> ir.Value:
    """x[places] along its first axis, in another shape."""
    index = build.const(places.reshape(-1).astype(np.int64), "places")
    row = build.shape(x)[1:]
    picked = build.op("Gather", [x, index], (places.size, *row), dtype=x.dtype or ir.DataType.FLOAT, axis=0)
    return build.reshape(picked, shape)


def _along(indices: NDArray, shape: tuple[int, ...], axis: int) -> NDArray[np.int64]:
    """Flat places of GatherElements and ScatterElements."""
    at: list[NDArray] = list(np.indices(indices.shape))
    at[axis] = np.where(indices < 0, indices + shape[axis], indices)
    return np.asarray(np.ravel_multi_index(tuple(at), shape))


def _gather_elements(graph: Graph, node: ir.Node, build: Build) -> ir.Value | None:
    x, indices = operand(node), graph.const(node.inputs[1])
    if indices is None or graph.const(x) is not None:
        return None
    shape = graph.shape(x)
    places = _along(indices, shape, attribute(node, "axis", 0) % len(shape))
    return _pick(build, build.reshape(x, [prod(shape)]), places, indices.shape)


def _rows(indices: NDArray, shape: tuple[int, ...], batch: int = 0) -> NDArray[np.int64]:
    """Flat numbers of the rows that the last dimension of `indices` names."""
    depth = indices.shape[-1]
    outer = shape[: batch + depth]
    at = [np.where(indices[..., d] < 0, indices[..., d] + shape[batch + d], indices[..., d]) for d in range(depth)]
    leading = list(np.indices(indices.shape[:-1]))[:batch]
    return np.ravel_multi_index((*leading, *at), outer)


def _gather_nd(graph: Graph, node: ir.Node, build: Build) -> ir.Value | None:
    x, indices = operand(node), graph.const(node.inputs[1])
    if indices is None or graph.const(x) is not None:
        return None
    shape, batch = graph.shape(x), attribute(node, "batch_dims", 0)
    inner = shape[batch + indices.shape[-1] :]
    lined = build.reshape(x, [prod(shape) // prod(inner), *inner])
    return _pick(build, lined, _rows(indices, shape, batch), (*indices.shape[:-1], *inner))


def _scatter(build: Build, x: ir.Value, updates: ir.Value, places: NDArray, inner: tuple[int, ...]) -> ir.Value:
    """Rows of x, those at `places` from `updates`: a Gather from both, one behind the other."""
    shape = build.shape(x)
    rows = prod(shape) // prod(inner)
    both = build.concat([build.reshape(x, [rows, *inner]), build.reshape(updates, [places.size, *inner])], 0)
    source = np.arange(rows)
    source[places.reshape(-1)] = rows + np.arange(places.size)
    return _pick(build, both, source, shape)


def _scatter_elements(graph: Graph, node: ir.Node, build: Build) -> ir.Value | None:
    x, indices, updates = operand(node), graph.const(node.inputs[1]), operand(node, 2)
    if indices is None or attribute(node, "reduction", "none") != "none":
        return None
    shape = graph.shape(x)
    return _scatter(build, x, updates, _along(indices, shape, attribute(node, "axis", 0) % len(shape)), ())


def _scatter_nd(graph: Graph, node: ir.Node, build: Build) -> ir.Value | None:
    x, indices, updates = operand(node), graph.const(node.inputs[1]), operand(node, 2)
    if indices is None or attribute(node, "reduction", "none") != "none":
        return None
    shape = graph.shape(x)
    return _scatter(build, x, updates, _rows(indices, shape), shape[indices.shape[-1] :])


def _compress(graph: Graph, node: ir.Node, build: Build) -> ir.Value | None:
    x, condition, axis = operand(node), graph.const(node.inputs[1]), attribute(node, "axis")
    if condition is None:
        return None
    shape = graph.shape(x)
    if axis is None:
        places = np.nonzero(condition)[0]
        return _pick(build, build.reshape(x, [prod(shape)]), places, places.shape)
    axis %= len(shape)
    index = build.const(np.nonzero(condition)[0].astype(np.int64), "places")
    out = [*shape[:axis], *build.shape(index), *shape[axis + 1 :]]
    return build.op("Gather", [x, index], out, axis=axis)


def _reverse_sequence(graph: Graph, node: ir.Node, build: Build) -> ir.Value | None:
    x, lengths = operand(node), graph.const(node.inputs[1])
    if lengths is None:
        return None
    shape = graph.shape(x)
    batch, time = attribute(node, "batch_axis", 1), attribute(node, "time_axis", 0)
    at = list(np.indices(shape))
    length = lengths[at[batch]]
    at[time] = np.where(at[time] < length, length - 1 - at[time], at[time])
    return _pick(build, build.reshape(x, [prod(shape)]), np.ravel_multi_index(tuple(at), shape), shape)


RULES = {
    "Compress": _compress,
    "GatherElements": _gather_elements,
    "GatherND": _gather_nd,
    "ReverseSequence": _reverse_sequence,
    "ScatterElements": _scatter_elements,
    "ScatterND": _scatter_nd,
    "SpaceToDepth": _space_to_depth,
}
