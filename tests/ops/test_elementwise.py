"""Add, Mul, Requantize, Table and Softmax against exact rationals and the real functions."""

from __future__ import annotations

from fractions import Fraction
from math import floor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcompiler.formats import Int
from qcompiler.ops import OPERATORS
from qcompiler.ops.softmax import exponentials
from tests.reference import run_node
from tests.strategies import byte_formats, codes, formats, seeds


def oracle(name, inputs, attributes):
    (result,) = OPERATORS[f"qcompiler::{name}"].oracle(inputs, attributes)
    return result


@given(
    fmt=byte_formats, multipliers=st.tuples(*[st.integers(-(2**21), 2**21)] * 2), shift=st.integers(1, 30), seed=seeds
)
def test_add_is_exact(fmt, multipliers, shift, seed):
    rng = np.random.default_rng(seed)
    a, b = codes(rng, fmt, (4, 1)), codes(rng, fmt, (1, 5))
    za, zb, z = (int(rng.integers(fmt.min, fmt.max, endpoint=True)) for _ in range(3))
    ma, mb = multipliers
    got = oracle("Add", [a, b], {
        "a_zero_point": za, "b_zero_point": zb, "a_multiplier": ma, "b_multiplier": mb, "shift": shift,
        "zero_point": z, "format": fmt.token,
    })  # fmt: skip
    assert got.shape == (4, 5) and got.dtype == fmt.storage
    for (i, j), code in np.ndenumerate(got):
        real = Fraction((int(a[i, 0]) - za) * ma + (int(b[0, j]) - zb) * mb, 2**shift)
        assert code == max(fmt.min, min(fmt.max, floor(real + Fraction(1, 2)) + z))


def test_add_at_the_ends_of_16_bits():
    fmt = Int(16)
    a = np.array([fmt.min, fmt.max], fmt.storage)
    got = oracle("Add", [a, a], {"a_multiplier": 2**30 - 1, "b_multiplier": 2**30 - 1, "shift": 30, "format": "int16"})
    assert got.tolist() == [fmt.min, fmt.max]


@given(seed=seeds, fmt=byte_formats)
def test_mul_equals_the_rational_product(seed, fmt):
    rng = np.random.default_rng(seed)
    a, b = codes(rng, fmt, (6,)), codes(rng, fmt, (6,))
    za, zb = int(rng.integers(fmt.min, fmt.max)), int(rng.integers(fmt.min, fmt.max))
    attributes = {"a_zero_point": za, "b_zero_point": zb, "format": "int16", "arithmetic": "float"}
    got = oracle("Mul", [a, b, np.float32(0.25)], attributes)
    want = [round(Fraction((int(x) - za) * (int(y) - zb), 4)) for x, y in zip(a, b, strict=True)]
    assert got.tolist() == want


def test_requantize_from_16_bits():
    x = np.array([-32768, -3, -1, 0, 1, 3, 32767], np.int16)
    got = oracle("Requantize", [x, np.float32(0.5)], {"x_zero_point": 0, "format": "int8", "arithmetic": "float"})
    assert got.tolist() == [-128, -2, 0, 0, 0, 2, 127]


@pytest.mark.parametrize("fmt", [Int(8), Int(8, False), Int(8, narrow=True), Int(3), Int(16, False)], ids=str)
def test_table_is_indexed_from_the_lowest_code(fmt):
    every = np.arange(fmt.min, fmt.max + 1).astype(fmt.storage)
    entries = (np.arange(every.size) % 127).astype(np.int8)
    np.testing.assert_array_equal(oracle("Table", [every, entries], {"x_format": fmt.token}), entries)


@given(seed=seeds, scale=st.floats(0.001, 0.5), shape=st.tuples(st.integers(1, 3), st.integers(1, 40)))
def test_softmax_is_within_its_stated_error(seed, scale, shape):
    fmt = Int(8)
    x = codes(np.random.default_rng(seed), fmt, shape)
    table = exponentials(fmt, scale)
    got = oracle("Softmax", [x, table], {"axis": 1, "x_format": "int8", "numerator": 2**15 - 1, "format": "int16"})
    real = x.astype(np.float64) * scale
    e = np.exp(real - real.max(axis=1, keepdims=True))
    want = e / e.sum(axis=1, keepdims=True)
    bound = (shape[1] + 1) * 2.0**-21 + 0.5 / (2**15 - 1)
    assert np.abs(got / (2.0**15 - 1) - want).max() <= bound


def test_softmax_saturates_at_one():
    table = exponentials(Int(8, False), 0.5)
    x = np.array([[255, 0, 0]], np.uint8)
    attributes = {"axis": 1, "x_format": "uint8", "numerator": 256, "format": "uint8"}
    assert oracle("Softmax", [x, table], attributes).tolist() == [[255, 0, 0]]


@st.composite
def pools(draw):
    """Attributes and input shape of a pool, 1-D or 2-D."""
    rank = draw(st.integers(1, 2))
    kernel = [draw(st.integers(1, 4)) for _ in range(rank)]
    attributes = {
        "kernel_shape": kernel,
        "strides": [draw(st.integers(1, 3)) for _ in range(rank)],
        "pads": [draw(st.integers(0, k - 1)) for k in kernel] + [draw(st.integers(0, k - 1)) for k in kernel],
    }
    return attributes, (draw(st.integers(1, 2)), 3, *(k + draw(st.integers(0, 6)) for k in kernel))


@given(case=pools(), seed=seeds, signed=st.booleans())
def test_max_pool_equals_onnxruntime(case, seed, signed):
    attributes, shape = case
    x = codes(np.random.default_rng(seed), Int(8, signed), shape)
    (want,) = run_node("MaxPool", [x], attributes)
    np.testing.assert_array_equal(oracle("MaxPool", [x], attributes), want)


@given(case=pools(), seed=seeds)
def test_average_pool_sums_what_onnxruntime_averages(case, seed):
    attributes, shape = case
    rng = np.random.default_rng(seed)
    x, zero = codes(rng, Int(8, False), shape), int(rng.integers(0, 256))
    centred = x.astype(np.float32) - np.float32(zero)
    (mean,) = run_node("AveragePool", [centred], {**attributes, "count_include_pad": 1})
    cells = int(np.prod(attributes["kernel_shape"]))
    node = {**attributes, "x_zero_point": zero, "format": "int16", "arithmetic": "float"}
    np.testing.assert_array_equal(
        oracle("AveragePool", [x, np.float32(1)], node), np.rint(mean * cells).astype(np.int16)
    )
    by_position = np.full(mean.shape[2:], 2.0, np.float32)
    got = oracle("AveragePool", [x, by_position], node)
    np.testing.assert_array_equal(got, 2 * np.rint(mean * cells).astype(np.int16))


@given(seed=seeds, axes=st.sets(st.integers(0, 3), min_size=1), keepdims=st.integers(0, 1), fmt=formats)
def test_reduce_mean_is_a_sum(seed, axes, keepdims, fmt):
    x = codes(np.random.default_rng(seed), fmt, (2, 3, 4, 1))
    node = {"axes": sorted(axes), "keepdims": keepdims, "x_zero_point": 1, "format": "int16", "arithmetic": "fixed"}
    got = oracle("ReduceMean", [x, np.int32(2**30), np.int32(35)], node)
    sums = (x.astype(object) - 1).sum(axis=tuple(axes), keepdims=bool(keepdims))
    want = np.vectorize(lambda s: max(-32768, min(32767, (int(s) * 2**30 + 2**34) >> 35)), otypes=[np.int16])(sums)
    np.testing.assert_array_equal(got, want)
