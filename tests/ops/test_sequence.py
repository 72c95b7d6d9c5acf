"""BatchMatMul, Normalize, Softmax, Piecewise and Gather against exact integers and the real functions."""

from __future__ import annotations

from math import isqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcompiler.formats import Int, QuantParams, parse_format
from qcompiler.ops import OPERATORS
from qcompiler.ops.functions import FUNCTIONS
from qcompiler.ops.normalize import bit_length, root
from qcompiler.ops.softmax import exponentials
from qcompiler.passes.integerize.piecewise import ERROR_NARROW, ERROR_WIDE, fit
from tests.reference import run_node
from tests.strategies import codes, formats, seeds


def oracle(name, inputs, attributes):
    key = name if name == "Gather" else f"qcompiler::{name}"
    (result,) = OPERATORS[key].oracle(inputs, attributes)
    return result


# -- BatchMatMul ---------------------------------------------------------------------------------------------------


@given(first=formats, second=formats, seed=seeds)
def test_batch_matmul_equals_integer_sums(first, second, seed):
    rng = np.random.default_rng(seed)
    a, b = codes(rng, first, (2, 1, 3, 5)), codes(rng, second, (4, 5, 2))
    za, zb = int(rng.integers(first.min, first.max)), int(rng.integers(second.min, second.max))
    attributes = {"a_zero_point": za, "b_zero_point": zb, "arithmetic": "fixed", "format": "int16", "zero_point": 0}
    # A multiplier of 2^20 / 2^21 halves; sums of at most 2^35 times that stay within int64.
    got = oracle("BatchMatMul", [a, b, np.int32(1 << 20), np.int32(21)], attributes)
    assert got.shape == (2, 4, 3, 2)
    for n, h, i, j in np.ndindex(got.shape):
        acc = sum((int(a[n, 0, i, k]) - za) * (int(b[h, k, j]) - zb) for k in range(5))
        assert got[n, h, i, j] == max(-(2**15), min(2**15 - 1, (acc + 1) >> 1))


# -- Normalize -----------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 2**62 - 1), min_size=1, max_size=8))
def test_roots_and_lengths_are_exact(values):
    w = np.array([*values, 1, 2**62 - 1, 2**60, (2**31 - 1) ** 2, (2**31 - 1) ** 2 - 1], np.int64)
    assert root(w).tolist() == [isqrt(int(v)) for v in w]
    assert bit_length(w).tolist() == [int(v).bit_length() for v in w]


def normalized(q, scale, epsilon, centre, gain, bias):
    """The real function of dequantized runs [runs, n], float64 (longdouble sums)."""
    x = q.astype(np.longdouble) * scale
    mean = x.mean(axis=1, keepdims=True) if centre else 0
    variance = ((x - mean) ** 2).mean(axis=1, keepdims=True)
    return ((x - mean) / np.sqrt(variance + epsilon) * gain + bias).astype(np.float64)


def through_rule(token, out, scale, n, gain, bias, epsilon, centre, step):
    """Attributes and inputs of Normalize as integerize writes them, for runs of n codes."""
    from qcompiler.context import Context
    from qcompiler.graph.model import DOMAIN
    from qcompiler.passes import integerize
    from tests.quantized import float_graph

    op = f"LayerNormalization <axis=-1, epsilon={epsilon}> (x, g, b)"
    graph = float_graph(f"float[1,{n}] x => float[1,{n}] y", f"y = {op}", g=gain, b=bias)
    if not centre:
        node = graph.nodes("LayerNormalization")[0]
        node.op_type, node.domain = "RMSNormalization", DOMAIN
        node.resize_inputs(2)
    from qcompiler.graph import qdq

    fmt, to = parse_format(token), parse_format(out)
    x, y = graph.inputs[0], graph.outputs[0]
    node = y.producer()
    read = qdq.write_quantizer(graph, x, QuantParams(fmt, scale, (fmt.min + fmt.max) // 2), name="x")
    node.replace_input_with(0, read)
    written = qdq.write_quantizer(graph, y, QuantParams(to, step, (to.min + to.max) // 2), name="y")
    written.name, y.name = "out", "y"
    graph.ir.outputs[0] = written
    result = integerize.run(graph, integerize.Options(), Context())
    return result, result.nodes("Normalize")[0]


@pytest.mark.parametrize(("token", "out"), [("uint8", "uint8"), ("uint16", "uint8"), ("uint16", "uint16")])
@pytest.mark.parametrize("centre", [1, 0])
def test_normalize_is_within_one_step_of_the_real_function(token, out, centre):
    """10^6 elements a case: spread, narrow, constant and one-hot runs; 8-bit outputs differ only near a tie."""
    from qcompiler.graph.model import attributes

    rng = np.random.default_rng(5)
    fmt, to, runs = parse_format(token), parse_format(out), 2500
    zero = (fmt.min + fmt.max) // 2
    for n, scale, epsilon in ((64, 0.05, 1e-5), (128, 3e-4, 1e-5), (200, 1e-3, 1e-12), (8, 0.7, 0.1)):
        gain = rng.uniform(-2, 2, n).astype(np.float32)
        bias = rng.uniform(-1, 1, n).astype(np.float32) if centre else np.zeros(n, np.float32)
        step = np.float32(12 / (to.max - to.min))
        graph, node = through_rule(token, out, np.float32(scale), n, gain, bias, epsilon, centre, step)
        spread = rng.integers(0, 13, (runs, 1))
        q = np.rint(rng.standard_normal((runs, n)) * 2.0**spread + rng.integers(-50, 50, (runs, 1)))
        q[: runs // 50] = rng.integers(-3, 4, (runs // 50, 1))
        q[0], q[1] = 0, np.eye(n)[3]
        x = np.clip(q + zero, fmt.min, fmt.max).astype(fmt.storage)
        constants = [graph.const(value) for value in node.inputs[1:]]
        values = attributes(node)
        got = oracle("Normalize", [x, *constants], values).astype(np.float64)
        s = np.float64(np.float32(scale))
        real = normalized(
            x.astype(np.int64) - zero, s, np.float64(np.float32(epsilon)), centre, gain, bias
        ) / np.float64(step)
        want = np.clip(real + (to.min + to.max) // 2, to.min, to.max)
        # Half a step is the rounding; the rest is the algorithm's own error.
        assert np.abs(got - want).max() <= (0.51 if out == "uint8" else 0.6), (n, scale)


def test_group_norm_equals_onnxruntime_within_a_step():
    rng = np.random.default_rng(2)
    from tests.quantized import differences, float_graph, integer, quantize

    gain, bias = rng.standard_normal(12).astype(np.float32), rng.standard_normal(12).astype(np.float32)
    graph = float_graph(
        "float[2,12,5,3] x => float[2,12,5,3] y", "y = GroupNormalization <num_groups=3> (x, g, b)", g=gain, b=bias
    )
    quantized = quantize(graph)
    worst, share = differences(quantized, integer(quantized))
    assert worst <= 1 and share < 0.02


# -- Softmax -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("token", ["uint8", "int16", "uint16", "uint12"])
@pytest.mark.parametrize("extent", [2, 17, 256])
def test_softmax_is_within_one_step_of_the_real_function(token, extent):
    rng, fmt, rows = np.random.default_rng(3), parse_format(token), 4000
    for span in (0.5, 8.0, 40.0):
        scale = np.float32(span / (fmt.max - fmt.min))
        x = rng.integers(fmt.min, fmt.max + 1, (rows * 17 // extent, extent)).astype(fmt.storage)
        for out, numerator in (("uint8", 256), ("uint16", 65535)):
            attributes = {"axis": 1, "x_format": token, "numerator": numerator, "format": out, "zero_point": 0}
            got = oracle("Softmax", [x, exponentials(fmt, float(scale))], attributes)
            real = x.astype(np.float64) * np.float64(scale)
            e = np.exp(real - real.max(axis=1, keepdims=True))
            want = np.minimum(e / e.sum(axis=1, keepdims=True) * numerator, parse_format(out).max)
            bound = 0.5 + (extent + 1) * 2.0**-20 * numerator
            assert np.abs(got - want).max() <= bound


def test_masked_cells_take_no_part():
    rng = np.random.default_rng(4)
    x, mask = rng.integers(0, 256, (6, 9)).astype(np.uint8), rng.random((6, 9)) < 0.4
    mask[2] = True
    table = exponentials(Int(8, signed=False), 0.03)
    attributes = {"axis": 1, "x_format": "uint8", "numerator": 256, "format": "uint8", "zero_point": 0}
    got = oracle("Softmax", [x, table, mask.astype(np.uint8)], attributes)
    for row, hidden, codes_ in zip(x, mask, got, strict=True):
        visible = ~hidden if not hidden.all() else ~np.zeros_like(hidden)
        alone = oracle("Softmax", [row[visible][None], table], attributes)[0]
        assert codes_[visible].tolist() == alone.tolist() and not codes_[~visible].any()


# -- Piecewise -----------------------------------------------------------------------------------------------------

CASES = {
    "Gelu": (8.0, False), "Swish": (10.0, False), "Sigmoid": (9.0, False), "Tanh": (5.0, False), "Mish": (8.0, False),
    "QuickGelu": (9.0, False),
    "Erf": (4.0, False), "Exp": (4.0, False), "Sin": (12.0, False), "Cos": (12.0, False), "Softplus": (10.0, False),
    "Log": (20.0, True), "Sqrt": (20.0, True), "Reciprocal": (20.0, True),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("out", ["uint8", "uint16"])
def test_piecewise_functions_over_all_codes(name, out):
    """Every one of the 65,536 codes, with the number of lines that the rule would take, or a Table."""
    limit, positive = CASES[name]
    fmt, to = Int(16, signed=False), parse_format(out)
    have = QuantParams(fmt, np.float32((limit if positive else 2 * limit) / 65535), 0 if positive else 32768)
    apply = lambda x: FUNCTIONS[name](x, {})  # noqa: E731
    ends = apply(np.linspace(0.05 if positive else -limit, limit, 1001))
    step = (max(ends.max(), 0) - min(ends.min(), 0)) / (to.max - to.min)
    want = QuantParams(to, np.float32(step), int(np.clip(np.rint(-min(ends.min(), 0) / step), to.min, to.max)))
    bound = ERROR_NARROW if out == "uint8" else ERROR_WIDE
    errors = [fit(apply, have, want, segments)[2] for segments in (256, 1024, 4096)]
    assert errors[0] >= errors[2]
    # Poles and vertical slopes are no straight lines: there the rule takes a Table.
    assert min(errors) <= bound or name in ("Log", "Reciprocal", "Sqrt")


@given(seed=seeds)
def test_piecewise_meets_its_table(seed):
    rng = np.random.default_rng(seed)
    table = rng.integers(-(2**31), 2**31 - 1, 257, endpoint=True).astype(np.int32)
    attributes = {"x_format": "int16", "shift": 8, "zero_point": 7, "format": "int16"}
    x = (np.arange(256) * 256 - 32768).astype(np.int16)
    got = oracle("Piecewise", [x, table], attributes)
    want = [max(-(2**15), min(2**15 - 1, ((int(t) + 128) >> 8) + 7)) for t in table[:256]]
    assert got.tolist() == want


# -- Gather --------------------------------------------------------------------------------------------------------


@given(seed=seeds, axis=st.integers(0, 2))
def test_gather_equals_onnxruntime(seed, axis):
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 256, (3, 4, 5)).astype(np.uint8)
    index = rng.integers(-x.shape[axis], x.shape[axis], (2, 2))
    (want,) = run_node("Gather", [x, index], {"axis": axis})
    np.testing.assert_array_equal(oracle("Gather", [x, index], {"axis": axis}), want)


def test_indices_outside_take_the_nearest_entry():
    x = np.arange(5, dtype=np.uint8)
    index = np.array([-9, -6, -5, 4, 5, 2**62, -(2**63)], np.int64)
    assert oracle("Gather", [x, index], {"axis": 0}).tolist() == [0, 0, 0, 4, 4, 4, 0]
