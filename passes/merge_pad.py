"""Merge zero padding into the Conv or pool behind it: Pad(x, 0) -> Conv(pads=p) becomes Conv(pads=p + pad).

Only Pad of mode `constant` whose pads are constant, not negative, and zero on batch and channel. Behind it may stand:

1. Conv: any;
2. AveragePool without ceil_mode: with count_include_pad, or with no pads of its own and then with
   count_include_pad set, because every padded cell was counted; as many cells at the end as at the begin of each axis
   (onnxruntime 1.23 miscounts windows otherwise, and the file must mean the same everywhere);
3. MaxPool: the padding value is -inf, or it is 0, x is never negative and each window keeps a cell of x.

A Pad with other readers stays for them. Outputs are bit-identical (up to the order of sums in the runtime).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from qcompiler.context import Context
from qcompiler.graph.model import Graph, attribute, set_attributes
from qcompiler.graph.stages import Stage

STAGE = (Stage.FLOAT, Stage.FLOAT)


@dataclass(frozen=True, kw_only=True)
class Options:
    """None."""


def run(graph: Graph, options: Options, context: Context) -> Graph:
    """The same function; Pads that found no place are noted."""
    for pad in graph.nodes("Pad"):
        spatial, value = spatial_pads(graph, pad), pad_value(graph, pad)
        for use in list(pad.outputs[0].uses()):
            node, reason = use.node, "its amounts are not constant, negative, or not spatial"
            if spatial is not None and value is not None:
                reason = _refuse(graph, pad, node, spatial, value)
            if reason:
                context.note(pad, f"kept before {node.op_type}: {reason}")
                continue
            own = attribute(node, "pads", [0] * len(spatial or ()))
            set_attributes(node, pads=[int(p + q) for p, q in zip(own, spatial or (), strict=True)], auto_pad=None)
            if node.op_type == "AveragePool":
                set_attributes(node, count_include_pad=1)
            node.replace_input_with(0, pad.inputs[0])
    graph.sweep()
    return graph


def pad_value(graph: Graph, pad: ir.Node) -> float | None:
    """The value that a Pad of mode `constant` writes; None for other modes or when it is not constant."""
    if attribute(pad, "mode", "constant") != "constant":
        return None
    given = pad.inputs[2] if len(pad.inputs) > 2 else None
    if given is None:
        return 0.0
    value = graph.const(given)
    return None if value is None else float(value.reshape(-1)[0])


def spatial_pads(graph: Graph, pad: ir.Node) -> list[int] | None:
    """Begins, then ends, over the axes from 2 on; None if it pads others, negatively or by computed amounts."""
    full = full_pads(graph, pad)
    if full is None or full.shape[1] < 3 or full[:, :2].any() or (full < 0).any():
        return None
    return [int(p) for p in full[:, 2:].reshape(-1)]


def full_pads(graph: Graph, pad: ir.Node) -> np.ndarray | None:
    """int64 [2, rank], begins and ends of each axis; None when they are not constant."""
    amounts, rank = graph.const(pad.inputs[1]), len(graph.shape(pad.inputs[0]))
    given = pad.inputs[3] if len(pad.inputs) > 3 else None
    axes = graph.const(given) if given is not None else np.arange(rank)
    if amounts is None or axes is None:
        return None
    full = np.zeros((2, rank), np.int64)
    full[:, axes] = amounts.reshape(2, -1)
    return full


def _refuse(graph: Graph, pad: ir.Node, node: ir.Node, pads: list[int], value: float) -> str:
    """Why the Pad cannot go into `node`; empty if it can."""
    if node.domain or node.op_type not in ("Conv", "AveragePool", "MaxPool") or node.inputs[0] is not pad.outputs[0]:
        return "the operator has no padding"
    if attribute(node, "auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return "auto_pad would count the padding again"
    own = attribute(node, "pads", [])
    if node.op_type == "Conv":
        return "" if value == 0 else f"it pads with {value:g}"
    if attribute(node, "ceil_mode", 0):
        return "ceil_mode pads by itself"
    if node.op_type == "AveragePool":
        if value != 0:
            return f"it pads with {value:g}"
        counted = attribute(node, "count_include_pad", 0) or not any(own)
        both = [p + q for p, q in zip(own or [0] * len(pads), pads, strict=True)]
        if both[: len(both) // 2] != both[len(both) // 2 :]:
            return "begin and end differ"
        return "" if counted and _small(node, pads) else "the pool would count other cells"
    if value == -math.inf:
        return "" if _small(node, pads) else "a window holds padding only"
    if value == 0 and _never_negative(graph, pad.inputs[0]) and _small(node, pads):
        return ""
    return f"it pads with {value:g}, which may win in MaxPool"


def _small(node: ir.Node, pads: list[int]) -> bool:
    """Each window keeps a real cell, also with the pads that the node has."""
    own = attribute(node, "pads", [0] * len(pads))
    kernel = attribute(node, "kernel_shape")
    return all(p + q < k for p, q, k in zip(pads, own, kernel * 2, strict=True))


def _never_negative(graph: Graph, value: ir.Value | None) -> bool:
    maker = value.producer() if value is not None else None
    if maker is None or maker.domain:
        return False
    if maker.op_type in ("MaxPool", "AveragePool", "Reshape", "Transpose"):
        return _never_negative(graph, maker.inputs[0])
    if maker.op_type == "Clip" and len(maker.inputs) > 1:
        low = graph.const(maker.inputs[1])
        return low is not None and bool(low >= 0)
    return maker.op_type in ("Relu", "Sigmoid", "HardSigmoid", "Softmax", "Abs", "Exp")
