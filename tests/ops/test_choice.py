"""Choices, places and interpolation against exact rationals, plain Python and onnxruntime."""

from __future__ import annotations

from fractions import Fraction
from math import floor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcompiler.formats import QuantParams
from qcompiler.ops import OPERATORS
from qcompiler.ops.movement import coordinates, resize_axes
from qcompiler.ops.taps import grid_taps, resize_taps
from qcompiler.passes.integerize.interpolate import rounded
from qcompiler.passes.integerize.truth import thresholds
from tests.reference import run_node
from tests.strategies import byte_formats, codes, formats, seeds


def oracle(key, inputs, **attributes):
    return OPERATORS[key].oracle(inputs, attributes)


@given(first=formats, second=formats, kind=st.sampled_from(["Equal", "NotEqual", "Greater", "GreaterOrEqual"]),
       seed=seeds)  # fmt: skip
def test_compare_orders_the_products(first, second, kind, seed):
    rng = np.random.default_rng(seed)
    a, b = codes(rng, first, (4, 3)), codes(rng, second, (3,))
    za, zb, ma, mb = (int(rng.integers(1, 200)) for _ in range(4))
    (got,) = oracle("qcompiler::Compare", [a, b], a_zero_point=za, b_zero_point=zb, a_multiplier=ma, b_multiplier=mb,
                    kind=kind)  # fmt: skip
    for i, j in np.ndindex(4, 3):
        left, right = (int(a[i, j]) - za) * ma, (int(b[j]) - zb) * mb
        holds = {"Equal": left == right, "NotEqual": left != right, "Greater": left > right}.get(kind, left >= right)
        assert got[i, j] == holds


def test_compare_takes_every_integer():
    ids = np.array([np.iinfo(np.int64).min, -1, 0, np.iinfo(np.int64).max])
    (got,) = oracle("qcompiler::Compare", [ids, np.int64(0)], kind="Greater")
    np.testing.assert_array_equal(got, [0, 0, 0, 1])


@given(fmt=formats, kind=st.sampled_from(["Equal", "Greater", "GreaterOrEqual"]), first=st.booleans(), seed=seeds)
def test_thresholds_compare_as_float32_does(fmt, kind, first, seed):
    rng = np.random.default_rng(seed)
    params = QuantParams(fmt, np.float32(rng.uniform(1e-3, 2)), np.int64(rng.integers(fmt.min, fmt.max + 1)))
    x = codes(rng, fmt, (40,))
    values = (x.astype(np.int64) - params.zero_point).astype(np.float32) * params.scale
    near = rng.permutation(values)  # on the grid, beside it, far away
    real = np.where(rng.random(40) < 0.5, near, near + rng.standard_normal(40).astype(np.float32) * params.scale)
    real[:2] = np.float32([1e30, -np.inf])
    bounds = thresholds(real, params, kind, first=first)
    sides, zero = ([bounds, x], "b_zero_point") if first else ([x, bounds], "a_zero_point")
    (got,) = oracle("qcompiler::Compare", sides, kind=kind, **{zero: int(params.zero_point)})
    left, right = (real, values) if first else (values, real)
    want = {"Equal": left == right, "Greater": left > right, "GreaterOrEqual": left >= right}[kind]
    np.testing.assert_array_equal(got, want)


@given(fmt=byte_formats, to=byte_formats, seed=seeds)
def test_slope_rounds_the_exact_product(fmt, to, seed):
    rng = np.random.default_rng(seed)
    x, slopes = codes(rng, fmt, (3, 5)), rng.integers(-(1 << 22), 1 << 22, (3, 1)).astype(np.int32)
    zx, z, shift, multiplier = int(rng.integers(fmt.min, fmt.max + 1)), int(to.min), 20, int(rng.integers(1 << 22))
    (got,) = oracle("qcompiler::Slope", [x, slopes], x_zero_point=zx, multiplier=multiplier, shift=shift, zero_point=z,
                    format=to.token)  # fmt: skip
    for i, j in np.ndindex(3, 5):
        centred = int(x[i, j]) - zx
        exact = Fraction(centred * (multiplier if centred >= 0 else int(slopes[i, 0])), 1 << shift)
        assert got[i, j] == min(max(floor(exact + Fraction(1, 2)) + z, to.min), to.max)


@given(fmt=formats, axis=st.integers(0, 1), last=st.integers(0, 1), seed=seeds)
def test_places_are_those_of_the_sorted_codes(fmt, axis, last, seed):
    rng = np.random.default_rng(seed)
    x = np.clip(codes(rng, fmt, (4, 6)), -2, 2)  # with ties
    attributes = {"axis": axis, "keepdims": 0, "select_last_index": last}
    (most,), (least,) = oracle("ArgMax", [x], **attributes), oracle("ArgMin", [x], **attributes)
    values, places = oracle("TopK", [x, np.array([3])], axis=axis, largest=1)
    for i in range(x.shape[1 - axis]):
        line = [int(v) for v in (x[:, i] if axis == 0 else x[i])]
        order = sorted(range(len(line)), key=lambda k: (-line[k], -k if last else k))
        assert most[i] == order[0]
        assert least[i] == min(range(len(line)), key=lambda k: (line[k], -k if last else k))
        stable = sorted(range(len(line)), key=lambda k: (-line[k], k))[:3]
        got = (places[:, i], values[:, i]) if axis == 0 else (places[i], values[i])
        assert list(got[0]) == stable and [int(v) for v in got[1]] == [line[k] for k in stable]


@given(fmt=formats, to=formats, seed=seeds)
def test_interpolate_sums_exactly(fmt, to, seed):
    rng = np.random.default_rng(seed)
    x, shift, axis = codes(rng, fmt, (2, 5, 3)), int(rng.integers(1, 20)), int(rng.integers(3))
    index = rng.integers(0, x.shape[axis], (4, 3))
    weight = rng.integers(-(1 << shift), 1 << shift, (4, 3)).astype(np.int32)
    zx, z = int(rng.integers(fmt.min, fmt.max + 1)), int(rng.integers(to.min, to.max + 1))
    (got,) = oracle("qcompiler::Interpolate", [x, index, weight], axis=axis, shift=shift, x_zero_point=zx, zero_point=z,
                    format=to.token)  # fmt: skip
    for place in np.ndindex(got.shape):
        m, acc = place[axis], 0
        for t in range(3):
            at = [*place[:axis], int(index[m, t]), *place[axis + 1 :]]
            acc += int(weight[m, t]) * (int(x[tuple(at)]) - zx)
        exact = floor(Fraction(acc, 1 << shift) + Fraction(1, 2)) + z
        assert got[place] == min(max(exact, to.min), to.max)


COORDINATES = ["half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel", "half_pixel_symmetric"]
RESIZES = [
    *(("linear", coordinate, {}) for coordinate in COORDINATES),
    *(("cubic", coordinate, extra) for coordinate in COORDINATES
      for extra in ({}, {"exclude_outside": 1}, {"cubic_coeff_a": -0.5})),
    *((mode, coordinate, {"antialias": 1}) for mode in ("linear", "cubic") for coordinate in COORDINATES),
]  # fmt: skip


@pytest.mark.parametrize(("mode", "coordinate", "extra"), RESIZES, ids=str)
def test_taps_of_resize_are_those_of_onnxruntime(mode, coordinate, extra):
    x = np.random.default_rng(3).standard_normal((1, 1, 7, 9)).astype(np.float32)
    for sizes in ([1, 1, 15, 4], [1, 1, 3, 23]):
        attributes = {"mode": mode, "coordinate_transformation_mode": coordinate, **extra}
        inputs = [x, None, None, np.array(sizes)]
        (want,) = run_node("Resize", inputs, attributes)
        got = x.astype(np.float64)
        for axis, size, factor, region in resize_axes(x.shape, inputs, attributes):
            at = coordinates(x.shape[axis], size, factor, region, attributes, np.float64)
            if size != x.shape[axis]:
                got = apply(got, axis, *resize_taps(x.shape[axis], at, factor, attributes))
        np.testing.assert_allclose(got, want, atol=2e-5)


def apply(x, axis, index, weight):
    """The weighted sums in float64."""
    moved = np.moveaxis(x, axis, -1)
    return np.moveaxis((moved[..., index] * weight).sum(-1), -1, axis)


@pytest.mark.parametrize("mode", ["linear", "nearest", "cubic"])
@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("corners", [0, 1])
def test_taps_of_grids_are_those_of_onnxruntime(mode, padding, corners):
    rng = np.random.default_rng(4)
    x, grid = rng.standard_normal((1, 2, 5, 6)).astype(np.float32), rng.uniform(-1.4, 1.4, (1, 3, 8, 2))
    attributes = {"mode": mode, "padding_mode": padding, "align_corners": corners}
    (want,) = run_node("GridSample", [x, grid.astype(np.float32)], attributes)
    taps = grid_taps((5, 6), grid[0].astype(np.float32), attributes)
    got = apply(x.reshape(1, 2, 30).astype(np.float64), 2, *taps).reshape(1, 2, 3, 8)
    np.testing.assert_allclose(got, want, atol=2e-5)


def test_rounded_weights_keep_their_sum():
    weights = np.random.default_rng(5).dirichlet(np.ones(5), 200) * 2.0**12
    assert (rounded(weights).sum(axis=1) == 2**12).all()
