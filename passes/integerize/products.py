"""Conv, ConvTranspose, Gemm and MatMul with constant weights.

real = scale * (code - zero_point), so a product has the scale s_x * s_w and requantization multiplies by
s_x * s_w / s_y. Integerize proves from the actual weights that no input can overflow the accumulator.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qcompiler.errors import UnsupportedError
from qcompiler.formats import Int, QuantParams
from qcompiler.graph.model import Graph, attribute
from qcompiler.graph.qdq import quantizer_of, read_bias
from qcompiler.passes.integerize.writer import Codes, Writer

INT32_LIMIT = 2**31


def _weight(graph: Graph, node: ir.Node) -> tuple[NDArray, QuantParams] | None:
    found = quantizer_of(graph, node.inputs[1])
    return None if found is None or found.codes is None else (found.codes, found.params)


def needs_weight(graph: Graph, node: ir.Node) -> str:
    if _weight(graph, node) is None:
        return "needs constant weights (products of two activations come with the transformer operators)"
    if quantizer_of(graph, node.inputs[0]) is None:
        return (
            f"reads `{node.inputs[0].name}`, which has no quantizer" if node.inputs[0] is not None else "has no input"
        )
    if node.op_type in ("Conv", "ConvTranspose") and len(graph.shape(node.inputs[1])) > 4:  # type: ignore[arg-type]
        return "has more than two spatial dimensions"
    return ""


def _product_inputs(
    writer: Writer,
    node: ir.Node,
    params: QuantParams,
    name: str,
    weights: NDArray,
    scale: NDArray,
    channel: int,
    bias: NDArray | None,
    bias_scale: NDArray | None,
    groups: int = 1,
) -> tuple[list[ir.Value], Codes]:
    """x, w, bias, *r of a product. weights: centred codes; scale: float64 [M]; `channel`: its output axis."""
    x = writer.codes(node.inputs[0])  # type: ignore[arg-type]
    fmt: Int = x.params.format
    narrow = fmt.bits <= 8
    product = np.float64(x.params.scale) * scale
    if bias is None:
        codes = np.zeros(scale.shape, np.int64)
    elif bias_scale is not None:
        codes = bias.astype(np.int64)
    else:
        codes = np.rint(bias.astype(np.float64) / product).astype(np.int64)
    bits = _prove(writer, node, weights, codes, x.params, channel, narrow, groups)
    ratio = product / np.float64(params.scale)
    stored = writer.const(f"{node.inputs[1].name}centred", _narrowest(weights))  # type: ignore[union-attr]
    found = _weight(writer.source, node)
    assert found is not None
    writer.describe(stored, found[1])
    inputs = [x.value, stored, writer.const(f"{name}_bias", codes.astype(np.int32 if narrow else np.int64))]
    return [*inputs, *writer.scale_inputs(ratio, name, bits)], x


def _prove(
    writer: Writer,
    node: ir.Node,
    weights: NDArray,
    bias: NDArray,
    x: QuantParams,
    channel: int,
    narrow: bool,
    groups: int,
) -> int:
    """No code of x can overflow the accumulator, channel by channel; returns the bits that it needs (at least 31)."""
    axes = tuple(a for a in range(weights.ndim) if a != channel)
    reach = np.abs(weights.astype(np.int64)).sum(axis=axes)
    if reach.size != bias.size:  # ConvTranspose: every group has its own channels behind the same index
        reach = np.tile(reach, groups)
    zero, fmt = int(x.zero_point), x.format
    span = max(zero - fmt.min, fmt.max - zero)
    # Targets may fold the zero point into the bias, so that sum must fit as well.
    worst = int((reach * max(span, abs(zero), fmt.max - fmt.min) + np.abs(bias)).max(initial=0))
    if worst >= (INT32_LIMIT if narrow else 2**62):
        raise UnsupportedError(
            f"the accumulator of `{node.name}` can reach {worst:.3g} and would overflow {32 if narrow else 64} bits.",
            where=writer.source.path,
            hint="Give its weights fewer bits, or calibrate with data that reaches this layer.",
        )
    return max(31, worst.bit_length())


def _narrowest(codes: NDArray) -> NDArray:
    for dtype in (np.int8, np.int16):
        info = np.iinfo(dtype)
        if codes.min(initial=0) >= info.min and codes.max(initial=0) <= info.max:
            return codes.astype(dtype)
    return codes.astype(np.int32)


def centred(codes: NDArray, params: QuantParams) -> NDArray[np.int64]:
    zero = params.zero_point
    if zero.ndim:
        shape = [1] * codes.ndim
        shape[params.axis or 0] = -1
        zero = zero.reshape(shape)
    return codes.astype(np.int64) - zero


def _bias_of(graph: Graph, value: ir.Value | None) -> tuple[NDArray | None, NDArray | None]:
    """(codes, their scale), (float values, None), or nothing."""
    if value is None:
        return None, None
    producer = value.producer()
    if producer is not None and (found := read_bias(graph, producer)) is not None:
        return found[0], found[1]
    array = graph.const(value)
    return (None if array is None else array.reshape(-1)), None


def _per_channel(params: QuantParams, count: int) -> NDArray[np.float64]:
    return np.broadcast_to(params.scale.astype(np.float64), (count,))


def write_conv(writer: Writer, node: ir.Node, params: QuantParams, name: str) -> ir.Value:
    graph = writer.source
    codes, weight_params = _weight(graph, node)  # type: ignore[misc]
    transposed = node.op_type == "ConvTranspose"
    groups = attribute(node, "group", 1)
    channels = codes.shape[1] * groups if transposed else codes.shape[0]
    scale = weight_params.scale.astype(np.float64)
    if transposed and scale.size == codes.shape[1] != channels:
        scale = np.tile(scale, groups)
    bias, bias_scale = _bias_of(graph, node.inputs[2] if len(node.inputs) > 2 else None)
    inputs, x = _product_inputs(
        writer,
        node,
        params,
        name,
        centred(codes, weight_params),
        np.broadcast_to(scale, (channels,)),
        1 if transposed else 0,
        bias,
        bias_scale,
        groups,
    )
    spatial = codes.ndim - 2
    attributes = {
        "strides": attribute(node, "strides") or [1] * spatial,
        "pads": attribute(node, "pads") or [0] * (2 * spatial),
        "dilations": attribute(node, "dilations") or [1] * spatial,
        "group": groups,
        "x_zero_point": int(x.params.zero_point),
        **writer.output_attributes(params),
    }
    if transposed:
        attributes["output_padding"] = attribute(node, "output_padding") or [0] * spatial
        attributes["pads"] = _transpose_pads(graph, node, attributes)
    return writer.emit(node.op_type, inputs, attributes, params, graph.shape(node.outputs[0]), name)


def _transpose_pads(graph: Graph, node: ir.Node, attributes: dict) -> list[int]:  # type: ignore[type-arg]
    """Explicit pads, also where the node gives output_shape instead."""
    if not attribute(node, "output_shape"):
        return list(attributes["pads"])
    x, w, y = (graph.shape(v) for v in (node.inputs[0], node.inputs[1], node.outputs[0]))  # type: ignore[arg-type]
    begin, end = [], []
    for d in range(len(x) - 2):
        full = attributes["strides"][d] * (x[d + 2] - 1) + attributes["output_padding"][d]
        total = full + (w[d + 2] - 1) * attributes["dilations"][d] + 1 - y[d + 2]
        begin.append(total // 2)
        end.append(total - total // 2)
    return begin + end


def write_matmul(writer: Writer, node: ir.Node, params: QuantParams, name: str) -> ir.Value:
    return write_product(writer, node, params, name, node.outputs[0], node.inputs[2] if len(node.inputs) > 2 else None)


def write_product(
    writer: Writer, node: ir.Node, params: QuantParams, name: str, output: ir.Value, bias_value: ir.Value | None
) -> ir.Value:
    graph = writer.source
    codes, weight_params = _weight(graph, node)  # type: ignore[misc]
    weights = centred(codes, weight_params)
    if node.op_type == "Gemm" and attribute(node, "transB", 0):
        weights = weights.T
    columns = weights.shape[1]
    bias, bias_scale = _bias_of(graph, bias_value)
    if bias is not None and bias.size != columns:
        bias = np.broadcast_to(bias, (columns,))
    inputs, x = _product_inputs(
        writer,
        node,
        params,
        name,
        np.ascontiguousarray(weights),
        _per_channel(weight_params, columns),
        1,
        bias,
        bias_scale,
    )
    attributes = {"x_zero_point": int(x.params.zero_point), **writer.output_attributes(params)}
    return writer.emit("MatMul", inputs, attributes, params, graph.shape(output), name)


def refuses_gemm(graph: Graph, node: ir.Node) -> str:
    if attribute(node, "transA", 0) or attribute(node, "alpha", 1.0) != 1.0:
        return "has transA or alpha; run the pass `canonicalize`"
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        if _bias_of(graph, node.inputs[2])[0] is None:
            return "has a bias that is not constant"
        if attribute(node, "beta", 1.0) != 1.0:
            return "has beta; run the pass `canonicalize`"
    return needs_weight(graph, node)


def refuses_matmul(graph: Graph, node: ir.Node) -> str:
    reason = needs_weight(graph, node)
    if not reason and len(graph.shape(node.inputs[1])) != 2:  # type: ignore[arg-type]
        return "has weights that are not a matrix"
    return reason
