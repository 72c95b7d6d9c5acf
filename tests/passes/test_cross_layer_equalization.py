"""cross_layer_equalization: equal ranges, the same function; ReLU6 is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcompiler.passes import cross_layer_equalization

HEADER = "float[1,4,8,8] x => float[a,b,c,d] y"


def weight(*shape: int, seed: int = 0) -> np.ndarray:
    """Channels (first axis) spread over three decades."""
    rng = np.random.default_rng(seed)
    spread = 10 ** rng.uniform(-1.5, 1.5, (shape[0], *[1] * (len(shape) - 1)))
    return (rng.standard_normal(shape) * spread).astype(np.float32)


def outputs(w, groups=1):
    return np.abs(w).reshape(len(w), -1).max(axis=1)


def inputs(w, groups=1):
    split = np.abs(w).reshape(groups, len(w) // groups, w.shape[1], -1)
    return split.max(axis=(1, 3)).reshape(-1)


@given(groups=st.sampled_from([1, 2, 8]), act=st.sampled_from(["Relu", "LeakyRelu", "PRelu"]), seed=st.integers(0, 99))
def test_ranges_on_both_sides_become_equal(make, unchanged, groups, act, seed):
    constants = {"w": weight(8, 4, 3, 3, seed=seed), "b": weight(8, seed=seed), "v": weight(16, 8 // groups, 1, 1)}
    slope = {"s": np.float32(np.linspace(0.1, 1, 8)).reshape(8, 1, 1)} if act == "PRelu" else {}
    body = f"h = Conv(x, w, b)  r = {act}(h{', s' if slope else ''})  y = Conv<group = {groups}>(r, v)"
    after, context = unchanged(make(HEADER, body, **constants, **slope), cross_layer_equalization)
    first, second = (after.const(node.inputs[1]) for node in after.nodes("Conv"))
    np.testing.assert_allclose(outputs(first), inputs(second, groups), rtol=1e-3)
    assert context.facts["cross_layer_equalization"]["pairs"] == 1


def test_a_depthwise_layer_between_two_others_converges(make, unchanged):
    constants = {"w": weight(8, 4, 1, 1), "d": weight(8, 1, 3, 3, seed=1), "v": weight(5, 8, 1, 1, seed=2)}
    body = "h = Conv(x, w)  r = Relu(h)  k = Conv<group = 8>(r, d)  s = Relu(k)  y = Conv(s, v)"
    after, context = unchanged(make(HEADER, body, **constants), cross_layer_equalization)
    a, b, c = (after.const(node.inputs[1]) for node in after.nodes("Conv"))
    np.testing.assert_allclose(outputs(a), inputs(b, 8), rtol=5e-3)
    np.testing.assert_allclose(outputs(b), inputs(c), rtol=5e-3)
    assert context.facts["cross_layer_equalization"]["last_factor"] <= 1.001


def test_transposed_convolution_pool_and_dense_layer_are_a_chain(make, unchanged):
    constants = {"w": weight(4, 3, 3, 3), "b": weight(6), "v": weight(6, 10, seed=1)}
    body = """h = ConvTranspose<group = 2>(x, w, b)  r = Relu(h)  m = MaxPool<kernel_shape = [2, 2]>(r)
    p = GlobalAveragePool(m)  f = Flatten(p)  y = Gemm(f, v)"""
    after, context = unchanged(make("float[1,4,8,8] x => float[1,10] y", body, **constants), cross_layer_equalization)
    assert context.facts["cross_layer_equalization"]["pairs"] == 1
    first = np.abs(after.const(after.nodes("ConvTranspose")[0].inputs[1]))  # [C, M/2, 3, 3], two groups of C
    second = np.abs(after.const(after.nodes("Gemm")[0].inputs[1]))
    np.testing.assert_allclose(first.reshape(2, 2, 3, 9).max(axis=(1, 3)).reshape(-1), second.max(axis=1), rtol=1e-3)


def test_dead_channels_are_left_alone(make, unchanged):
    w, v = weight(8, 4, 1, 1), weight(5, 8, 1, 1)
    w[2], v[:, 3] = 0, 0
    after, _ = unchanged(
        make(HEADER, "h = Conv(x, w)  r = Relu(h)  y = Conv(r, v)", w=w, v=v), cross_layer_equalization
    )
    first, second = (after.const(node.inputs[1]) for node in after.nodes("Conv"))
    np.testing.assert_array_equal(first[3], w[3])
    np.testing.assert_array_equal(second[:, 2], v[:, 2])


@pytest.mark.parametrize(
    "between",
    ["r = Clip(h, zero, six)", "r = Sigmoid(h)", "q = Relu(h)  r = Add(q, h)", "q = Flatten(h)  r = Reshape(q, s)"],
)
def test_what_is_not_homogeneous_or_has_other_readers_is_refused(make, unchanged, between):
    w, v = weight(8, 4, 1, 1), weight(5, 8, 1, 1)
    constants = {"zero": np.float32(0), "six": np.float32(6), "s": np.array([1, 8, 8, 8])}
    graph = make(HEADER, f"h = Conv(x, w)  {between}  y = Conv(r, v)", w=w, v=v, **constants)
    after, context = unchanged(graph, cross_layer_equalization)
    assert context.facts["cross_layer_equalization"]["pairs"] == 0
    np.testing.assert_array_equal(after.const(after.nodes("Conv")[0].inputs[1]), w)
    assert bool(context.notes) == ("Clip" in between)


def test_the_source_is_not_written_into(make):
    graph = make(HEADER, "h = Conv(x, w)  y = Conv(h, v)", w=weight(8, 4, 1, 1), v=weight(5, 8, 1, 1))
    before = graph.fingerprint()
    from qcompiler.context import Context

    cross_layer_equalization.run(graph.clone(), cross_layer_equalization.Options(), Context())
    assert graph.fingerprint() == before
