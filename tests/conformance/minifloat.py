"""Problems of minifloats: products of levels, and accumulators, or wide integers, that become levels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from qcompiler.formats import Minifloat, parse_format
from qcompiler.graph.qdq import FORMAT_KEY, MINIFLOAT_KEY
from tests.conformance.problems import Problems


def add_minifloats(p: Problems) -> None:
    """All of them."""
    for w, x, out in (
        ("e2m1", "uint8", "uint8"), ("e2m1", "e2m1", "e2m1"), ("e2m1", "ue2m2", "ue2m2"), ("e2m0", "uint4", "ue2m1"),
        ("e2m3", "uint8", "e1m3"), ("e2m4", "int8", "uint8"), ("e3m0", "uint8", "e3m0"), ("e3m0", "uint8", "uint8"),
        ("e2m5", "uint8", "e2m5"), ("e3m2", "uint8", "uint8"), ("e3m2", "e3m2", "e3m2"), ("e3m4", "ue3m5", "ue3m5"),
        ("int8", "e3m1", "e3m3"),
    ):  # fmt: skip
        name = f"mini_{w}_{x}_{out}"
        weighted(p, f"{name}_conv", w, x, out, (1, 9, 7, 6), 10)
        weighted(p, f"{name}_matmul", w, x, out, (3, 37), 19)
    weighted(p, "mini_depthwise", "e2m1", "uint8", "e2m1", (1, 19, 9, 8), 19, group=19)
    weighted(p, "mini_depthwise_wide", "e3m2", "uint8", "ue2m2", (1, 6, 9, 8), 6, group=6)
    weighted(p, "mini_grouped", "e2m2", "ue2m2", "e3m1", (1, 12, 6, 6), 18, group=3)
    weighted(p, "mini_narrow_scales", "e2m1", "uint8", "e2m1", (1, 4, 5, 5), 8, spread=1e3)
    for out in ("e1m3", "e2m1", "ue2m2", "e2m5", "e3m0", "e3m4", "ue3m5"):
        rescaled(p, f"mini_rescale_{out}", "uint16", out)
    rescaled(p, "mini_rescale_signed", "int16", "e3m2")
    product(p, "mini_product", "ue2m2", "e2m1", "e2m1", (2, 5, 21), (2, 21, 8))
    product(p, "mini_product_wide", "ue3m3", "e3m2", "uint8", (2, 5, 21), (2, 21, 8))


def levels(p: Problems, name: str, token: str, shape: Sequence[int]) -> ir.Value:
    """An input whose codes are all of a format's levels; of integers, all codes."""
    fmt = parse_format(token)
    if not isinstance(fmt, Minifloat):
        return p.input(name, shape, token)
    codes = p.input(name, shape, "uint8")
    every = fmt.decode(fmt.codes())
    entries = every[np.arange(256) % len(every)].astype(fmt.integers.storage)
    attributes = {"x_format": "uint8", "zero_point": 0, "format": fmt.integers.token}
    return p.node("Table", [codes, p.const(entries)], shape, fmt.integers.token, **attributes)


def weights(p: Problems, token: str, shape: Sequence[int]) -> np.ndarray:
    """Levels of random codes."""
    fmt = parse_format(token)
    return fmt.decode(p.rng.choice(fmt.codes(), shape))


def written(p: Problems, op: str, inputs: list[Any], shape: Sequence[int], token: str, **attributes: Any) -> ir.Value:
    """A node that makes codes, or levels of a minifloat."""
    fmt = parse_format(token)
    mini = isinstance(fmt, Minifloat)
    zero = 0 if mini or fmt.signed else fmt.max // 2
    requantizing = p.requantizing(token, zero)
    y = p.node(op, inputs, shape, fmt.integers.token, **attributes, **requantizing)
    return y


def gain(token: str, deviation: float) -> float:
    """What takes such a deviation to codes that fill the format, with some beyond it."""
    fmt = parse_format(token)
    top = fmt.largest if isinstance(fmt, Minifloat) else fmt.max / 2
    return 0.5 * top / deviation


def weighted(
    p: Problems, name: str, w: str, x: str, out: str, shape: Sequence[int], m: int, group: int = 1, spread: float = 2
) -> None:
    """MatMul, or Conv 3x3 of images. spread: of the scales of channels."""
    image = len(shape) == 4
    inner = shape[1] // group * 9 if image else shape[-1]
    array = weights(p, w, (m, shape[1] // group, 3, 3) if image else (inner, m))
    stored = p.const(array.astype(np.int8 if np.abs(array).max() < 128 else np.int16))
    stored.metadata_props[FORMAT_KEY] = parse_format(w).integers.token
    if isinstance(parse_format(w), Minifloat):
        stored.metadata_props[MINIFLOAT_KEY] = w
    have = parse_format(x)
    top = float(have.largest if isinstance(have, Minifloat) else have.max)
    zero = 0 if isinstance(have, Minifloat) or have.signed else int(have.max // 3)
    deviation = np.sqrt(inner) * top * 0.5 * array.std()
    wide = have.integers.bits > 8
    bias = np.rint(p.rng.normal(0, deviation, m)).astype(np.int64 if wide else np.int32)
    scale = gain(out, deviation) * p.rng.uniform(1 / spread, spread, m)
    inputs = [levels(p, f"{name}_x", x, shape), stored, p.const(bias), *p.scales(scale, 40 if wide else 31)]
    if image:
        window = {"strides": [1, 1], "pads": [1, 1, 1, 1], "dilations": [1, 1], "group": group}
        y = written(p, "Conv", inputs, (shape[0], m, *shape[2:]), out, x_zero_point=zero, **window)
    else:
        y = written(p, "MatMul", inputs, (*shape[:-1], m), out, x_zero_point=zero)
    p.output(name, y)


def rescaled(p: Problems, name: str, token: str, out: str) -> None:
    shape, fmt = (3, 67), parse_format(token)
    zero = 0 if fmt.signed else 31_000
    scale = np.float32(gain(out, 2.0**14))
    y = written(p, "Requantize", [p.input(f"{name}_x", shape, token), *p.scales(scale, 40)], shape, out,
                x_zero_point=zero)  # fmt: skip
    p.output(name, y)


def product(p: Problems, name: str, a: str, b: str, out: str, left: Sequence[int], right: Sequence[int]) -> None:
    tops = [parse_format(token).largest for token in (a, b)]
    scale = np.float32(gain(out, np.sqrt(left[-1]) * tops[0] * tops[1] * 0.2))
    inputs = [levels(p, f"{name}_a", a, left), levels(p, f"{name}_b", b, right), *p.scales(scale, 40)]
    y = written(p, "BatchMatMul", inputs, (*left[:-1], right[-1]), out, a_zero_point=0, b_zero_point=0)
    p.output(name, y)
