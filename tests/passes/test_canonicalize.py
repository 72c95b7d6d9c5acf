"""canonicalize: each rule changes the spelling and never the outputs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from qcompiler.graph.model import attribute
from qcompiler.passes import canonicalize


def kinds(graph):
    return [node.op_type for node in graph.nodes()]


def test_what_does_nothing_goes(make, unchanged):
    body = """a = Identity(x)  b = Cast<to = 1>(a)  c = Dropout(b)  d = Transpose<perm = [0, 1]>(c)
    e = Reshape(d, s)  f = Mul(e, one)  h = Add(zero, f)  i = Concat<axis = 0>(h)  j = Relu(i)  y = Identity(j)"""
    constants = {"s": np.array([2, 3]), "one": np.float32(1), "zero": np.zeros((1, 3), np.float32)}
    after, _ = unchanged(make("float[2,3] x => float[2,3] y", body, **constants), canonicalize)
    assert kinds(after) == ["Relu"]


def test_an_output_that_is_an_input_keeps_its_node(make, unchanged):
    after, _ = unchanged(make("float[2,3] x => float[2,3] y", "y = Identity(x)"), canonicalize)
    assert kinds(after) == ["Identity"]


def test_a_broadcast_by_one_is_kept(make, unchanged):
    graph = make("float[1,3] x => float[2,3] y", "y = Mul(x, c)", c=np.ones((2, 3), np.float32))
    assert kinds(unchanged(graph, canonicalize)[0]) == ["Mul"]


def test_sum_sub_and_div(make, unchanged):
    body = "a = Sum(x, z, x)  b = Sub(a, c)  d = Div(b, e)  f = Sub(c, d)  y = Div(f, d)"
    constants = {"c": np.float32([1, 2, 3]), "e": np.float32(6)}
    after, _ = unchanged(make("float[2,3] x, float[2,3] z => float[2,3] y", body, **constants), canonicalize)
    assert kinds(after) == ["Add", "Add", "Add", "Mul", "Sub", "Div"]
    assert all(after.const(node.inputs[1]) is not None for node in after.nodes("Mul"))


@given(low=st.floats(-3, 3, width=16), high=st.floats(-3, 3, width=16), order=st.permutations(["Max", "Min"]))
def test_min_and_max_become_one_clip(make, unchanged, low, high, order):
    body = f"a = {order[0]}(x, p)  y = {order[1]}(q, a)"
    bounds = {"Max": low, "Min": high}
    constants = {"p": np.float32(bounds[order[0]]), "q": np.float32([bounds[order[1]]])}
    after, _ = unchanged(make("float[2,30] x => float[2,30] y", body, **constants), canonicalize)
    assert kinds(after) == ["Clip"] and all(after.shape(v) == () for v in after.nodes()[0].inputs[1:])


def test_relu_under_a_bound_and_clip_at_zero(make, unchanged):
    six = {"c": np.float32([6]), "z": np.float32(0)}
    after, _ = unchanged(make("float[2,9] x => float[2,9] y", "a = Relu(x)  y = Min(a, c)", **six), canonicalize)
    assert kinds(after) == ["Clip"]
    after, _ = unchanged(make("float[2,9] x => float[2,9] y", "y = Clip(x, z)", **six), canonicalize)
    assert kinds(after) == ["Relu"]


def test_a_bound_for_each_channel_is_refused(make, unchanged):
    graph = make("float[2,3] x => float[2,3] y", "y = Max(x, c)", c=np.float32([0, 1, 2]))
    assert kinds(unchanged(graph, canonicalize)[0]) == ["Max"]


@given(
    alpha=st.sampled_from([1.0, 0.5, -2.0]),
    beta=st.sampled_from([1.0, 0.0, 3.0]),
    trans=st.tuples(st.booleans(), st.booleans()),
    bias=st.sampled_from([(), (1,), (4,), (1, 4), (2, 4), (2, 1)]),
)
def test_gemm_has_one_form(make, unchanged, alpha, beta, trans, bias):
    rng = np.random.default_rng(0)
    w = rng.standard_normal((4, 3) if trans[1] else (3, 4)).astype(np.float32)
    header = f"float[{'3,2' if trans[0] else '2,3'}] x => float[2,4] y"
    flags = f"alpha = {alpha}, beta = {beta}, transA = {int(trans[0])}, transB = {int(trans[1])}"
    b = rng.standard_normal(bias).astype(np.float32)
    after, _ = unchanged(make(header, f"y = Gemm<{flags}>(x, w, b)", w=w, b=b), canonicalize)
    (gemm,) = after.nodes("Gemm")
    assert attribute(gemm, "alpha", 1.0) == 1 and not attribute(gemm, "transB", 0) and not attribute(gemm, "transA", 0)
    if len(bias) < 2 or bias[0] == 1:
        assert attribute(gemm, "beta", 1.0) == 1 and after.shape(gemm.inputs[2]) == (4,)


@pytest.mark.parametrize("shape", [(), (4,), (1, 4), None])
def test_matmul_becomes_gemm(make, unchanged, shape):
    rng = np.random.default_rng(0)
    w = rng.standard_normal((3, 4)).astype(np.float32)
    constants = {} if shape is None else {"b": rng.standard_normal(shape).astype(np.float32)}
    body = "y = MatMul(x, w)" if shape is None else "h = MatMul(x, w)  y = Add(b, h)"
    after, _ = unchanged(make("float[2,3] x => float[2,4] y", body, w=w, **constants), canonicalize)
    assert kinds(after) == ["Gemm"]


def test_matmul_of_higher_rank_or_with_a_bias_by_row_keeps_its_form(make, unchanged):
    rng = np.random.default_rng(0)
    w = rng.standard_normal((3, 4)).astype(np.float32)
    assert kinds(unchanged(make("float[1,2,3] x => float[1,2,4] y", "y = MatMul(x, w)", w=w), canonicalize)[0]) == [
        "MatMul"
    ]
    graph = make("float[2,3] x => float[2,4] y", "h = MatMul(x, w)  y = Add(h, b)", w=w, b=w[:2, :1])
    assert kinds(unchanged(graph, canonicalize)[0]) == ["Gemm", "Add"]


@given(
    size=st.integers(5, 9),
    kernel=st.integers(1, 4),
    stride=st.integers(1, 3),
    mode=st.sampled_from(["SAME_UPPER", "SAME_LOWER", "VALID"]),
    op=st.sampled_from(["Conv", "MaxPool", "AveragePool", "ConvTranspose"]),
)
def test_auto_pad_becomes_pads(make, unchanged, size, kernel, stride, mode, op):
    w = np.random.default_rng(0).standard_normal((2, 2, kernel, kernel)).astype(np.float32)
    weighted = op.startswith("Conv")
    assume(kernel >= stride or op == "Conv")  # else onnxruntime refuses, or pads negatively
    flags = f'kernel_shape = [{kernel}, {kernel}], strides = [{stride}, {stride}], auto_pad = "{mode}"'
    body = f"y = {op}<{flags}>({'x, w' if weighted else 'x'})"
    constants = {"w": w} if weighted else {}
    after, _ = unchanged(make(f"float[1,2,{size},{size}] x => float[a,b,c,d] y", body, **constants), canonicalize)
    (node,) = after.nodes(op)
    assert "auto_pad" not in node.attributes and len(attribute(node, "pads")) == 4


@pytest.mark.parametrize("extra", ["output_shape = [9, 10]", "output_padding = [1, 1], pads = [1, 0, 0, 1]"])
def test_output_shape_becomes_pads(make, unchanged, extra):
    w = np.random.default_rng(0).standard_normal((2, 3, 3, 3)).astype(np.float32)
    graph = make("float[1,2,5,5] x => float[a,b,c,d] y", f"y = ConvTranspose<strides = [2, 2], {extra}>(x, w)", w=w)
    (node,) = unchanged(graph, canonicalize)[0].nodes()
    assert "output_shape" not in node.attributes
