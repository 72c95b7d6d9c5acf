"""Choices among values: truth values, Where, Max, Min, PRelu with a slope for each channel."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qcompiler.errors import UnsupportedError
from qcompiler.formats import QuantParams
from qcompiler.graph.model import Graph
from qcompiler.passes.integerize import integers, truth
from qcompiler.passes.integerize.rule import Rule, lacks_quantizer, one_input, reach
from qcompiler.passes.integerize.writer import Writer
from qcompiler.quantizer import quantize

SLOPE_BITS = 30


def _operand(writer: Writer, value: ir.Value | None, params: QuantParams, name: str) -> ir.Value:
    """Codes at the output's parameters; a float constant takes them directly."""
    array = writer.source.const(value)
    if array is not None:
        constant = writer.const(name, quantize(array.astype(np.float32), params))
        writer.describe(constant, params)
        return constant
    x = writer.codes(value)  # type: ignore[arg-type]
    return writer.requantize(x.value, x.params, params, name)


def _refuses_operands(graph: Graph, values: list[ir.Value | None]) -> str:
    return next((why for v in values if graph.const(v) is None and (why := lacks_quantizer(graph, v))), "")


def _refuses_where(graph: Graph, node: ir.Node) -> str:
    return truth.refuses(graph, node.inputs[0]) or _refuses_operands(graph, list(node.inputs[1:]))


def _write_where(writer: Writer, node: ir.Node, params: QuantParams, name: str) -> ir.Value:
    condition = truth.write(writer, node.inputs[0])  # type: ignore[arg-type]
    sides = [_operand(writer, value, params, f"{name}_{i}") for i, value in enumerate(node.inputs[1:])]
    attributes = {"format": params.format.token}
    shape = writer.source.shape(node.outputs[0])
    return writer.emit("Select", [condition, *sides], attributes, params, shape, name)


def _refuses_pair(graph: Graph, node: ir.Node) -> str:
    if len(node.inputs) != 2:
        return f"has {len(node.inputs)} inputs; run the pass `spell_out`"
    return _refuses_operands(graph, list(node.inputs))


def _write_pair(writer: Writer, node: ir.Node, params: QuantParams, name: str) -> ir.Value:
    """Quantization is monotonic, so the larger value has the larger code once both have the output's parameters."""
    sides = [_operand(writer, value, params, f"{name}_{i}") for i, value in enumerate(node.inputs)]
    return writer.emit(node.op_type, sides, {}, params, writer.source.shape(node.outputs[0]), name, domain="")


def _refuses_prelu(graph: Graph, node: ir.Node) -> str:
    if graph.const(node.inputs[1]) is None:
        return "has a slope that is not constant"
    return one_input(graph, node)


def _write_prelu(writer: Writer, node: ir.Node, params: QuantParams, name: str) -> ir.Value:
    graph = writer.source
    x, slope = writer.codes(node.inputs[0]), graph.const(node.inputs[1])  # type: ignore[arg-type]
    ratio = float(x.params.scale) / float(params.scale)
    factors = np.asarray(slope, np.float64) * ratio
    largest = max(ratio, float(np.abs(factors).max(initial=0)))
    # Products of 8-bit codes stay in int32 with room for the half.
    room = 2.0**31 / (2 * (reach(x.params) + 1)) if x.params.format.bits <= 8 else 2.0**SLOPE_BITS
    shift = next((s for s in range(SLOPE_BITS, 0, -1) if largest * 2.0**s < room and s < 30), 0)
    if not shift:
        raise UnsupportedError(
            f"the slopes of PRelu `{node.name}` are too large for the range of its output.",
            where=graph.path,
            hint="Calibrate again: the range of its output does not fit its input.",
        )
    attributes = {
        "x_zero_point": int(x.params.zero_point),
        "multiplier": round(ratio * 2.0**shift),
        "shift": shift,
        "zero_point": int(params.zero_point),
        "format": params.format.token,
    }
    slopes = writer.const(f"{name}_slope", np.rint(factors * 2.0**shift).astype(np.int32))
    return writer.emit("Slope", [x.value, slopes], attributes, params, graph.shape(node.outputs[0]), name)


def _refuses_cast(graph: Graph, node: ir.Node) -> str:
    value = node.inputs[0]
    if value is not None and value.dtype == ir.DataType.BOOL:
        return truth.refuses(graph, value)
    return integers.refuses(graph, value)


def _write_cast(writer: Writer, node: ir.Node, params: QuantParams, name: str) -> ir.Value:
    """Truth values and integers as numbers."""
    value = node.inputs[0]
    assert value is not None
    if value.dtype == ir.DataType.BOOL:
        return writer.requantize(truth.write(writer, value), truth.FLAGS, params, name)
    inputs = [integers.write(writer, value), *writer.scale_inputs(1 / np.float64(params.scale), name)]
    attributes = {"x_zero_point": 0, **writer.output_attributes(params)}
    return writer.emit("Requantize", inputs, attributes, params, writer.source.shape(value), name)


RULES = {
    "Cast": Rule(_write_cast, _refuses_cast),
    "Max": Rule(_write_pair, _refuses_pair),
    "Min": Rule(_write_pair, _refuses_pair),
    "PRelu": Rule(_write_prelu, _refuses_prelu),
    "Where": Rule(_write_where, _refuses_where),
}
