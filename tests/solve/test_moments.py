"""Moments and patches against the operators that they stand for."""

from __future__ import annotations

import numpy as np
import pytest

from qcompiler.graph.model import Graph
from qcompiler.solve.layers import unfold
from qcompiler.solve.moments import Moments


@pytest.mark.parametrize(
    ("channels", "outputs", "groups", "kernel", "strides", "pads", "dilations"),
    [
        (4, 6, 1, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1)),
        (4, 4, 4, (3, 3), (2, 2), (0, 0, 1, 1), (1, 1)),
        (4, 6, 2, (3, 2), (1, 2), (2, 0, 1, 1), (2, 1)),
        (3, 5, 1, (1, 1), (2, 2), (0, 0, 0, 0), (1, 1)),
    ],
)
def test_patches_times_weight_is_the_convolution(channels, outputs, groups, kernel, strides, pads, dilations) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1, channels, 9, 8)).astype(np.float32)
    w = rng.normal(size=(outputs, channels // groups, *kernel)).astype(np.float32)
    text = f"""<ir_version: 8, opset_import: ["" : 17]>
    g (float[1,{channels},9,8] x, float[{outputs},{channels // groups},{kernel[0]},{kernel[1]}] w) => (float y) {{
        y = Conv <group = {groups}, strides = {[*strides]}, pads = {[*pads]}, dilations = {[*dilations]}> (x, w)
    }}"""
    want = Graph.parse(text, w=w).run(x=x)
    rows = unfold(x, kernel, strides, pads, dilations, groups)
    got = np.einsum("gnk,gmk->gmn", rows, w.reshape(groups, outputs // groups, -1)).reshape(want.shape)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def test_every_position_is_taken_once_over_the_offsets() -> None:
    x = np.arange(36, dtype=np.float32).reshape(1, 1, 6, 6)
    parts = [unfold(x, (1, 1), (1, 1), (0, 0, 0, 0), (1, 1), 1, every=5, offset=i) for i in range(5)]
    assert sorted(np.concatenate(parts, axis=1).reshape(-1)) == list(range(36))


def test_moments_in_parts_are_those_of_the_whole() -> None:
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(2, 2, 50, 3)).astype(np.float32)
    moments = Moments.zeros(2, 3)
    moments.add(x[:, :20], y[:, :20])
    moments.add(x[:, 20:], y[:, 20:])
    centred = moments.centred()
    for g in range(2):
        np.testing.assert_allclose(moments.cross[g], x[g].T @ y[g], rtol=1e-4, atol=1e-4)
        a, b = x[g] - x[g].mean(0), y[g] - y[g].mean(0)
        np.testing.assert_allclose(centred.cross[g], a.T @ b, rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(centred.gram[g], b.T @ b, rtol=1e-3, atol=1e-3)


def test_bias_shift_makes_means_agree() -> None:
    rng = np.random.default_rng(2)
    x = rng.normal(1, 1, size=(1, 100, 4)).astype(np.float32)
    y = x + rng.normal(0.3, 0.1, size=x.shape).astype(np.float32)
    moments = Moments.zeros(1, 4)
    moments.add(x, y)
    w, q = rng.normal(size=(2, 1, 5, 4))
    shift = moments.bias_shift(w, q)[0]
    np.testing.assert_allclose((y[0] @ q[0].T + shift).mean(0), (x[0] @ w[0].T).mean(0), atol=1e-5)
