"""Equalize weight ranges across layers: W2 f(W1 x + b1) is unchanged by W1[i] /= t_i, b1[i] /= t_i, W2[:, i] *= t_i.

For each channel i between two layers, r1_i = max |W1[i]|, r2_i = max |W2[:, i]| and t_i = sqrt(r1_i / r2_i), after
which both ranges are sqrt(r1_i r2_i), so that one step size fits all channels. Layers are Conv, ConvTranspose (first
only) and Gemm with constant weights; a depthwise Conv is the second layer of one pair and the first of the next, and
the pairs are iterated to convergence.

f must be positively homogeneous: Relu, LeakyRelu, PRelu, pools and shape operators that keep the channel axis. Clip
to a bound (ReLU6) is refused and noted: it would need another bound for each channel. Channels with a zero range are
left alone. The value between the layers must have one reader. Float output is equal up to float32 rounding.

Source: Nagel et al. 2019, Data-Free Quantization Through Weight Equalization and Bias Correction, section 4.1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qcompiler.context import Context
from qcompiler.graph.channels import as_inputs, as_outputs, is_layer, scale_inputs, scale_outputs
from qcompiler.graph.model import Graph
from qcompiler.graph.normal import scale_normal
from qcompiler.graph.stages import Stage

STAGE = (Stage.FLOAT, Stage.FLOAT)

HOMOGENEOUS = frozenset({
    "Relu", "LeakyRelu", "PRelu", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "Identity",
    "Dropout",
})  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Options:
    iterations: int = 40
    """At most so many rounds over all pairs."""
    tolerance: float = 1e-3
    """A round that changes no range by more than this factor is the last."""


@dataclass(frozen=True)
class Pair:
    """Two layers and the channels between them."""

    first: ir.Node
    second: ir.Node


def run(graph: Graph, options: Options, context: Context) -> Graph:
    """The same function with equal ranges on both sides of each channel."""
    pairs = [pair for node in graph.nodes("Conv", "ConvTranspose", "Gemm") if (pair := _pair(graph, node, context))]
    weights = {node: _unshared(graph, node) for pair in pairs for node in (pair.first, pair.second)}
    biases = {pair.first: _bias(graph, pair.first) for pair in pairs}
    worst = 1.0
    for done in range(options.iterations):
        worst = 1.0
        for pair in pairs:
            w1, w2 = weights[pair.first], weights[pair.second]
            r1 = as_outputs(pair.first, np.abs(w1))
            r2 = as_inputs(pair.second, np.abs(w2))
            r1, r2 = r1.max(axis=1), r2.max(axis=1)
            live = (r1 > 0) & (r2 > 0)
            t = np.ones_like(r1)
            t[live] = np.sqrt(r1[live] / r2[live])
            weights[pair.first] = scale_outputs(pair.first, w1, 1 / t)
            weights[pair.second] = scale_inputs(pair.second, w2, t)
            bias = biases[pair.first]
            if bias is not None:
                biases[pair.first] = bias / t
            scale_normal(pair.first.outputs[0], 1 / t)
            worst = max(worst, float(np.max(np.maximum(t, 1 / t))))
        context.progress("equalize", done + 1, options.iterations)
        if worst <= 1 + options.tolerance:
            break
    for node, w in weights.items():
        graph.set_input_const(node, 1, w.astype(np.float32))
    for node, b in biases.items():
        if b is not None:
            graph.set_input_const(node, 2, b.astype(np.float32))
    context.facts["cross_layer_equalization"] = {"pairs": len(pairs), "last_factor": round(worst, 6)}
    graph.sweep()
    return graph


# -- finding pairs ---------------------------------------------------------------------------------------------


def _pair(graph: Graph, node: ir.Node, context: Context) -> Pair | None:
    if not is_layer(graph, node):
        return None
    value = node.outputs[0]
    channels = graph.shape(value)[1]
    while (reader := graph.sole_user(value)) is not None and not reader.domain:
        if reader.op_type in ("Conv", "Gemm"):
            if reader.inputs[0] is value and is_layer(graph, reader) and graph.shape(value)[1] == channels:
                return Pair(node, reader)
            return None
        if reader.op_type == "Clip":
            context.note(node, f"not equalized with what follows: the bounds of `{reader.name}` hold for all channels")
            return None
        if reader.inputs[0] is not value or not _keeps_channels(graph, reader):
            return None
        value = reader.outputs[0]
    return None


def _keeps_channels(graph: Graph, node: ir.Node) -> bool:
    if node.op_type in HOMOGENEOUS:
        return True
    before, after = graph.shape(node.inputs[0]), graph.shape(node.outputs[0])  # type: ignore[arg-type]
    if node.op_type in ("Flatten", "Reshape", "Squeeze"):  # of [N, C, 1, 1] to [N, C]
        return before[:2] == after[:2] and all(d == 1 for d in before[2:] + after[2:])
    if node.op_type == "ReduceMean":
        axes = graph.const(node.inputs[1]) if len(node.inputs) > 1 else None
        return axes is not None and all(int(a) % len(before) > 1 for a in axes) and len(after) >= 2
    return False


def _unshared(graph: Graph, node: ir.Node) -> NDArray:
    return graph.const(node.inputs[1]).astype(np.float64)  # type: ignore[union-attr]


def _bias(graph: Graph, node: ir.Node) -> NDArray | None:
    bias = graph.const(node.inputs[2]) if len(node.inputs) > 2 else None
    return None if bias is None else bias.astype(np.float64)
