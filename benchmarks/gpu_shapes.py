"""Operator problems of shapes drawn at random, for cards: convolutions and products of all kinds of tiles and tails."""

from __future__ import annotations

import numpy as np

from tests.conformance.problems import Problems

COUNT = 32


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
    return p
