"""Add, Sub, Mul and Div of two quantized values, one of which may be constant."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qcompiler.assignment import scaled_product
from qcompiler.errors import UnsupportedError
from qcompiler.formats import Int, QuantParams
from qcompiler.graph.model import Graph
from qcompiler.graph.qdq import quantizer_of
from qcompiler.passes.integerize.products import RULES as PRODUCTS
from qcompiler.passes.integerize.products import biased_matmul, refuses_biased, write_batch, write_biased
from qcompiler.passes.integerize.rule import Rule, centred, lacks_quantizer, reach
from qcompiler.passes.integerize.writer import Codes, Writer

MAX_SHIFT = 30
NARROW, WIDE = (2**31, 2**31), (2**62, 2**30)
"""Limits of the sum and of one multiplier: int32 for inputs of at most 8 bits, int64 with 30-bit multipliers else."""


def _refuses_pair(graph: Graph, node: ir.Node) -> str:
    if node.op_type == "Add" and (found := biased_matmul(graph, node)) is not None:
        return refuses_biased(graph, node, *found)
    if len(node.inputs) != 2:
        return f"has {len(node.inputs)} inputs; run the pass `canonicalize`"
    return lacks_quantizer(graph, node.inputs[0]) or lacks_quantizer(graph, node.inputs[1])


def _write_add(writer: Writer, node: ir.Node, params: QuantParams, name: str) -> ir.Value:
    graph = writer.source
    if node.op_type == "Add" and (found := biased_matmul(graph, node)) is not None:
        return write_biased(writer, node, *found, params, name)
    a, b = (writer.codes(value) for value in node.inputs)  # type: ignore[arg-type]
    wide = max(a.params.format.bits, b.params.format.bits) > 8
    ratios = [float(v.params.scale) / float(params.scale) for v in (a, b)]
    # Whole spans, not reaches: compilers may add the terms in any order, and no partial sum may overflow.
    spans = [v.params.format.max - v.params.format.min for v in (a, b)]
    ma, mb, shift = add_multipliers(ratios, spans, *(WIDE if wide else NARROW))
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


def add_multipliers(ratios: list[float], reaches: list[int], limit: int, largest: int) -> tuple[int, int, int]:
    """(ma, mb, shift): the largest shift of 1..30 for which reach_a * ma + reach_b * mb + 2^(shift-1) < limit and
    no multiplier reaches `largest`.

    ratios: s_a / s_y and s_b / s_y. If even shift 1 is too large, multipliers are cut: such an output saturates at
    every nonzero input anyway.
    """
    for shift in range(MAX_SHIFT, 0, -1):
        ma, mb = (round(ratio * 2.0**shift) for ratio in ratios)
        if reaches[0] * ma + reaches[1] * mb + (1 << (shift - 1)) < limit and max(ma, mb) < largest:
            return ma, mb, shift
    most = [min((limit - 2) // (2 * most), largest - 1) for most in reaches]
    ma, mb = (min(round(2 * ratio), cap) for ratio, cap in zip(ratios, most, strict=True))
    return ma, mb, 1


def _refuses_mul(graph: Graph, node: ir.Node) -> str:
    scaled = scaled_product(graph, node)
    return _refuses_pair(graph, node) if scaled is None else PRODUCTS["MatMul"].refuses(graph, scaled[0])


def _write_mul(writer: Writer, node: ir.Node, params: QuantParams, name: str) -> ir.Value:
    if (scaled := scaled_product(writer.source, node)) is not None:
        return write_batch(writer, scaled[0], node.outputs[0], scaled[1], params, name)
    a, b = (writer.codes(value) for value in node.inputs)  # type: ignore[arg-type]
    scale = np.float64(a.params.scale) * np.float64(b.params.scale) / np.float64(params.scale)
    attributes = {
        "a_zero_point": int(a.params.zero_point),
        "b_zero_point": int(b.params.zero_point),
        **writer.output_attributes(params),
    }
    bits = max(31, (reach(a.params) * reach(b.params)).bit_length())
    inputs = [a.value, b.value, *writer.scale_inputs(scale, name, bits)]
    return writer.emit("Mul", inputs, attributes, params, writer.source.shape(node.outputs[0]), name)


def _refuses_div(graph: Graph, node: ir.Node) -> str:
    divisor = quantizer_of(graph, node.inputs[1])
    if divisor is None or divisor.codes is None:
        return _refuses_pair(graph, node)
    if not centred(divisor.codes, divisor.params).all():
        return "divides by a constant that quantizes to zero"
    return _refuses_pair(graph, node)


def _write_div(writer: Writer, node: ir.Node, params: QuantParams, name: str) -> ir.Value:
    """x / c = x * (1 / c), the reciprocal in 16 bits, symmetric: as exact as the quotient of 8-bit codes needs."""
    a, b = writer.codes(node.inputs[0]), writer.codes(node.inputs[1])  # type: ignore[arg-type]
    divisor = writer.target.const(b.value)
    if divisor is None:
        return _write_quotient(writer, node, a, b, params, name)
    inverse = 1 / (centred(divisor, b.params) * np.float64(b.params.scale))
    fmt = Int(16, narrow=True)
    scale = np.float64(np.float32(np.abs(inverse).max() / fmt.max))
    codes = writer.const(f"{name}_inverse", np.clip(np.rint(inverse / scale), fmt.min, fmt.max).astype(fmt.storage))
    writer.describe(codes, QuantParams(fmt, np.float32(scale)))
    attributes = {"a_zero_point": int(a.params.zero_point), "b_zero_point": 0, **writer.output_attributes(params)}
    ratio = np.float64(a.params.scale) * scale / np.float64(params.scale)
    bits = max(31, (reach(a.params) * fmt.max).bit_length())
    inputs = [a.value, codes, *writer.scale_inputs(ratio, name, bits)]
    return writer.emit("Mul", inputs, attributes, params, writer.source.shape(node.outputs[0]), name)


def _write_quotient(writer: Writer, node: ir.Node, a: Codes, b: Codes, params: QuantParams, name: str) -> ir.Value:
    """Div of two activations. The numerator keeps below 2^61, the divisor too."""
    ratio = float(a.params.scale) / (float(b.params.scale) * float(params.scale))
    room = 60 - max(reach(a.params).bit_length() + 1, reach(b.params).bit_length() + 1)
    shift = max(0, min(room, 30 - int(np.ceil(np.log2(ratio)))))
    multiplier = round(ratio * 2.0**shift)
    if not 0 < multiplier < 1 << room:
        raise UnsupportedError(
            f"the range of the quotient of Div `{node.name}` does not fit its inputs (ratio of scales {ratio:.3g}).",
            where=writer.source.path,
            hint="Calibrate again, with samples on which the divisor is not near 0.",
        )
    attributes = {
        "a_zero_point": int(a.params.zero_point),
        "b_zero_point": int(b.params.zero_point),
        "multiplier": multiplier,
        "shift": shift,
        "zero_point": int(params.zero_point),
        "format": params.format.token,
    }
    return writer.emit("Div", [a.value, b.value], attributes, params, writer.source.shape(node.outputs[0]), name)


RULES = {
    "Add": Rule(_write_add, _refuses_pair),
    "Div": Rule(_write_div, _refuses_div),
    "Mul": Rule(_write_mul, _refuses_mul),
    "Sub": Rule(_write_add, _refuses_pair),
}
