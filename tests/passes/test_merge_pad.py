"""merge_pad: legal Pads disappear, others stay and are noted."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcompiler.passes import merge_pad

W = np.random.default_rng(0).standard_normal((4, 3, 3, 3)).astype(np.float32)
HEADER = "float[1,3,7,8] x => float[a,b,c,d] y"


def pads(*spatial: int) -> np.ndarray:
    return np.array([0, 0, *spatial[:2], 0, 0, *spatial[2:]])


@given(amounts=st.tuples(*[st.integers(0, 2)] * 4), own=st.tuples(*[st.integers(0, 2)] * 4), stride=st.integers(1, 2))
def test_zero_padding_goes_into_the_convolution(make, unchanged, amounts, own, stride):
    body = f"p = Pad(x, pads)  y = Conv<pads = {list(own)}, strides = [{stride}, {stride}]>(p, w)"
    after, _ = unchanged(make(HEADER, body, pads=pads(*amounts), w=W), merge_pad)
    assert [node.op_type for node in after.nodes()] == ["Conv"]


def test_named_axes_are_understood(make, unchanged):
    body = "p = Pad(x, pads, zero, axes)  y = Conv(p, w)"
    constants = {"pads": np.array([1, 2]), "zero": np.float32(0), "axes": np.array([-2]), "w": W}
    after, _ = unchanged(make(HEADER, body, **constants), merge_pad)
    assert [node.op_type for node in after.nodes()] == ["Conv"]


@pytest.mark.parametrize(
    ("flags", "amounts"), [("", (1, 2, 1, 2)), (", count_include_pad = 1, pads = [1, 1, 0, 0]", (0, 0, 1, 1))]
)
def test_average_pools_count_what_they_counted(make, unchanged, flags, amounts):
    body = f"p = Pad(x, pads)  y = AveragePool<kernel_shape = [3, 3]{flags}>(p)"
    after, _ = unchanged(make(HEADER, body, pads=pads(*amounts)), merge_pad)
    assert [node.op_type for node in after.nodes()] == ["AveragePool"]


def test_max_pools_take_zeros_behind_relu_and_minus_infinity(make, unchanged):
    pool = "MaxPool<kernel_shape = [3, 3], strides = [2, 2]>(p)"
    after, _ = unchanged(make(HEADER, f"r = Relu(x)  p = Pad(r, a)  y = {pool}", a=pads(1, 0, 1, 2)), merge_pad)
    assert [node.op_type for node in after.nodes()] == ["Relu", "MaxPool"]
    constants = {"a": pads(1, 0, 1, 2), "v": np.float32(-np.inf)}
    after, _ = unchanged(make(HEADER, f"p = Pad(x, a, v)  y = {pool}", **constants), merge_pad)
    assert [node.op_type for node in after.nodes()] == ["MaxPool"]


@pytest.mark.parametrize(
    ("body", "amounts"),
    [
        ("p = Pad(x, a, one)  y = Conv(p, w)", pads(1, 1, 1, 1)),
        ('p = Pad<mode = "reflect">(x, a)  y = Conv(p, w)', pads(1, 1, 1, 1)),
        ("p = Pad(x, a)  y = Conv(p, w)", pads(-1, 0, 0, 0)),
        ("p = Pad(x, a)  y = MaxPool<kernel_shape = [3, 3]>(p)", pads(1, 1, 1, 1)),
        ("p = Pad(x, a)  y = AveragePool<kernel_shape = [3, 3]>(p)", pads(1, 0, 1, 1)),
        ("p = Pad(x, a)  y = AveragePool<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(p)", pads(1, 1, 1, 1)),
        ("p = Pad(x, a)  y = AveragePool<kernel_shape = [3, 3], ceil_mode = 1, strides = [2, 2]>(p)", pads(1, 1, 1, 1)),
        ("p = Pad(x, a)  y = Relu(p)", pads(1, 1, 1, 1)),
        ("p = Pad(x, a)  y = MaxPool<kernel_shape = [1, 1]>(p)", np.array([0, 1, 0, 0, 0, 1, 0, 0])),
    ],
)
def test_what_would_change_the_result_stays_and_is_noted(make, unchanged, body, amounts):
    after, context = unchanged(make(HEADER, body, a=amounts, one=np.float32(1), w=W), merge_pad)
    assert len(after.nodes("Pad")) == 1 and context.notes


def test_other_readers_keep_the_pad(make, unchanged):
    body = "p = Pad(x, a)  c = Conv(p, w)  r = Relu(p)  m = ReduceMax<keepdims = 1>(r)  y = Add(c, m)"
    after, _ = unchanged(make(HEADER, body, a=pads(1, 1, 1, 1), w=W), merge_pad)
    assert [node.inputs[0].name for node in after.nodes("Conv")] == ["x"] and len(after.nodes("Pad")) == 1
