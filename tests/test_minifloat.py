"""Minifloats: every code against the definition and ml_dtypes, every midpoint to even, spellings, what is refused."""

from __future__ import annotations

from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest

from qcompiler.errors import ModelError, RecipeError
from qcompiler.formats import Int, Minifloat, QuantParams, parse_format
from qcompiler.minifloat import families, tokens
from qcompiler.quantizer import dequantize, quantize, round_levels
from qcompiler.solve.grid import Grid

OCP = [Minifloat(4, 3, special="nan"), Minifloat(5, 2, special="ieee")]
FORMATS = [
    Minifloat(e, m, signed=signed)
    for e in range(1, 6)
    for m in range(8)
    for signed in (True, False)
    if 3 <= e + m + signed <= 8
] + OCP
THEIRS = {
    "e2m1": ml_dtypes.float4_e2m1fn,
    "e2m3": ml_dtypes.float6_e2m3fn,
    "e3m2": ml_dtypes.float6_e3m2fn,
    "float8e4m3fn": ml_dtypes.float8_e4m3fn,
    "float8e5m2": ml_dtypes.float8_e5m2,
}
LARGEST = {"e2m0": 4, "e2m1": 12, "e2m2": 28, "e2m3": 60, "e2m4": 124, "e3m0": 64, "e3m1": 192, "e3m2": 448,
           "e3m3": 960, "e3m4": 1984, "e4m3": 245_760, "float8e4m3fn": 229_376}  # fmt: skip
"""Integers of the largest number: the method card's table, and 448 / 2^-9."""


def number(fmt: Minifloat, code: int) -> Fraction:
    """The definition, in rationals."""
    sign = -1 if fmt.signed and code >> (fmt.bits - 1) else 1
    e = (code >> fmt.mantissa) & ((1 << fmt.exponent) - 1)
    m = Fraction(code & ((1 << fmt.mantissa) - 1), 1 << fmt.mantissa)
    bias = 2 ** (fmt.exponent - 1) - 1
    return sign * (Fraction(2) ** (e - bias) * (1 + m) if e else Fraction(2) ** (1 - bias) * m)


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_every_code(fmt: Minifloat):
    codes = fmt.codes()
    levels = fmt.decode(codes)
    assert [Fraction(int(level)) * Fraction(fmt.unit) for level in levels] == [number(fmt, int(c)) for c in codes]
    assert (np.diff(levels) > 0).all() and levels[-1] == fmt.largest
    np.testing.assert_array_equal(fmt.encode(levels), codes)
    specials = {"none": 0, "nan": 2, "ieee": 8}[fmt.special]
    assert len(codes) == 2**fmt.bits - specials - fmt.signed  # -0 is never written
    assert parse_format(fmt.token) == fmt
    if fmt.signed:
        assert fmt.decode(1 << (fmt.bits - 1)) == 0
    params = QuantParams(fmt, np.float32(0.37))
    np.testing.assert_array_equal(quantize(dequantize(codes, params), params), codes)


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_midpoints_go_to_even_codes(fmt: Minifloat):
    levels = fmt.decode(fmt.codes())
    middles = (levels[1:] + levels[:-1]) / 2
    positive = middles > 0
    lower = fmt.codes()[:-1]
    even = np.where(positive, lower + lower % 2, fmt.codes()[1:] + fmt.codes()[1:] % 2)
    if fmt.mantissa == 0:  # both neighbours have the significand 1: IEEE 754-2019, 4.3.1 wants the larger one
        even = np.where(np.abs(middles) > 1, np.where(positive, fmt.codes()[1:], lower), even)
    even = np.where(even == 1 << (fmt.bits - 1), 0, even) if fmt.signed else even
    np.testing.assert_array_equal(fmt.encode(round_levels(middles, fmt).astype(np.int64)), even)
    for side, near in ((np.inf, levels[1:]), (-np.inf, levels[:-1])):
        np.testing.assert_array_equal(round_levels(np.nextafter(middles, side), fmt), near)
    far = round_levels(np.array([np.inf, -np.inf, np.nan, 2.0 * fmt.largest]), fmt)
    assert far.tolist() == [fmt.largest, -fmt.largest if fmt.signed else 0, 0, fmt.largest]


@pytest.mark.parametrize("token", THEIRS)
def test_the_types_of_others(token: str):
    """All codes, and rounding of numbers within the range."""
    fmt, dtype = parse_format(token), np.dtype(THEIRS[token])
    codes = fmt.codes().astype(np.uint8)
    np.testing.assert_array_equal(codes.view(dtype).astype(np.float64), fmt.decode(codes) * fmt.unit)
    rng = np.random.default_rng(0)
    x = (rng.uniform(-1, 1, 5000) * 10.0 ** rng.uniform(-6, 0, 5000) * fmt.largest * fmt.unit).astype(np.float32)
    ours = round_levels(x / np.float32(fmt.unit), fmt) * fmt.unit
    np.testing.assert_array_equal(ours, x.astype(dtype).astype(np.float32))


@pytest.mark.parametrize("token", LARGEST)
def test_levels_of_the_card(token: str):
    fmt = parse_format(token)
    assert fmt.largest == LARGEST[token]
    if fmt.largest < 2**15:
        assert fmt.integers == Int(int(fmt.largest).bit_length() + 1, narrow=True)


@pytest.mark.parametrize("token", ["e2m0", "e2m1", "e2m2", "e2m3", "e2m4", "e3m0"])
def test_products_of_bytes_are_exact(token: str):
    """The decode tables of these formats are int8: an integer product is the real product, K = 4096."""
    fmt = parse_format(token)
    assert fmt.integers.storage == np.int8
    rng = np.random.default_rng(1)
    codes, x = rng.choice(fmt.codes(), (3, 4096)), rng.integers(-128, 128, 4096)
    exact = [sum(number(fmt, int(c)) * int(v) for c, v in zip(row, x, strict=True)) for row in codes]
    got = fmt.decode(codes).astype(np.int8).astype(np.int32) @ x.astype(np.int32)
    assert [Fraction(int(g)) * Fraction(fmt.unit) for g in got] == exact


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_the_grid_of_solvers_rounds_as_the_quantizer(fmt: Minifloat):
    grid, rng = Grid(fmt), np.random.default_rng(2)
    ratio = rng.uniform(-1.2, 1.2, 500) * fmt.largest
    np.testing.assert_array_equal(grid.codes(grid.levels(ratio)), fmt.encode(round_levels(ratio, fmt).astype(np.int64)))


def test_tokens_in_short():
    assert families(tokens(3)) == "e1m1-6 e2m0-5 e3m0-4"
    assert families(("mxe2m1", "mxe2m3", "mxe3m2")) == "mxe2m1 mxe2m3 mxe3m2"
    assert families(tokens(1, signed=False)) == "ue1m2-7"


def test_what_is_no_format():
    assert parse_format("float4e2m1") == Minifloat(2, 1)
    for token in ("e0m3", "e2m6", "e6m1", "e1m0", "ue1m1", "e2m", "ufloat8e5m2", "float8e3m4"):
        with pytest.raises(RecipeError):
            parse_format(token)
    with pytest.raises(RecipeError, match="float8e4m3fn"):
        Minifloat(3, 4, special="nan")
    with pytest.raises(ModelError, match="NaN"):
        OCP[0].decode(np.array([0x7F]))
    with pytest.raises(RecipeError, match="33 bits"):
        OCP[1].integers  # noqa: B018
    with pytest.raises(RecipeError, match="zero point"):
        QuantParams(Minifloat(2, 1), 1.0, 1)
