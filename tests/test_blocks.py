"""Block scales: every block against its definition, the file, the integers, what has none."""

from __future__ import annotations

import numpy as np
import pytest

from qcompiler.calibrate.ranges import find_weight_range
from qcompiler.context import Context
from qcompiler.errors import RecipeError, UnsupportedError
from qcompiler.formats import Blocks, Minifloat, QuantParams, QuantSpec, parse_format, per_channel
from qcompiler.graph import qdq
from qcompiler.graph.model import Graph
from qcompiler.passes import export_qdq, solve_weights
from qcompiler.quantizer import dequantize, fake_quantize, quantize, round_levels
from qcompiler.solve import rounding
from qcompiler.solve.grid import Grid
from tests import quantized
from tests.passes.test_minifloats import residual
from tests.passes.test_solve_weights import network, output_error, prepared

FORMATS = [Blocks(Minifloat(*pair)) for pair in ((2, 0), (2, 1), (2, 3), (3, 2), (3, 4))]


def uneven(rng: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    """Normal weights whose runs of 32 differ in size by up to 2^6."""
    size = 2.0 ** -rng.uniform(0, 6, (rows, -(-columns // 32))).repeat(32, axis=1)[:, :columns]
    return (rng.standard_normal((rows, columns)) * size).astype(np.float32)


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_every_block_has_the_better_of_two_exponents(fmt: Blocks):
    rng = np.random.default_rng(0)
    weight = uneven(rng, 5, 75)
    weight[0, :32] = 0
    scale = (np.abs(weight).max(1) / fmt.max).astype(np.float32)
    codes = quantize(weight, QuantParams(fmt, scale, axis=0))
    assert codes.dtype == np.int16 and np.isin(codes, fmt.codes()).all() and parse_format(fmt.token) == fmt
    bits = fmt.element.largest.bit_length()
    for row in range(5):
        for start in range(0, 75, 32):
            ratio = (weight[row, start : start + 32] / scale[row]).astype(np.float32)
            top = int(np.abs(ratio).max()).bit_length() - bits if np.abs(ratio).max() >= 1 else 0
            tried = []
            for e in (max(top, 0), min(max(top + 1, 0), fmt.shifts)):
                e = min(e, fmt.shifts)
                levels = round_levels(ratio / np.float32(2**e), fmt.element) * 2**e
                tried.append((float(np.square((levels - ratio).astype(np.float64)).sum()), levels))
            best = min(error for error, _ in tried)
            got = codes[row, start : start + 32]
            assert float(np.square((got - ratio).astype(np.float64)).sum()) == pytest.approx(best, rel=1e-9)
            assert any(np.array_equal(got, levels) for _, levels in tried)


@pytest.mark.parametrize("axis", [None, 0, 1])
@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_rounding_twice_changes_nothing(fmt: Blocks, axis: int | None):
    rng = np.random.default_rng(1)
    weight = uneven(rng, 40, 36)
    scale = np.float32(np.abs(weight).max() / fmt.max)
    scales = scale if axis is None else np.full(weight.shape[axis], scale) * rng.uniform(0.5, 1, weight.shape[axis])
    params = QuantParams(fmt, scales, axis=axis)
    codes = quantize(weight, params)
    np.testing.assert_array_equal(quantize(dequantize(codes, params), params), codes)
    if axis == 1:  # a channel's elements in the order of memory
        np.testing.assert_array_equal(codes.T, quantize(weight.T, QuantParams(fmt, scales, axis=0)))


def test_small_blocks_keep_their_precision():
    weight, rng = uneven(np.random.default_rng(2), 8, 256), np.random.default_rng(3)
    errors = {}
    for token in ("e2m1", "mxe2m1", "int4"):
        spec = QuantSpec(parse_format(token), per_channel(0), symmetric=True)
        params = find_weight_range(weight, spec, "mse", 2.0)
        assert params.format.token == token
        relative = (fake_quantize(weight, params) - weight).reshape(8, 8, 32)
        errors[token] = np.square(relative).sum(2) / np.square(weight.reshape(8, 8, 32)).sum(2)
    assert errors["mxe2m1"].max() < 0.05 and errors["e2m1"].max() == 1  # of a block's energy: it is rounded to 0
    assert errors["mxe2m1"].mean() < 0.5 * min(errors["e2m1"].mean(), errors["int4"].mean())
    powers = QuantSpec(parse_format("mxe2m1"), per_channel(0), "power_of_two", symmetric=True)
    found = find_weight_range(rng.standard_normal((4, 64)).astype(np.float32), powers, "mse")
    assert (np.frexp(found.scale)[0] == 0.5).all()  # then all scales are MX's


@pytest.mark.parametrize("form", ["qcdq", "standard", "functions"])
def test_the_file_holds_integers_that_onnxruntime_reads(form: str):
    rng = np.random.default_rng(4)
    weight, fmt = uneven(rng, 6, 40), parse_format("mxe2m1")
    params = QuantParams(fmt, (np.abs(weight).max(1) / fmt.max).astype(np.float32), axis=0)
    graph = Graph.parse('<ir_version: 10, opset_import: ["": 21]> g (float[1] x, float[6,40] w) => (float[6,40] y) '
                        "{ y = Add(x, w) }", w=weight)  # fmt: skip
    graph.nodes("Add")[0].replace_input_with(1, qdq.write_constant(graph, graph.value("w"), params))
    graph.sweep()
    graph = export_qdq.run(graph, export_qdq.Options(form=form), Context())
    np.testing.assert_array_equal(graph.run(x=np.zeros(1, np.float32)), fake_quantize(weight, params))
    read = qdq.read_quantizer(graph, graph.nodes("DequantizeLinear")[0])
    assert read.params == params
    np.testing.assert_array_equal(read.codes, quantize(weight, params))


@pytest.mark.parametrize("arithmetic", ["float", "fixed"])
@pytest.mark.parametrize("precision", ["mxe2m1w-int8a", "mxe3m2w-e2m1a"])
def test_integers_have_the_bits_of_the_qdq_graph(precision: str, arithmetic: str):
    graph = quantized.quantize(residual(), precision=precision, keep_first_last=False)
    integers = quantized.integer(graph, arithmetic)
    furthest, share = quantized.differences(graph, integers)
    assert furthest <= 1 and share < 0.02
    tokens = {v.metadata_props.get(qdq.MINIFLOAT_KEY) for v in integers.ir.initializers.values()}
    assert precision.split("w-")[0] in tokens


@pytest.mark.parametrize("method", ["gptq", "nearest", "gpfq"])
def test_solvers_lower_the_error(method: str):
    graph, context = prepared(network(), precision="mxe2m1w-int8a")
    before = output_error(graph, context)
    solve_weights.run(graph, solve_weights.Options(method=method), context)
    assert output_error(graph, context) < 0.8 * before
    facts = context.facts["solve_weights"]
    assert all(one["error_after"] <= one["error_before"] * (1 + 1e-6) for one in facts.values())
    for node in graph.nodes("Conv", "Gemm", "MatMul"):  # what was written is what was solved
        read = qdq.quantizer_of(graph, node.inputs[1])
        np.testing.assert_array_equal(quantize(dequantize(read.codes, read.params), read.params), read.codes)


def test_gptq_with_unit_moments_is_rounding():
    rng, fmt = np.random.default_rng(5), parse_format("mxe2m1")
    weight = uneven(rng, 12, 70).astype(np.float64)
    scale = np.abs(weight).max(1) / fmt.max
    for order in (False, True):
        got = rounding.gptq_blocks(weight, np.eye(70), scale, fmt, act_order=order)
        np.testing.assert_array_equal(got, rounding.nearest(weight, scale, Grid(fmt)))


def test_blocks_across_channels_are_left_alone():
    graph, context = prepared(network(), precision="mxe2m1w-int8a", per_tensor=True)
    solve_weights.run(graph, solve_weights.Options(), context)
    assert sum("run across output channels" in note.text for note in context.notes) == 6


def test_what_has_no_blocks():
    for token in ("mxe4m3", "mxue2m2", "mxe5m2", "mxint8"):
        with pytest.raises(RecipeError):
            parse_format(token)
    with pytest.raises(RecipeError, match="int8w-mxe2m1a"):
        quantized.quantize(residual(), precision="int8w-mxe2m1a")
    with pytest.raises(RecipeError, match="mxe2m1"):
        quantized.quantize(residual(), rules=({"match": "r", "activation": "mxe2m1"},))
    graph = residual()
    with pytest.raises(UnsupportedError, match="activations cannot have the format mxe2m1"):
        qdq.write_quantizer(graph, graph.inputs[0], QuantParams(parse_format("mxe2m1"), np.float32(1)), name="x")
