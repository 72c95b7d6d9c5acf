"""Values that get 16 bits by the operators around them."""

from __future__ import annotations

import numpy as np

from qcompiler.widths import wide_values
from tests.quantized import float_graph


def test_what_a_magnitude_is_made_of():
    body = (
        "c = Conv(x, w)  a = Slice(c, zero, one, axis)  b = Slice(c, one, two, axis)  p = Pow(a, square)  q = Mul(b, b)"
    )
    body += "  s = Add(p, q)  r = Sqrt(s)  y = Relu(r)"
    i = {name: np.array([value]) for name, value in (("zero", 0), ("one", 1), ("two", 2), ("axis", 1))}
    w = np.ones((2, 1, 3), np.float32)
    graph = float_graph("float[1,1,9] x => float[1,1,7] y", body, w=w, square=np.float32(2), **i)
    assert set(wide_values(graph)) == {"x", "c", "a", "b", "p", "q", "s"}


def test_other_roots_and_products_stay():
    graph = float_graph("float[1,4] x => float[1,4] y", "a = Mul(x, x)  y = Relu(a)")
    assert not wide_values(graph)
