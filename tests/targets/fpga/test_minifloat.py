"""Modules of minifloats against numpy and the oracle, in each simulator: products over all codes, rounding, sums."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from qcompiler.formats import Int, Minifloat, NumberFormat, parse_format
from qcompiler.ops.requantize import fixed_multiplier, levels_fixed
from qcompiler.targets.fpga.testbench import Port, hex_words
from tests.targets.fpga.bench import SIMULATORS, combinational, requantizers, simulate, simulate_mac, words

pytestmark = pytest.mark.parametrize("simulator", SIMULATORS)


def rng() -> np.random.Generator:
    return np.random.default_rng(6)


def values(fmt: NumberFormat) -> NDArray[np.int64]:
    """What every code stands for, in the order of codes."""
    codes = np.arange(1 << fmt.bits)
    if isinstance(fmt, Minifloat):
        return fmt.decode(codes)
    assert isinstance(fmt, Int)
    return np.where(fmt.signed & (codes >> (fmt.bits - 1)), codes - (1 << fmt.bits), codes)


def ports(letter: str, fmt: NumberFormat) -> dict[str, int]:
    """Parameters of qc_mul_float for an operand."""
    exponent = fmt.exponent if isinstance(fmt, Minifloat) else 0
    return {f"{letter}B": fmt.bits, f"{letter}S": int(fmt.signed), f"{letter}E": exponent}


PAIRS = (
    "e2m1 int8", "e2m1 uint8", "e2m1 e2m1", "e2m1 ue2m2", "e3m2 int8", "e3m2 e3m2", "e3m2 ue3m3", "e2m0 e2m0",
    "e2m0 int2", "e3m0 e2m5", "e1m3 uint5", "e2m5 int4", "e2m4 ue1m3", "e3m4 int16", "e4m3 int8", "e4m3 e2m1",
)  # fmt: skip


@pytest.mark.parametrize("pair", PAIRS)
def test_products_of_all_codes(simulator: str, tmp_path: Path, pair: str) -> None:
    x, y = (parse_format(token) for token in pair.split())
    every = np.arange(1 << y.bits) if y.bits <= 8 else np.unique(rng().integers(0, 1 << y.bits, 300))
    want = (values(x)[:, None] * values(y)[every]).reshape(-1).tolist()
    (tmp_path / "y.hex").write_text(hex_words(every.tolist()))
    given = {**ports("X", x), **ports("Y", y)}
    count, width = len(every), 40
    bits = product_bits(x, y)
    complement = f"$signed(p ^ {{{bits}{{n}}}})" if isinstance(y, Minifloat) else "p"
    inputs = f"""reg [{y.bits - 1}:0] ys [0:{count - 1}]; initial $readmemh("y.hex", ys);
  wire [{x.bits - 1}:0] x = at / {count}; wire [{y.bits - 1}:0] y = ys[at % {count}];
  wire n; wire signed [{bits - 1}:0] p; assign got = {complement} + $signed({{1'b0, n}});"""
    combinational(simulator, tmp_path, "qc_mul_float", given, ".x(x), .y(y), .p(p), .n(n)", want, inputs, width)


def product_bits(x: NumberFormat, y: NumberFormat) -> int:
    """Width of qc_mul_float's output."""
    return sum(f.largest.bit_length() if isinstance(f, Minifloat) else f.bits for f in (x, y)) + 1


@pytest.mark.parametrize("token", ["e2m1", "ue2m2", "e3m2", "e3m0", "e1m3", "ue3m5"])
def test_levels_of_all_codes(simulator: str, tmp_path: Path, token: str) -> None:
    fmt = parse_format(token)
    assert isinstance(fmt, Minifloat)
    given = {"B": fmt.bits, "S": int(fmt.signed), "E": fmt.exponent}
    inputs = f"wire [{fmt.bits - 1}:0] x = at;"
    width = fmt.largest.bit_length() + 1
    combinational(simulator, tmp_path, "qc_level", given, ".x(x), .level(got)", values(fmt).tolist(), inputs, width)


@pytest.mark.parametrize(
    "token,pe,lanes,stages,steps",
    [("e2m1", 1, 1, 1, 17), ("ue2m2", 4, 1, 5, 4), ("e3m2", 2, 2, 17, 1), ("e3m0", 6, 2, 9, 2), ("ue3m5", 3, 1, 6, 3),
     ("e2m5", 1, 1, 1, 17), ("e1m3", 2, 1, 5, 4)],
)  # fmt: skip
def test_rounding_to_minifloats_has_the_oracles_bits(
    simulator: str, tmp_path: Path, token: str, pe: int, lanes: int, stages: int, steps: int
) -> None:
    fmt = parse_format(token)
    assert isinstance(fmt, Minifloat)
    channels, pixels = 2 * pe, 160
    top = 1.3 * fmt.largest / (1 << 17)
    found = [fixed_multiplier(float(scale)) for scale in rng().uniform(top / 4, top, channels)]
    found[1] = 0, 1
    # Powers of two: ties and exact levels occur.
    found[0] = fixed_multiplier(2.0 ** round(np.log2(top)))
    multiplier, shift = (np.array(column) for column in zip(*found, strict=True))
    acc = rng().integers(-(1 << 17), 1 << 17, (pixels, channels))
    acc[0], acc[1], acc[2:60] = (1 << 17) - 1, -(1 << 17), np.arange(-29, 29)[:, None] << 11
    acc[60:120] = (np.arange(-30, 30) * 3)[:, None] << 9
    bias = rng().integers(-5000, 5000, channels)
    bias[0] = 0
    want = fmt.encode(levels_fixed(acc + bias, multiplier, shift, fmt))
    table, common, bits = requantizers(bias, multiplier, shift, lanes)
    left = max(0, 2 * stages * steps + 1 - common)
    given = {
        "PE": pe, "LANES": lanes, "ACC": 18, "BB": 14, "MB": bits, "STAGES": stages, "STEPS": steps, "GL": left,
        "DROP": common + left - 1 - 2 * stages * steps, "WORDS": len(table), "OB": fmt.bits, "OE": fmt.exponent,
        "OS": int(fmt.signed), "QFILE": "q.hex",
    }  # fmt: skip
    assert len(np.unique(want)) > min(len(fmt.codes()), 60) * 0.6  # the whole format occurs
    data, answers = words(acc.reshape(-1), 18, pe), words(want.reshape(-1), fmt.bits, lanes)
    free, _ = simulate(
        simulator, tmp_path, "qc_requant", given, [(Port("s", 18 * pe, len(data)), data)],
        [(Port("m", fmt.bits * lanes, len(answers)), answers)], {"q.hex": table},
    )  # fmt: skip
    assert free <= (len(answers) + stages + 5) * steps + 14


@pytest.mark.parametrize("weight,activation", [("e2m1", "int8"), ("e2m1", "e2m1"), ("e2m1", "ue2m2"), ("e3m2", "uint8"),
                                               ("int4", "e3m1"), ("e3m4", "ue3m5")])  # fmt: skip
@pytest.mark.parametrize("depthwise,dsp", [(0, 0), (0, 1), (1, 0)])
def test_sums_of_products(
    simulator: str, tmp_path: Path, weight: str, activation: str, depthwise: int, dsp: int
) -> None:
    w_fmt, a_fmt = parse_format(weight), parse_format(activation)
    pe, simd = 3, 1 if depthwise else 5
    passes, groups, pixels = 4, 2, 12
    a = rng().integers(0, 1 << a_fmt.bits, (pixels, groups, passes, pe if depthwise else simd))
    w = rng().integers(0, 1 << w_fmt.bits, (groups, passes, pe, simd))
    a_values, w_values = values(a_fmt)[a], values(w_fmt)[w]
    products = a_values[..., None] * w_values if depthwise else a_values[:, :, :, None] * w_values
    want = products.sum((2, 4)).reshape(-1)
    exponents = [fmt.exponent if isinstance(fmt, Minifloat) else 0 for fmt in (w_fmt, a_fmt)]
    given = {
        "PE": pe, "SIMD": simd, "WB": w_fmt.bits, "AB": a_fmt.bits, "AS": int(a_fmt.signed), "WE": exponents[0],
        "AE": exponents[1], "ACC": 30, "DEPTHWISE": depthwise, "DSP": dsp,
    }  # fmt: skip
    free, beats = simulate_mac(simulator, tmp_path, given, a, w, want)
    assert free < beats + 16  # a beat a cycle


def test_the_largest_level_of_a_window(simulator: str, tmp_path: Path) -> None:
    fmt = Minifloat(2, 1)
    codes = rng().choice(fmt.codes(), (20, 6, 3))
    marks = np.zeros((20, 6), int)
    marks[:, 0], marks[:, -1] = 1, 2
    data = [
        beat | int(mark) << 12 for beat, mark in zip(words(codes.reshape(-1), 4, 3), marks.reshape(-1), strict=True)
    ]
    want = words(fmt.encode(fmt.decode(codes).max(1)).reshape(-1), 4, 3)
    source = Port("s", 12, len(data), ("s_first", "s_last"))
    given = {"LANES": 3, "B": 4, "SIGNED": 2}
    simulate(simulator, tmp_path, "qc_max", given, [(source, data)], [(Port("m", 12, len(want)), want)])
