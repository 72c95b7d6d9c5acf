"""Conv, ConvTranspose, Gemm and MatMul with constant weights; MatMul with the Add of its bias."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qcompiler.assignment import channel_axis
from qcompiler.errors import UnsupportedError
from qcompiler.formats import Minifloat, QuantParams
from qcompiler.graph.model import Graph, attribute
from qcompiler.graph.qdq import quantizer_of, read_bias
from qcompiler.passes.integerize.rule import Rule, centred, lacks_quantizer, window_of
from qcompiler.passes.integerize.writer import Codes, Writer

INT32_LIMIT = 2**31
INT64_LIMIT = 2**60
"""Leaves a fixed multiplier two bits."""
MOST_LEVELS = 2**15
"""Levels of minifloats are int16."""


def _weight(graph: Graph, node: ir.Node) -> tuple[NDArray, QuantParams] | None:
    found = quantizer_of(graph, node.inputs[1])
    return None if found is None or found.codes is None else (found.codes, found.params)


def _is_batch(graph: Graph, node: ir.Node) -> bool:
    """Whether a MatMul is one of two activations, or has a constant that is no plain matrix of weights."""
    found = _weight(graph, node)
    return node.op_type == "MatMul" and (found is None or found[0].ndim != 2)


def _refuses_batch(graph: Graph, node: ir.Node) -> str:
    if any(len(graph.shape(value)) < 2 for value in node.inputs):  # type: ignore[arg-type]
        return "multiplies by a vector"
    return lacks_quantizer(graph, node.inputs[0]) or lacks_quantizer(graph, node.inputs[1])


def _refuses(graph: Graph, node: ir.Node) -> str:
    if _is_batch(graph, node):
        return _refuses_batch(graph, node)
    found = _weight(graph, node)
    if found is None:
        return "needs constant weights"
    codes, params = found
    if isinstance(params.format, Minifloat) and params.format.largest >= MOST_LEVELS:
        return f"has weights in {params.format}, whose levels have more than 16 bits (up to 3 exponent bits have fewer)"
    if params.scale.ndim and params.axis is not None and params.axis % codes.ndim != channel_axis(node, codes.ndim):
        return f"has weights with a scale along axis {params.axis}, which is not that of output channels"
    if node.op_type in ("Conv", "ConvTranspose") and codes.ndim > 4:
        return "has more than two spatial dimensions"
    if node.op_type == "Gemm" and codes.ndim != 2:
        return "has weights that are not a matrix"
    if node.op_type != "MatMul" and len(node.inputs) > 2 and node.inputs[2] is not None:
        bias = bias_of(graph, node.inputs[2])[0]
        if bias is None:
            return "has a bias that is not constant"
        if bias.size not in (1, _channels(node, codes)):
            return f"has a bias of {bias.size} elements"
    return lacks_quantizer(graph, node.inputs[0])


def _refuses_gemm(graph: Graph, node: ir.Node) -> str:
    if attribute(node, "transA", 0) or attribute(node, "alpha", 1.0) != 1.0 or attribute(node, "beta", 1.0) != 1.0:
        return "has transA, alpha or beta; run the pass `canonicalize`"
    return _refuses(graph, node)


def _channels(node: ir.Node, codes: NDArray) -> int:
    if node.op_type == "ConvTranspose":
        return int(codes.shape[1]) * int(attribute(node, "group", 1))
    if node.op_type == "Conv" or attribute(node, "transB", 0):
        return int(codes.shape[0])
    return int(codes.shape[1])


def bias_of(graph: Graph, value: ir.Value | None) -> tuple[NDArray | None, NDArray | None]:
    """(codes, their scale), (float values, None), or nothing."""
    if value is None:
        return None, None
    producer = value.producer()
    if producer is not None and (found := read_bias(graph, producer)) is not None:
        return found[0].reshape(-1), found[1].reshape(-1)
    array = graph.const(value)
    return (None if array is None else array.reshape(-1)), None


def _inputs(
    writer: Writer, node: ir.Node, params: QuantParams, name: str, weights: NDArray, axis: int, bias: ir.Value | None
) -> tuple[list[ir.Value], Codes]:
    """x, w, bias, *r of a product. weights: centred codes; axis: that of output channels (of one group)."""
    x = writer.codes(node.inputs[0])  # type: ignore[arg-type]
    found = _weight(writer.source, node)
    assert found is not None
    channels, scale = _channels(node, found[0]), found[1].scale.astype(np.float64)
    if scale.size not in (1, channels):  # grouped ConvTranspose: every group has the same channels
        scale = np.tile(scale, channels // scale.size)
    product = np.broadcast_to(np.float64(x.params.scale) * scale, (channels,))
    values, bias_scale = bias_of(writer.source, bias)
    values = np.zeros(1) if values is None else values
    codes = values.astype(np.float64) if bias_scale is not None else np.rint(values.astype(np.float64) / product)
    codes = np.broadcast_to(codes, (channels,))
    narrow = x.params.format.bits <= 8
    bits = _prove(writer, node, weights, axis, codes, x.params, narrow)
    stored = writer.const(f"{node.inputs[1].name}_centred", _narrowest(weights))  # type: ignore[union-attr]
    writer.describe(stored, found[1])
    inputs = [x.value, stored, writer.const(f"{name}_bias", codes.astype(np.int32 if narrow else np.int64))]
    return [*inputs, *writer.scale_inputs(product / np.float64(params.scale), name, bits)], x


def _prove(
    writer: Writer, node: ir.Node, weights: NDArray, axis: int, bias: NDArray, x: QuantParams, narrow: bool
) -> int:
    """No code of x can overflow the accumulator, channel by channel; returns the bits that it needs (at least 31)."""
    axes = tuple(a for a in range(weights.ndim) if a != axis)
    sums = np.abs(weights.astype(np.int64)).sum(axis=axes).astype(np.float64)
    if sums.size != bias.size:
        sums = np.tile(sums, bias.size // sums.size)
    # Targets may fold the zero point into the bias and sum raw codes, so both forms must fit.
    zero, fmt = int(x.zero_point), x.format
    span = max(zero - fmt.min, fmt.max - zero, abs(zero), fmt.max - fmt.min)
    worst = float((sums * span + np.abs(bias)).max(initial=0))
    if worst >= (INT32_LIMIT if narrow else INT64_LIMIT):
        hint = "Give its weights fewer bits (a rule with `weight`), or its input 16 bits (64-bit accumulators)."
        raise UnsupportedError(
            f"the accumulator of {node.op_type} `{node.name}` can reach {worst:.3g}, which overflows "
            f"{32 if narrow else 64} bits.",
            where=writer.source.path,
            hint=hint if narrow else "Give its weights fewer bits.",
        )
    return max(31, int(worst).bit_length())


def _narrowest(codes: NDArray) -> NDArray:
    for dtype in (np.int8, np.int16):
        info = np.iinfo(dtype)
        if codes.min(initial=0) >= info.min and codes.max(initial=0) <= info.max:
            return codes.astype(dtype)
    return codes.astype(np.int32)


def _write_conv(writer: Writer, node: ir.Node, params: QuantParams, name: str) -> ir.Value:
    graph = writer.source
    codes, weight_params = _weight(graph, node)  # type: ignore[misc]
    transposed = node.op_type == "ConvTranspose"
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    inputs, x = _inputs(writer, node, params, name, centred(codes, weight_params), 1 if transposed else 0, bias)
    window = window_of(graph, node, list(codes.shape[2:]))
    attributes: dict[str, Any] = {
        "strides": window.strides,
        "pads": window.pads,
        "dilations": window.dilations,
        "group": attribute(node, "group", 1),
        "x_zero_point": int(x.params.zero_point),
        **writer.output_attributes(params),
    }
    if transposed:
        attributes["output_padding"] = attribute(node, "output_padding") or [0] * (codes.ndim - 2)
        attributes["pads"] = _transpose_pads(graph, node, attributes)
    return writer.emit(node.op_type, inputs, attributes, params, graph.shape(node.outputs[0]), name)


def _transpose_pads(graph: Graph, node: ir.Node, attributes: dict[str, Any]) -> list[int]:
    """Explicit pads, also where the node gives output_shape or auto_pad instead."""
    auto = attribute(node, "auto_pad", "NOTSET")
    if not attribute(node, "output_shape") and auto in ("NOTSET", "VALID"):
        return [0] * len(attributes["pads"]) if auto == "VALID" else list(attributes["pads"])
    x, w, y = (graph.shape(v) for v in (node.inputs[0], node.inputs[1], node.outputs[0]))  # type: ignore[arg-type]
    begin, end = [], []
    for d in range(len(x) - 2):
        full = attributes["strides"][d] * (x[d + 2] - 1) + attributes["output_padding"][d]
        total = full + (w[d + 2] - 1) * attributes["dilations"][d] + 1 - y[d + 2]
        small = total // 2
        begin.append(small if auto == "SAME_UPPER" else total - small)
        end.append(total - begin[-1])
    return begin + end


def write_batch(
    writer: Writer, node: ir.Node, output: ir.Value, factor: float, params: QuantParams, name: str
) -> ir.Value:
    """BatchMatMul of two activations, times a factor that its requantization performs."""
    a, b = (writer.codes(value) for value in node.inputs)  # type: ignore[arg-type]
    k = writer.source.shape(node.inputs[0])[-1]  # type: ignore[arg-type]
    # Targets may sum codes in another storage, shifted by up to half a range, before they subtract zero points.
    worst = k * (a.params.format.max - a.params.format.min + 1) * (b.params.format.max - b.params.format.min + 1) * 2
    narrow = max(a.params.format.bits, b.params.format.bits) <= 8
    if worst >= (INT32_LIMIT if narrow else INT64_LIMIT):
        bits = 32 if narrow else 64
        raise UnsupportedError(
            f"the accumulator of MatMul `{node.name}` can reach {worst:.3g}, which overflows {bits} bits.",
            where=writer.source.path,
            hint="Give one of its inputs 16 bits (64-bit accumulators)." if narrow else "Give its inputs fewer bits.",
        )
    attributes = {
        "a_zero_point": int(a.params.zero_point),
        "b_zero_point": int(b.params.zero_point),
        **writer.output_attributes(params),
    }
    scale = np.float64(a.params.scale) * np.float64(b.params.scale) / np.float64(params.scale) * factor
    inputs = [a.value, b.value, *writer.scale_inputs(scale, name, max(31, worst.bit_length()))]
    return writer.emit("BatchMatMul", inputs, attributes, params, writer.source.shape(output), name)


def _write_matmul(writer: Writer, node: ir.Node, params: QuantParams, name: str) -> ir.Value:
    if _is_batch(writer.source, node):
        return write_batch(writer, node, node.outputs[0], 1.0, params, name)
    return _matmul(writer, node, params, name, node.outputs[0], node.inputs[2] if len(node.inputs) > 2 else None)


def _matmul(
    writer: Writer, node: ir.Node, params: QuantParams, name: str, output: ir.Value, bias: ir.Value | None
) -> ir.Value:
    codes, weight_params = _weight(writer.source, node)  # type: ignore[misc]
    weights = centred(codes, weight_params)
    if node.op_type == "Gemm" and attribute(node, "transB", 0):
        weights = np.ascontiguousarray(weights.T)
    inputs, x = _inputs(writer, node, params, name, weights, 1, bias)
    attributes = {"x_zero_point": int(x.params.zero_point), **writer.output_attributes(params)}
    return writer.emit("MatMul", inputs, attributes, params, writer.source.shape(output), name)


def biased_matmul(graph: Graph, add: ir.Node) -> tuple[ir.Node, ir.Value] | None:
    """(MatMul, bias) if the Add reads a MatMul without a quantizer between and a constant of one row."""
    for product, other in (add.inputs[:2], add.inputs[1::-1]):
        producer = product.producer() if product is not None else None
        if producer is not None and producer.op_type == "MatMul" and other is not None:
            return producer, other
    return None


def refuses_biased(graph: Graph, add: ir.Node, matmul: ir.Node, bias: ir.Value) -> str:
    """Refusal of an Add that is the bias of a MatMul."""
    reason = "has no quantizer behind it" if _is_batch(graph, matmul) else _refuses(graph, matmul)
    if reason:
        return f"adds a bias to MatMul `{matmul.name}`, which {reason}"
    values = bias_of(graph, bias)[0]
    columns = graph.shape(matmul.outputs[0])[-1]
    if values is None or values.size not in (1, columns) or graph.shape(bias)[-1:] not in ((columns,), (1,), ()):
        return f"adds something else than a bias to MatMul `{matmul.name}`, which has no quantizer"
    return ""


def write_biased(
    writer: Writer, add: ir.Node, matmul: ir.Node, bias: ir.Value, params: QuantParams, name: str
) -> ir.Value:
    """MatMul and the Add of its bias as one integer MatMul."""
    return _matmul(writer, matmul, params, name, add.outputs[0], bias)


RULES = {
    "Conv": Rule(_write_conv, _refuses),
    "ConvTranspose": Rule(_write_conv, _refuses),
    "Gemm": Rule(_write_matmul, _refuses_gemm),
    "MatMul": Rule(_write_matmul, _refuses),
}
