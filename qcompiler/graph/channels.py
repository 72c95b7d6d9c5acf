"""Channels of weights: Conv [M, C/group, *K], ConvTranspose [C, M/group, *K], Gemm, MatMul [K, N]."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qcompiler.graph.model import Graph, attribute

DENSE = ("Gemm", "MatMul")
"""Operators whose weight is [K, N] in the plain form."""


def is_layer(graph: Graph, node: ir.Node) -> bool:
    """Whether a Conv, ConvTranspose, Gemm or MatMul has a constant weight and bias, in the form of `canonicalize`."""
    weight = graph.const(node.inputs[1])
    if weight is None or (node.op_type in DENSE and weight.ndim != 2):
        return False
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        bias = graph.const(node.inputs[2])
        if bias is None or bias.ndim != 1:
            return False
    defaults = {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 0}
    return all(attribute(node, name, value) == value for name, value in defaults.items())


def as_outputs(node: ir.Node, w: NDArray) -> NDArray:
    """[output channels, everything else]."""
    if node.op_type in DENSE:
        return w.T
    if node.op_type == "ConvTranspose":
        groups = attribute(node, "group", 1)
        split = w.reshape(groups, w.shape[0] // groups, w.shape[1], -1)
        return split.transpose(0, 2, 1, 3).reshape(groups * w.shape[1], -1)
    return w.reshape(len(w), -1)


def as_inputs(node: ir.Node, w: NDArray) -> NDArray:
    """[input channels, everything else]."""
    if node.op_type in DENSE:
        return w
    groups = attribute(node, "group", 1)
    split = w.reshape(groups, len(w) // groups, w.shape[1], -1)
    return split.transpose(0, 2, 1, 3).reshape(groups * w.shape[1], -1)


def scale_outputs(node: ir.Node, w: NDArray, factor: NDArray) -> NDArray:
    """Every output channel times its factor [M]."""
    if node.op_type in DENSE:
        return w * factor
    if node.op_type == "ConvTranspose":
        groups = attribute(node, "group", 1)
        each = np.repeat(factor.reshape(groups, -1), w.shape[0] // groups, axis=0)  # [C, M/group]
        return w * each.reshape(*each.shape, *[1] * (w.ndim - 2))
    return w * factor.reshape(-1, *[1] * (w.ndim - 1))


def scale_inputs(node: ir.Node, w: NDArray, factor: NDArray) -> NDArray:
    """What every input channel meets times its factor [C]."""
    if node.op_type in DENSE:
        return w * factor[:, None]
    groups = attribute(node, "group", 1)
    each = np.repeat(factor.reshape(groups, -1), len(w) // groups, axis=0)  # [M, C/group]
    return w * each.reshape(*each.shape, *[1] * (w.ndim - 2))
