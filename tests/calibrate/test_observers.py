"""The streaming histogram and the ranges found on it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcompiler.calibrate.observers import BINS, Histogram
from qcompiler.calibrate.ranges import METHODS, away_from_ties, find_range, find_weight_range, params_from_range
from qcompiler.formats import Int, QuantParams, QuantSpec, per_channel
from qcompiler.quantizer import fake_quantize, quantize

seeds = st.integers(0, 2**32 - 1)


def exact_histogram(data: np.ndarray, histogram: Histogram) -> np.ndarray:
    index = np.floor(data[data != 0].astype(np.float64) / histogram.width).astype(np.int64) - histogram.start
    return np.bincount(index, minlength=BINS)


@given(seed=seeds, exponents=st.lists(st.integers(-30, 30), min_size=1, max_size=6), relu=st.booleans())
def test_counts_equal_a_histogram_over_all_data(seed: int, exponents: list[int], relu: bool):
    rng = np.random.default_rng(seed)
    parts = [rng.standard_normal(200).astype(np.float32) * np.float32(2.0**e) for e in exponents]
    parts = [np.maximum(part, 0) for part in parts] if relu else parts
    histogram = Histogram()
    for part in parts:
        histogram.add(part)
    data = np.concatenate(parts)
    assert (histogram.minimum, histogram.maximum, histogram.total) == (data.min(), data.max(), data.size)
    assert histogram.zeros == (data == 0).sum()
    if histogram.exponent is not None:
        np.testing.assert_array_equal(histogram.counts, exact_histogram(data, histogram))


@given(seed=seeds, exponents=st.lists(st.integers(-20, 20), min_size=2, max_size=5))
def test_order_does_not_matter_and_merging_is_adding(seed: int, exponents: list[int]):
    rng = np.random.default_rng(seed)
    parts = [rng.standard_normal(50).astype(np.float32) * np.float32(2.0**e) for e in exponents]
    forward, merged = Histogram(), Histogram()
    for part in parts:
        forward.add(part)
        other = Histogram()
        other.add(part)
        merged.merge(other)
    data = np.concatenate(parts)
    for histogram in (forward, merged):
        np.testing.assert_array_equal(histogram.counts, exact_histogram(data, histogram))
    assert merged.total == forward.total


def test_resolution_after_growth():
    histogram = Histogram()
    histogram.add(np.float32([1e-6]))
    histogram.add(np.float32([1.0]))
    assert histogram.width <= 1 / (BINS // 4)


@pytest.mark.parametrize("data", [[0.0], [0.0, 0.0, 1e-38], [-3.0], [5.0], [1e30, -1e30]])
def test_degenerate_values_give_finite_parameters(data: list[float]):
    histogram = Histogram()
    histogram.add(np.float32(data))
    for method in METHODS:
        params = find_range(histogram, QuantSpec(Int(8, signed=False)), method)
        assert np.isfinite(params.scale) and params.scale > 0
        assert fake_quantize(np.float32(0), params) == 0


@given(seed=seeds, bits=st.integers(2, 8), shift=st.floats(-3, 3), symmetric=st.booleans())
def test_mse_is_no_worse_than_minmax(seed: int, bits: int, shift: float, symmetric: bool):
    x = (np.random.default_rng(seed).standard_t(4, 5000) + shift).astype(np.float32)
    histogram = Histogram()
    histogram.add(x)
    spec = QuantSpec(Int(bits, signed=symmetric), symmetric=symmetric)
    errors = {m: float(((x - fake_quantize(x, find_range(histogram, spec, m))) ** 2).mean()) for m in ("minmax", "mse")}
    assert errors["mse"] <= errors["minmax"] * 1.01  # the histogram is not the data


@given(low=st.floats(-100, 100), high=st.floats(-100, 100), bits=st.integers(2, 8), signed=st.booleans())
def test_asymmetric_range_covers_its_ends_and_holds_zero_exactly(low: float, high: float, bits: int, signed: bool):
    low, high = min(low, high), max(low, high)
    params = params_from_range(low, high, QuantSpec(Int(bits, signed=signed)))
    ends = np.float32([min(low, 0), max(high, 0)])
    assert np.all(np.abs(fake_quantize(ends, params) - ends) <= params.scale * 1.001)
    assert fake_quantize(np.float32(0), params) == 0


def test_power_of_two_scales():
    spec = QuantSpec(Int(8, signed=False), scale_type="power_of_two")
    scale = float(params_from_range(-1.0, 5.3, spec).scale)
    assert np.log2(scale) == np.round(np.log2(scale)) and scale * 255 >= 6.3


@given(seed=seeds, bits=st.integers(2, 8), axis=st.sampled_from([None, 0, 1]))
def test_weight_search_lowers_the_error_of_every_channel(seed: int, bits: int, axis: int | None):
    w = np.random.default_rng(seed).standard_normal((5, 7, 3)).astype(np.float32)
    granularity = QuantSpec(Int(8)).granularity if axis is None else per_channel(axis)
    spec = QuantSpec(Int(bits), granularity, symmetric=True)
    other = tuple(i for i in range(3) if i != axis) if axis is not None else (0, 1, 2)
    errors = [
        (np.abs(w - fake_quantize(w, find_weight_range(w, spec, method))).astype(np.float64) ** 2.4).sum(axis=other)
        for method in ("mse", "minmax")
    ]
    assert np.all(errors[0] <= errors[1] * (1 + 1e-5))


def test_minmax_weight_range_reaches_the_largest_code_in_every_channel():
    w = np.random.default_rng(0).standard_normal((6, 20)).astype(np.float32)
    codes = quantize(w, find_weight_range(w, QuantSpec(Int(8, narrow=True), per_channel(0), symmetric=True), "minmax"))
    assert np.all(np.abs(codes.astype(int)).max(1) == 127)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("ratio", [16.0, 17 * 42 / 63, 12.25, 2.0])
@pytest.mark.parametrize("wide_bits", [8, 16])
def test_a_second_rounding_meets_no_ties(bits: int, ratio: float, wide_bits: int):
    wide = QuantParams(Int(wide_bits, signed=False), np.float32(0.0123))
    start = QuantParams(Int(bits, signed=False), np.float32(0.0123 * ratio))
    moved = away_from_ties(start, wide)
    assert abs(float(moved.scale) / float(start.scale) - 1) <= 0.0101
    codes = np.arange(wide.format.max + 1)
    exact = codes * float(wide.scale) / float(moved.scale)
    seen = exact[exact < moved.format.max]
    assert np.abs(seen - np.floor(seen) - 0.5).min() > 1e-4
    # So float32 division and multiplication by the float32 ratio round alike.
    divided = np.rint(codes.astype(np.float32) * wide.scale / moved.scale)
    multiplied = np.rint(codes.astype(np.float32) * np.float32(wide.scale / moved.scale))
    inside = exact < moved.format.max
    assert np.array_equal(divided[inside], multiplied[inside])


@pytest.mark.parametrize(("bits", "heavy"), [(4, True), (8, False)])
def test_the_ladder_takes_the_rung_with_the_least_error(bits: int, heavy: bool):
    rng = np.random.default_rng(0)
    data = (rng.laplace(size=20000) if heavy else rng.uniform(-1, 1, 20000)).astype(np.float32)
    histogram, spec = Histogram(), QuantSpec(Int(bits, signed=False))
    histogram.add(data)
    rungs = [find_range(histogram, spec, "minmax")]
    rungs += [find_range(histogram, spec, "percentile", share) for share in (99.999, 99.99, 99.9)]
    errors = [np.square(fake_quantize(data, params) - data).sum() for params in rungs]
    found = find_range(histogram, spec, "percentile_ladder")
    # 99.9 / 100 is not .999: the next bin of the histogram may hold the quantile
    assert min(abs(found.scale / rung.scale - 1) for rung in rungs) < 0.03
    assert np.square(fake_quantize(data, found) - data).sum() <= min(errors) * 1.01
    if heavy:
        assert found.scale < rungs[1].scale < rungs[0].scale


def test_rows_of_a_weight_climb_the_ladder_alone():
    rng = np.random.default_rng(1)
    weight = rng.standard_normal((2, 5000)).astype(np.float32)
    weight[0, 0] = 12.0
    spec = QuantSpec(Int(4), per_channel(0), symmetric=True)
    full, found = (find_weight_range(weight, spec, method) for method in ("minmax", "percentile_ladder"))
    assert found.scale[0] < full.scale[0] / 2 and found.scale[1] <= full.scale[1]
    for row in range(2):
        errors = [np.abs(fake_quantize(weight, params)[row] - weight[row]) ** 2.4 for params in (full, found)]
        assert errors[1].sum() <= errors[0].sum()
