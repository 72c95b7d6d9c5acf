"""cancel_transposes: NHWC exports become NCHW graphs with the same outputs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcompiler.passes import cancel_transposes, canonicalize

RNG = np.random.default_rng(0)
IN, OUT = "Transpose<perm = [0, 3, 1, 2]>", "Transpose<perm = [0, 2, 3, 1]>"


def weight(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def kinds(graph):
    return [node.op_type for node in graph.nodes()]


@given(first=st.permutations(range(4)), second=st.permutations(range(4)))
def test_two_in_a_row_are_one_or_none(make, unchanged, first, second):
    body = f"h = Transpose<perm = {first}>(x)  y = Transpose<perm = {second}>(h)"
    after, _ = unchanged(make("float[2,3,4,5] x => float[a,b,c,d] y", body), cancel_transposes)
    both = [first[p] for p in second]
    assert kinds(after) == (["Identity"] if both == sorted(both) else ["Transpose"])


def test_a_residual_nhwc_network_keeps_one_at_each_end(make, unchanged):
    body = f"""a = {IN}(x)  b = Conv<pads = [1, 1, 1, 1]>(a, w1)  c = {OUT}(b)  d = Add(c, bias)  e = Clip(d, zero, six)
    f = {IN}(e)  g = Conv<pads = [1, 1, 1, 1]>(f, w2)  h = {OUT}(g)  i = Add(h, e)  j = Mul(i, scale)
    k = Concat<axis = -1>(j, e)  l = Pad(k, pads)  m = Slice(l, starts, ends, axes)  n = LeakyRelu(m)
    o = {IN}(n)  p = Conv(o, w3)  q = {OUT}(p)  y = Softmax(q)"""
    constants = {
        "w1": weight(4, 3, 3, 3), "bias": weight(4), "zero": np.float32(0), "six": np.float32(6),
        "w2": weight(4, 4, 3, 3), "scale": weight(1, 1, 1, 4), "pads": np.array([0, 1, 2, 0, 0, 0, 1, 0]),
        "starts": np.array([0, 1]), "ends": np.array([5, 7]), "axes": np.array([1, -2]), "w3": weight(2, 8, 1, 1),
    }  # fmt: skip
    after, context = unchanged(make("float[2,5,6,3] x => float[a,b,c,d] y", body, **constants), cancel_transposes)
    assert len(after.nodes("Transpose")) == 2 and context.notes
    assert [kinds(after)[0], kinds(after)[-1]] == ["Transpose", "Transpose"]


@pytest.mark.parametrize("keep", [0, 1])
def test_reductions_are_renumbered(make, unchanged, keep):
    body = f"""a = {IN}(x)  b = Conv(a, w)  c = {OUT}(b)  d = ReduceMean<keepdims = {keep}>(c, axes)  y = Relu(d)"""
    constants = {"w": weight(4, 3, 1, 1), "axes": np.array([1, 2])}
    header = f"float[2,5,6,3] x => float[{'2,1,1,4' if keep else '2,4'}] y"
    after, _ = unchanged(make(header, body, **constants), cancel_transposes)
    assert len(after.nodes("Transpose")) == 1  # the one at the input; [2,4,1,1] to [2,1,1,4] is a Reshape


def test_split_has_every_output_turned_back(make, unchanged):
    body = f"""a = {IN}(x)  b = Conv(a, w)  c = {OUT}(b)  d, e = Split<axis = 3, num_outputs = 2>(c)  f = Mul(d, e)
    g = {IN}(f)  y = Conv(g, v)"""
    constants = {"w": weight(4, 3, 1, 1), "v": weight(3, 2, 1, 1)}
    after, _ = unchanged(make("float[2,5,6,3] x => float[2,3,5,6] y", body, **constants), cancel_transposes)
    assert len(after.nodes("Transpose")) == 1


@pytest.mark.parametrize("flatten", ["Flatten(c)", "Reshape(c, s)"])
def test_before_a_dense_layer_the_weight_is_permuted(make, unchanged, flatten):
    body = f"a = {IN}(x)  b = Conv(a, w)  c = {OUT}(b)  d = {flatten}  y = Gemm(d, v)"
    constants = {"w": weight(4, 3, 1, 1), "v": weight(120, 7), "s": np.array([2, -1])}
    graph = make("float[2,5,6,3] x => float[2,7] y", body, **constants)
    assert len(unchanged(graph, canonicalize, cancel_transposes)[0].nodes("Transpose")) == 1


def test_moving_axes_of_size_one_is_a_reshape(make, unchanged):
    after, _ = unchanged(make("float[2,5,6,1] x => float[2,1,5,6] y", f"y = {IN}(x)"), cancel_transposes)
    assert kinds(after) == ["Reshape"]


def test_a_channel_shuffle_and_mixed_layouts_stay(make, unchanged):
    body = "a = Reshape(x, s)  b = Transpose<perm = [0, 2, 1, 3, 4]>(a)  y = Reshape(b, t)"
    shuffle = make("float[1,6,4,4] x => float[1,6,4,4] y", body, s=np.array([1, 2, 3, 4, 4]), t=np.array([1, 6, 4, 4]))
    assert kinds(unchanged(shuffle, cancel_transposes)[0]) == ["Reshape", "Transpose", "Reshape"]
    mixed = make("float[2,3,3,3] x => float[2,3,3,3] y", f"a = {IN}(x)  y = Add(a, x)")
    assert kinds(unchanged(mixed, cancel_transposes)[0]) == ["Transpose", "Add"]
