"""Logarithmic formats and their quantizer: the cards' worked tables, the paper's formula, the ONNX body."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from qcompiler.errors import RecipeError
from qcompiler.formats import Int, Log, QuantParams, parse_format
from qcompiler.graph import qdq
from qcompiler.graph.model import Graph
from qcompiler.graph.stages import Stage, check
from qcompiler.quantizer import dequantize, fake_quantize, quantize, thresholds

FORMATS = [Log(b, q, r) for b in (2, 3, 4, 5, 6) for q, r in ((1, 1), (1, 2), (10, 37), (25, 37), (138, 37), (2, 1))]
SCALES = [(1.0, 0.0), (0.37, 0.0), (2.9, 0.17), (1e-3, 1e-4)]
"""Clipping level and shift."""


def params_of(fmt: Log, level: float, shift: float) -> QuantParams:
    """Scale and zero point that clip x + shift at `level`."""
    scale = np.float32(level / fmt.one)
    return QuantParams(fmt, scale, np.int64(np.rint(shift / scale)))


def test_the_tables_of_the_paper():
    """Worked examples of AdaLog's code: q = 18 at 4 bits, q = 25 at 3 bits; r = 37."""
    shift, mantissa = Log(4, 18, 37).tables()
    assert shift.tolist() == [0, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7]
    assert mantissa.tolist() == [30, 21, 15, 22, 16, 22, 16, 23, 16, 23, 16, 24, 17, 24, 17, 24]
    shift, mantissa = Log(3, 25, 37).tables()
    assert shift.tolist() == [0, 0, 1, 2, 2, 3, 4, 4]
    assert mantissa.tolist() == [14, 9, 11, 14, 9, 11, 13, 8]


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6])
def test_levels_are_mantissas_and_shifts(bits: int):
    """decode(k) = M 2^Tmax * 2^-T1 T2 / M exactly while T1 <= Tmax, and within half a level behind; the mantissas are
    within half a step of 2^(-k q / 37)."""
    for q in range(10, 139):
        fmt = Log(bits, q, 37)
        levels = fmt.decode(np.arange(fmt.max + 1))
        assert levels[fmt.max] == 0 and (np.diff(levels) <= 0).all() and levels[0] == fmt.one < 2**15
        assert fmt.one % fmt.mantissa == 0
        most = (fmt.one // fmt.mantissa).bit_length() - 1
        shift, mantissa = fmt.tables()
        for k in range(fmt.max):
            exact = Fraction(int(mantissa[k]) << most, 1 << int(shift[k]))
            error = abs(exact - int(levels[k]))
            assert error == 0 if shift[k] <= most else error <= Fraction(1, 2)
            real = 2.0 ** (-k * fmt.q / fmt.r)
            assert abs(real - 2.0 ** -int(shift[k]) * mantissa[k] / fmt.mantissa) <= 2.0 ** -int(shift[k]) / (
                2 * fmt.mantissa
            ) * (1 + 1e-9)


def test_base_two_is_shifts():
    """q = r is log2: one format, whose levels are powers of two and 0."""
    assert Log(4, 37, 37) == Log(4) and hash(Log(4, 37, 37)) == hash(Log(4))
    assert Log(4).decode(np.arange(16)).tolist() == [1 << (14 - k) for k in range(15)] + [0]
    assert Log(4).integers == Int(15, signed=False) and Log(3).integers == Int(7, signed=False)


def test_base_root_of_two():
    """The dequantized set at 4 bits and scale 1 is {2^(-k/2), k = 0..14} and 0; even codes exactly."""
    fmt = Log(4, 1, 2)
    values = dequantize(np.arange(16), QuantParams(fmt, np.float32(1 / fmt.one))).astype(np.float64)
    assert np.array_equal(values[:15:2], 2.0 ** -np.arange(8)) and values[15] == 0
    assert np.abs(values[:15] - 2.0 ** (-np.arange(15) / 2)).max() <= 2.0**-15


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
@pytest.mark.parametrize("level, shift", SCALES)
def test_codes_are_the_papers(fmt: Log, level: float, shift: float):
    """clamp(round(-log2((x + c) / s) r / q)), away from midpoints, and 0 behind the last code."""
    params = params_of(fmt, level, shift)
    scale, c = float(params.scale) * fmt.one, float(params.scale) * int(params.zero_point)
    x = np.random.default_rng(5).uniform(-c, 1.2 * scale - c, 4000).astype(np.float32)
    x[:2000] = (scale * 2.0 ** np.random.default_rng(6).uniform(-18, 0.5, 2000) - c).astype(np.float32)
    exponent = -np.log2(np.maximum(x.astype(np.float64) + c, 1e-30) / scale) * fmt.r / fmt.q
    clear = np.abs(exponent - np.floor(exponent) - 0.5) > 1e-2
    clear &= x.astype(np.float64) + c > 1e-4 * scale
    wanted = np.clip(np.rint(exponent), 0, fmt.max)
    assert clear.sum() > 1000
    np.testing.assert_array_equal(quantize(x, params)[clear], wanted[clear])


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
@pytest.mark.parametrize("level, shift", SCALES)
def test_numpy_and_onnx_agree_on_all_codes_and_midpoints(fmt: Log, level: float, shift: float):
    params = params_of(fmt, level, shift)
    codes = np.arange(fmt.max + 1)
    values, middles = dequantize(codes, params), thresholds(params)
    near = [middles, np.nextafter(middles, np.float32(np.inf)), np.nextafter(middles, np.float32(-np.inf))]
    spread = np.random.default_rng(1).uniform(-1.5 * level, 2 * level, 500)
    x = np.concatenate([values, *near, spread, [0, -0.0, np.inf, -np.inf, np.nan]]).astype(np.float32)[None]
    graph = Graph.parse(
        f'<ir_version: 10, opset_import: ["": 21]> g (float[1,{x.size}] x) => (float[1,{x.size}] y) {{ y = Abs(x) }}'
    )
    (node,) = graph.nodes("Abs")
    node.replace_input_with(0, qdq.write_quantizer(graph, graph.inputs[0], params, name="x"))
    check(graph, Stage.QDQ)
    got = graph.run(x=x)
    np.testing.assert_array_equal(np.abs(fake_quantize(x, params)), got)
    quantizer = node.inputs[0].producer()
    assert qdq.is_quantizer(quantizer)
    read = qdq.read_quantizer(graph, quantizer)
    assert read.params == params and read.source is graph.inputs[0]


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_quantizing_is_monotonic_and_idempotent(fmt: Log):
    """Codes of the decoded values are the codes (levels that coincide aside), and rise never with x."""
    params = params_of(fmt, 1.0, 0.0)
    levels = fmt.decode(np.arange(fmt.max + 1))
    values = dequantize(np.arange(fmt.max + 1), params)
    coarse = levels >= 64  # below, rounding moves a level past a boundary
    np.testing.assert_array_equal(quantize(values, params)[coarse], np.arange(fmt.max + 1)[coarse])
    x = np.linspace(-0.1, 1.3, 5000, dtype=np.float32)
    assert (np.diff(quantize(x, params).astype(int)) <= 0).all()


def test_tokens():
    for fmt in FORMATS:
        assert parse_format(fmt.token) == fmt
    assert parse_format("log4:37/37").token == "log4:1/1"
    for bad in ("log1:1/1", "log9:1/1", "log4:0/1", "log4:1/0", "log4", "log4:2000/1"):
        with pytest.raises(RecipeError):
            parse_format(bad)


def test_one_scale_a_tensor():
    with pytest.raises(RecipeError, match="one scale"):
        QuantParams(Log(4), np.ones(3, np.float32), axis=0)
