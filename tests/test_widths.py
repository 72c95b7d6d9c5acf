"""Values that get 16 bits by the operators around them."""

from __future__ import annotations

import numpy as np

from qcompiler.graph.state import bind_state
from qcompiler.widths import direct_values, wide_values
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


STATE = {"one": np.float32(1), "w": np.eye(4, dtype=np.float32), "v": np.eye(4, dtype=np.float32)}


def bound(body: str, header: str = "float[1,4] x, float[1,4] h => float[1,4] y, float[1,4] h_new"):
    return bind_state(float_graph(header, body, **STATE), {"h_new": "h"})


def test_a_state_that_is_computed_is_wide_and_read_as_it_is():
    graph = bound("p = MatMul(h, w)  u = MatMul(x, v)  s = Add(p, u)  h_new = Tanh(s)  z = Relu(s)  y = Relu(z)")
    assert set(wide_values(graph)) == direct_values(graph) == {"h", "p", "u", "s", "h_new"}


def test_a_state_that_is_moved_on_stays():
    graph = bound("p = MatMul(h, w)  y = Relu(p)  h_new = Identity(h)")
    assert not wide_values(graph)


def test_a_state_that_is_replaced_stays():
    graph = bound("p = MatMul(h, w)  y = Relu(p)  h_new = Relu(x)")
    assert not wide_values(graph)


def test_a_length_and_what_it_measures():
    body = "c = MatMul(x, w)  l = ReduceL2<keepdims = 1>(c)  y = Relu(l)"
    graph = float_graph("float[1,4] x => float[1,1] y", body, w=np.eye(4, dtype=np.float32))
    assert set(wide_values(graph)) == direct_values(graph) == {"x", "c", "l"}
