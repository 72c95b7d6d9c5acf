"""QDQ graphs as other tools write them, choices of multipliers, and forms that must be refused."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcompiler.errors import UnsupportedError
from qcompiler.graph.io import load_graph
from qcompiler.graph.model import Graph
from qcompiler.passes.integerize.elementwise import NARROW, WIDE, add_multipliers
from tests.quantized import differences, float_graph, integer, quantize

HEAD = '<ir_version: 10, opset_import: ["": 21]>'
PARAMETERS = {"s": np.float32(0.05), "z": np.uint8(120), "zi": np.int8(0)}
DECLARED = "float s, uint8 z, int8 zi"


def parse(header: str, body: str, **constants) -> Graph:
    inputs, outputs = header.split("=>")
    declared = [inputs, DECLARED]
    for name, array in constants.items():
        kind = {"int8": "int8", "uint8": "uint8", "float32": "float", "int64": "int64"}[str(array.dtype)]
        declared.append(f"{kind}{list(array.shape) if array.shape else ''} {name}")
    text = f"{HEAD} g ({', '.join(declared)}) => ({outputs}) {{ {body} }}"
    return load_graph(Graph.parse(text, **PARAMETERS, **constants).model, lifted=False)


def weights(*shape, seed=0):
    return np.random.default_rng(seed).integers(-100, 101, shape).astype(np.int8)


QUANTIZED = "xq = QuantizeLinear(x, s, z) xd = DequantizeLinear(xq, s, z)"


def test_several_dequantizers_of_one_quantizer():
    graph = parse(
        "float[2,8] x => float[2,8] y",
        f"{QUANTIZED} xe = DequantizeLinear(xq, s, z) h = Add(xd, xe) hq = QuantizeLinear(h, s, z)"
        " ha = DequantizeLinear(hq, s, z) hb = DequantizeLinear(hq, s, z) k = Mul(ha, hb)"
        " kq = QuantizeLinear(k, s, z) y = DequantizeLinear(kq, s, z)",
    )
    result = integer(graph)
    assert [n.op_type for n in result.nodes()] == ["QuantizeLinear", "Add", "Mul", "DequantizeLinear"]
    assert differences(graph, result)[0] <= 1


def test_affine_weights_are_centred():
    graph = parse(
        "float[2,8] x => float[2,3] y",
        f"{QUANTIZED} wd = DequantizeLinear(w, s, z) h = MatMul(xd, wd) hq = QuantizeLinear(h, t, z)"
        " y = DequantizeLinear(hq, t, z)",
        w=np.random.default_rng(0).integers(0, 256, (8, 3)).astype(np.uint8),
        t=np.float32(1.0),
    )
    result = integer(graph)
    (matmul,) = result.nodes("MatMul")
    assert result.const(matmul.inputs[1]).dtype == np.int16
    assert differences(graph, result)[0] <= 1


def test_requantization_between_quantizers_is_a_table():
    graph = parse(
        "float[2,50] x => float[2,50] y",
        f"{QUANTIZED} q = QuantizeLinear(xd, t, zi) y = DequantizeLinear(q, t, zi)",
        t=np.float32(0.07),
    )
    result = integer(graph)
    assert [n.op_type for n in result.nodes()] == ["QuantizeLinear", "Table", "DequantizeLinear"]
    assert differences(graph, result) == (0, 0.0)


def test_clip_of_a_graph_input_saturates():
    graph = parse(
        "float[2,50] x => float[2,50] y", "r = Relu(x) q = QuantizeLinear(r, s, z) y = DequantizeLinear(q, s, z)"
    )
    result = integer(graph)
    assert [n.op_type for n in result.nodes()] == ["QuantizeLinear", "Table", "DequantizeLinear"]
    assert differences(graph, result) == (0, 0.0)


def test_pad_with_a_value_outside_the_range_of_its_input():
    text = "float[2,5] x => float[2,9] y"
    body = f"{QUANTIZED} p = Pad(xd, pads, v) q = QuantizeLinear(p, t, zi) y = DequantizeLinear(q, t, zi)"
    graph = parse(text, body, pads=np.array([0, 1, 0, 3], np.int64), v=np.float32(30), t=np.float32(0.31))
    result = integer(graph)
    assert [n.op_type for n in result.nodes()] == ["QuantizeLinear", "Table", "Pad", "DequantizeLinear"]
    assert differences(graph, result) == (0, 0.0)


@pytest.mark.parametrize(("shape", "graph_text", "word"), [
    ("float[2,4] x => float[2,4] y", "a = Sigmoid(x) q = QuantizeLinear(a, s, z) y = DequantizeLinear(q, s, z)",
     "Sigmoid .* reads `x`, which has no quantizer"),
    ("float[2,4] x => float[2,4] y",
     f"{QUANTIZED} wd = DequantizeLinear <axis=0> (w, rows, zeros) h = MatMul(xd, wd) q = QuantizeLinear(h, s, z)"
     " y = DequantizeLinear(q, s, z)", "scale along axis 0"),
    ("float[2,4] x => float[2,4] y", f"{QUANTIZED} y = Sigmoid(xd)", "output `y` is not a quantized float value"),
    ("float[2,4] x => float[2,4] y",
     f"{QUANTIZED} wd = DequantizeLinear (w, s, zi) h = MatMul(xd, wd) a = Tanh(h) q = QuantizeLinear(a, s, z)"
     " y = DequantizeLinear(q, s, z)", "Tanh .* needs a quantizer before it"),
])  # fmt: skip
def test_forms_without_a_meaning_in_integers_are_refused(shape, graph_text, word):
    constants = {"w": weights(4, 4), "rows": np.full(4, 0.1, np.float32), "zeros": np.zeros(4, np.int8)}
    used = {name: array for name, array in constants.items() if f"{name}," in graph_text or f"{name})" in graph_text}
    with pytest.raises(UnsupportedError, match=word):
        integer(parse(shape, graph_text, **used))


def test_softmax_of_any_output_scale():
    graph = quantize(float_graph("float[3,10] x => float[3,10] y", "y = Softmax(x)"))
    for node in (graph.nodes("DequantizeLinear")[-1], graph.nodes("QuantizeLinear")[-1]):
        graph.set_const(node.inputs[1], np.float32(0.0031))
    result = integer(graph)
    assert [n.op_type for n in result.nodes()] == ["QuantizeLinear", "Softmax", "Requantize", "DequantizeLinear"]
    worst, share = differences(graph, result)
    assert worst <= 1 and share < 0.05


def test_division_by_a_constant_vector():
    divisor = np.linspace(0.5, 40, 30, dtype=np.float32)
    graph = quantize(float_graph("float[4,30] x => float[4,30] y", "y = Div(x, c)", c=divisor))
    worst, share = differences(graph, integer(graph))
    assert worst <= 1 and share < 0.01


ratios = st.floats(2.0**-20, 2.0**12)
reaches = st.integers(1, 255)


@given(pair=st.tuples(ratios, ratios), codes=st.tuples(reaches, reaches))
def test_add_multipliers_fit_int32_and_are_as_fine_as_they_can_be(pair, codes):
    ma, mb, shift = add_multipliers(list(pair), list(codes), *NARROW)
    total = codes[0] * ma + codes[1] * mb + (1 << (shift - 1))
    assert 1 <= shift <= 30 and total < 2**31
    for ratio, multiplier in zip(pair, (ma, mb), strict=True):
        assert abs(Fraction(multiplier, 2**shift) - Fraction(ratio)) <= Fraction(1, 2 ** (shift + 1))
    if shift < 30:
        doubled = [round(ratio * 2.0 ** (shift + 1)) for ratio in pair]
        assert codes[0] * doubled[0] + codes[1] * doubled[1] + (1 << shift) >= 2**31 or max(doubled) >= 2**31


@given(pair=st.tuples(ratios, ratios))
def test_add_multipliers_of_16_bits_have_30_bits(pair):
    ma, mb, shift = add_multipliers(list(pair), [65535, 65535], *WIDE)
    assert max(ma, mb) < 2**30 and 65535 * (ma + mb) + (1 << (shift - 1)) < 2**62


def test_add_multipliers_of_an_absurd_range_saturate():
    ma, mb, shift = add_multipliers([1e9, 1e9], [255, 255], *NARROW)
    assert shift == 1 and 255 * (ma + mb) + 1 < 2**31 and ma >> shift > 65535
