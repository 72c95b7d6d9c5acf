"""Problems of logarithmic formats: codes by comparison, their levels, products with them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from qcompiler.formats import Log, parse_format
from tests.conformance.problems import Problems


def add_logarithms(p: Problems) -> None:
    """All of them."""
    for name, token, x, out in (
        ("log4", "uint16", (2, 3, 37), Log(4)),
        ("log4_root", "uint16", (1, 5, 4, 6), Log(4, 1, 2)),
        ("log3_ada", "uint16", (3, 65), Log(3, 25, 37)),
        ("log6", "int16", (130,), Log(6, 10, 37)),
        ("log2_steep", "uint16", (3,), Log(2, 138, 37)),
    ):
        codes = encode(p, p.input(f"{name}_x", x, token), x, token, out)
        p.output(f"{name}_levels", levels(p, codes, x, out))
        p.output(f"{name}_codes", codes)
    for name, a, b, fmt, token in (
        ("log4_product", (2, 3, 13, 37), (2, 3, 37, 11), Log(4), "int8"),
        ("log4_product_broadcast", (3, 7, 65), (1, 65, 16), Log(4, 25, 37), "int4"),
        ("log3_product", (5, 33), (33, 9), Log(3), "int8"),
        ("log4_product_long", (1, 2, 700), (1, 700, 3), Log(4, 10, 37), "int8"),
        ("log4_product_affine", (2, 5, 21), (2, 21, 8), Log(4, 1, 2), "uint8"),
    ):
        left = levels(p, encode(p, p.input(f"{name}_a", a, "uint16"), a, "uint16", fmt), a, fmt)
        product(p, name, left, a, p.input(f"{name}_b", b, token), b, token)
    a, b = (2, 6, 19), (2, 19, 5)
    right = levels(p, encode(p, p.input("log4_right_b", b, "uint16"), b, "uint16", Log(4)), b, Log(4))
    product(p, "log4_right", p.input("log4_right_a", a, "uint8"), a, right, b, right.metadata_props["qcompiler.format"])
    weighted(p, "log4_matmul", (3, 37), 19, Log(4), 0, 8)
    weighted(p, "log4_matmul_shifted", (2, 5, 64), 33, Log(4, 25, 37), 2345, 4)
    weighted(p, "log3_matmul_shifted", (1, 61), 11, Log(3), 9, 3)
    weighted(p, "log4_conv_shifted", (1, 9, 7, 6), 10, Log(4, 1, 2), 1234, 4)


def encode(p: Problems, x: ir.Value, shape: Sequence[int], token: str, fmt: Log) -> ir.Value:
    """LogEncode with even thresholds, so that random codes of x meet every code of the format; a few lie outside."""
    have = parse_format(token)
    below = np.rint(np.linspace(have.max, have.min + 1, fmt.max)).astype(np.int32)
    inputs = [x, p.const(below)]
    return p.node("LogEncode", inputs, shape, fmt.token, x_format=token, zero_point=0, format=fmt.token)


def levels(p: Problems, codes: ir.Value, shape: Sequence[int], fmt: Log) -> ir.Value:
    """The Table behind it."""
    want = fmt.integers
    entries = p.const(fmt.decode(np.arange(fmt.max + 1)).astype(want.storage))
    attributes = {"x_format": fmt.token, "zero_point": 0, "format": want.token}
    return p.node("Table", [codes, entries], shape, want.token, **attributes)


def product(
    p: Problems, name: str, a: ir.Value, a_shape: Sequence[int], b: ir.Value, b_shape: Sequence[int], token: str
) -> None:
    fmt = parse_format(token)
    zero = 0 if fmt.signed or fmt.bits > 8 else 77
    tops = [parse_format(v.metadata_props["qcompiler.format"]).max for v in (a, b)]
    scale = np.float32(200 / (np.sqrt(a_shape[-1]) * tops[0] * tops[1]))
    shape = (*np.broadcast_shapes(tuple(a_shape[:-2]), tuple(b_shape[:-2])), a_shape[-2], b_shape[-1])
    y = p.node("BatchMatMul", [a, b, *p.scales(scale, 40)], shape, "uint8", a_zero_point=0, b_zero_point=zero,
               **p.requantizing("uint8", 111))  # fmt: skip
    p.output(name, y)


def weighted(p: Problems, name: str, x: Sequence[int], m: int, fmt: Log, zero: int, bits: int) -> None:
    """MatMul, or Conv 3x3 of images, of shifted levels with weights."""
    image = len(x) == 4
    top, inner = 2 ** (bits - 1), x[1] * 9 if image else x[-1]
    w = p.rng.integers(-top, top, (m, x[1], 3, 3) if image else (inner, m)).astype(np.int8)
    wide = fmt.integers.bits > 8
    bias = p.rng.integers(-fmt.one * top, fmt.one * top, m).astype(np.int64 if wide else np.int32)
    scale = p.rng.uniform(0.5, 2, m) * 128 / (np.sqrt(inner) * fmt.one * top * 0.3)
    codes = encode(p, p.input(f"{name}_x", x, "uint16"), x, "uint16", fmt)
    weights = p.const(w)
    weights.metadata_props["qcompiler.format"] = f"int{bits}"
    inputs = [levels(p, codes, x, fmt), weights, p.const(bias), *p.scales(scale, 40 if wide else 31)]
    common = {"x_zero_point": zero, **p.requantizing("uint8", 99)}
    if image:
        window = {"strides": [1, 1], "pads": [1, 1, 1, 1], "dilations": [1, 1], "group": 1}
        y = p.node("Conv", inputs, (x[0], m, *x[2:]), "uint8", **window, **common)
    else:
        y = p.node("MatMul", inputs, (*x[:-1], m), "uint8", **common)
    p.output(name, y)
