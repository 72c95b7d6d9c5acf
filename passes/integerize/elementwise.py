"""Add, Sub, Mul, Div, and a bias behind a MatMul."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qcompiler.formats import Int, QuantParams
from qcompiler.graph.model import Graph
from qcompiler.graph.qdq import quantizer_of
from qcompiler.passes.integerize.products import INT32_LIMIT, centred, refuses_matmul, write_product
from qcompiler.passes.integerize.writer import Writer

ADD_SHIFT_MAX = 30


def _biased_product(graph: Graph, node: ir.Node) -> tuple[ir.Node, ir.Value] | None:
    """(MatMul, bias) if `node` adds a bias to a product without a quantizer between."""
    for product, other in (node.inputs[:2], node.inputs[1::-1]):
        producer = product.producer() if product is not None else None
        if producer is not None and producer.op_type == "MatMul" and other is not None:
            return producer, other
    return None


def refuses_pair(graph: Graph, node: ir.Node) -> str:
    if node.op_type == "Add" and (found := _biased_product(graph, node)) is not None:
        return refuses_matmul(graph, found[0])
    if len(node.inputs) != 2:
        return f"has {len(node.inputs)} inputs; run the pass `canonicalize`"
    for value in node.inputs:
        if quantizer_of(graph, value) is None:
            return f"reads `{value.name if value else ''}`, which has no quantizer"
    return ""


def _reach(params: QuantParams) -> int:
    zero, fmt = int(params.zero_point), params.format
    return max(zero - fmt.min, fmt.max - zero)


def write_add(writer: Writer, node: ir.Node, params: QuantParams, name: str) -> ir.Value:
    graph = writer.source
    if node.op_type == "Add" and (found := _biased_product(graph, node)) is not None:
        return write_product(writer, found[0], params, name, node.outputs[0], found[1])
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


def write_mul(writer: Writer, node: ir.Node, params: QuantParams, name: str) -> ir.Value:
    a, b = (writer.codes(value) for value in node.inputs)  # type: ignore[arg-type]
    scale = np.float64(a.params.scale) * np.float64(b.params.scale) / np.float64(params.scale)
    attributes = {
        "a_zero_point": int(a.params.zero_point),
        "b_zero_point": int(b.params.zero_point),
        **writer.output_attributes(params),
    }
    inputs = [a.value, b.value, *writer.scale_inputs(scale, name)]
    return writer.emit("Mul", inputs, attributes, params, writer.source.shape(node.outputs[0]), name)


def refuses_div(graph: Graph, node: ir.Node) -> str:
    divisor = quantizer_of(graph, node.inputs[1])
    if divisor is None or divisor.codes is None:
        return "divides by an activation"
    if not centred(divisor.codes, divisor.params).all():
        return "divides by a constant that quantizes to zero"
    return refuses_pair(graph, node)


def write_div(writer: Writer, node: ir.Node, params: QuantParams, name: str) -> ir.Value:
    """x / c = x * (1 / c), the reciprocal quantized to 16 bits symmetric."""
    a, b = writer.codes(node.inputs[0]), writer.codes(node.inputs[1])  # type: ignore[arg-type]
    divisor = writer.target.const(b.value)
    assert divisor is not None
    inverse = 1 / (centred(divisor, b.params) * np.float64(b.params.scale))
    scale = np.float64(np.float32(np.abs(inverse).max() / 127))
    codes = writer.const(f"{name}_inverse", np.rint(inverse / scale).astype(np.int8))
    writer.describe(codes, QuantParams(Int(8), np.float32(scale)))
    attributes = {"a_zero_point": int(a.params.zero_point), "b_zero_point": 0, **writer.output_attributes(params)}
    ratio = np.float64(a.params.scale) * scale / np.float64(params.scale)
    inputs = [a.value, codes, *writer.scale_inputs(ratio, name)]
    return writer.emit("Mul", inputs, attributes, params, writer.source.shape(node.outputs[0]), name)
