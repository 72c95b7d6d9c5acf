"""Float operators of our own domain that float passes write: each has a function body, so that any runtime runs it."""

from __future__ import annotations

from typing import Any

import onnx
import onnx_ir as ir

from qcompiler.graph.model import DOMAIN, Graph

FAKE_QUANTIZE = "FakeQuantize"
"""Quantizes and dequantizes; inputs x, scale, zero_point; attributes format, axis, minimum, maximum."""
LOG_QUANTIZE = "LogQuantize"
"""The same to a logarithmic format; inputs x, scale, zero_point int32, thresholds float32 [2^bits - 1], levels int32
[2^bits] (qcompiler/quantizer.py and `Log.decode`); attribute format."""
MINIFLOAT_QUANTIZE = "MinifloatQuantize"
"""The same to a minifloat (`round_levels`): level = round(x / scale / step) step, step the power of two between levels
there, found from a logarithm that may be off by one and compared with its neighbours. Inputs x, scale; attributes
format, axis and shape (of scale against x), steps, last (index of the largest), digits (of the mantissa), whole
(2^digits), low, high."""
QUANTIZERS = (FAKE_QUANTIZE, LOG_QUANTIZE, MINIFLOAT_QUANTIZE)

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
    LOG_QUANTIZE: f"""LogQuantize <format> (x, scale, zero_point, thresholds, levels) => (y) {{
        last = Constant <value_ints = [-1]> ()
        wide = Unsqueeze (x, last)
        below = Less (wide, thresholds)
        ones = Cast <to = {ir.DataType.INT64.value}> (below)
        code = ReduceSum <keepdims = 0> (ones, last)
        level = Gather (levels, code)
        centred = Sub (level, zero_point)
        number = Cast <to = {ir.DataType.FLOAT.value}> (centred)
        y = Mul (number, scale)
    }}""",
    MINIFLOAT_QUANTIZE: f"""
    MinifloatQuantize <axis, shape, format, steps, last, digits, whole, low, high> (x, scale) => (y) {{
        to = Constant <value_ints: ints = @shape> ()
        s = Reshape (scale, to)
        low_level = Constant <value_float: float = @low> ()
        high_level = Constant <value_float: float = @high> ()
        ratio = Div (x, s)
        v = Clip (ratio, low_level, high_level)
        size = Abs (v)
        natural = Log (size)
        log2e = Constant <value = float {{1.442695}}> ()
        about = Mul (natural, log2e)
        exponent = Floor (about)
        places = Constant <value_float: float = @digits> ()
        above = Sub (exponent, places)
        zero = Constant <value = int64 {{0}}> ()
        end = Constant <value_int: int = @last> ()
        least = Constant <value = float {{0.0}}> ()
        most = Cast <to = {ir.DataType.FLOAT.value}> (end)
        bounded = Clip (above, least, most)
        guess = Cast <to = {ir.DataType.INT64.value}> (bounded)
        table = Constant <value_floats: floats = @steps> ()
        tried = Gather (table, guess)
        ones = Constant <value_float: float = @whole> ()
        bottom = Mul (tried, ones)
        top = Add (bottom, bottom)
        small = Less (size, bottom)
        large = GreaterOrEqual (size, top)
        down = Cast <to = {ir.DataType.INT64.value}> (small)
        up = Cast <to = {ir.DataType.INT64.value}> (large)
        raised = Add (guess, up)
        moved = Sub (raised, down)
        index = Clip (moved, zero, end)
        step = Gather (table, index)
        units = Div (v, step)
        rounded = Round (units)
        level = Mul (rounded, step)
        whole_level = Cast <to = {ir.DataType.INT64.value}> (level)
        number = Cast <to = {ir.DataType.FLOAT.value}> (whole_level)
        y = Mul (number, s)
    }}""",
    "CacheSoftmax": """CacheSoftmax (x, position) => (y) {
        shape = Shape <start = -1> (x)
        length = Squeeze (shape)
        first = Constant <value = int64 {0}> ()
        step = Constant <value = int64 {1}> ()
        slots = Range (first, length, step)
        wide = Cast <to = 7> (position)
        flat = Constant <value_ints = [1]> ()
        now = Reshape (wide, flat)
        seen = LessOrEqual (slots, now)
        start = Equal (slots, first)
        shown = Or (seen, start)
        nothing = Constant <value = float {0.0}> ()
        far = Constant <value = float {-1e30}> ()
        mask = Where (shown, nothing, far)
        scores = Add (x, mask)
        y = Softmax <axis = -1> (scores)
    }""",
    "CacheWrite": """CacheWrite <axis> (past, entry, position) => (y) {
        wide = Cast <to = 7> (position)
        flat = Constant <value_ints = [1]> ()
        now = Reshape (wide, flat)
        shape = Shape (past)
        place = Constant <value_int: int = @axis> ()
        length = Gather (shape, place)
        slot = Mod (now, length)
        entries = Shape (entry)
        at = Expand (slot, entries)
        y = ScatterElements <axis: int = @axis> (past, at, entry)
    }""",
    "Swish": """Swish (x) => (y) {
        s = Sigmoid (x)
        y = Mul (x, s)
    }""",
    "QuickGelu": """QuickGelu (x) => (y) {
        alpha = Constant <value = float {1.702}> ()
        ax = Mul (alpha, x)
        s = Sigmoid (ax)
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
