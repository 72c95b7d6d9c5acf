"""recognize_activations: spellings that mean HardSigmoid and HardSwish, and some that only look so."""

from __future__ import annotations

import numpy as np
import pytest

from qcompiler.passes import canonicalize, recognize_activations

HEADER = "float[2,3,5,5] x => float[2,3,5,5] y"
NUMBERS = {
    "three": np.float32(3), "six": np.float32(6), "zero": np.float32(0), "one": np.float32(1),
    "half": np.float32(0.5), "sixth": np.float32(1 / 6),
}  # fmt: skip
CLIP = "p = Add(x, three)  c = Clip(p, zero, six)"


def kinds(graph):
    return [node.op_type for node in graph.nodes()]


@pytest.mark.parametrize(
    "body",
    [
        f"{CLIP}  m = Mul(x, c)  y = Div(m, six)",
        f"{CLIP}  m = Mul(c, x)  y = Mul(sixth, m)",
        f"{CLIP}  g = Div(c, six)  y = Mul(x, g)",
        f"{CLIP}  s = Mul(x, sixth)  y = Mul(s, c)",
        f"{CLIP}  g = Mul(c, sixth)  y = Mul(g, x)",
        "p = Add(x, three)  r = Relu(p)  c = Min(r, six)  m = Mul(x, c)  y = Div(m, six)",
        "p = Add(three, x)  l = Max(p, zero)  c = Min(l, six)  g = Div(c, six)  y = Mul(x, g)",
        "s = Mul(x, sixth)  p = Add(s, half)  c = Clip(p, zero, one)  y = Mul(x, c)",
        "c = HardSigmoid<alpha = 0.16666667, beta = 0.5>(x)  y = Mul(x, c)",
        "c = HardSigmoid<alpha = 0.16666667, beta = 0.5>(x)  y = Mul(c, x)",
    ],
)
def test_every_spelling_of_hard_swish(make, unchanged, body):
    after, _ = unchanged(make(HEADER, body, **NUMBERS), canonicalize, recognize_activations)
    assert kinds(after) == ["HardSwish"]


@pytest.mark.parametrize(
    "body",
    [
        f"{CLIP}  y = Div(c, six)",
        f"{CLIP}  y = Mul(sixth, c)",
        "s = Mul(x, sixth)  p = Add(s, half)  y = Clip(p, zero, one)",
        "p = Add(x, half)  y = Clip(p, zero, one)",
        "s = Mul(x, sixth)  y = Clip(s, zero, one)",
    ],
)
def test_every_spelling_of_hard_sigmoid(make, unchanged, body):
    after, _ = unchanged(make(HEADER, body, **NUMBERS), canonicalize, recognize_activations)
    assert kinds(after) == ["HardSigmoid"]


@pytest.mark.parametrize(
    ("body", "left"),
    [
        (f"{CLIP}  y = Mul(x, c)", ["Add", "Clip", "Mul"]),
        ("p = Add(x, one)  c = Clip(p, zero, six)  m = Mul(x, c)  y = Div(m, six)", ["Add", "Clip", "Mul", "Mul"]),
        ("y = Clip(x, zero, one)", ["Clip"]),
        ("c = HardSigmoid<alpha = 0.2, beta = 0.5>(x)  y = Mul(x, c)", ["HardSigmoid", "Mul"]),
        (f"{CLIP}  n = Neg(x)  m = Mul(n, c)  y = Div(m, six)", ["Add", "Clip", "Neg", "Mul", "Mul"]),
        ("n = Neg(x)  c = Sigmoid(n)  y = Mul(x, c)", ["Neg", "Sigmoid", "Mul"]),
    ],
)
def test_lookalikes_stay(make, unchanged, body, left):
    after, _ = unchanged(make(HEADER, body, **NUMBERS), canonicalize, recognize_activations)
    assert kinds(after) == left


def test_a_gate_that_others_read_stays_for_them(make, unchanged):
    body = f"{CLIP}  m = Mul(x, c)  h = Div(m, six)  y = Add(h, c)"
    after, _ = unchanged(make(HEADER, body, **NUMBERS), canonicalize, recognize_activations)
    assert kinds(after) == ["Add", "Clip", "HardSwish", "Add"]
