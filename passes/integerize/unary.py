"""Functions of one number: which operators are, what they read, and their values."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from qcompiler.assignment import is_float
from qcompiler.graph.model import DOMAIN, Graph, attribute, attributes
from qcompiler.graph.qdq import quantizer_of
from qcompiler.ops.functions import FUNCTIONS, WITH_CONSTANT

CASTS = (ir.DataType.FLOAT, ir.DataType.INT32, ir.DataType.INT64, ir.DataType.BOOL)


def function_input(graph: Graph, node: ir.Node) -> ir.Value | None:
    """The variable input of a unary function (arithmetic with a scalar constant counts), else None.

    Integers and truth values in between count if functions make them of a float.
    """
    found = _input(graph, node)
    value = found
    while value is not None and not is_float(value):
        producer = value.producer()
        value = _input(graph, producer) if producer is not None else None
    return found if value is not None else None


def _input(graph: Graph, node: ir.Node) -> ir.Value | None:
    if node.op_type not in FUNCTIONS or node.domain not in ("", "ai.onnx", DOMAIN):
        return None
    if node.op_type == "Cast" and ir.DataType(attribute(node, "to")) not in CASTS:
        return None
    if node.op_type in WITH_CONSTANT:
        constants = [scalar(graph, value) for value in node.inputs]
        if sum(c is not None for c in constants) != 1:
            return None
        return node.inputs[constants.index(None)]
    if any(value is not None and scalar(graph, value) is None for value in node.inputs[1:]):
        return None
    return node.inputs[0]


def scalar(graph: Graph, value: ir.Value | None) -> float | None:
    """A constant of one element, quantized or not."""
    array = graph.const(value)
    if array is None:
        quantized = quantizer_of(graph, value)
        if quantized is None or quantized.codes is None or quantized.codes.size != 1:
            return None
        params = quantized.params
        code = float(quantized.codes.reshape(-1)[0]) - float(params.zero_point.reshape(-1)[0])
        return code * float(params.scale.reshape(-1)[0])
    return float(array.reshape(-1)[0]) if array.size == 1 else None


def apply_functions(graph: Graph, functions: list[ir.Node], x: Any) -> Any:
    """Values of a chain of unary functions, float64."""
    for node in functions:
        values = attributes(node)
        if node.op_type in WITH_CONSTANT:
            first = scalar(graph, node.inputs[0])
            values["constant_first"] = first is not None
            values["constant"] = first if first is not None else scalar(graph, node.inputs[1])
        for i, value in enumerate(node.inputs[1:], 1):
            if value is not None and node.op_type not in WITH_CONSTANT:
                values[f"input{i}"] = scalar(graph, value)
        x = FUNCTIONS[node.op_type](x, values)
    return x
