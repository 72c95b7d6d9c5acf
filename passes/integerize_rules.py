"""How each float operator of a QDQ graph becomes an integer operator: one rule an operator, in a plain table.

A rule says why it must refuse a node (before any work), and writes the node. real = scale * (code - zero_point), so a
product has the scale s_x * s_w and requantization multiplies by s_x * s_w / s_y.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qcompiler.errors import UnsupportedError
from qcompiler.formats import Int, QuantParams
from qcompiler.graph.model import Graph, attribute
from qcompiler.graph.qdq import quantizer_of, read_bias
from qcompiler.ops.softmax import exponentials
from qcompiler.passes import integerize_movement as movement
from qcompiler.passes.integerize_writer import Codes, Writer

INT32_LIMIT = 2**31
ADD_SHIFT_MAX = 30


@dataclass(frozen=True)
class Rule:
    """refuses(graph, node) -> reason or ''; write(writer, node, output parameters, output name) -> codes."""

    write: Callable[[Writer, ir.Node, QuantParams, str], ir.Value]
    refuses: Callable[[Graph, ir.Node], str] = lambda graph, node: ""


def _weight(graph: Graph, node: ir.Node) -> tuple[NDArray, QuantParams] | None:
    found = quantizer_of(graph, node.inputs[1])
    return None if found is None or found.codes is None else (found.codes, found.params)


def _needs_weight(graph: Graph, node: ir.Node) -> str:
    if _weight(graph, node) is None:
        return "needs constant weights (products of two activations come with the transformer operators)"
    if quantizer_of(graph, node.inputs[0]) is None:
        return (
            f"reads `{node.inputs[0].name}`, which has no quantizer" if node.inputs[0] is not None else "has no input"
        )
    if node.op_type in ("Conv", "ConvTranspose") and len(graph.shape(node.inputs[1])) > 4:  # type: ignore[arg-type]
        return "has more than two spatial dimensions"
    return ""


# -- products --------------------------------------------------------------------------------------------------


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
    stored = writer.const(f"{node.inputs[1].name}_centred", _narrowest(weights))  # type: ignore[union-attr]
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


def _centred(codes: NDArray, params: QuantParams) -> NDArray[np.int64]:
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


def _write_conv(writer: Writer, node: ir.Node, params: QuantParams, name: str) -> ir.Value:
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
        _centred(codes, weight_params),
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


def _write_matmul(writer: Writer, node: ir.Node, params: QuantParams, name: str) -> ir.Value:
    return _matmul(writer, node, params, name, node.outputs[0], node.inputs[2] if len(node.inputs) > 2 else None)


def _matmul(
    writer: Writer, node: ir.Node, params: QuantParams, name: str, output: ir.Value, bias_value: ir.Value | None
) -> ir.Value:
    graph = writer.source
    codes, weight_params = _weight(graph, node)  # type: ignore[misc]
    weights = _centred(codes, weight_params)
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


def _refuses_gemm(graph: Graph, node: ir.Node) -> str:
    if attribute(node, "transA", 0) or attribute(node, "alpha", 1.0) != 1.0:
        return "has transA or alpha; run the pass `canonicalize`"
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        if _bias_of(graph, node.inputs[2])[0] is None:
            return "has a bias that is not constant"
        if attribute(node, "beta", 1.0) != 1.0:
            return "has beta; run the pass `canonicalize`"
    return _needs_weight(graph, node)


def _refuses_matmul(graph: Graph, node: ir.Node) -> str:
    reason = _needs_weight(graph, node)
    if not reason and len(graph.shape(node.inputs[1])) != 2:  # type: ignore[arg-type]
        return "has weights that are not a matrix"
    return reason


# -- elementwise -----------------------------------------------------------------------------------------------


def _biased_product(graph: Graph, node: ir.Node) -> tuple[ir.Node, ir.Value] | None:
    """(MatMul, bias) if `node` adds a bias to a product without a quantizer between."""
    for product, other in (node.inputs[:2], node.inputs[1::-1]):
        producer = product.producer() if product is not None else None
        if producer is not None and producer.op_type == "MatMul" and other is not None:
            return producer, other
    return None


def _refuses_pair(graph: Graph, node: ir.Node) -> str:
    if node.op_type == "Add" and (found := _biased_product(graph, node)) is not None:
        return _refuses_matmul(graph, found[0])
    if len(node.inputs) != 2:
        return f"has {len(node.inputs)} inputs; run the pass `canonicalize`"
    for value in node.inputs:
        if quantizer_of(graph, value) is None:
            return f"reads `{value.name if value else ''}`, which has no quantizer"
    return ""


def _reach(params: QuantParams) -> int:
    zero, fmt = int(params.zero_point), params.format
    return max(zero - fmt.min, fmt.max - zero)


def _write_add(writer: Writer, node: ir.Node, params: QuantParams, name: str) -> ir.Value:
    graph = writer.source
    if node.op_type == "Add" and (found := _biased_product(graph, node)) is not None:
        return _matmul(writer, found[0], params, name, node.outputs[0], found[1])
    a, b = (writer.codes(value) for value in node.inputs)  # type: ignore[arg-type]
    wide = max(a.params.format.bits, b.params.format.bits) > 8
    ratios = [np.float64(v.params.scale) / np.float64(params.scale) for v in (a, b)]
    ma, mb, shift = add_multipliers(ratios, [_reach(a.params), _reach(b.params)], 2**62 if wide else INT32_LIMIT)
    attributes = {
        "a_zero_point": int(a.params.zero_point),
        "b_zero_point": int(b.params.zero_point),
        "a_multiplier": ma,
        "b_multiplier": -mb if node.op_type == "Sub" else mb,
        "shift": shift,
        "zero_point": int(params.zero_point),
        "format": params.format.token,
    }
    return writer.emit("Add", [a.value, b.value], attributes, params, graph.shape(node.outputs[0]), name)


def add_multipliers(ratios: list[np.float64], reaches: list[int], limit: int) -> tuple[int, int, int]:
    """(ma, mb, shift): the largest shift for which reach_a * ma + reach_b * mb + 2**(shift-1) < limit.

    ratios: s_a / s_y and s_b / s_y. If even shift 1 is too large, multipliers are cut: such an output saturates at
    every nonzero input anyway.
    """
    for shift in range(ADD_SHIFT_MAX, 0, -1):
        ma, mb = (int(np.rint(ratio * 2.0**shift)) for ratio in ratios)
        if reaches[0] * ma + reaches[1] * mb + (1 << (shift - 1)) < limit:
            return ma, mb, shift
    most = [(limit - 2) // (2 * reach) for reach in reaches]
    ma, mb = (min(int(np.rint(2 * ratio)), cap) for ratio, cap in zip(ratios, most, strict=True))
    return ma, mb, 1


def _write_mul(writer: Writer, node: ir.Node, params: QuantParams, name: str) -> ir.Value:
    a, b = (writer.codes(value) for value in node.inputs)  # type: ignore[arg-type]
    scale = np.float64(a.params.scale) * np.float64(b.params.scale) / np.float64(params.scale)
    attributes = {
        "a_zero_point": int(a.params.zero_point),
        "b_zero_point": int(b.params.zero_point),
        **writer.output_attributes(params),
    }
    inputs = [a.value, b.value, *writer.scale_inputs(scale, name)]
    return writer.emit("Mul", inputs, attributes, params, writer.source.shape(node.outputs[0]), name)


def _refuses_div(graph: Graph, node: ir.Node) -> str:
    divisor = quantizer_of(graph, node.inputs[1])
    if divisor is None or divisor.codes is None:
        return "divides by an activation"
    if not _centred(divisor.codes, divisor.params).all():
        return "divides by a constant that quantizes to zero"
    return _refuses_pair(graph, node)


def _write_div(writer: Writer, node: ir.Node, params: QuantParams, name: str) -> ir.Value:
    """x / c = x * (1 / c), the reciprocal quantized to 16 bits symmetric."""
    a, b = writer.codes(node.inputs[0]), writer.codes(node.inputs[1])  # type: ignore[arg-type]
    divisor = writer.target.const(b.value)
    assert divisor is not None
    inverse = 1 / (_centred(divisor, b.params) * np.float64(b.params.scale))
    scale = np.float64(np.float32(np.abs(inverse).max() / 127))
    codes = writer.const(f"{name}_inverse", np.rint(inverse / scale).astype(np.int8))
    writer.describe(codes, QuantParams(Int(8), np.float32(scale)))
    attributes = {"a_zero_point": int(a.params.zero_point), "b_zero_point": 0, **writer.output_attributes(params)}
    ratio = np.float64(a.params.scale) * scale / np.float64(params.scale)
    inputs = [a.value, codes, *writer.scale_inputs(ratio, name)]
    return writer.emit("Mul", inputs, attributes, params, writer.source.shape(node.outputs[0]), name)


# -- pools and reductions --------------------------------------------------------------------------------------


def _one_input(graph: Graph, node: ir.Node) -> str:
    value = node.inputs[0]
    return (
        ""
        if quantizer_of(graph, value) is not None
        else f"reads `{value.name if value else ''}`, which has no quantizer"
    )


def _pads_with_end(graph: Graph, node: ir.Node) -> tuple[list[int], list[int], list[int], list[int]]:
    """kernel, strides, dilations, and pads whose end reaches exactly as far as the last window (ceil_mode)."""
    x, y = graph.shape(node.inputs[0]), graph.shape(node.outputs[0])  # type: ignore[arg-type]
    kernel = attribute(node, "kernel_shape") or list(x[2:])
    count = len(kernel)
    strides = attribute(node, "strides") or [1] * count
    dilations = attribute(node, "dilations") or [1] * count
    pads = attribute(node, "pads") or [0] * (2 * count)
    end = [
        max(0, (y[d + 2] - 1) * strides[d] + (kernel[d] - 1) * dilations[d] + 1 - x[d + 2] - pads[d])
        for d in range(count)
    ]
    return kernel, strides, dilations, [*pads[:count], *end]


def _write_max_pool(writer: Writer, node: ir.Node, params: QuantParams, name: str) -> ir.Value:
    x = writer.codes(node.inputs[0])  # type: ignore[arg-type]
    graph = writer.source
    kernel, strides, dilations, pads = _pads_with_end(graph, node)
    attributes = {"kernel_shape": kernel, "strides": strides, "dilations": dilations, "pads": pads}
    same = x.params == params
    pooled = writer.emit(
        "MaxPool", [x.value], attributes, x.params, graph.shape(node.outputs[0]), name if same else f"{name}_pooled"
    )
    return writer.requantize(pooled, x.params, params, name)


def _refuses_max_pool(graph: Graph, node: ir.Node) -> str:
    if len(node.outputs) > 1 and node.outputs[1].uses():
        return "returns indices"
    if len(graph.shape(node.inputs[0])) > 4:  # type: ignore[arg-type]
        return "has more than two spatial dimensions"
    return _one_input(graph, node)


def _write_average_pool(writer: Writer, node: ir.Node, params: QuantParams, name: str) -> ir.Value:
    x = writer.codes(node.inputs[0])  # type: ignore[arg-type]
    graph = writer.source
    kernel, strides, dilations, pads = _pads_with_end(graph, node)
    counts = _cell_counts(graph, node, kernel, strides, dilations, pads)
    scale = np.float64(x.params.scale) / np.float64(params.scale) / counts
    if (counts == counts.flat[0]).all():
        scale = scale.flat[0]
    attributes = {
        "kernel_shape": kernel,
        "strides": strides,
        "dilations": dilations,
        "pads": pads,
        "x_zero_point": int(x.params.zero_point),
        **writer.output_attributes(params),
    }
    inputs = [x.value, *writer.scale_inputs(scale, name)]
    return writer.emit("AveragePool", inputs, attributes, params, graph.shape(node.outputs[0]), name)


def _cell_counts(
    graph: Graph, node: ir.Node, kernel: list[int], strides: list[int], dilations: list[int], pads: list[int]
) -> NDArray[np.float64]:
    """Divisor of every output position, [*out]: in-bounds cells, and declared padding if that counts."""
    x, y = graph.shape(node.inputs[0]), graph.shape(node.outputs[0])  # type: ignore[arg-type]
    declared = attribute(node, "pads") or [0] * (2 * len(kernel))
    counted = bool(attribute(node, "count_include_pad", 0))
    total: NDArray[np.float64] = np.ones((), np.float64)
    for d, size in enumerate(kernel):
        low = -declared[d] if counted else 0
        high = x[d + 2] + (declared[d + len(kernel)] if counted else 0)
        cells = np.arange(y[d + 2])[:, None] * strides[d] - pads[d] + np.arange(size) * dilations[d]
        along = ((cells >= low) & (cells < high)).sum(axis=1).astype(np.float64)
        total = np.multiply.outer(total, along)
    return total


def _mean_axes(graph: Graph, node: ir.Node) -> list[int] | None:
    rank = len(graph.shape(node.inputs[0]))  # type: ignore[arg-type]
    if node.op_type == "GlobalAveragePool":
        return list(range(2, rank))
    axes = attribute(node, "axes")
    if axes is None and len(node.inputs) > 1 and node.inputs[1] is not None:
        array = graph.const(node.inputs[1])
        if array is None:
            return None
        axes = [int(a) for a in array]
    if not axes:
        axes = [] if attribute(node, "noop_with_empty_axes", 0) else list(range(rank))
    return sorted(a % rank for a in axes)


def _refuses_mean(graph: Graph, node: ir.Node) -> str:
    return "has axes that are not constant" if _mean_axes(graph, node) is None else _one_input(graph, node)


def _write_mean(writer: Writer, node: ir.Node, params: QuantParams, name: str) -> ir.Value:
    x = writer.codes(node.inputs[0])  # type: ignore[arg-type]
    graph = writer.source
    shape = graph.shape(node.inputs[0])  # type: ignore[arg-type]
    axes = _mean_axes(graph, node) or []
    count = 1 if node.op_type == "ReduceSum" else prod(shape[a] for a in axes)
    attributes = {
        "axes": axes,
        "keepdims": 1 if node.op_type == "GlobalAveragePool" else attribute(node, "keepdims", 1),
        "x_zero_point": int(x.params.zero_point),
        **writer.output_attributes(params),
    }
    scale = np.float64(x.params.scale) / np.float64(params.scale) / count
    inputs = [x.value, *writer.scale_inputs(scale, name)]
    return writer.emit("ReduceMean", inputs, attributes, params, graph.shape(node.outputs[0]), name)


def _write_softmax(writer: Writer, node: ir.Node, params: QuantParams, name: str) -> ir.Value:
    x = writer.codes(node.inputs[0])  # type: ignore[arg-type]
    graph = writer.source
    numerator = round(1 / float(params.scale))
    fitting = np.float32(1 / numerator) == params.scale
    own = params if fitting else QuantParams(Int(8, signed=False), np.float32(1 / 256))
    attributes = {
        "axis": attribute(node, "axis", -1) % len(graph.shape(node.inputs[0])),  # type: ignore[arg-type]
        "x_format": x.params.format.token,
        "numerator": numerator if fitting else 256,
        "zero_point": int(own.zero_point),
        "format": own.format.token,
    }
    table = exponentials(x.params.format, float(x.params.scale))
    codes = writer.emit(
        "Softmax",
        [x.value, writer.const(f"{name}_exp", table)],
        attributes,
        own,
        graph.shape(node.outputs[0]),
        name if fitting else f"{name}_softmax",
    )
    return writer.requantize(codes, own, params, name)


RULES: dict[str, Rule] = {
    "Add": Rule(_write_add, _refuses_pair),
    "AveragePool": Rule(_write_average_pool, _refuses_max_pool),
    "Conv": Rule(_write_conv, _needs_weight),
    "ConvTranspose": Rule(_write_conv, _needs_weight),
    "Div": Rule(_write_div, _refuses_div),
    "Gemm": Rule(_write_matmul, _refuses_gemm),
    "GlobalAveragePool": Rule(_write_mean, _refuses_mean),
    "GlobalMaxPool": Rule(_write_max_pool, _refuses_max_pool),
    "MatMul": Rule(_write_matmul, _refuses_matmul),
    "MaxPool": Rule(_write_max_pool, _refuses_max_pool),
    "Mul": Rule(_write_mul, _refuses_pair),
    "ReduceMean": Rule(_write_mean, _refuses_mean),
    "ReduceSum": Rule(_write_mean, _refuses_mean),
    "Softmax": Rule(_write_softmax, _one_input),
    "Sub": Rule(_write_add, _refuses_pair),
    **{name: Rule(movement.write, movement.refuses) for name in movement.MOVEMENT},
}
