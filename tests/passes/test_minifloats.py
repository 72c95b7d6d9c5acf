"""Minifloats through the passes: who gets one, ranges, solvers, integers with the QDQ graph's bits; what is refused."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir
import pytest

from qcompiler import driver
from qcompiler.calibrate.observers import Histogram
from qcompiler.calibrate.ranges import find_range, find_weight_range
from qcompiler.context import Context
from qcompiler.errors import RecipeError, UnsupportedError
from qcompiler.execute.oracle import Oracle
from qcompiler.execute.ort import Session
from qcompiler.formats import Int, Minifloat, QuantParams, QuantSpec, parse_format, per_channel
from qcompiler.graph import qdq
from qcompiler.graph.io import load_graph
from qcompiler.graph.model import Graph
from qcompiler.passes import bias_correction, decide, export_qdq, integerize, search_ranges, solve_weights
from qcompiler.precision import parse_formats, parse_precision
from qcompiler.quantizer import fake_quantize
from qcompiler.recipe import load_recipe
from qcompiler.target import Capabilities
from tests import quantized
from tests.passes.test_solve_weights import network, output_error, prepared
from tests.quantized import float_graph

RNG = np.random.default_rng(4)


def normal(*shape: int) -> np.ndarray:
    return RNG.normal(0, 0.4, shape).astype(np.float32)


def residual() -> Graph:
    """A residual, a value that only products read, one that is pooled on its way, a Concat with a constant."""
    return float_graph(
        "float[1,4,8,8] x => float[1,5] y",
        """c = Conv<pads = [1,1,1,1]>(x, w, b)  r = Relu(c)  d = Conv(r, v)  s = Add(d, x)
           e = Conv(s, u)  p = MaxPool<kernel_shape = [2,2], strides = [2,2]>(e)  f = Conv(p, t)
           m = ReduceMean<keepdims = 0>(f, axes)  k = Concat<axis = 1>(m, one)  q = MatMul(k, z)  y = Add(q, bz)""",
        w=normal(4, 4, 3, 3), b=normal(4), v=normal(4, 4, 1, 1), u=normal(4, 4, 1, 1), t=normal(4, 4, 1, 1),
        axes=np.array([2, 3]), one=np.array([[0.31]], np.float32), z=normal(5, 5), bz=normal(5),
    )  # fmt: skip


def assigned(**options) -> dict[str, str]:
    """Tokens of values and weights, of a second quantizer behind a slash."""
    context = Context()
    decide.run(residual(), decide.Options(**options), context)
    assignment = context.assignment
    found = assignment.describe()
    return {n: f"{t}/{assignment.narrowed[n].format}" if n in assignment.narrowed else t for n, t in found.items()}


def test_precisions():
    assert parse_formats("w4a8") == (Int(4), Int(8)) and parse_precision("w4a8") == (4, 8)
    assert parse_formats("e2m1w-int8a") == (Minifloat(2, 1), Int(8)) and parse_precision("e2m1w-int8a") == (4, 8)
    assert parse_formats("int4nw-int8a") == (Int(4, narrow=True), Int(8)) and parse_precision("int4nw-int8a") == (4, 8)
    assert parse_formats("int6w-float8e4m3fna")[1] == parse_format("float8e4m3fn")
    for text in ("e2m1w", "e2m1w-int9a", "w4-a8", "ue2m2w-int8a", "int8w-int8na", "log4:1/1w-int8a", "e6m1w-int8a"):
        with pytest.raises(RecipeError, match="e2m1w-int8a"):
            parse_formats(text)


def test_weights_and_what_products_read():
    got = assigned(precision="e2m1w-int8a")
    assert (got["w"], got["v"], got["u"], got["z"]) == ("int8n", "e2m1", "e2m1", "int8n")
    assert got["r"] == got["s"] == "uint8"
    got = assigned(precision="int4w-e2m1a", keep_first_last=False)
    assert got["x"] == "uint8/e2m1"  # an input is read by an Add as well
    assert got["r"] == "ue2m2"  # behind a Relu the sign is a bit of mantissa
    assert got["s"] == "uint8/e2m1"
    assert got["e"] == got["p"] == "e2m1"  # pooled levels are levels
    assert got["k"] == "uint8/e2m1" and got["one"] == got["y"] == "uint8"
    got = assigned(precision="int4w-e3m2a")
    assert got["r"] == "ue3m3" and got["s"] == "uint16/e3m2"
    assert got["x"] == "uint8"  # the first layer reads 8 bits, so nothing asks for 16


def test_rules_choose_minifloats():
    rules = ({"match": "^c$|Conv_d", "weight": "e3m2"}, {"op_type": "Add", "activation": "e2m3"})
    graph, context = residual(), Context()
    for node in graph.nodes("Conv"):
        node.name = str(node.outputs[0].name)
    decide.run(graph, decide.Options(rules=rules), context)
    assert str(context.assignment.constants["w"].format) == "e3m2"
    assert str(context.assignment.narrowed["s"].format) == "e2m3"
    wrong = (
        ({"op_type": "Add", "activation": "log4:1/1"}, "log4"),
        ({"match": "c", "weight": "ue2m2"}, "no format of `weight`"),
        ({"op_type": "Add", "activation": "ue2m2"}, "`s` may be negative"),
    )
    for rule, token in wrong:
        with pytest.raises(RecipeError, match=token):
            decide.run(residual(), decide.Options(rules=(rule,)), Context())


@pytest.mark.parametrize("arithmetic", ["float", "fixed"])
@pytest.mark.parametrize("precision", [
    "e2m1w-int8a", "e2m0w-int4a", "e3m2w-int8a", "e3m0w-int8a", "e2m1w-e2m1a", "e2m4w-e3m0a", "e3m2w-e3m2a",
    "int8w-e3m4a",
])  # fmt: skip
@pytest.mark.parametrize("keep", [True, False])
def test_integers_have_the_bits_of_the_qdq_graph(precision: str, arithmetic: str, keep: bool):
    graph = quantized.quantize(residual(), precision=precision, keep_first_last=keep)
    furthest, share = quantized.differences(graph, quantized.integer(graph, arithmetic))
    # An accumulator near a tie may go the other way: one float32 multiply against two.
    assert furthest <= 1 and share < 0.02
    read = quantized.integer(graph, arithmetic)
    tokens = {v.metadata_props.get(qdq.MINIFLOAT_KEY) for v in (*read.values(), *read.ir.initializers.values())}
    for fmt in parse_formats(precision):
        assert not isinstance(fmt, Minifloat) or tokens & {fmt.token, f"ue{fmt.exponent}m{fmt.mantissa + 1}"}


@pytest.mark.parametrize("token", ["e2m1", "ue2m2", "e3m0", "e3m2", "e4m1", "float8e4m3fn"])
@pytest.mark.parametrize("method", ["mse", "percentile", "percentile_ladder", "minmax"])
def test_ranges_of_activations(token: str, method: str):
    fmt, rng = parse_format(token), np.random.default_rng(1)
    values = np.abs(rng.laplace(size=20_000)) if not fmt.signed else rng.laplace(size=20_000)
    histogram = Histogram()
    histogram.add(values.astype(np.float32))
    spec = QuantSpec(fmt, symmetric=True)
    params = find_range(histogram, spec, method)
    assert params.format == fmt and params.scale > 0

    def error(params: QuantParams) -> float:
        return float(np.square(fake_quantize(values.astype(np.float32), params) - values).mean())

    widest = find_range(histogram, spec, "minmax")
    assert float(widest.scale) * fmt.largest == pytest.approx(np.abs(values).max(), rel=1e-6)
    if method == "mse":
        assert error(params) <= error(widest)
        grid = [QuantParams(fmt, widest.scale * np.float32(r)) for r in np.linspace(0.05, 1, 60)]
        assert error(params) <= 1.03 * min(map(error, grid))


def test_ranges_of_weights_and_the_method_that_has_none():
    rng, spec = np.random.default_rng(2), QuantSpec(Minifloat(2, 1), per_channel(0), symmetric=True)
    w = (rng.standard_t(4, (6, 400)) * np.geomspace(0.1, 3, 6)[:, None]).astype(np.float32)
    errors = {
        method: np.square(fake_quantize(w, find_weight_range(w, spec, method, 2.0)) - w).sum(1)
        for method in ("minmax", "mse", "percentile_ladder")
    }
    assert (errors["mse"] <= errors["minmax"]).all() and (errors["percentile_ladder"] <= errors["minmax"]).all()
    histogram = Histogram()
    histogram.add(w)
    with pytest.raises(RecipeError, match="entropy finds no range of e2m1"):
        find_range(histogram, QuantSpec(Minifloat(2, 1), symmetric=True), "entropy")


@pytest.mark.parametrize("token", ["e2m1", "e3m0", "e3m2", "float8e4m3fn"])
@pytest.mark.parametrize("method", ["gptq", "gptaq", "gpfq"])
def test_solvers_lower_the_error_on_uneven_grids(token: str, method: str):
    graph, context = prepared(network(), precision=f"{token}w-int8a")
    before = output_error(graph, context)
    solve_weights.run(graph, solve_weights.Options(method=method), context)
    after = output_error(graph, context)
    assert after < (before if token == "float8e4m3fn" else 0.8 * before)
    reads = [qdq.quantizer_of(graph, node.inputs[1]) for node in graph.nodes("Conv", "Gemm", "MatMul")]
    assert all(read.params.format.token == token for read in reads)


@pytest.mark.parametrize("precision", ["float8e4m3fnw-int8a", "int8w-float8e4m3fna", "float8e5m2w-float8e5m2a"])
def test_biases_do_not_widen_the_scales_of_fine_levels(precision: str):
    """A level of float8 is a 229,376th of the largest number: biases at that scale are float."""
    graph, context = prepared(network(), precision=precision)
    found = context.assignment.params
    solve_weights.run(graph, solve_weights.Options(), context)
    for node in graph.nodes("Conv", "Gemm", "MatMul"):
        read = qdq.quantizer_of(graph, node.inputs[1])
        name = str(read.source.name).removesuffix("_codes")
        if isinstance(read.params.format, Minifloat):
            np.testing.assert_array_equal(read.params.scale, found[name].scale)


def test_bias_correction_and_search_ranges():
    graph, context = prepared(network(), precision="e2m1w-e2m1a")
    ranges = [qdq.read_quantizer(graph, node).params for node in graph.nodes("MinifloatQuantize")]
    before = output_error(graph, context)
    bias_correction.run(graph, bias_correction.Options(), context)
    assert output_error(graph, context) < before
    search_ranges.run(graph, search_ranges.Options(samples=8), context)
    assert [qdq.read_quantizer(graph, node).params for node in graph.nodes("MinifloatQuantize")] == ranges
    assert any("minifloats keep their ranges" in note.text for note in context.notes)


@pytest.mark.parametrize("precision", ["e2m1w-int8a", "e3m2w-e2m1a"])
@pytest.mark.parametrize("form", ["qcdq", "standard", "functions"])
def test_files_come_back_to_the_same_integers(tmp_path, precision: str, form: str):
    graph = network()
    x = np.random.default_rng(3).standard_normal((16, 3, 8, 8)).astype(np.float32)
    first = driver.quantize(graph.to_proto(), {"x": x}, options={"precision": precision})
    first.save(tmp_path / "q.onnx", form)
    again = driver.quantize(tmp_path / "q.onnx")
    a, b = Oracle(first.integer_graph), Oracle(again.integer_graph)
    for one in x[:4]:
        np.testing.assert_array_equal(a.run({"x": one[None]})[0], b.run({"x": one[None]})[0])
    tokens = [
        sorted(v.metadata_props.get(qdq.MINIFLOAT_KEY, "") for v in g.integer_graph.ir.initializers.values())
        for g in (first, again)
    ]
    assert tokens[0] == tokens[1] and tokens[0][-1]


def test_weights_of_other_tools_in_floats_of_few_bits(tmp_path):
    """float4e2m1 keeps its grid; float8, which no integers hold, is quantized anew, and said."""
    graph = network()
    x = np.random.default_rng(3).standard_normal((16, 3, 8, 8)).astype(np.float32)
    first = driver.quantize(graph.to_proto(), {"x": x}, options={"precision": "e2m1w-int8a"})
    four = export_qdq.run(first.qdq_graph.clone(), export_qdq.Options(float4=True), Context())
    assert any(v.dtype == ir.DataType.FLOAT4E2M1 for v in four.ir.initializers.values())
    again = driver.quantize(four.to_proto())
    a, b = Oracle(first.integer_graph), Oracle(again.integer_graph)
    np.testing.assert_array_equal(a.run({"x": x[:1]})[0], b.run({"x": x[:1]})[0])
    eight, context = prepared(network(), precision="float8e4m3fnw-int8a")
    result = driver.quantize(eight.to_proto())
    assert sum("float8e4m3fn, which the target lacks" in note.text for note in result.context.notes) == 6
    oracle, wanted = Oracle(result.integer_graph), eight.run(x=x[:1])
    assert np.abs(oracle.run({"x": x[:1]})[0] - wanted).max() < 0.1 * np.abs(wanted).max()


def test_a_recipe_without_integers_writes_what_no_target_has(tmp_path):
    recipe = load_recipe("default")
    recipe = dataclasses.replace(recipe, passes=tuple(name for name in recipe.passes if name != "integerize"))
    x = np.random.default_rng(3).standard_normal((16, 3, 8, 8)).astype(np.float32)
    options = {"precision": "float8e4m3fnw-float8e4m3fna"}
    result = driver.quantize(network().to_proto(), {"x": x}, recipe, options=options)
    result.save(tmp_path / "q.onnx")
    types = [value.dtype for value in load_graph(tmp_path / "q.onnx", lifted=False).ir.initializers.values()]
    assert ir.DataType.FLOAT8E4M3FN in types
    got, wanted = Session((tmp_path / "q.onnx").read_bytes()).run({"x": x[:1]})[0], network().run(x=x[:1])
    assert np.abs(got - wanted).max() < 0.15 * np.abs(wanted).max()
    with pytest.raises(UnsupportedError, match="target `cpu`.*no weights in float8e4m3fn"):
        driver.quantize(network().to_proto(), {"x": x}, options=options)


def test_what_is_refused():
    for context in (Context(), Context(capabilities=Capabilities((8,), (8,), ("fixed",), True))):
        with pytest.raises(UnsupportedError, match="no type that holds the numbers of e5m1"):
            decide.run(residual(), decide.Options(precision="e5m1w-int8a"), context)
    can = Capabilities((4, 8), (8,), ("fixed",), True, weight_minifloats=("e2m1",))
    decide.run(residual(), decide.Options(precision="e2m1w-int8a"), Context(capabilities=can))
    for precision, message in (("e3m0w-int8a", "no weights in e3m0.*has e2m1"), ("int8w-e2m1a", "activations in")):
        with pytest.raises(UnsupportedError, match=message):
            decide.run(residual(), decide.Options(precision=precision), Context(capabilities=can))
    for precision, message in (
        ("float8e4m3fnw-int8a", "Conv.*float8e4m3fn, whose levels have more than 16 bits"),
        ("int8w-float8e4m3fna", "float8e4m3fn quantizer of .* has levels of more than 16 bits"),
    ):
        graph = quantized.quantize(residual(), precision=precision)
        with pytest.raises(UnsupportedError, match=message):
            integerize.run(graph, integerize.Options(), Context())


def test_a_minifloat_behind_another_operator_is_refused():
    graph = float_graph("float[1,4] x => float[1,4] y", "y = Add(x, x)")
    node = graph.nodes("Add")[0]
    params = QuantParams(Minifloat(2, 1), np.float32(0.1))
    a = qdq.write_quantizer(graph, graph.inputs[0], QuantParams(Int(8), np.float32(0.1)), name="x")
    for index in (0, 1):
        node.replace_input_with(index, a)
    made = qdq.write_quantizer(graph, node.outputs[0], params, name="y")
    graph.ir.outputs[0] = made
    with pytest.raises(UnsupportedError, match="e2m1 quantizer of `y`.*between it and Add"):
        integerize.run(graph, integerize.Options(), Context())
