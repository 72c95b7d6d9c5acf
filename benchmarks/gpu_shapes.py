"""Operator problems of shapes drawn at random, for cards: convolutions and products of all kinds of tiles and tails,
long sums, codes of 4 bits, products of two activations."""

from __future__ import annotations

import numpy as np

from tests.conformance.problems import Problems
from tests.conformance.sequence import product

COUNT = 32
MORE = 10
"""Of each of the further kinds."""


def draw(arithmetic: str, count: int = COUNT, seed: int = 11) -> Problems:
    """Half convolutions, half products, as one INTEGER graph."""
    rng, p = np.random.default_rng(seed), Problems(arithmetic)
    for i in range(count):
        bits = int(rng.choice([8, 8, 8, 4, 2]))
        token = str(rng.choice(["uint8", "uint8", "int8"]))
        n = int(rng.choice([1, 5, 8, 10, 16, 24, 33, 64, 96, 100, 160, 256, 300]))
        if i % 2:
            k = int(rng.choice([3, 16, 24, 37, 64, 96, 128, 200, 384, 777]))
            rows = int(rng.choice([1, 2, 17, 64, 65, 130, 257]))
            p.matmul(f"matmul{i}", (rows, k), n, bits=bits, token=token, out=token)
            continue
        kernel, group = int(rng.choice([1, 1, 3, 3, 5])), int(rng.choice([1, 1, 1, 2]))
        c = int(rng.choice([3, 4, 8, 12, 16, 20, 24, 32, 48, 64, 96])) * group
        side, stride, step = int(rng.integers(kernel + 2, 24)), int(rng.integers(1, 3)), int(rng.integers(1, 3))
        pad = int(rng.integers(0, kernel))
        if side + 2 * pad <= (kernel - 1) * step + 1:
            step = 1
        p.conv(
            f"conv{i}", (int(rng.choice([1, 1, 3])), c, side, side + int(rng.integers(0, 9))), n * group,
            (kernel, kernel), strides=(stride, stride), pads=(pad,) * 4, dilations=(step, step), group=group,
            bits=bits, token=token, out=token,
        )  # fmt: skip
    for i in range(MORE):
        _long(p, rng, i)
        _narrow(p, rng, i)
        _pair(p, rng, i)
    return p


def _long(p: Problems, rng: np.random.Generator, i: int) -> None:
    """Few outputs of many products each."""
    rows, k, n = int(rng.integers(1, 40)), int(rng.integers(1000, 20000)), int(rng.choice([9, 16, 40, 100, 200]))
    token = str(rng.choice(["uint8", "int8"]))
    p.matmul(f"long{i}", (rows, k), n, bits=int(rng.choice([8, 4, 2])), token=token, out=token)


def _narrow(p: Problems, rng: np.random.Generator, i: int) -> None:
    """Weights and activations of 4 bits."""
    token, n = str(rng.choice(["uint4", "int4"])), int(rng.choice([8, 24, 33, 64, 130]))
    if i % 2:
        rows, k = int(rng.integers(1, 150)), int(rng.integers(16, 900))
        p.matmul(f"narrow{i}", (rows, k), n, bits=4, token=token, out=token)
        return
    side, c = int(rng.integers(5, 20)), int(rng.choice([5, 8, 16, 36, 64]))
    p.conv(f"narrow{i}", (2, c, side, side + 3), n, (3, 3), pads=(1, 1, 1, 1), bits=4, token=token, out=token)


def _pair(p: Problems, rng: np.random.Generator, i: int) -> None:
    """Two activations, of which the right one may lie transposed."""
    batch = [int(rng.integers(1, 4)) for _ in range(int(rng.integers(0, 3)))]
    m, k, n = (int(rng.choice([1, 7, 16, 36, 64, 100, 257])) for _ in range(3))
    k += 16
    tokens = str(rng.choice(["uint8", "int8"])), str(rng.choice(["uint8", "int8"])), str(rng.choice(["uint8", "int16"]))
    zeros = int(rng.choice([0, 100])), int(rng.choice([0, 77]))
    turned = [*range(len(batch)), len(batch) + 1, len(batch)] if i % 2 else None
    product(p, f"pair{i}", (*batch, m, k), (*batch, n, k) if turned else (*batch, k, n), tokens, zeros, turned)
