"""Softmax, with a constant mask where scores are masked before it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qcompiler.assignment import HIDDEN, softmax_mask
from qcompiler.formats import Int, QuantParams
from qcompiler.graph.model import DOMAIN, Graph, attribute
from qcompiler.ops.softmax import exponentials
from qcompiler.passes.integerize.rule import Rule, lacks_quantizer
from qcompiler.passes.integerize.writer import Writer


def _refuses(graph: Graph, node: ir.Node) -> str:
    masked = softmax_mask(graph, node)
    if masked is None:
        return lacks_quantizer(graph, node.inputs[0])
    if masked.cells is None and (reason := lacks_quantizer(graph, masked.mask)):
        return reason
    return lacks_quantizer(graph, masked.scores)


def _hidden(writer: Writer, mask: ir.Value, name: str) -> ir.Value:
    """uint8 codes, 1 where a computed mask hides."""
    codes = writer.codes(mask)
    have = codes.params
    real = (np.arange(have.format.min, have.format.max + 1) - int(have.zero_point)) * np.float64(have.scale)
    flags = QuantParams(Int(8, signed=False), np.float32(1))
    return writer.table(codes.value, have, (real <= HIDDEN).astype(np.uint8), flags, f"{name}_hidden")


def _write(writer: Writer, node: ir.Node, params: QuantParams, name: str) -> ir.Value:
    """The output scale of the operator is 1/R. Other scales take a detour over 16 bits, R = 65535."""
    graph = writer.source
    masked = softmax_mask(graph, node)
    x = writer.codes(node.inputs[0] if masked is None else masked.scores)  # type: ignore[arg-type]
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
    inputs: list[ir.Value | None] = [
        x.value,
        writer.const(f"{name}_exp", exponentials(x.params.format.integers, float(x.params.scale))),
    ]
    if masked is not None:
        constant = masked.cells is not None
        inputs.append(
            writer.const(f"{name}_mask", masked.cells.astype(np.uint8))  # type: ignore[union-attr]
            if constant
            else _hidden(writer, masked.mask, name)
        )
    if node.op_type == "CacheSoftmax":
        inputs += [*[None] * (3 - len(inputs)), writer.position(node.inputs[1])]  # type: ignore[arg-type]
    codes = writer.emit("Softmax", inputs, attributes, own, graph.shape(node.outputs[0]), own_name)
    return writer.requantize(codes, own, params, name)


RULES = {"Softmax": Rule(_write, _refuses), f"{DOMAIN}::CacheSoftmax": Rule(_write, _refuses)}
