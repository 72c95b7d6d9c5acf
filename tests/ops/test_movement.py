"""Operators that move codes, against onnxruntime on the same codes; and the float boundary."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from qcompiler.graph.model import Graph
from qcompiler.ops import OPERATORS
from qcompiler.ops.movement import nearest_indices
from tests.reference import run_node
from tests.strategies import formats, seeds

X = np.random.default_rng(0).integers(0, 256, (2, 8, 5, 6)).astype(np.uint8)
FLOATS = np.float32([1, 1, 2.5, 0.6])


def ints(*values):
    return np.array(values, np.int64)


CASES = {
    "reshape": ("Reshape", [X, ints(2, 4, -1)], {}),
    "reshape keeps extents": ("Reshape", [X, ints(0, 0, 30)], {}),
    "transpose": ("Transpose", [X], {"perm": [0, 2, 3, 1]}),
    "transpose reversed": ("Transpose", [X], {}),
    "slice": ("Slice", [X, ints(1, 0), ints(4, 100), ints(1, -1), ints(1, 2)], {}),
    "slice backwards": ("Slice", [X, ints(-1), ints(-1000), ints(3), ints(-2)], {}),
    "slice backwards inside": ("Slice", [X, ints(4), ints(-5), ints(3), ints(-1)], {}),
    "slice default axes": ("Slice", [X, ints(0, 2), ints(1, 3)], {}),
    "pad": ("Pad", [X, ints(0, 0, 1, 2, 0, 3, 0, 1), np.array(7, np.uint8)], {}),
    "pad axes": ("Pad", [X, ints(1, 2, 0, 1), np.array(7, np.uint8), ints(-1, 1)], {}),
    "pad negative": ("Pad", [X, ints(0, 0, -1, 2, 0, -3, 0, -1), np.array(9, np.uint8)], {}),
    "pad reflect": ("Pad", [X, ints(0, 0, 1, 2, 0, 0, 2, 3)], {"mode": "reflect"}),
    "pad edge": ("Pad", [X, ints(0, 0, 1, 2, 0, 0, 2, 3)], {"mode": "edge"}),
    "depth to space": ("DepthToSpace", [X], {"blocksize": 2}),
    "depth to space crd": ("DepthToSpace", [X], {"blocksize": 2, "mode": "CRD"}),
    "expand": ("Expand", [X[:, :1, :1], ints(3, 1, 1)], {}, True),
    "concat": ("Concat", [X, X[:, :2], X], {"axis": -3}),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_movement_equals_onnxruntime(case):
    op_type, inputs, attributes, *broadcast = case
    if broadcast:
        inputs = [inputs[0][:1], inputs[1]]
    if op_type in ("DepthToSpace", "Expand"):  # onnxruntime has no uint8 kernel for these
        inputs = [inputs[0].astype(np.float32), *inputs[1:]]
    (want,) = run_node(op_type, inputs, attributes)
    (got,) = OPERATORS[op_type].oracle(inputs, attributes)
    np.testing.assert_array_equal(got, want)
    assert got.dtype == inputs[0].dtype


def test_split():
    want = run_node("Split", [X, ints(3, 4, 1)], {"axis": 1}, outputs=3)
    for got, part in zip(OPERATORS["Split"].oracle([X, ints(3, 4, 1)], {"axis": 1}), want, strict=True):
        np.testing.assert_array_equal(got, part)


MODES = [
    "half_pixel",
    "half_pixel_symmetric",
    "pytorch_half_pixel",
    "align_corners",
    "asymmetric",
    "tf_crop_and_resize",
]


@pytest.mark.parametrize("nearest", ["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"])
@pytest.mark.parametrize("mode", MODES)
@given(factors=st.tuples(*[st.sampled_from([0.4, 0.63, 1.0, 1.5, 2.0, 3.0, 2.7])] * 2))
def test_resize_by_scales_equals_onnxruntime(mode, nearest, factors):
    attributes = {"mode": "nearest", "coordinate_transformation_mode": mode, "nearest_mode": nearest}
    if mode == "half_pixel_symmetric":  # maps the middle to the middle: an integer in exact arithmetic, not in float32
        assume(all(factor in (1.0, 1.5, 2.0, 3.0) for factor in factors))
    roi = None
    if mode == "tf_crop_and_resize":
        assume(1.0 not in factors)  # onnxruntime ignores the region of a dimension whose scale is 1
        roi = np.float32([0, 0, 0.1, 0.2, 1, 1, 0.9, 0.8])
    inputs = [X, roi, np.float32([1, 1, *factors])]
    (want,) = run_node("Resize", inputs, attributes)
    (got,) = OPERATORS["Resize"].oracle(inputs, attributes)
    np.testing.assert_array_equal(got, want)


@given(sizes=st.tuples(st.integers(1, 13), st.integers(1, 13)), mode=st.sampled_from(MODES[:5]))
def test_resize_to_sizes_equals_onnxruntime(sizes, mode):
    attributes = {"mode": "nearest", "coordinate_transformation_mode": mode}
    inputs = [X, None, None, ints(2, 8, *sizes)]
    (want,) = run_node("Resize", inputs, attributes)
    (got,) = OPERATORS["Resize"].oracle(inputs, attributes)
    np.testing.assert_array_equal(got, want)


def test_indices_of_a_graph_node_are_those_of_the_oracle():
    text = """<ir_version: 10, opset_import: ["": 21]> g (uint8[2,8,5,6] x, float[4] s) => (uint8[2,8,12,3] y)
    { y = Resize <mode = "nearest"> (x, , s) }"""
    graph = Graph.parse(text, s=FLOATS)
    indices = nearest_indices(graph, graph.nodes()[0])
    (want,) = OPERATORS["Resize"].oracle([X, None, FLOATS], {"mode": "nearest"})
    np.testing.assert_array_equal(X[np.ix_(*indices)], want)


@given(seed=seeds, fmt=formats, scale=st.floats(2.0**-10, 8, width=32))
def test_boundary_equals_onnxruntime(seed, fmt, scale):
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal(50) * 100 * scale).astype(np.float32)
    zero = np.asarray(rng.integers(fmt.min, fmt.max), fmt.storage)
    parameters = [np.asarray(scale, np.float32), zero]
    (quantized,) = run_node("QuantizeLinear", [x, *parameters], {})
    want = np.clip(quantized, fmt.min, fmt.max).astype(fmt.storage)  # 8- and 16-bit storage saturates wider
    (got,) = OPERATORS["QuantizeLinear"].oracle([x, *parameters], {"format": fmt.token})
    np.testing.assert_array_equal(got, want)
    (back,) = run_node("DequantizeLinear", [want, *parameters], {})
    (got,) = OPERATORS["DequantizeLinear"].oracle([want, *parameters], {})
    np.testing.assert_array_equal(got, back)


def test_boundary_without_zero_point_is_uint8():
    (got,) = OPERATORS["QuantizeLinear"].oracle([np.float32([-1, 2, 900]), np.float32(1)], {})
    assert got.dtype == np.uint8 and got.tolist() == [0, 2, 255]
