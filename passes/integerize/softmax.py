"""Softmax, with a constant mask where scores are masked before it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qcompiler.assignment import softmax_mask
from qcompiler.formats import Int, QuantParams
from qcompiler.graph.model import Graph, attribute
from qcompiler.ops.softmax import exponentials
from qcompiler.passes.integerize.rule import Rule, lacks_quantizer
from qcompiler.passes.integerize.writer import Writer


def _refuses(graph: Graph, node: ir.Node) -> str:
    masked = softmax_mask(graph, node)
    return lacks_quantizer(graph, node.inputs[0] if masked is None else masked[1])


def _write(writer: Writer, node: ir.Node, params: QuantParams, name: str) -> ir.Value:
    """The output scale of the operator is 1/R. Other scales take a detour over 16 bits, R = 65535."""
    graph = writer.source
    masked = softmax_mask(graph, node)
    x = writer.codes(node.inputs[0] if masked is None else masked[1])  # type: ignore[arg-type]
    numerator = max(1, round(1 / float(params.scale)))
    own, own_name = params, name
    if np.float32(1 / numerator) != params.scale:
        numerator, own_name = 65535, f"{name}_softmax"
        own = QuantParams(Int(16, signed=False), np.float32(1 / 65535))
    attributes = {
        "axis": attribute(node, "axis", -1) % len(graph.shape(node.inputs[0])),  # type: ignore[arg-type]
        "x_format": x.params.format.token,
        "numerator": numerator,
        "zero_point": int(own.zero_point),
        "format": own.format.token,
    }
    inputs = [x.value, writer.const(f"{name}_exp", exponentials(x.params.format, float(x.params.scale)))]
    if masked is not None:
        inputs.append(writer.const(f"{name}_mask", masked[2].astype(np.uint8)))
    codes = writer.emit("Softmax", inputs, attributes, own, graph.shape(node.outputs[0]), own_name)
    return writer.requantize(codes, own, params, name)


RULES = {"Softmax": Rule(_write, _refuses)}
