"""Problems of transformers: products of two activations, normalizations, softmax, embeddings, wide functions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from qcompiler.formats import parse_format
from qcompiler.graph.qdq import INDICES_KEY
from qcompiler.ops.normalize import FRACTION
from qcompiler.ops.softmax import exponentials
from tests.conformance.problems import Problems


def add_problems(p: Problems) -> None:
    """All of them."""
    _products(p)
    _normalizations(p)
    _softmax(p)
    _lookups(p)
    _quotients(p)
    _state(p)
    _folds(p)


def product(
    p: Problems,
    name: str,
    a: Sequence[int],
    b: Sequence[int],
    tokens: tuple[str, str, str] = ("uint8", "int8", "uint8"),
    zeros: tuple[int, int] = (100, 0),
    perm: Sequence[int] | None = None,
    out: Sequence[int] | None = None,
) -> None:
    """BatchMatMul; perm: b is transposed before, out: the result is transposed after."""
    left, right = p.input(f"{name}_a", a, tokens[0]), p.input(f"{name}_b", b, tokens[1])
    if perm is not None:
        b = [b[d] for d in perm]
        right = p.node("Transpose", [right], b, tokens[1], domain="", perm=list(perm))
    shape = (*np.broadcast_shapes(tuple(a[:-2]), tuple(b[:-2])), a[-2], b[-1])
    spans = [parse_format(t).max - parse_format(t).min for t in tokens]
    scale = np.float32(spans[2] * 1.5 / (np.sqrt(a[-1]) * spans[0] * spans[1]))
    wide = max(parse_format(t).bits for t in tokens[:2]) > 8
    y = p.node(
        "BatchMatMul",
        [left, right, *p.scales(scale, 48 if wide else 31)],
        shape,
        tokens[2],
        a_zero_point=zeros[0],
        b_zero_point=zeros[1],
        **p.requantizing(tokens[2], (parse_format(tokens[2]).min + parse_format(tokens[2]).max) // 2),
    )
    if out is not None:
        y = p.node("Transpose", [y], [shape[d] for d in out], tokens[2], domain="", perm=list(out))
    p.output(name, y)


def _products(p: Problems) -> None:
    product(p, "attention_scores", (1, 3, 17, 16), (1, 3, 17, 16), perm=(0, 1, 3, 2))
    product(p, "attention_values", (1, 3, 17, 19), (1, 3, 19, 20), zeros=(0, 0), out=(0, 2, 1, 3))
    product(p, "attention_wide_values", (2, 5, 33), (2, 33, 70))
    product(p, "product_broadcast", (2, 3, 4, 9), (3, 9, 5))
    product(p, "product_matrix", (7, 10), (10, 6), zeros=(0, 0))
    product(p, "product_left_broadcast", (1, 1, 4, 9), (2, 3, 9, 5))
    product(p, "product_one_row", (1, 4, 1, 8), (1, 4, 31, 8), perm=(0, 1, 3, 2))
    product(p, "product_unsigned", (2, 6, 11), (2, 11, 18), ("uint8", "uint8", "uint8"), (3, 128))
    product(p, "product_affine", (2, 6, 11), (2, 11, 18), ("uint8", "uint8", "int8"), (3, 77))
    product(p, "product_signed", (2, 6, 11), (2, 11, 18), ("int8", "int8", "uint16"), (-5, 0))
    product(p, "product_small_codes", (2, 6, 11), (2, 11, 18), ("uint4", "int4", "uint4"), (3, 0))
    product(p, "product16", (2, 6, 11), (2, 11, 18), ("uint16", "int8", "uint8"), (30000, 0))
    product(p, "product16_both", (1, 5, 7), (1, 7, 9), ("int16", "uint16", "int16"), (0, 40000))


def normalization(
    p: Problems,
    name: str,
    x: Sequence[int],
    *,
    axis: int = -1,
    groups: int = 0,
    centre: int = 1,
    token: str = "uint8",
    out: str = "uint8",
    half: int = 4,
) -> None:
    """Normalize with random gain and bias."""
    fmt, to = parse_format(token), parse_format(out)
    axis %= len(x)
    parameters = x[1:2] if groups else x[axis:]
    step = (to.max - to.min) / 6  # a deviation of 1 spans a sixth of the output
    shift = 34 if to.bits <= 8 else 28
    gain = np.rint(p.rng.uniform(-1, 1, parameters) * step * 2.0 ** (shift - FRACTION)).astype(np.int32)
    bias = np.rint(p.rng.uniform(-1, 1, parameters) * step / 2 * 2.0**shift).astype(np.int64)
    y = p.node(
        "Normalize",
        [p.input(f"{name}_x", x, token), p.const(gain), p.const(bias)],
        x,
        out,
        axis=1 if groups else axis,
        groups=groups,
        centre=centre,
        half_shift=half,
        epsilon=12345,
        shift=shift,
        x_zero_point=(fmt.min + fmt.max) // 3,
        zero_point=(to.min + to.max) // 2,
        format=out,
    )
    p.output(name, y)


def _normalizations(p: Problems) -> None:
    normalization(p, "layer_norm", (1, 5, 64))
    normalization(p, "layer_norm_odd", (2, 3, 37), out="int8")
    normalization(p, "layer_norm_two_axes", (2, 5, 7), axis=1)
    normalization(p, "layer_norm16", (1, 4, 48), token="uint16")
    normalization(p, "layer_norm16_out16", (4, 33), token="int16", out="uint16", half=0)
    normalization(p, "rms_norm", (1, 6, 20), centre=0)
    normalization(p, "rms_norm16", (1, 6, 64), centre=0, token="uint16")
    normalization(p, "group_norm", (2, 12, 5, 3), groups=3)
    normalization(p, "group_norm_flat", (1, 6, 10), groups=2, token="int8")
    normalization(p, "instance_norm", (1, 5, 4, 6), groups=5)
    # Behind a convolution the channels lie last in memory.
    x = p.input("conv_norm_x", (1, 3, 6, 6))
    weights = p.const(p.rng.integers(-127, 128, (20, 3, 3, 3)).astype(np.int8))
    bias, scales = p.const(np.zeros(20, np.int32)), p.scales(np.full(20, 0.004))
    window = {"strides": [1, 1], "pads": [1, 1, 1, 1], "dilations": [1, 1], "group": 1, "x_zero_point": 90}
    conv = p.node("Conv", [x, weights, bias, *scales], (1, 20, 6, 6), **window, **p.requantizing("uint8", 128))
    gain = p.const(np.full(20, 40 << 14, np.int32))
    norm = p.node(
        "Normalize",
        [conv, gain, p.const(np.zeros(20, np.int64))],
        (1, 20, 6, 6),
        axis=1,
        groups=4,
        centre=1,
        half_shift=3,
        epsilon=1,
        shift=34,
        x_zero_point=128,
        zero_point=128,
        format="uint8",
    )
    p.output("conv_norm", norm)


def softmax(
    p: Problems, name: str, x: Sequence[int], axis: int, mask: np.ndarray | None, token: str, out: str = "uint8"
) -> None:
    """Softmax with a mask, or of wide codes."""
    fmt = parse_format(token)
    inputs = [p.input(f"{name}_x", x, token), p.const(exponentials(fmt, 12.0 / (fmt.max - fmt.min)))]
    if mask is not None:
        inputs.append(p.const(mask.astype(np.uint8)))
    attributes = {"axis": axis, "x_format": token, "numerator": 256 if out == "uint8" else 65535, "format": out}
    p.output(name, p.node("Softmax", inputs, x, out, zero_point=0, **attributes))


def _softmax(p: Problems) -> None:
    rng = np.random.default_rng(11)
    causal = np.triu(np.ones((40, 40)), 1)
    softmax(p, "softmax_long", (2, 300), 1, None, "uint8", "uint16")
    softmax(p, "softmax_causal", (1, 2, 40, 40), 3, causal, "uint8")
    softmax(p, "softmax_causal16", (1, 2, 40, 40), 3, causal, "uint16", "uint16")
    cells = rng.random((2, 1, 30)) < 0.4
    cells[0] = True  # a row that is hidden throughout counts as visible
    softmax(p, "softmax_masked", (2, 3, 30), 2, cells, "int16")
    softmax(p, "softmax_masked_middle", (3, 7, 5), 1, rng.random((7, 5)) < 0.3, "uint8")


def _lookups(p: Problems) -> None:
    rng = np.random.default_rng(12)
    for name, token, out, segments, inner in (
        ("piecewise", "uint16", "uint8", 256, 50),
        ("piecewise_signed", "int16", "int16", 1024, 33),
        ("piecewise12", "uint12", "uint16", 256, 20),
    ):
        fmt, to = parse_format(token), parse_format(out)
        table = np.cumsum(rng.integers(-3000, 3001, segments + 1)).astype(np.int32) + (to.max << 7)
        shift = fmt.bits - (segments.bit_length() - 1)
        inputs = [p.input(f"{name}_x", (2, inner), token), p.const(table)]
        attributes = {"x_format": token, "shift": shift, "zero_point": to.min // 2, "format": out}
        p.output(name, p.node("Piecewise", inputs, (2, inner), out, **attributes))
    table = rng.integers(0, 256, (40, 24)).astype(np.uint8)
    _embedding(p, "embedding", table, 0, (1, 7), ir.DataType.INT64)
    _embedding(p, "embedding_int32", table, 1, (5,), ir.DataType.INT32)
    x = p.input("select_x", (2, 5, 6))
    for name, index, axis in (
        ("select", np.int64(-2), 1),
        ("select_last", np.int64(1), 2),
        ("select_several", np.array([[3, 0], [4, 4]], np.int64), 1),
    ):
        shape = (*x.shape[:axis], *np.shape(index), *x.shape[axis + 1 :])
        y = p.node("Gather", [x, p.const(index)], [int(d) for d in shape], domain="", axis=axis)
        looked = p.const(np.arange(255, -1, -1).astype(np.uint8))
        y = p.node("Table", [y, looked], [int(d) for d in shape], x_format="uint8", format="uint8", zero_point=0)
        p.output(name, y)


def indices(p: Problems, name: str, shape: Sequence[int], count: int, dtype: ir.DataType) -> ir.Value:
    """An input of indices, which the samples draw beyond both ends as well."""
    value = ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype))
    value.metadata_props[INDICES_KEY] = str(count)
    p.graph.ir.inputs.append(value)
    return value


def _embedding(p: Problems, name: str, table: np.ndarray, axis: int, shape: Sequence[int], dtype: ir.DataType) -> None:
    """Rows of a table by indices."""
    ids = indices(p, f"{name}_ids", shape, table.shape[axis], dtype)
    data = p.describe(p.const(table), "uint8", 0, table.shape)
    out = (*table.shape[:axis], *shape, *table.shape[axis + 1 :])
    p.output(name, p.node("Gather", [data, ids], out, domain="", axis=axis))


def _quotients(p: Problems) -> None:
    for name, a, b, tokens, zeros in (
        ("quotient", (2, 33), (2, 1), ("uint8", "uint8", "uint8"), (100, 0)),
        ("quotient_signed", (3, 20), (3, 20), ("int8", "int8", "int16"), (3, -2)),
        ("quotient16", (40,), (40,), ("uint16", "int16", "uint8"), (30000, 7)),
    ):
        fmt = parse_format(tokens[2])
        multiplier = 3_000_000 if fmt.bits <= 8 else 900_000_000
        y = p.node(
            "Div",
            [p.input(f"{name}_a", a, tokens[0]), p.input(f"{name}_b", b, tokens[1])],
            np.broadcast_shapes(a, b),
            tokens[2],
            a_zero_point=zeros[0],
            b_zero_point=zeros[1],
            multiplier=multiplier,
            shift=15,
            zero_point=(fmt.min + fmt.max) // 2,
            format=tokens[2],
        )
        p.output(name, y)


def _state(p: Problems) -> None:
    for name, shape, axis, token, dtype in (
        ("cache", (1, 4, 9, 8), 2, "int8", ir.DataType.INT64),
        ("cache_wide", (1, 7, 5), 1, "uint16", ir.DataType.INT32),
        ("cache_last", (2, 3, 6), 2, "uint8", ir.DataType.INT64),
    ):
        position = indices(p, f"{name}_position", (1,), 2 * shape[axis], dtype)
        entry = [1 if d == axis else extent for d, extent in enumerate(shape)]
        inputs = [p.input(f"{name}_past", shape, token), p.input(f"{name}_entry", entry, token), position]
        written = p.node("CacheWrite", inputs, shape, token, axis=axis, format=token)
        p.output(name, written)
        if token != "uint8":
            continue
        table = p.const(exponentials(parse_format(token), 0.02))
        attributes = {"axis": axis, "x_format": token, "numerator": 256, "format": "uint8"}
        p.output(
            f"{name}_softmax",
            p.node("Softmax", [written, table, None, position], shape, "uint8", zero_point=0, **attributes),
        )
    scores, flags = p.input("flags_x", (2, 3, 11), "uint8"), p.input("flags_m", (2, 1, 11), "uint8")
    hide = np.zeros(256, np.uint8)
    hide[100:] = 1
    mask = p.node("Table", [flags, p.const(hide)], (2, 1, 11), x_format="uint8", format="uint8", zero_point=0)
    table = p.const(exponentials(parse_format("uint8"), 0.03))
    attributes = {"axis": 2, "x_format": "uint8", "numerator": 256, "format": "uint8"}
    p.output("softmax_flags", p.node("Softmax", [scores, table, mask], (2, 3, 11), zero_point=0, **attributes))


def _folds(p: Problems) -> None:
    numbers = {"half_shift": 8, "multiplier": 1_700_000_000, "shift": 41, "x_zero_point": 100}
    x = p.input("length_x", (3, 4, 30))
    y = p.node("ReduceL2", [x], (3, 4, 1), axes=[2], keepdims=1, zero_point=9, format="uint8", **numbers)
    p.output("length", y)
    p.movement("tile", "Tile", (2, 3, 4), (4, 3, 12), [np.array([2, 1, 3])])
