"""Gather: rows of a constant table by indices that enter the graph, or constant places of an activation; CacheWrite."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qcompiler.formats import QuantParams
from qcompiler.graph.model import DOMAIN, Graph, attribute
from qcompiler.graph.qdq import INDICES_KEY, quantizer_of
from qcompiler.passes.integerize import integers
from qcompiler.passes.integerize.rule import Rule, lacks_quantizer
from qcompiler.passes.integerize.writer import Codes, Writer
from qcompiler.quantizer import quantize


def _refuses(graph: Graph, node: ir.Node) -> str:
    data, index = node.inputs
    if graph.const(index) is None and (reason := integers.refuses(graph, index)):
        return f"has indices that are computed: it {reason}"
    return "" if graph.const(data) is not None else lacks_quantizer(graph, data)


def _refuses_nd(graph: Graph, node: ir.Node) -> str:
    if graph.shape(node.inputs[1])[-1:] != (1,) or attribute(node, "batch_dims", 0):  # type: ignore[arg-type]
        return "has indices of several dimensions"
    return _refuses(graph, node)


def _refuses_cache(graph: Graph, node: ir.Node) -> str:
    position = node.inputs[2]
    if position is None or not position.is_graph_input():
        return "has a position that is computed"
    return lacks_quantizer(graph, node.inputs[0]) or lacks_quantizer(graph, node.inputs[1])


def _write_cache(writer: Writer, node: ir.Node, params: QuantParams, name: str) -> ir.Value:
    graph = writer.source
    past, entry = (writer.codes(value) for value in node.inputs[:2])  # type: ignore[arg-type]
    parts = [writer.requantize(v.value, v.params, params, f"{name}_{i}") for i, v in enumerate((past, entry))]
    shape = graph.shape(node.outputs[0])
    attributes = {"axis": attribute(node, "axis") % len(shape), "format": params.format.token}
    inputs = [*parts, writer.position(node.inputs[2])]  # type: ignore[arg-type]
    return writer.emit("CacheWrite", inputs, attributes, params, shape, name)


def _write(writer: Writer, node: ir.Node, params: QuantParams, name: str) -> ir.Value:
    graph = writer.source
    data, index = node.inputs
    shape = graph.shape(node.outputs[0])
    table = graph.const(data)
    if table is not None and quantizer_of(graph, data) is None:  # the table takes the output's codes
        stored = writer.const(f"{data.name}_codes", quantize(table, params))  # type: ignore[union-attr]
        writer.describe(stored, params)
        x = Codes(stored, params)
    else:
        x = writer.codes(data)  # type: ignore[arg-type]
    extents = graph.shape(data)  # type: ignore[arg-type]
    axis = attribute(node, "axis", 0) % len(extents)
    if graph.const(index) is None:
        at = integers.write(writer, index)  # type: ignore[arg-type]
        inner = writer.target.shape(at)
        known = int(at.metadata_props.get(INDICES_KEY, extents[axis]))
        at.metadata_props[INDICES_KEY] = str(min(known, extents[axis]))
    else:
        places = np.asarray(graph.const(index), np.int64)
        at, inner = writer.const(f"{name}_index", np.where(places < 0, places + extents[axis], places)), places.shape
    own = (*extents[:axis], *inner, *extents[axis + 1 :])
    last = own == shape and x.params == params
    codes = writer.emit(
        "Gather", [x.value, at], {"axis": axis}, x.params, own, name if last else f"{name}_gathered", domain=""
    )
    if own != shape:
        to = writer.const(f"{name}_shape", np.array(shape, np.int64))
        moved = name if x.params == params else f"{name}_moved"
        codes = writer.emit("Reshape", [codes, to], {"allowzero": 1}, x.params, shape, moved, domain="")
    return writer.requantize(codes, x.params, params, name)


RULES = {
    "Gather": Rule(_write, _refuses),
    "GatherND": Rule(_write, _refuses_nd),
    f"{DOMAIN}::CacheWrite": Rule(_write_cache, _refuses_cache),
}
