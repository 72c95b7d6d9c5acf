"""fold_batchnorm: BatchNormalization disappears, outputs stay."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcompiler.passes import canonicalize, fold_batchnorm

RNG = np.random.default_rng(0)
NORM = "BatchNormalization<epsilon = 0.01>({}, gamma, beta, mean, var)"


def norm(channels: int, shift: bool = True) -> dict[str, np.ndarray]:
    array = {k: RNG.standard_normal(channels).astype(np.float32) for k in ("gamma", "beta", "mean")}
    array["var"] = RNG.uniform(0.1, 4, channels).astype(np.float32)
    return array if shift else array | {"beta": np.zeros_like(array["beta"]), "mean": np.zeros_like(array["mean"])}


def weight(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def kinds(graph):
    return [node.op_type for node in graph.nodes()]


@given(
    op=st.sampled_from(["Conv", "ConvTranspose"]),
    groups=st.sampled_from([1, 2, 4]),
    biased=st.booleans(),
    rank=st.sampled_from([1, 2]),
)
def test_forwards_into_convolutions(make, unchanged, op, groups, biased, rank):
    m = 8
    w = weight(m, 4 // groups, *[3] * rank) if op == "Conv" else weight(4, m // groups, *[3] * rank)
    constants = {"w": w, **({"b": weight(m)} if biased else {}), **norm(m)}
    body = f"h = {op}<group = {groups}>(x, w{', b' if biased else ''})  y = {NORM.format('h')}"
    header = f"float[2,4{',5' * rank}] x => float[{'a,b,c,d'[: 3 + 2 * rank]}] y"
    after, _ = unchanged(make(header, body, **constants), fold_batchnorm)
    assert kinds(after) == [op]


def test_forwards_into_gemm_and_matmul(make, unchanged):
    body = f"h = Gemm<transB = 1>(x, w)  n = {NORM.format('h')}  r = Relu(n)  m = MatMul(r, v)  y = Mul(m, c)"
    constants = {"w": weight(4, 3), "v": weight(4, 2), "c": weight(2), **norm(4)}
    after, _ = unchanged(make("float[2,3] x => float[2,2] y", body, **constants), canonicalize, fold_batchnorm)
    assert kinds(after) == ["Gemm", "Relu", "Gemm"]


@given(groups=st.sampled_from([1, 2, 4]), stride=st.integers(1, 2))
def test_backwards_into_convolutions(make, unchanged, groups, stride):
    body = f"n = {NORM.format('x')}  y = Conv<group = {groups}, strides = [{stride}, {stride}]>(n, w, b)"
    constants = {"w": weight(8, 4 // groups, 3, 3), "b": weight(8), **norm(4)}
    after, _ = unchanged(make("float[2,4,6,6] x => float[a,b,c,d] y", body, **constants), fold_batchnorm)
    assert kinds(after) == ["Conv"]


@pytest.mark.parametrize("shift", [False, True])
def test_zero_padding_forbids_backwards_unless_nothing_is_shifted(make, unchanged, shift):
    body = f"n = {NORM.format('x')}  y = Conv<pads = [1, 1, 1, 1]>(n, w)"
    constants = {"w": weight(8, 4, 3, 3), **norm(4, shift)}
    after, context = unchanged(make("float[2,4,6,6] x => float[a,b,c,d] y", body, **constants), fold_batchnorm)
    assert kinds(after) == (["Conv", "Conv"] if shift else ["Conv"])
    assert bool(context.notes) == shift


def test_alone_it_is_a_depthwise_convolution_or_mul_and_add(make, unchanged):
    after, _ = unchanged(make("float[2,4,6] x => float[2,4,6] y", f"y = {NORM.format('x')}", **norm(4)), fold_batchnorm)
    assert kinds(after) == ["Conv"]
    after, _ = unchanged(make("float[2,4] x => float[2,4] y", f"y = {NORM.format('x')}", **norm(4)), fold_batchnorm)
    assert kinds(after) == ["Mul", "Add"]


def test_a_run_of_scales_and_shifts_is_one(make, unchanged):
    body = f"a = Mul(x, c)  d = Add(a, e)  n = {NORM.format('d')}  s = Mul(n, k)  y = Relu(s)"
    constants = {"c": weight(4, 1, 1), "e": weight(1, 4, 1, 1), "k": np.float32(0.3), **norm(4)}
    graph = make("float[2,4,6,6] x => float[2,4,6,6] y", body, **constants)
    assert kinds(unchanged(graph, fold_batchnorm)[0]) == ["Conv", "Relu"]


def test_scalars_alone_and_other_constants_stay(make, unchanged):
    for c in (np.float32(3), weight(1, 1, 1, 6), weight(2, 1, 1, 1)):
        graph = make("float[2,4,6,6] x => float[2,4,6,6] y", "y = Mul(x, c)", c=c)
        assert kinds(unchanged(graph, fold_batchnorm)[0]) == ["Mul"]


def test_a_product_read_twice_or_that_is_an_output_keeps_its_value(make, unchanged):
    constants = {"w": weight(4, 4, 1, 1), **norm(4)}
    body = f"h = Conv(x, w)  n = {NORM.format('h')}  y = Add(n, h)"
    after, _ = unchanged(make("float[2,4,6,6] x => float[2,4,6,6] y", body, **constants), fold_batchnorm)
    assert kinds(after) == ["Conv", "Conv", "Add"]
    header = "float[2,4,6,6] x => float[2,4,6,6] h, float[2,4,6,6] y"
    after, _ = unchanged(make(header, f"h = Conv(x, w)  y = {NORM.format('h')}", **constants), fold_batchnorm)
    assert kinds(after) == ["Conv", "Conv"]


def test_a_weight_shared_with_another_node_is_copied(make, unchanged):
    body = f"h = Conv(x, w)  n = {NORM.format('h')}  k = Conv(x, w)  y = Add(n, k)"
    graph = make("float[2,4,6,6] x => float[2,4,6,6] y", body, w=weight(4, 4, 1, 1), **norm(4))
    assert kinds(unchanged(graph, fold_batchnorm)[0]) == ["Conv", "Conv", "Add"]
