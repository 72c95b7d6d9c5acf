"""Float operators of our own domain that float passes write: each has a function body, so that any runtime runs it."""

from __future__ import annotations

from typing import Any

import onnx
import onnx_ir as ir

from qcompiler.graph.model import DOMAIN, Graph

FAKE_QUANTIZE = "FakeQuantize"
"""Quantizes and dequantizes; inputs x, scale, zero_point; attributes format, axis, minimum, maximum."""

BODIES = {
    FAKE_QUANTIZE: f"""FakeQuantize <axis, minimum, maximum, format> (x, scale, zero_point) => (y) {{
        codes = QuantizeLinear <axis: int = @axis> (x, scale, zero_point)
        low = Constant <value_int: int = @minimum> ()
        high = Constant <value_int: int = @maximum> ()
        wide = Cast <to = {ir.DataType.INT64.value}> (codes)
        clipped = Clip (wide, low, high)
        saturated = CastLike (clipped, zero_point)
        y = DequantizeLinear <axis: int = @axis> (saturated, scale, zero_point)
    }}""",
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
