"""Float operators of our own domain that float passes write: each has a function body, so that any runtime runs it."""

from __future__ import annotations

from typing import Any

import onnx
import onnx_ir as ir

from qcompiler.graph.model import DOMAIN, Graph

BODIES = {
    "Swish": """Swish (x) => (y) {
        s = Sigmoid (x)
        y = Mul (x, s)
    }""",
    "RMSNormalization": """RMSNormalization <axis, epsilon> (x, scale) => (y) {
        first = Constant <value_int: int = @axis> ()
        past = Constant <value = int64 {0}> ()
        step = Constant <value = int64 {1}> ()
        axes = Range (first, past, step)
        square = Mul (x, x)
        mean = ReduceMean <keepdims = 1> (square, axes)
        little = Constant <value_float: float = @epsilon> ()
        sum = Add (mean, little)
        root = Sqrt (sum)
        normal = Div (x, root)
        y = Mul (normal, scale)
    }""",
}
"""Operator -> its body. `axis` of RMSNormalization is negative: the axes from it on are normalized."""


def define(graph: Graph, name: str) -> None:
    """Put the body of `qcompiler::name` into the model, once."""
    if (DOMAIN, name, "") in graph.model.functions:
        return
    head = f'<domain: "{DOMAIN}", opset_import: ["": {graph.opset}]>\n'
    function: Any = ir.from_proto(onnx.parser.parse_function(head + BODIES[name]))
    graph.model.functions[function.identifier()] = function
