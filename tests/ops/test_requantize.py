"""Both requantizations against exact rationals."""

from __future__ import annotations

from fractions import Fraction
from math import floor

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from qcompiler.errors import UnsupportedError
from qcompiler.formats import Int, Minifloat, parse_format
from qcompiler.ops.requantize import exact_dtype, fixed_multiplier, requantize, requantize_fixed, requantize_float
from tests.strategies import formats, int32s, scales


def half_up(value: Fraction) -> int:
    return floor(value + Fraction(1, 2))


def half_even(value: Fraction) -> int:
    return round(value)  # Python's definition for Fractions


def to_float32(value: Fraction) -> Fraction:
    """The nearest float32, ties to even, for |value| in the normal range; by exact arithmetic."""
    if value == 0:
        return value
    exponent = 0
    while abs(value) >= Fraction(2) ** (exponent + 1):
        exponent += 1
    while abs(value) < Fraction(2) ** exponent:
        exponent -= 1
    ulp = Fraction(2) ** (exponent - 23)
    return half_even(value / ulp) * ulp


def clip(value: int, fmt: Int) -> int:
    return max(fmt.min, min(fmt.max, value))


@given(acc=int32s, scale=scales, fmt=formats, zero=st.data())
@example(acc=2**24 + 1, scale=1.0, fmt=Int(16), zero=None)
@example(acc=-(2**31), scale=1.0, fmt=Int(8), zero=None)
@example(acc=5, scale=0.5, fmt=Int(8), zero=None)
@example(acc=-5, scale=0.5, fmt=Int(8), zero=None)
def test_float_form_rounds_three_times_and_saturates(acc, scale, fmt, zero):
    z = 0 if zero is None else zero.draw(st.integers(fmt.min, fmt.max))
    product = to_float32(to_float32(Fraction(acc)) * Fraction(scale))
    expected = clip(half_even(product) + z, fmt)
    got = requantize_float(np.array([acc], np.int32), np.float32(scale), z, fmt)
    assert got.dtype == fmt.storage
    assert got.tolist() == [expected]


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.float64])
def test_accumulator_type_does_not_matter(dtype):
    acc = np.array([2**24 + 1, -(2**24) - 3, 2**31 - 1, -(2**31), 0, 1]).astype(dtype)
    got = requantize_float(acc, np.float32(2.0**-16), 3, Int(16))
    want = requantize_float(acc.astype(np.int64), np.float32(2.0**-16), 3, Int(16))
    np.testing.assert_array_equal(got, want)


@given(acc=int32s, multiplier=st.integers(2**30, 2**31 - 1), shift=st.integers(1, 62), fmt=formats, zero=st.data())
@example(acc=-1, multiplier=2**30, shift=31, fmt=Int(8), zero=None)  # -1/2 rounds up, to 0
@example(acc=1, multiplier=2**30, shift=31, fmt=Int(8), zero=None)  # 1/2 rounds up, to 1
@example(acc=-(2**31), multiplier=2**31 - 1, shift=62, fmt=Int(16), zero=None)
@example(acc=2**31 - 1, multiplier=2**31 - 1, shift=1, fmt=Int(16), zero=None)
def test_fixed_form_rounds_half_up_exactly(acc, multiplier, shift, fmt, zero):
    z = 0 if zero is None else zero.draw(st.integers(fmt.min, fmt.max))
    expected = clip(half_up(Fraction(acc * multiplier, 2**shift)) + z, fmt)
    got = requantize_fixed(np.array([acc], np.int32), np.int32(multiplier), np.int32(shift), z, fmt)
    assert got.dtype == fmt.storage
    assert got.tolist() == [expected]


@given(scale=st.floats(2.0**-32, 2.0**30, exclude_max=True))
def test_multiplier_is_the_nearest_of_31_bits(scale):
    multiplier, shift = fixed_multiplier(scale)
    assert 2**30 <= multiplier < 2**31 and 1 <= shift <= 62
    assert abs(Fraction(multiplier, 2**shift) - Fraction(scale)) <= Fraction(1, 2 ** (shift + 1))


@given(scale=st.floats(2.0**-60, 8.0), bits=st.integers(32, 56), sign=st.sampled_from([-1, 1]))
def test_multiplier_of_wide_accumulators_cannot_overflow(scale, bits, sign):
    multiplier, shift = fixed_multiplier(scale, bits)
    largest = sign * (2**bits) * multiplier + 2 ** (shift - 1)
    assert -(2**63) <= largest < 2**63 and 1 <= shift <= 62
    if multiplier:
        assert abs(Fraction(multiplier, 2**shift) / Fraction(scale) - 1) <= Fraction(1, 2 ** (62 - bits))
    else:
        assert 2**bits * Fraction(scale) < Fraction(1, 2)


def test_vanishing_scale_gives_zero():
    multiplier, shift = fixed_multiplier(2.0**-33)
    assert (multiplier, shift) == (0, 1)
    acc = np.array([-(2**31), 2**31 - 1], np.int32)
    assert requantize_fixed(acc, np.int32(multiplier), np.int32(shift), 7, Int(8)).tolist() == [7, 7]


def test_scale_that_rounds_up_to_a_power_of_two():
    multiplier, shift = fixed_multiplier(1 - 2.0**-40)
    assert (multiplier, shift) == (2**30, 30)


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf"), 2.0**31])
def test_impossible_scales_are_refused(scale):
    with pytest.raises(UnsupportedError):
        fixed_multiplier(scale)


def test_parameters_lie_along_the_channel_axis():
    acc = np.full((1, 2, 3), 10, np.int32)
    attributes = {"arithmetic": "float", "format": "int8", "zero_point": 1}
    got = requantize(acc, [np.array([1.0, 0.5], np.float32)], attributes, 1)
    assert got[0].tolist() == [[11] * 3, [6] * 3]
    fixed = [np.array([2**30, 2**30], np.int32), np.array([30, 31], np.int32)]
    got = requantize(acc, fixed, {**attributes, "arithmetic": "fixed"}, 1)
    assert got[0].tolist() == [[11] * 3, [6] * 3]


def test_accumulators_use_the_smallest_exact_type():
    assert exact_dtype(2**24 - 1) is np.float32
    assert exact_dtype(2**24) is np.float64
    assert exact_dtype(2**53) is np.int64


MINIFLOATS = [parse_format(token) for token in ("e1m3", "e2m0", "e2m1", "ue2m2", "e2m4", "e3m0", "e3m2", "ue3m5")]


def nearest_level(value: Fraction, fmt: Minifloat) -> int:
    """The definition: the nearest level, of two the even code (the larger level without a mantissa), saturated."""
    every = fmt.decode(fmt.codes())
    value = max(Fraction(int(every[0])), min(Fraction(int(every[-1])), value))
    at = int(np.searchsorted(every, floor(value)))
    levels = [int(level) for level in every[max(at - 2, 0) : at + 3]]
    least = min(abs(value - level) for level in levels)
    near = [level for level in levels if abs(value - level) == least]
    if len(near) == 1:
        return near[0]
    if fmt.mantissa == 0 and abs(value) > 1:
        return max(near, key=abs)
    return next(level for level in near if int(fmt.encode(np.array(level))) % 2 == 0)


@given(acc=int32s, scale=scales, fmt=st.sampled_from(MINIFLOATS))
@example(acc=5, scale=1.0, fmt=parse_format("e2m1"))  # between 4 and 6
@example(acc=-10, scale=1.0, fmt=parse_format("e2m1"))  # between 8 and 12
@example(acc=3, scale=0.5, fmt=parse_format("e3m0"))
@example(acc=2**24 + 1, scale=2.0**-20, fmt=parse_format("e3m2"))
def test_levels_are_the_nearest_in_both_arithmetics(acc, scale, fmt):
    attributes = {"format": fmt.token, "arithmetic": "float"}
    product = to_float32(to_float32(Fraction(acc)) * Fraction(scale))
    got = requantize(np.array([acc], np.int32), [np.float32(scale)], attributes, None)
    assert got.dtype == fmt.integers.storage
    assert got.tolist() == [nearest_level(product, fmt)]
    multiplier, shift = fixed_multiplier(scale)
    got = requantize(np.array([acc], np.int32), [np.int32(multiplier), np.int32(shift)], {"format": fmt.token,
                     "arithmetic": "fixed"}, None)  # fmt: skip
    assert got.tolist() == [nearest_level(Fraction(acc * multiplier, 2**shift), fmt)]


@pytest.mark.parametrize("fmt", MINIFLOATS, ids=str)
def test_levels_at_every_tie(fmt):
    """Halves of the unit from beyond one end to beyond the other, as accumulators: acc / 2."""
    acc = np.arange(-2 * fmt.largest - 9, 2 * fmt.largest + 10, dtype=np.int32)
    want = [nearest_level(Fraction(int(a), 2), fmt) for a in acc]
    for arithmetic, parameters in (("float", [np.float32(0.5)]), ("fixed", [np.int32(2**30), np.int32(31)])):
        got = requantize(acc, parameters, {"format": fmt.token, "arithmetic": arithmetic}, None)
        assert got.tolist() == want
