"""Truth values: uint8 codes 0 and 1, made of comparisons, logic and functions of quantized values."""

from __future__ import annotations

from functools import partial

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qcompiler.formats import Int, QuantParams
from qcompiler.graph.model import Graph
from qcompiler.graph.qdq import quantizer_of
from qcompiler.passes.integerize import integers, movement
from qcompiler.passes.integerize.piecewise import entries
from qcompiler.passes.integerize.rule import Lacks, lacks_quantizer
from qcompiler.passes.integerize.unary import apply_functions, function_input
from qcompiler.passes.integerize.writer import Codes, Writer

FLAGS = QuantParams(Int(8, signed=False), np.float32(1))
COMPARISONS = {
    "Equal": ("Equal", False), "Greater": ("Greater", False), "GreaterOrEqual": ("GreaterOrEqual", False),
    "Less": ("Greater", True), "LessOrEqual": ("GreaterOrEqual", True),
}  # fmt: skip
"""Operator -> kind of Compare, and whether its operands change over."""
LOGIC = {"And": "Min", "Or": "Max", "Xor": "Compare"}
OPERATORS = frozenset({*COMPARISONS, *LOGIC, "Not"})
NEVER = 1 << 31
"""A number that no centred code is."""


def _chain(graph: Graph, value: ir.Value) -> tuple[list[ir.Node], ir.Value] | None:
    """Unary functions from the bottom up, and the float value that they read."""
    functions: list[ir.Node] = []
    while (node := value.producer()) is not None and quantizer_of(graph, value) is None:
        below = function_input(graph, node)
        if below is None:
            break
        functions.append(node)
        value = below
    return (functions[::-1], value) if functions and value.dtype in (None, ir.DataType.FLOAT) else None


def refuses(graph: Graph, value: ir.Value | None, lacks: Lacks = lacks_quantizer) -> str:
    """Why a truth value has no integer form, or ''. lacks: what is wrong with a float that it is made of."""
    if value is None:
        return "lacks a condition"
    node = value.producer()
    if graph.const(value) is not None or node is None:
        return ""
    if (found := _chain(graph, value)) is not None:
        return lacks(graph, found[1])
    if node.domain:
        return f"has a condition made by {node.op_type}"
    if node.op_type in movement.MOVEMENT:
        return next((why for v in _data(node) if (why := refuses(graph, v, lacks))), "")
    if node.op_type in (*LOGIC, "Not"):
        return next((why for v in node.inputs if (why := refuses(graph, v, lacks))), "")
    if node.op_type == "Cast":
        return integers.refuses(graph, node.inputs[0], lacks)
    if node.op_type in COMPARISONS:
        return next((why for v in node.inputs if (why := _refuses_side(graph, v, lacks))), "")
    return f"has a condition made by {node.op_type}"


def _refuses_side(graph: Graph, value: ir.Value | None, lacks: Lacks) -> str:
    if value is None or graph.const(value) is not None:
        return "" if value is not None else "lacks an input"
    return lacks(graph, value) if value.dtype == ir.DataType.FLOAT else integers.refuses(graph, value, lacks)


def _data(node: ir.Node) -> list[ir.Value | None]:
    return list(node.inputs) if node.op_type == "Concat" else list(node.inputs[:1])


def write(writer: Writer, value: ir.Value) -> ir.Value:
    """uint8 codes 0 and 1 of a truth value."""
    if not writer.knows(value):
        writer.define(value, _write(writer, value), FLAGS)
    return writer.codes(value).value


def _write(writer: Writer, value: ir.Value) -> ir.Value:
    graph, name, shape = writer.source, str(value.name), writer.source.shape(value)
    constant = graph.const(value)
    if constant is not None:
        codes = writer.const(f"{name}_flags", constant.astype(np.uint8))
        writer.describe(codes, FLAGS)
        return codes
    node = value.producer()
    if node is None:
        return writer.input(value)
    found = _chain(graph, value)
    if found is not None:
        functions, source = found
        x = writer.codes(source)
        flags = entries(partial(apply_functions, graph, functions), x.params, FLAGS)
        return writer.table(x.value, x.params, flags, FLAGS, name)
    if node.op_type in movement.MOVEMENT:
        for data in _data(node):
            write(writer, data)  # type: ignore[arg-type]
        return movement.write(writer, node, FLAGS, name)
    if node.op_type == "Not":
        flipped = (np.arange(256) == 0).astype(np.uint8)
        return writer.table(write(writer, node.inputs[0]), FLAGS, flipped, FLAGS, name)  # type: ignore[arg-type]
    if node.op_type == "Cast":  # of integers: not 0
        sides = [integers.write(writer, node.inputs[0]), writer.const(f"{name}_zero", np.int64(0))]  # type: ignore[arg-type]
        return writer.emit("Compare", sides, {"kind": "NotEqual", "format": "uint8"}, FLAGS, shape, name)
    if node.op_type in LOGIC:
        sides = [write(writer, v) for v in node.inputs]  # type: ignore[arg-type]
        if node.op_type == "Xor":
            return writer.emit("Compare", sides, {"kind": "NotEqual", "format": "uint8"}, FLAGS, shape, name)
        return writer.emit(LOGIC[node.op_type], sides, {}, FLAGS, shape, name, domain="")
    return _compare(writer, node, name)


def _compare(writer: Writer, node: ir.Node, name: str) -> ir.Value:
    graph = writer.source
    kind, turned = COMPARISONS[node.op_type]
    values = list(node.inputs[::-1] if turned else node.inputs)
    attributes: dict[str, object] = {"kind": kind, "format": "uint8"}
    known = [
        writer.codes(v) if v is not None and graph.const(v) is None and v.dtype == ir.DataType.FLOAT else None
        for v in values
    ]
    multipliers = _multipliers(known)
    sides = []
    for i, (value, x) in enumerate(zip(values, known, strict=True)):
        array = graph.const(value)
        if x is not None:
            sides.append(x.value)
            attributes[f"{'ab'[i]}_zero_point"] = int(x.params.zero_point)
            attributes[f"{'ab'[i]}_multiplier"] = multipliers[i]
        elif array is None:
            sides.append(integers.write(writer, value))  # type: ignore[arg-type]
        else:
            other = known[1 - i]
            bounds = array.astype(np.int64) if other is None else thresholds(array, other.params, kind, first=i == 0)
            sides.append(writer.const(f"{name}_{'ab'[i]}", bounds))
    return writer.emit("Compare", sides, attributes, FLAGS, graph.shape(node.outputs[0]), name)


def _multipliers(known: list[Codes | None]) -> list[int]:
    """The scales of both sides in 31 bits; 1 where they are equal or one side is constant."""
    scales = [float(x.params.scale) for x in known if x is not None]
    if len(scales) < 2 or scales[0] == scales[1]:
        return [1, 1]
    unit = 2.0 ** (30 - int(np.ceil(np.log2(max(scales)))))
    return [round(scale * unit) for scale in scales]


def thresholds(real: NDArray, params: QuantParams, kind: str, *, first: bool) -> NDArray[np.int64]:
    """Centred codes that compare with codes as `real` compares with their values (float32). first: on the left."""
    scale = np.float64(params.scale)
    ratio = np.clip(np.nan_to_num(real.astype(np.float64) / scale), -NEVER, NEVER)
    nearest = np.rint(ratio)
    on_grid = (nearest * scale).astype(np.float32) == real.astype(np.float32)
    if kind == "Equal":
        return np.where(on_grid, nearest, NEVER).astype(np.int64)
    below = (kind == "Greater") != first  # x > c holds from the code behind the floor on, x >= c from the ceiling on
    return np.where(on_grid, nearest, np.floor(ratio) if below else np.ceil(ratio)).astype(np.int64)
