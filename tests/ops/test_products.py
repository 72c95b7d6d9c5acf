"""Conv, ConvTranspose and MatMul against onnxruntime: its QLinear operators bit for bit, and float operators on
integers small enough to be exact in float32."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcompiler.formats import Int
from qcompiler.ops import OPERATORS
from qcompiler.ops.requantize import requantize_fixed, requantize_float
from tests.reference import run_node
from tests.strategies import codes, seeds


@st.composite
def convolutions(draw):
    """Attributes and shapes of a Conv, 1-D or 2-D, grouped, depthwise, dilated, strided, padded."""
    rank = draw(st.integers(1, 2))
    group = draw(st.sampled_from([1, 1, 2, 3]))
    per_group, outs = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    kernel = [draw(st.integers(1, 3)) for _ in range(rank)]
    dilations = [draw(st.integers(1, 2)) for _ in range(rank)]
    reach = [d * (k - 1) + 1 for d, k in zip(dilations, kernel, strict=True)]
    attributes = {
        "kernel_shape": kernel,
        "strides": [draw(st.integers(1, 3)) for _ in range(rank)],
        "dilations": dilations,
        "pads": [draw(st.integers(0, 2)) for _ in range(2 * rank)],
        "group": group,
    }
    x_shape = (draw(st.integers(1, 2)), group * per_group, *(r + draw(st.integers(0, 5)) for r in reach))
    return attributes, x_shape, (group * outs, per_group, *kernel)


def requantization(rng, channels, arithmetic):
    if arithmetic == "float":
        return [rng.uniform(1e-4, 0.1, channels).astype(np.float32)]
    multiplier = rng.integers(2**30, 2**31, channels).astype(np.int32)
    return [multiplier, rng.integers(33, 44, channels).astype(np.int32)]


def finished(acc, parameters, arithmetic, zero_point, fmt):
    apply = requantize_float if arithmetic == "float" else requantize_fixed
    return apply(acc, *parameters, zero_point, fmt)


@pytest.mark.parametrize("arithmetic", ["float", "fixed"])
@given(case=convolutions(), seed=seeds, signed=st.booleans())
def test_conv_accumulates_as_float_conv_on_integers(arithmetic, case, seed, signed):
    attributes, x_shape, w_shape = case
    rng, fmt = np.random.default_rng(seed), Int(8, signed)
    x, w = codes(rng, fmt, x_shape), codes(rng, Int(8), w_shape)
    zero, bias = int(rng.integers(fmt.min, fmt.max)), rng.integers(-5000, 5000, w_shape[0]).astype(np.int32)
    centred = x.astype(np.float32) - np.float32(zero)
    acc = run_node("Conv", [centred, w.astype(np.float32), bias.astype(np.float32)], attributes)[0]
    parameters = requantization(rng, w_shape[0], arithmetic)
    shaped = [p.reshape(-1, *[1] * (len(x_shape) - 2)) for p in parameters]
    node = {**attributes, "x_zero_point": zero, "zero_point": 3, "format": "uint8", "arithmetic": arithmetic}
    (got,) = OPERATORS["qcompiler::Conv"].oracle([x, w, bias, *parameters], node)
    np.testing.assert_array_equal(got, finished(acc, shaped, arithmetic, 3, Int(8, False)))


@given(case=convolutions(), seed=seeds)
def test_conv_equals_qlinear_conv(case, seed):
    attributes, x_shape, w_shape = case
    rng = np.random.default_rng(seed)
    x = codes(rng, Int(8, False), x_shape)
    w = rng.integers(-31, 32, w_shape).astype(np.int8)  # small: onnxruntime's pairs of products must not saturate
    bias = rng.integers(-3000, 3000, w_shape[0]).astype(np.int32)
    x_scale, y_scale = np.float32(0.02), np.float32(0.05)
    w_scale = rng.uniform(0.001, 0.1, w_shape[0]).astype(np.float32)
    zx, zy = np.uint8(rng.integers(0, 256)), np.uint8(rng.integers(0, 256))
    inputs = [x, x_scale, zx, w, w_scale, np.zeros(w_shape[0], np.int8), y_scale, zy, bias]
    (want,) = run_node("QLinearConv", [np.asarray(v) for v in inputs], attributes)
    scale = x_scale * w_scale / y_scale  # float32, as onnxruntime has it
    node = {**attributes, "x_zero_point": int(zx), "zero_point": int(zy), "format": "uint8", "arithmetic": "float"}
    (got,) = OPERATORS["qcompiler::Conv"].oracle([x, w, bias, scale], node)
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("arithmetic", ["float", "fixed"])
@given(case=convolutions(), seed=seeds, extra=st.integers(0, 1))
def test_conv_transpose_accumulates_as_the_float_operator(arithmetic, case, seed, extra):
    attributes, x_shape, (m, per_group, *kernel) = case
    rank = len(kernel)
    group = attributes["group"]
    w_shape = (x_shape[1], m // group, *kernel)
    stride = attributes["strides"]
    attributes = {**attributes, "output_padding": [min(extra, s - 1) for s in stride], "pads": [0] * (2 * rank)}
    if min(kernel) > 1:
        attributes["pads"] = [1, *[0] * (2 * rank - 1)]
    rng = np.random.default_rng(seed)
    x, w = codes(rng, Int(8, False), x_shape), codes(rng, Int(7), w_shape)
    bias = rng.integers(-5000, 5000, m).astype(np.int32)
    centred = x.astype(np.float32) - np.float32(9)
    acc = run_node("ConvTranspose", [centred, w.astype(np.float32), bias.astype(np.float32)], attributes)[0]
    parameters = requantization(rng, m, arithmetic)
    shaped = [p.reshape(-1, *[1] * rank) for p in parameters]
    node = {**attributes, "x_zero_point": 9, "zero_point": -3, "format": "int8", "arithmetic": arithmetic}
    (got,) = OPERATORS["qcompiler::ConvTranspose"].oracle([x, w, bias, *parameters], node)
    np.testing.assert_array_equal(got, finished(acc, shaped, arithmetic, -3, Int(8)))


@given(rows=st.integers(1, 5), k=st.integers(1, 40), n=st.integers(1, 9), seed=seeds)
def test_matmul_equals_qlinear_matmul(rows, k, n, seed):
    rng = np.random.default_rng(seed)
    x, w = codes(rng, Int(8, False), (2, rows, k)), rng.integers(-31, 32, (k, n)).astype(np.int8)
    zx, zy = np.uint8(rng.integers(0, 256)), np.uint8(rng.integers(0, 256))
    x_scale, y_scale, w_scale = np.float32(0.02), np.float32(0.05), np.float32(0.03)
    inputs = [x, x_scale, zx, w, w_scale, np.int8(0), y_scale, zy]
    (want,) = run_node("QLinearMatMul", [np.asarray(v) for v in inputs], {})
    scale = np.full(n, x_scale * w_scale / y_scale, np.float32)
    node = {"x_zero_point": int(zx), "zero_point": int(zy), "format": "uint8", "arithmetic": "float"}
    (got,) = OPERATORS["qcompiler::MatMul"].oracle([x, w, np.zeros(n, np.int32), scale], node)
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("magnitude", [2**7, 2**15])
@given(seed=seeds)
def test_no_accumulator_type_loses_a_bit(magnitude, seed):
    """8-bit products fit float32, 16-bit ones with a bias of 60 bits need int64; Python's integers are the judge."""
    rng = np.random.default_rng(seed)
    fmt = Int(8) if magnitude == 2**7 else Int(16)
    x, w = codes(rng, fmt, (1, 30)), codes(rng, fmt, (30, 2))
    bias = rng.integers(-(magnitude**3), magnitude**3, 2).astype(np.int64) * (1 if fmt.bits == 8 else 2**12)
    exact = [sum(int(a) * int(b) for a, b in zip(x[0], w[:, j], strict=True)) + int(bias[j]) for j in range(2)]
    multiplier, shift = np.full(2, 5, np.int32), np.full(2, 58, np.int32)
    node = {"format": "int16", "arithmetic": "fixed"}
    (got,) = OPERATORS["qcompiler::MatMul"].oracle([x, w, bias, multiplier, shift], node)
    want = [max(-32768, min(32767, (acc * 5 + 2**57) >> 58)) for acc in exact]
    assert got[0].tolist() == want


@pytest.mark.parametrize(
    ("name", "inputs", "outputs", "macs"),
    [
        ("Conv", [(1, 4, 8, 8), (6, 2, 3, 3)], [(1, 6, 8, 8)], 6 * 64 * 2 * 9),
        ("ConvTranspose", [(1, 4, 5, 5), (4, 3, 2, 2)], [(1, 3, 10, 10)], 100 * 12),
        ("MatMul", [(2, 3, 7), (7, 5)], [(2, 3, 5)], 30 * 7),
        ("Mul", [(2, 3), (2, 3)], [(2, 3)], 6),
        ("Table", [(2, 3), (256,)], [(2, 3)], 0),
    ],
)
def test_macs(name, inputs, outputs, macs):
    assert OPERATORS[f"qcompiler::{name}"].macs(inputs, outputs, {}) == macs
