"""Layers as matrix products: weights [G, M, K] and rows of inputs [G, N, K].

Conv has G groups, K = C/group * kernel and a row for each output position; MatMul and Gemm have G = 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qcompiler.graph.model import attribute


def as_matrices(node: ir.Node, weight: NDArray) -> NDArray:
    """A weight as [G, M, K]: Conv [M, C/G, *kernel], MatMul and Gemm [K, M] (transB: [M, K])."""
    if node.op_type == "Conv":
        groups = attribute(node, "group", 1)
        return weight.reshape(groups, len(weight) // groups, -1)
    return weight[None] if attribute(node, "transB", 0) else weight.T[None]


def from_matrices(node: ir.Node, matrices: NDArray, shape: tuple[int, ...]) -> NDArray:
    """The inverse of `as_matrices`."""
    if node.op_type == "Conv":
        return matrices.reshape(shape)
    return matrices[0] if attribute(node, "transB", 0) else np.ascontiguousarray(matrices[0].T)


def inputs(node: ir.Node, x: NDArray, shape: tuple[int, ...], *, every: int = 1, index: int = 0) -> NDArray[np.float32]:
    """Rows of a layer's input, [G, N, K]: patches of a Conv, else rows; one of `every`, shifted by the index.

    shape: of the layer's weight as ONNX has it.
    """
    if node.op_type != "Conv":
        return np.asarray(x.reshape(1, -1, x.shape[-1])[:, index % every :: every], np.float32)
    kernel = shape[2:]
    rank = len(kernel)
    return unfold(
        np.asarray(x, np.float32),
        kernel,
        attribute(node, "strides", [1] * rank),
        attribute(node, "pads", [0] * 2 * rank),
        attribute(node, "dilations", [1] * rank),
        attribute(node, "group", 1),
        every=every,
        offset=index,
    )


def positions(node: ir.Node, x: NDArray, weight: NDArray) -> int:
    """Rows that one sample gives, about (a Conv's stride is left out)."""
    return x.size // (x.shape[1] if node.op_type == "Conv" else x.shape[-1])


def unfold(
    x: NDArray,
    kernel: Sequence[int],
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
    groups: int,
    *,
    every: int = 1,
    offset: int = 0,
) -> NDArray:
    """Patches of a convolution's input: [N, C, *S] -> [groups, N * positions, C/groups * prod(kernel)].

    pads: begins, then ends, as ONNX has them; padding is 0. Only every n-th position is taken, from `offset` on.
    """
    rank = len(kernel)
    if any(pads):
        x = np.pad(x, [(0, 0), (0, 0), *zip(pads[:rank], pads[rank:], strict=True)])
    reach = tuple((k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True))
    windows = np.lib.stride_tricks.sliding_window_view(x, reach, axis=tuple(range(2, 2 + rank)))
    steps = [
        slice(None),
        slice(None),
        *(slice(None, None, s) for s in strides),
        *(slice(None, None, d) for d in dilations),
    ]
    windows = windows[tuple(steps)]
    n, c, *positions = windows.shape[: 2 + rank]
    taken = np.arange(offset % every, int(np.prod(positions)), every)
    places = np.unravel_index(taken, positions)
    # [N, C, P, *kernel]: the advanced indices are adjacent, so the axis of positions stays where they were.
    picked: Any = (slice(None), slice(None), *places)
    patches = windows[picked].reshape(n, groups, c // groups, len(taken), -1)
    return np.ascontiguousarray(patches.transpose(1, 0, 3, 2, 4)).reshape(groups, n * len(taken), -1)
