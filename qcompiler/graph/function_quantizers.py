"""Quantizers of activations that are no integers: functions of our domain, and ONNX's types of 8-bit floats."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qcompiler.formats import Log, Minifloat, QuantParams
from qcompiler.graph import minifloats
from qcompiler.graph.functions import FAKE_QUANTIZE, LOG_QUANTIZE, MINIFLOAT_QUANTIZE, define
from qcompiler.graph.model import DOMAIN, Graph
from qcompiler.quantizer import thresholds

FORMAT_KEY = "qcompiler.format"
"""Metadata key of the node that ends a quantizer: the format's token."""


def describe(value: ir.Value, shape: ir.Shape | None, dtype: ir.DataType) -> None:
    """Give a value its shape and type."""
    value.shape, value.type = shape, ir.TensorType(dtype)


def write_logarithm(graph: Graph, value: ir.Value, params: QuantParams, fmt: Log, name: str) -> ir.Value:
    """`qcompiler::LogQuantize` behind a value, which any runtime runs by its function body; returns its output."""
    define(graph, LOG_QUANTIZE)
    producer = value.producer()
    first = next(iter(graph.ir), None) if producer is None else None
    inputs = [
        value,
        graph.add_const(f"{name}_scale", params.scale),
        graph.add_const(f"{name}_zero_point", params.zero_point.astype(np.int32)),
        graph.add_const(f"{name}_thresholds", thresholds(params)),
        graph.add_const(f"{name}_levels", fmt.decode(np.arange(fmt.max + 1)).astype(np.int32)),
    ]
    node = graph.add_node(LOG_QUANTIZE, inputs, {"format": fmt.token}, before=first, after=producer, domain=DOMAIN,
                          name=f"{name}/log_quantize", outputs=[f"{name}_dequantized"])  # fmt: skip
    node.metadata_props[FORMAT_KEY] = fmt.token
    describe(node.outputs[0], value.shape, ir.DataType.FLOAT)
    return node.outputs[0]


def write_minifloat(graph: Graph, value: ir.Value, params: QuantParams, fmt: Minifloat, name: str) -> ir.Value:
    """The quantizer of an activation: in ONNX's own type where onnxruntime runs it, else a function."""
    producer = value.producer()
    first = next(iter(graph.ir), None) if producer is None else None
    if fmt.special == "none":
        return _minifloat_function(graph, value, params, name, before=first, after=producer)
    dtype = minifloats.own_type(fmt)
    assert dtype is not None
    scale = graph.add_const(f"{name}_scale", minifloats.stored_scale(params, dtype))
    zero_point = graph.add_tensor(f"{name}_zero_point", ir.tensor(np.zeros((), dtype)))
    node = graph.add_node("QuantizeLinear", [value, scale, zero_point], before=first, after=producer,
                          name=f"{name}/quantize", outputs=[f"{name}_codes"])  # fmt: skip
    describe(node.outputs[0], value.shape, zero_point.dtype or ir.DataType.FLOAT8E4M3FN)
    node = graph.add_node("DequantizeLinear", [node.outputs[0], scale, zero_point], after=node,
                          name=f"{name}/dequantize", outputs=[f"{name}_dequantized"])  # fmt: skip
    node.metadata_props[FORMAT_KEY] = fmt.token
    describe(node.outputs[0], value.shape, ir.DataType.FLOAT)
    return node.outputs[0]


def _minifloat_function(
    graph: Graph,
    value: ir.Value,
    params: QuantParams,
    name: str,
    *,
    before: ir.Node | None = None,
    after: ir.Node | None = None,
) -> ir.Value:
    define(graph, MINIFLOAT_QUANTIZE)
    values = minifloats.quantize_attributes(params, len(value.shape or ()))
    scale = graph.add_const(f"{name}_scale", params.scale)
    node = graph.add_node(MINIFLOAT_QUANTIZE, [value, scale], values, before=before, after=after, domain=DOMAIN,
                          name=f"{name}/minifloat_quantize", outputs=[f"{name}_dequantized"])  # fmt: skip
    node.metadata_props[FORMAT_KEY] = params.format.token
    describe(node.outputs[0], value.shape, ir.DataType.FLOAT)
    return node.outputs[0]


def write_fake_quantize(graph: Graph, value: ir.Value, params: QuantParams, *, name: str, before: ir.Node) -> ir.Value:
    """`qcompiler::FakeQuantize` (or `MinifloatQuantize`) of a value, which any runtime runs by its function body;
    returns its output."""
    fmt = params.format
    if isinstance(fmt, Minifloat):
        return _minifloat_function(graph, value, params, name, before=before)
    define(graph, FAKE_QUANTIZE)
    scale = graph.add_const(f"{name}_scale", params.scale)
    zero_point = graph.add_const(f"{name}_zero_point", params.zero_point.astype(params.format.storage))
    values = {
        "axis": 0 if params.axis is None else params.axis, "minimum": fmt.min, "maximum": fmt.max, "format": fmt.token
    }  # fmt: skip
    node = graph.add_node(FAKE_QUANTIZE, [value, scale, zero_point], values, before=before, domain=DOMAIN,
                          name=f"{name}/fake_quantize")  # fmt: skip
    node.metadata_props[FORMAT_KEY] = fmt.token
    describe(node.outputs[0], value.shape, ir.DataType.FLOAT)
    return node.outputs[0]
