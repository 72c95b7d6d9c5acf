"""recognize_functions: spellings of Gelu, Mish, SiLU and the like; lookalikes and shared values stay."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcompiler.graph.io import load_graph
from qcompiler.passes import canonicalize, eliminate_dead_code, recognize_functions

HEADER = "float[2,3,5] x => float[2,3,5] y"
NUMBERS = {
    "one": np.float32(1), "half": np.float32(0.5), "root2": np.float32(2**0.5), "three": np.float32(3),
    "inverse": np.float32(2**-0.5), "little": np.float32(0.044715), "outer": np.float32((2 / np.pi) ** 0.5),
    "two": np.float32(2), "minus": np.float32(-1), "quick": np.float32(1.702),
}  # fmt: skip
ERF = "d = Div(x, root2)  e = Erf(d)  p = Add(e, one)"
CUBE = "c = Pow(x, three)  l = Mul(c, little)"
TANH = "s = Add(x, l)  o = Mul(s, outer)  t = Tanh(o)  p = Add(t, one)"
SPELLINGS = {
    "Gelu none": [
        f"{ERF}  h = Mul(p, half)  y = Mul(x, h)",
        f"{ERF}  m = Mul(x, p)  y = Mul(m, half)",
        f"{ERF}  m = Mul(half, x)  y = Mul(p, m)",
        f"{ERF}  m = Mul(x, p)  y = Div(m, two)",
        "d = Mul(x, inverse)  e = Erf(d)  g = Mul(e, half)  p = Add(g, half)  y = Mul(x, p)",
        "d = Mul(x, inverse)  e = Erf(d)  h = Mul(x, half)  m = Mul(h, e)  y = Add(h, m)",
    ],
    "Gelu tanh": [
        f"{CUBE}  {TANH}  h = Mul(x, half)  y = Mul(h, p)",
        f"q = Mul(x, x)  c = Mul(x, q)  l = Mul(c, little)  {TANH}  m = Mul(x, p)  y = Mul(m, half)",
        "q = Mul(x, x)  k = Mul(q, little)  f = Add(k, one)  g = Mul(x, f)  o = Mul(g, outer)  t = Tanh(o)"
        "  p = Add(t, one)  h = Mul(p, half)  y = Mul(x, h)",
        # 0.5 (1 + tanh(z)) is Sigmoid(2 z)
        f"{CUBE}  s = Add(x, l)  o = Mul(s, outer)  o2 = Mul(o, two)  t = Sigmoid(o2)  y = Mul(x, t)",
    ],
    "Mish": [
        "s = Softplus(x)  t = Tanh(s)  y = Mul(x, t)",
        "e = Exp(x)  p = Add(e, one)  s = Log(p)  t = Tanh(s)  y = Mul(t, x)",
    ],
    "Swish": [
        "s = Sigmoid(x)  y = Mul(x, s)",
        "s = Sigmoid(x)  y = Mul(s, x)",
        "n = Neg(x)  e = Exp(n)  p = Add(e, one)  y = Div(x, p)",
    ],
    "QuickGelu": [
        "k = Mul(x, quick)  s = Sigmoid(k)  y = Mul(x, s)",
        "k = Mul(quick, x)  n = Neg(k)  e = Exp(n)  p = Add(e, one)  y = Div(x, p)",
    ],
    "Sigmoid": ["n = Mul(x, minus)  e = Exp(n)  p = Add(one, e)  y = Reciprocal(p)"],
    "Softplus": ["e = Exp(x)  p = Add(e, one)  y = Log(p)"],
}


@pytest.mark.parametrize(("what", "body"), [(what, body) for what, all_of in SPELLINGS.items() for body in all_of])
def test_every_spelling(make, unchanged, what, body):
    after, _ = unchanged(make(HEADER, body, **NUMBERS), canonicalize, recognize_functions)
    (node,) = after.nodes()
    name, *approximate = what.split()
    assert node.op_type == name
    assert [node.attributes["approximate"].value] == approximate if name == "Gelu" else not node.attributes


@pytest.mark.parametrize(
    ("body", "count"),
    [
        (f"{ERF}  y = Mul(x, p)", 4),  # twice a Gelu
        (f"{ERF}  h = Mul(p, half)  n = Neg(x)  y = Mul(n, h)", 6),
        ("d = Mul(x, half)  e = Erf(d)  p = Add(e, one)  h = Mul(p, half)  y = Mul(x, h)", 5),
        (f"c = Pow(x, two)  l = Mul(c, little)  {TANH}  h = Mul(x, half)  y = Mul(h, p)", 8),
        ("n = Neg(x)  s = Sigmoid(n)  y = Mul(x, s)", 3),
        ("k = Mul(x, two)  s = Sigmoid(k)  y = Mul(x, s)", 3),
        ("y = Mul(x, x)", 1),
    ],
)
def test_lookalikes_stay(make, unchanged, body, count):
    after, _ = unchanged(make(HEADER, body, **NUMBERS), canonicalize, recognize_functions)
    assert len(after.nodes()) == count
    assert not {node.op_type for node in after.nodes()} & {"Gelu", "Mish", "Swish"}


@pytest.mark.parametrize(
    "body",
    [
        f"{ERF}  h = Mul(p, half)  m = Mul(x, h)  y = Add(m, e)",
        "s = Sigmoid(x)  m = Mul(x, s)  y = Add(m, s)",
    ],
)
def test_a_value_in_the_middle_that_others_read_refuses(make, unchanged, body):
    graph = make(HEADER, body, **NUMBERS)
    after, _ = unchanged(graph, canonicalize, recognize_functions)
    assert not {node.op_type for node in after.nodes()} & {"Gelu", "Swish"}


def test_a_value_in_the_middle_that_is_an_output_refuses(make, unchanged):
    graph = make("float[2,3] x => float[2,3] y, float[2,3] s", "s = Sigmoid(x)  y = Mul(x, s)")
    after, _ = unchanged(graph, recognize_functions)
    assert [node.op_type for node in after.nodes()] == ["Sigmoid", "Mul"]


def test_two_inputs_or_a_constant_for_each_channel_are_no_function_of_one_number(make, unchanged):
    for inputs, other in (("float[2,3] x, float[2,3] z", {}), ("float[2,3] x", {"z": np.array([0.5, 1, 2], "f")})):
        graph = make(f"{inputs} => float[2,3] y", "s = Sigmoid(z)  t = Mul(x, z)  y = Mul(t, s)", **other)
        after, _ = unchanged(graph, canonicalize, recognize_functions)
        assert "Swish" not in {node.op_type for node in after.nodes()}


@given(scale=st.sampled_from([0.5, 0.25, 1.5, 3.0]), shift=st.sampled_from([0.5, -1.0, 2.0]))
def test_scaled_and_shifted_neighbours_are_left_alone(make, unchanged, scale, shift):
    numbers = {**NUMBERS, "k": np.float32(scale), "b": np.float32(shift)}
    body = f"v = Mul(x, k)  w = Add(v, b)  {ERF.replace('x', 'w')}  m = Mul(w, p)  h = Mul(m, half)  y = Mul(h, k)"
    after, _ = unchanged(make(HEADER, body, **numbers), canonicalize, recognize_functions)
    assert [node.op_type for node in after.nodes()] == ["Mul", "Add", "Gelu", "Mul"]


def test_swish_is_ours_and_runs_by_its_function_body(make, unchanged):
    graph = make("float[2,3] x => float[2,3] y", "s = Sigmoid(x)  h = Mul(s, x)  t = Sigmoid(h)  y = Mul(h, t)")
    after, _ = unchanged(graph, recognize_functions, eliminate_dead_code)
    assert [(node.domain, node.op_type) for node in after.nodes()] == [("qcompiler", "Swish")] * 2
    assert len(after.model.functions) == 1
    again = load_graph(after.to_proto())
    assert again.fingerprint() == after.fingerprint() and len(again.model.functions) == 1
