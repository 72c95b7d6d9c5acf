"""Problems of operators that a target may do in one kernel: products with tables and sums behind them, attention."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from qcompiler.formats import parse_format
from qcompiler.ops.softmax import exponentials
from tests.conformance.problems import Problems
from tests.conformance.sequence import product


def fused_suite(arithmetic: str) -> Problems:
    """All of them as one INTEGER graph."""
    p = Problems(arithmetic)
    _chains(p)
    _long_sums(p)
    _narrow(p)
    _products(p)
    _attention(p)
    return p


def conv(p: Problems, x: ir.Value, m: int, token: str = "uint8", *, group: int = 1) -> ir.Value:
    """3x3 with padding."""
    n, c, *rest = (int(d) for d in x.shape)  # type: ignore[union-attr]
    w = p.rng.integers(-128, 128, (m, c // group, 3, 3)).astype(np.int8)
    span = parse_format(token).max - parse_format(token).min
    scale = p.rng.uniform(0.5, 2, m) * span / (np.sqrt(c * 9 / group) * 255 * 128 * 0.6)
    weights = p.const(w)
    weights.metadata_props["qcompiler.format"] = "int8"
    inputs = [x, weights, p.const(p.rng.integers(-9999, 9999, m).astype(np.int32)), *p.scales(scale)]
    zero = parse_format(token).max // 2
    window = {"strides": [1, 1], "pads": [1, 1, 1, 1], "dilations": [1, 1], "group": group, "x_zero_point": 99}
    return p.node("Conv", inputs, (n, m, *rest), token, **window, **p.requantizing(token, zero))


def linear(p: Problems, x: ir.Value, n: int, token: str = "uint8") -> ir.Value:
    """MatMul with random weights."""
    shape = tuple(int(d) for d in x.shape)  # type: ignore[union-attr]
    w = p.rng.integers(-128, 128, (shape[-1], n)).astype(np.int8)
    span = parse_format(token).max - parse_format(token).min
    scale = p.rng.uniform(0.5, 2, n) * span / (np.sqrt(shape[-1]) * 255 * 128 * 0.6)
    inputs = [x, p.const(w), p.const(p.rng.integers(-9999, 9999, n).astype(np.int32)), *p.scales(scale)]
    zero = parse_format(token).max // 2
    return p.node("MatMul", inputs, (*shape[:-1], n), token, x_zero_point=99, **p.requantizing(token, zero))


def table(p: Problems, x: ir.Value, token: str, out: str) -> ir.Value:
    """Random entries."""
    to = parse_format(out)
    entries = p.rng.integers(to.min, to.max + 1, 1 << parse_format(token).bits).astype(to.storage)
    shape = tuple(int(d) for d in x.shape)  # type: ignore[union-attr]
    return p.node("Table", [x, p.const(entries)], shape, out, x_format=token, format=out, zero_point=0)


def add(p: Problems, a: ir.Value, b: ir.Value, token: str = "uint8", wide: bool = False) -> ir.Value:
    """Sum, of codes of 16 bits with `wide`."""
    ma, mb, shift = (700_001_111, 500_003_000, 30) if wide else (1_234_567, 1_345_671, 21)
    shape = np.broadcast_shapes(tuple(a.shape), tuple(b.shape))  # type: ignore[arg-type]
    numbers = {"a_zero_point": 5, "b_zero_point": 9, "a_multiplier": ma, "b_multiplier": -mb, "shift": shift}
    return p.node("Add", [a, b], shape, token, **numbers, format=token, zero_point=11)


def _chains(p: Problems) -> None:
    x = p.input("chain_x", (2, 16, 7, 9))
    first = conv(p, x, 16)
    p.output("conv_add", add(p, conv(p, first, 16), first))
    p.output("conv_add_odd", add(p, p.input("odd_x", (2, 9, 7, 9), "int8"), conv(p, x, 9)))
    wide = p.input("wide_x", (2, 24, 7, 9), "int16")
    p.output("conv_add_wide", add(p, conv(p, x, 24, "uint16"), wide, "int16", True))
    p.output("conv_add_channel", add(p, conv(p, x, 24), p.input("channel_x", (1, 24, 1, 1))))
    p.output("conv_add_image", add(p, conv(p, x, 24), p.input("image_x", (1, 24, 7, 9))))
    p.output("conv_add_scalar", add(p, conv(p, x, 24), p.input("scalar_x", (1, 1, 1, 1))))
    p.output("conv_two", add(p, conv(p, x, 16), conv(p, x, 16)))
    p.output("conv_table", table(p, conv(p, x, 20), "uint8", "int8"))
    looked = table(p, conv(p, x, 20, "int8"), "int8", "uint8")
    p.output("conv_table_add", add(p, looked, table(p, conv(p, x, 20), "uint8", "uint8")))
    p.output("conv_grouped_add", add(p, conv(p, x, 16, group=2), first))
    p.output("depthwise_add", add(p, conv(p, first, 16, group=16), first))
    shared = conv(p, x, 16)
    p.output("conv_read_twice", add(p, shared, table(p, shared, "uint8", "uint8")))
    p.output("conv_doubled", add(p, first, conv(p, first, 16)))
    y = p.input("chain_y", (3, 13, 40))
    hidden = table(p, linear(p, y, 72), "uint8", "uint8")
    residual = p.input("residual_x", (3, 13, 40), "uint16")
    p.output("linear_add_wide", add(p, residual, linear(p, hidden, 40, "uint16"), "uint16", True))
    p.output("linear_add_row", add(p, linear(p, y, 33), p.input("row_x", (33,))))
    p.output("linear_add_tokens", add(p, linear(p, y, 48), p.input("tokens_x", (1, 13, 48))))
    p.output("linear_add_token", add(p, linear(p, y, 48), p.input("token_x", (3, 1, 48))))
    turned = p.node("Transpose", [add(p, linear(p, y, 48), p.input("turned_x", (3, 13, 48)))], (3, 48, 13), "uint8",
                    domain="", perm=[0, 2, 1])  # fmt: skip
    p.output("linear_add_turned", turned)


def _long_sums(p: Problems) -> None:
    """Few outputs of many products each, which several blocks may share."""
    p.matmul("long", (1, 8192), 40)
    p.matmul("long_w4", (3, 9000), 20, bits=4)
    p.matmul("long_w2", (17, 7000), 9, bits=2, token="int8", out="int8")
    x = p.input("deep_x", (1, 600, 3, 3))
    p.output("long_conv_add", add(p, conv(p, x, 24), p.input("deep_other", (1, 24, 3, 3))))
    p.output("long_conv_grouped", conv(p, p.input("deep_g", (2, 1200, 2, 2)), 24, group=2))


def _narrow(p: Problems) -> None:
    """Weights and activations of 4 bits, which some cards multiply as such."""
    p.conv("narrow_conv", (2, 32, 9, 7), 40, (3, 3), pads=(1, 1, 1, 1), bits=4, token="uint4", out="uint4")
    p.conv("narrow_odd", (1, 9, 8, 8), 24, (3, 3), pads=(2, 0, 1, 1), bits=4, token="int4", out="int4")
    p.conv("narrow_grouped", (1, 32, 6, 6), 32, (1, 1), group=2, bits=3, token="uint3", out="uint4")
    p.matmul("narrow_matmul", (70, 200), 130, bits=4, token="int4", out="int8")
    p.matmul("narrow_row", (1, 61), 19, bits=4, token="uint4", out="uint4")
    p.matmul("narrow_long", (2, 9000), 40, bits=4, token="uint4", out="uint4")


def _products(p: Problems) -> None:
    """Two activations: rows along the inner dimension and across it, words and bytes, all signs and zero points."""
    keys = [0, 1, 3, 2]  # b lies as [.., N, K]
    product(p, "pair", (2, 3, 20, 32), (2, 3, 32, 24))
    product(p, "pair_keys", (2, 3, 17, 48), (2, 3, 33, 48), ("uint8", "uint8", "uint16"), (99, 201), keys)
    product(p, "pair_odd", (3, 9, 37), (3, 37, 21), ("int8", "uint8", "uint8"), (-5, 130))
    product(p, "pair_signed", (70, 200), (200, 70), ("int8", "int8", "int8"), (0, 0))
    product(p, "pair_affine", (1, 130, 64), (5, 64, 68), ("uint8", "int8", "uint8"), (0, -7))
    product(p, "pair_shared", (2, 2, 16, 20), (2, 1, 20, 16), ("uint8", "uint8", "uint8"), (128, 0))
    product(p, "pair_turned", (2, 2, 24, 32), (2, 2, 32, 20), out=(0, 1, 3, 2))
    product(p, "pair_merged", (1, 4, 12, 32), (1, 4, 32, 16), out=(0, 2, 1, 3))
    product(p, "pair_row", (4, 1, 72), (4, 72, 96), ("uint8", "uint8", "int8"), (7, 9))
    x = p.input("pair_columns_x", (2, 40, 28))
    rows = p.node("Transpose", [x], (2, 28, 40), "uint8", domain="", perm=[0, 2, 1])
    right = p.input("pair_columns_y", (2, 40, 19), "int8")
    y = p.node("BatchMatMul", [rows, right, *p.scales(np.float32(0.001))], (2, 28, 19), "uint8",
               a_zero_point=111, b_zero_point=-3, **p.requantizing("uint8", 100))  # fmt: skip
    p.output("pair_columns", y)


def attention(
    p: Problems,
    name: str,
    batch: Sequence[int],
    queries: int,
    tokens: int,
    inner: int,
    outer: int,
    *,
    kinds: Sequence[str] = ("uint8", "int8", "int8", "uint16", "uint8"),
    zeros: Sequence[int] = (120, 0, 0, 0),
    mask: str = "",
    turned: bool = False,
    looked: bool = False,
    shared_keys: bool = False,
) -> None:
    """Two products and a softmax. kinds: of q, k, v, scores and shares; zeros: zero points of q, k, shares and v."""
    q_kind, k_kind, v_kind, score, share = kinds
    q = p.input(f"{name}_q", (*batch, queries, inner), q_kind)
    if looked:
        q = table(p, q, q_kind, "uint8")
        q_kind = "uint8"
    keys = (*batch[:-1], 1) if shared_keys else tuple(batch)
    k = p.input(f"{name}_k", (*keys, tokens, inner) if not turned else (*keys, inner, tokens), k_kind)
    if not turned:
        rank = len(batch) + 2
        perm = [*range(rank - 2), rank - 1, rank - 2]
        k = p.node("Transpose", [k], (*keys, inner, tokens), k_kind, domain="", perm=perm)
    v = p.input(f"{name}_v", (*keys, tokens, outer), v_kind)
    fmt, to = parse_format(score), parse_format(share)
    scale = np.float32((fmt.max - fmt.min) / (np.sqrt(inner) * 255 * 256 * 0.6))
    scores = p.node(
        "BatchMatMul", [q, k, *p.scales(scale)], (*batch, queries, tokens), score,
        a_zero_point=zeros[0], b_zero_point=zeros[1], **p.requantizing(score, (fmt.min + fmt.max) // 2),
    )  # fmt: skip
    inputs: list[ir.Value | None] = [scores, p.const(exponentials(fmt, 12.0 / (fmt.max - fmt.min)))]
    if mask == "causal":
        inputs.append(p.const(np.triu(np.ones((queries, tokens)), 1 + tokens - queries).astype(np.uint8)))
    elif mask == "cells":
        inputs.append(p.const((p.rng.random((queries, tokens)) < 0.3).astype(np.uint8)))
    shares = p.node(
        "Softmax", inputs, (*batch, queries, tokens), share,
        axis=len(batch) + 1, x_format=score, numerator=to.max - to.min + 1, format=share, zero_point=zeros[2],
    )  # fmt: skip
    y = p.node(
        "BatchMatMul", [shares, v, *p.scales(np.float32(1 / 400))], (*batch, queries, outer), "uint8",
        a_zero_point=zeros[2], b_zero_point=zeros[3], **p.requantizing("uint8", 130),
    )  # fmt: skip
    p.output(name, y)


def _attention(p: Problems) -> None:
    attention(p, "heads", (2, 3), 17, 17, 32, 32, looked=True)
    attention(p, "heads_affine", (2, 2), 20, 70, 24, 20, kinds=("int8", "uint8", "uint8", "uint8", "uint8"),
              zeros=(-7, 77, 0, 201))  # fmt: skip
    attention(p, "heads_shifted", (1, 2), 5, 33, 7, 5, kinds=("int8", "int8", "uint8", "int8", "int8"),
              zeros=(0, 3, -128, 128))  # fmt: skip
    attention(p, "heads_causal", (1, 2), 40, 40, 8, 8, mask="causal", kinds=("uint8", "int8", "int8", "uint8", "uint8"))
    attention(p, "heads_hidden", (1, 2), 9, 21, 8, 8, mask="cells")
    attention(p, "heads_long", (1, 1), 3, 700, 64, 64)
    attention(p, "heads_longest", (1, 1), 2, 3000, 8, 8)
    attention(p, "heads_turned", (1, 2), 18, 30, 16, 12, turned=True)
    attention(p, "heads_shared", (2, 4), 6, 19, 16, 16, shared_keys=True)
    attention(p, "heads_flat", (3,), 16, 64, 40, 136)
