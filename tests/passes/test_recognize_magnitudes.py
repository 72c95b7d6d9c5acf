"""recognize_magnitudes: roots of sums of squares become ReduceL2; lookalikes and shared values stay."""

from __future__ import annotations

import numpy as np
import pytest

from qcompiler.passes import recognize_magnitudes

HEADER = "float[2,3,4] a, float[2,3,4] b => float[2,3,4] y"
NUMBERS = {"two": np.float32(2), "half": np.float32(0.5), "three": np.float32(3)}


def kinds(graph):
    return [node.op_type for node in graph.nodes()]


@pytest.mark.parametrize(
    ("body", "terms"),
    [
        ("p = Pow(a, two)  q = Pow(b, two)  s = Add(p, q)  y = Sqrt(s)", 2),
        ("p = Mul(a, a)  q = Pow(b, two)  s = Add(q, p)  y = Pow(s, half)", 2),
        ("n = Neg(a)  p = Mul(a, a)  q = Mul(b, b)  r = Mul(n, n)  s = Add(p, q)  t = Add(s, r)  y = Sqrt(t)", 3),
    ],
)
def test_every_spelling_becomes_a_length(make, unchanged, body, terms):
    after, _ = unchanged(make(HEADER, body, **NUMBERS), recognize_magnitudes)
    assert [kind for kind in kinds(after) if kind != "Neg"] == ["Unsqueeze"] * terms + ["Concat", "ReduceL2"]


@pytest.mark.parametrize(
    "body",
    [
        "p = Pow(a, two)  q = Pow(b, three)  m = Abs(q)  s = Add(p, m)  y = Sqrt(s)",
        "p = Mul(a, b)  m = Abs(p)  q = Pow(b, two)  s = Add(m, q)  y = Sqrt(s)",
        "p = Pow(a, two)  q = Pow(b, two)  s = Add(p, q)  y = Pow(s, three)",
        "p = Pow(a, two)  y = Sqrt(p)",
        "p = Pow(a, two)  q = Pow(b, two)  s = Add(p, q)  r = Sqrt(s)  y = Add(r, s)",
    ],
)
def test_others_stay(make, unchanged, body):
    before = make(HEADER, body, **NUMBERS)
    after, _ = unchanged(before, recognize_magnitudes)
    assert kinds(after) == kinds(before)
