"""recognize_norms: Layer-, RMS-, Instance- and GroupNorm in the spellings of exporters, and what only looks so."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcompiler.graph.io import load_graph
from qcompiler.graph.model import attribute
from qcompiler.passes import canonicalize, recognize_norms
from tests.strategies import seeds

HEADER = "float[2,6,8] x => float[2,6,8] y"
IMAGE = "float[2,8,4,6] x => float[2,8,4,6] y"
RNG = np.random.default_rng(3)
NUMBERS = {
    "last": np.array([-1]), "two": np.float32(2), "half": np.float32(0.5), "one": np.float32(1),
    "minus_half": np.float32(-0.5), "eps": np.float32(1e-5), "w": RNG.random(8, np.float32) + np.float32(0.5),
    "b": RNG.standard_normal(8, np.float32),
}  # fmt: skip
CENTRE = "m = ReduceMean(x, last)  d = Sub(x, m)"
VARIANCE = "q = Pow(d, two)  v = ReduceMean(q, last)  e = Add(v, eps)"
LAYER = [
    f"{CENTRE}  {VARIANCE}  s = Sqrt(e)  n = Div(d, s)  g = Mul(n, w)  y = Add(g, b)",
    f"{CENTRE}  q = Mul(d, d)  v = ReduceMean(q, last)  e = Add(eps, v)  s = Sqrt(e)  r = Reciprocal(s)  n = Mul(d, r)"
    "  g = Mul(w, n)  y = Add(b, g)",
    f"{CENTRE}  {VARIANCE}  r = Pow(e, minus_half)  n = Mul(r, d)  g = Mul(n, w)  y = Add(g, b)",
    f"{CENTRE}  {VARIANCE}  s = Pow(e, half)  n = Div(d, s)  g = Mul(n, w)  y = Add(g, b)",
    f"{CENTRE}  {VARIANCE}  s = Sqrt(e)  r = Div(one, s)  n = Mul(d, r)  g = Mul(n, w)  y = Add(g, b)",
    # d computed twice, as torch's TorchScript exporter does
    f"{CENTRE}  m2 = ReduceMean(x, last)  d2 = Sub(x, m2)  {VARIANCE}  s = Sqrt(e)  n = Div(d2, s)  g = Mul(n, w)"
    "  y = Add(g, b)",
    # TensorFlow
    f"{CENTRE}  {VARIANCE}  s = Sqrt(e)  r = Reciprocal(s)  k = Mul(r, w)  p = Mul(x, k)  t = Mul(m, k)  u = Sub(b, t)"
    "  y = Add(p, u)",
]
RMS = [
    "q = Mul(x, x)  v = ReduceMean(q, last)  e = Add(v, eps)  s = Sqrt(e)  r = Reciprocal(s)  n = Mul(x, r)"
    "  y = Mul(n, w)",
    "q = Pow(x, two)  v = ReduceMean(q, last)  e = Add(v, eps)  s = Sqrt(e)  n = Div(x, s)  y = Mul(w, n)",
    "q = Pow(x, two)  v = ReduceMean(q, last)  e = Add(v, eps)  r = Pow(e, minus_half)  k = Mul(r, w)  y = Mul(x, k)",
]


def kinds(graph):
    return [node.op_type for node in graph.nodes()]


@pytest.mark.parametrize("body", LAYER)
def test_every_spelling_of_layer_norm(make, unchanged, body):
    after, _ = unchanged(make(HEADER, body, **NUMBERS), canonicalize, recognize_norms)
    (node,) = after.nodes()
    assert (node.op_type, node.domain, attribute(node, "axis")) == ("LayerNormalization", "", -1)
    assert attribute(node, "epsilon") == np.float32(1e-5)
    np.testing.assert_array_equal(after.const(node.inputs[1]), NUMBERS["w"])
    np.testing.assert_array_equal(after.const(node.inputs[2]), NUMBERS["b"])


@pytest.mark.parametrize("body", RMS)
def test_every_spelling_of_rms_norm(make, unchanged, body):
    after, _ = unchanged(make(HEADER, body, **NUMBERS), canonicalize, recognize_norms)
    (node,) = after.nodes()
    assert (node.op_type, node.domain, attribute(node, "axis")) == ("RMSNormalization", "qcompiler", -1)
    np.testing.assert_array_equal(after.const(node.inputs[1]), NUMBERS["w"])
    again = load_graph(after.to_proto())  # the body travels with the file
    assert again.fingerprint() == after.fingerprint()


@pytest.mark.parametrize(
    ("body", "last", "free"),
    [
        (LAYER[0].partition("  g")[0].replace("n = ", "y = "), [-1], None),
        (LAYER[0], [1, 2], (6, 8)),
        (LAYER[0], [1], None),
    ],
)
def test_other_axes_and_no_parameters(make, unchanged, body, last, free):
    numbers = {**NUMBERS, "last": np.array(last)}
    if free:
        numbers |= {"w": RNG.random(free, np.float32), "b": RNG.standard_normal(free).astype("f")}
    elif last == [1]:
        numbers |= {"w": RNG.random((6, 1), np.float32), "b": RNG.standard_normal((6, 1)).astype("f")}
    after, _ = unchanged(make(HEADER, body, **numbers), canonicalize, recognize_norms)
    (node,) = after.nodes("LayerNormalization")
    assert attribute(node, "axis") == -len(last)
    assert kinds(after) == (["Transpose", "LayerNormalization", "Transpose"] if last == [1] else ["LayerNormalization"])


def test_instance_norm_of_an_image(make, unchanged):
    numbers = {
        **NUMBERS,
        "last": np.array([2, 3]),
        "w": RNG.random((8, 1, 1), np.float32),
        "b": np.ones((8, 1, 1), "f"),
    }
    after, _ = unchanged(make(IMAGE, LAYER[0], **numbers), canonicalize, recognize_norms)
    assert kinds(after) == ["InstanceNormalization"]
    lines = {**numbers, "last": np.array([2]), "w": RNG.random((6, 1), np.float32), "b": np.ones((6, 1), "f")}
    after, _ = unchanged(make(HEADER, LAYER[0], **lines), canonicalize, recognize_norms)
    assert kinds(after) == ["InstanceNormalization"]


GROUPS = {
    "split": np.array([2, 4, -1]), "whole": np.array([2, 8, 4, 6]), "deep": np.array([2, 4, 2, 4, 6]),
    "s4": np.ones(4, "f"), "z4": np.zeros(4, "f"), "h4": RNG.random(4, np.float32),
    "w": RNG.random((8, 1, 1), np.float32), "b": RNG.standard_normal((8, 1, 1)).astype("f"),
}  # fmt: skip
INSTANCE = "g = Reshape(x, split)  i = InstanceNormalization<epsilon = 0.001>(g, s4, z4)  n = Reshape(i, whole)"


@pytest.mark.parametrize(
    ("body", "last"),
    [
        (f"{INSTANCE}  k = Mul(n, w)  y = Add(k, b)", None),
        (INSTANCE.replace("z4", "h4").replace("s4", "h4") + "  k = Mul(w, n)  y = Add(k, b)", None),
        (INSTANCE.replace("  n = ", "  y = "), None),
        (f"{INSTANCE}  k = Mul(n, w)  y = Relu(k)", None),
        (LAYER[0].replace("(x", "(r").replace("n = Div(d, s)", "i = Div(d, s)  n = Reshape(i, whole)"), [2]),
        (LAYER[0].replace("(x", "(r").replace("n = Div(d, s)", "i = Div(d, s)  n = Reshape(i, whole)"), [2, 3, 4]),
    ],
)
def test_every_spelling_of_group_norm(make, unchanged, body, last):
    numbers = {**NUMBERS, **GROUPS}
    if last:
        numbers["last"] = np.array(last)
        body = f"r = Reshape(x, {'deep' if len(last) > 1 else 'split'})  {body}"
    after, _ = unchanged(make(IMAGE, body, **numbers), canonicalize, recognize_norms)
    assert [kind for kind in kinds(after) if kind != "Relu"] == ["GroupNormalization"]
    node = after.nodes("GroupNormalization")[0]
    assert attribute(node, "num_groups") == 4 and all(after.shape(v) == (8,) for v in node.inputs[1:])


@pytest.mark.parametrize(
    "change",
    [
        ("ReduceMean(q, last)", "ReduceMean(q, other)"),  # another axis below the root
        ("e = Add(v, eps)", "e = Add(v, one)"),  # no epsilon
        ("s = Sqrt(e)", "s = Pow(e, two)"),
        ("q = Pow(d, two)", "q = Pow(d, four)"),
        ("n = Div(d, s)", "n = Div(x, s)"),
        ("y = Add(g, b)", "y = Add(g, v)"),  # the variance is read by others
        ("y = Add(g, b)", "y = Add(g, d)"),
    ],
)
def test_lookalikes_stay(make, unchanged, change):
    numbers = {**NUMBERS, "other": np.array([1]), "four": np.float32(4)}
    assert change[0] in LAYER[0]
    graph = make(HEADER, LAYER[0].replace(*change), **numbers)
    after, _ = unchanged(graph, canonicalize, recognize_norms)
    found = set(kinds(after)) & {"LayerNormalization", "InstanceNormalization", "RMSNormalization"}
    # d normalized without its mean, over the other axis, is an RMSNormalization of d.
    assert found == ({"RMSNormalization"} if "other" in change[1] else set())


def test_constants_that_are_no_parameters_stay_outside(make, unchanged):
    numbers = {**NUMBERS, "w": RNG.random((2, 1, 1), np.float32)}  # a number for each sample
    after, _ = unchanged(make(HEADER, LAYER[0], **numbers), canonicalize, recognize_norms)
    assert kinds(after) == ["LayerNormalization", "Mul", "Add"]
    # A reader of the normalized value keeps the factor outside.
    body = LAYER[0].replace("y = Add(g, b)", "h = Add(g, b)  y = Add(h, n)")
    after, _ = unchanged(make(HEADER, body, **NUMBERS), canonicalize, recognize_norms)
    assert kinds(after) == ["LayerNormalization", "Mul", "Add", "Add"]


@pytest.mark.parametrize("split", [[2, 4, 48], [4, 4, -1], [1, 16, -1]])
def test_groups_that_mix_samples_are_not_group_norm(make, unchanged, split):
    numbers = {**GROUPS, "split": np.array(split)}
    if split[1] != 4:
        numbers |= {"s4": np.ones(16, "f"), "z4": np.zeros(16, "f")}
    after, _ = unchanged(make(IMAGE, INSTANCE.replace("  n = ", "  y = "), **numbers), canonicalize, recognize_norms)
    assert ("GroupNormalization" in kinds(after)) == (split[0] == 2)


def test_the_operator_of_onnx_23_becomes_ours(make, unchanged):
    graph = make(
        HEADER, "y = RMSNormalization<axis = 1, epsilon = 0.001>(x, k)", opset=23, k=RNG.random((6, 8), np.float32)
    )
    after, _ = unchanged(graph, recognize_norms)
    (node,) = after.nodes()
    assert (node.domain, attribute(node, "axis")) == ("qcompiler", -2)


@given(seed=seeds, dim=st.integers(1, 9), scale=st.floats(1e-3, 1e3))
def test_values_stay_over_sizes_and_scales(make, unchanged, seed, dim, scale):
    rng = np.random.default_rng(seed)
    numbers = {
        **NUMBERS,
        "w": rng.random(dim, np.float32) * np.float32(scale),
        "b": rng.standard_normal(dim, np.float32),
    }
    header = f"float[3,{dim}] x => float[3,{dim}] y"
    after, _ = unchanged(make(header, RMS[0], **numbers), canonicalize, recognize_norms, seed=seed % 1000)
    assert kinds(after) == ["RMSNormalization"]
