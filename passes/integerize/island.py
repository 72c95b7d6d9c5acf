"""How a float island is carried over: DequantizeLinear before it, its nodes as they are, QuantizeLinear behind it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qcompiler.formats import QuantParams
from qcompiler.graph.islands import ISLAND_KEY, is_island
from qcompiler.graph.model import Graph, attributes
from qcompiler.graph.qdq import quantizer_of, read_bias
from qcompiler.passes.integerize.rule import Rule
from qcompiler.passes.integerize.writer import Writer
from qcompiler.quantizer import dequantize


def refuses(graph: Graph, node: ir.Node) -> str:
    """Reason why the island above (and with) `node` cannot be carried over, or ''."""
    for value in node.inputs:
        if value is None or value.is_graph_input() and value.dtype != ir.DataType.FLOAT:
            continue
        if graph.const(value) is not None or quantizer_of(graph, value) is not None or _bias(graph, value):
            continue
        maker = value.producer()
        if maker is None or not is_island(maker):
            return f"reads `{value.name}`, which has no quantizer"
        if reason := refuses(graph, maker):
            return reason
    return ""


def write(writer: Writer, node: ir.Node, params: QuantParams, name: str) -> ir.Value:
    """The nodes of the island that `node` ends, those that are not there yet, and the codes of its output."""
    x = writer.once(node, lambda: [_write_node(writer, node)])[0]
    inputs = [
        x,
        writer.const(f"{name}_scale", params.scale),
        writer.const(f"{name}_zero_point", params.zero_point.astype(params.format.storage)),
    ]
    return writer.emit("QuantizeLinear", inputs, {}, params, writer.source.shape(node.outputs[0]), name, domain="")


def _write_node(writer: Writer, node: ir.Node) -> ir.Value:
    output = node.outputs[0]
    inputs = [None if value is None else _read(writer, value) for value in node.inputs]
    dtype = output.dtype or ir.DataType.FLOAT
    written = writer.emit_float(node, inputs, attributes(node), dtype, writer.source.shape(output))
    written.producer().metadata_props[ISLAND_KEY] = node.metadata_props[ISLAND_KEY]  # type: ignore[union-attr]
    return written


def _read(writer: Writer, value: ir.Value) -> ir.Value:
    """The value as an island reads it: float32, or what is no number (choices, indices) as it is."""
    graph, name = writer.source, str(value.name)
    array = graph.const(value)
    if array is not None:
        return writer.const(name, array)
    found = quantizer_of(graph, value)
    if found is not None and found.codes is None:
        return writer.dequantized(value)
    if found is not None and found.codes is not None:
        return writer.const(name, dequantize(found.codes, found.params))
    bias = _bias(graph, value)
    if bias is not None:
        return writer.const(name, (bias[0] * bias[1]).astype(np.float32))
    maker = value.producer()
    if maker is None:
        return writer.input(value)
    return writer.once(maker, lambda: [_write_node(writer, maker)])[0]


def _bias(graph: Graph, value: ir.Value) -> tuple[np.ndarray, np.ndarray] | None:
    maker = value.producer()
    return None if maker is None else read_bias(graph, maker)


ISLAND = Rule(write, refuses)
