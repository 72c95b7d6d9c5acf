"""Logarithmic quantizers of attention and activations: where they go, what they search, both meanings of the graph."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import qcompiler
from qcompiler.calibrate import logarithms as search
from qcompiler.calibrate.data import load_samples
from qcompiler.context import Context
from qcompiler.errors import CalibrationError, RecipeError, UnsupportedError
from qcompiler.execute.oracle import Oracle
from qcompiler.execute.ort import Session
from qcompiler.formats import Int, Log, QuantParams
from qcompiler.graph import qdq
from qcompiler.graph.io import load_graph
from qcompiler.graph.model import Graph, attribute
from qcompiler.graph.stages import Stage, check
from qcompiler.ops.matmul import matmul
from qcompiler.passes import decide, insert_qdq, logarithms, recognize_functions, set_ranges
from qcompiler.target import Capabilities
from tests.quantized import differences, float_graph, integer, random_input

KINDS = ("log2", "logsqrt2", "adalog")
RNG = np.random.default_rng(11)
ATTENTION = {name: RNG.standard_normal((12, 12)).astype(np.float32) for name in ("wq", "wk", "wv", "wo")}
LAYERS = {
    "w1": RNG.standard_normal((10, 24)).astype(np.float32) * 0.6,
    "w2": RNG.standard_normal((24, 7)).astype(np.float32),
    "b2": RNG.standard_normal(7).astype(np.float32),
}


def attention(spread: float = 1.0) -> Graph:
    body = "q = MatMul(x, wq)  k = MatMul(x, wk)  v = MatMul(x, wv)  t = Transpose <perm = [0, 2, 1]> (k)"
    body += "  s = MatMul(q, t)  p = Softmax(s)  o = MatMul(p, v)  y = MatMul(o, wo)"
    weights = {**ATTENTION, "wq": ATTENTION["wq"] * np.float32(spread)}
    return float_graph("float[2,9,12] x => float[2,9,12] y", body, **weights)


GELU = "g = Gelu(h)"
TANH = 'g = Gelu <approximate = "tanh"> (h)'
SILU = "i = Sigmoid(h)  g = Mul(h, i)"
QUICK = "e = Mul(h, alpha)  i = Sigmoid(e)  g = Mul(h, i)"


def layers(function: str = GELU, rest: str = "") -> Graph:
    body = f"h = MatMul(x, w1)  {function}  p = MatMul(g, w2)  y = Add(p, b2) {rest}"
    outputs = "float[1,5,7] y" + (", float[1,5,24] z" if rest else "")
    alpha = {"alpha": np.float32(1.702)} if "alpha" in function else {}
    graph = float_graph(f"float[1,5,10] x => {outputs}", body, **LAYERS, **alpha)
    return recognize_functions.run(graph, recognize_functions.Options(), Context())


def context_of(graph: Graph, count: int = 8) -> Context:
    samples = {value.name: random_input(graph, value.name, 3, count) for value in graph.inputs}
    return Context(samples=load_samples(samples, graph))


def quantized(
    graph: Graph, *, precision: str = "w4a4", rules: tuple[dict[str, str], ...] = (), **options: Any
) -> tuple[Graph, Context]:
    graph = graph.clone()
    context = context_of(graph)
    graph = decide.run(graph, decide.Options(precision=precision, keep_first_last=False, rules=rules), context)
    graph = logarithms.run(graph, logarithms.Options(**{"softmax": "int", **options}), context)
    graph = set_ranges.run(graph, set_ranges.Options(), context)
    graph = insert_qdq.run(graph, insert_qdq.Options(), context)
    check(graph, Stage.QDQ)
    return graph, context


def error(graph: Graph, float_graph_: Graph, count: int = 8) -> float:
    total = 0.0
    for i in range(count):
        x = {value.name: random_input(float_graph_, value.name, 100 + i) for value in float_graph_.inputs}
        total += float(np.square(graph.run(**x) - float_graph_.run(**x), dtype=np.float64).sum())
    return total


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("precision", ["w4a4", "w3a3", "w8a2"])
@pytest.mark.parametrize("arithmetic", ["float", "fixed"])
def test_attention_means_the_same_in_both_stages(kind: str, precision: str, arithmetic: str):
    graph, context = quantized(attention(), precision=precision, softmax=kind)
    (product,) = [n for n in graph.nodes("MatMul") if n.outputs[0].name == "o"]
    read = qdq.quantizer_of(graph, product.inputs[0])
    bits = int(precision[-1])
    assert isinstance(read.params.format, Log) and read.params.format.bits == bits
    assert qdq.quantizer_of(graph, read.source).params.format == Int(16, signed=False)
    assert context.facts["logarithms"]["p"]["format"] == read.params.format.token
    low = integer(graph, arithmetic)
    check(low, Stage.INTEGER)
    assert len(low.nodes("LogEncode")) == 1
    (levels,) = [v for v in low.values() if v.metadata_props.get(qdq.LOGARITHM_KEY)]
    assert levels.metadata_props[qdq.LOGARITHM_KEY] == read.params.format.token
    assert [n.op_type for n in (u.node for u in levels.uses())] == ["BatchMatMul"]
    worst, share = differences(graph, low)
    assert worst <= 1 and share <= (0.002 if arithmetic == "float" else 0.02)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("function", [GELU, TANH, SILU, QUICK])
def test_shifted_activations_mean_the_same_in_both_stages(kind: str, function: str):
    graph, _ = quantized(layers(function), gelu=kind)
    low = integer(graph)
    worst, share = differences(graph, low)
    assert worst <= 1 and share <= 0.01
    # One table from the 8-bit codes before the function to levels: neither codes nor a comparison in between.
    assert [node.op_type for node in low.nodes() if node.op_type in ("Table", "LogEncode")] == ["Table"]


def test_the_shift_is_subtracted_with_the_quantized_weight():
    """W^ (X^ + c) + b - c W^ 1 = W^ X^ + b: exactly in integers, and to 1e-6 of the float product."""
    graph, _ = quantized(layers(), gelu="adalog")
    low = integer(graph)
    product = low.nodes("MatMul")[-1]
    x = {"x": random_input(graph, "x", 9)}
    values = Oracle(low).run_all(x)
    levels, zero = values[product.inputs[0].name].astype(np.int64), attribute(product, "x_zero_point")
    weights, bias = (low.const(v).astype(np.int64) for v in product.inputs[1:3])
    folded = bias - zero * weights.sum(axis=0)
    given = {**{k: attribute(product, k) for k in ("format", "zero_point", "arithmetic")}, "x_zero_point": 0}
    (got,) = matmul([levels.astype(np.uint16), weights.astype(np.int8), folded, low.const(product.inputs[3])], given)
    np.testing.assert_array_equal(got, values[product.outputs[0].name])
    read = qdq.quantizer_of(graph, next(n for n in graph.nodes("MatMul") if n.outputs[0].name == "p").inputs[0])
    c = float(read.params.scale) * int(read.params.zero_point)
    assert abs(c - 0.16997) <= float(read.params.scale)
    real = (levels - zero) * float(read.params.scale)
    shifted = (real + c) @ weights - c * weights.sum(axis=0)
    np.testing.assert_allclose(shifted, real @ weights, rtol=0, atol=1e-6 * np.abs(real @ weights).max())


def test_least_values():
    """-c of the card: exact and tanh GELU, QuickGELU, SiLU."""
    for function, least in ((GELU, -0.169971), (TANH, -0.170041), (SILU, -0.27846), (QUICK, -0.16361)):
        (node,) = layers(function).nodes("Gelu", "QuickGelu", "Swish")
        assert logarithms.least_value(node) == pytest.approx(least, abs=1e-5)


def test_other_readers_read_the_wide_value():
    graph, _ = quantized(layers(rest="  z = Relu(g)"), gelu="adalog")
    read = qdq.quantizer_of(graph, graph.nodes("Relu")[0].inputs[0])
    assert read.params.format == Int(16, signed=False)
    worst, share = differences(graph, integer(graph))
    assert worst <= 1 and share <= 0.01


def test_wide_values_and_other_products_stay():
    for precision, kinds in (("w8a8", {"softmax": "adalog", "gelu": "adalog"}), ("w4a4", {})):
        for float_model in (attention(), layers()):
            plain, _ = quantized(float_model, precision=precision)
            same, _ = quantized(float_model, precision=precision, **kinds)
            assert same.fingerprint() == plain.fingerprint()
    graph = float_graph("float[2,9,9] x => float[2,9,12] y", "p = Softmax(x)  y = MatMul(p, w)", w=ATTENTION["wq"][:9])
    same, _ = quantized(graph, softmax="adalog")  # a product with weights is no attention
    assert not same.nodes("LogQuantize")


def test_the_right_operand_may_be_logarithmic():
    """Data movement between Softmax and product as well."""
    body = "q = MatMul(x, wq)  t = Transpose <perm = [0, 2, 1]> (q)  s = MatMul(q, t)  p = Softmax(s)"
    body += "  u = Transpose <perm = [0, 2, 1]> (p)  y = MatMul(t, u)"
    graph, _ = quantized(
        float_graph("float[2,9,12] x => float[2,12,9] y", body, wq=ATTENTION["wq"]), softmax="logsqrt2"
    )
    assert qdq.quantizer_of(graph, graph.value("y_float").producer().inputs[1]).params.format == Log(4, 1, 2)
    worst, share = differences(graph, integer(graph))
    assert worst <= 1 and share <= 0.002


def test_targets_without_16_bits_have_8():
    graph = attention()
    context = context_of(graph)
    context.capabilities = Capabilities((4, 8), (4, 8), ("float",), True)
    graph = decide.run(graph, decide.Options(precision="w4a4", wide=False), context)
    graph = logarithms.run(graph, logarithms.Options(softmax="logsqrt2"), context)
    assert context.assignment.activations["p"].format == Int(8, signed=False)
    graph = insert_qdq.run(set_ranges.run(graph, set_ranges.Options(), context), insert_qdq.Options(), context)
    low = integer(graph)
    assert not low.nodes("LogEncode")  # codes of 8 bits have a table
    worst, share = differences(graph, low)
    assert worst <= 1 and share <= 0.002


def test_scales_that_must_be_powers_of_two_stay():
    graph = attention()
    context = context_of(graph)
    decide.run(graph, decide.Options(precision="w4a4", power_of_two=True), context)
    logarithms.run(graph, logarithms.Options(softmax="adalog"), context)
    assert not context.assignment.narrowed and any("power of two" in note.text for note in context.notes)


@pytest.mark.parametrize("model", [attention, layers])
def test_a_saved_file_runs_anywhere_and_is_read_again(model, tmp_path):
    graph, _ = quantized(model(), softmax="adalog", gelu="adalog")
    path = tmp_path / "qdq.onnx"
    graph.save(path)
    x = random_input(graph, "x", 4)
    np.testing.assert_array_equal(Session(load_graph(path)).run({"x": x})[0], graph.run(x=x))
    again = qcompiler.quantize(str(path), {"x": random_input(graph, "x", 3, 8)}).integer_graph
    np.testing.assert_array_equal(Oracle(again).run({"x": x})[0], Oracle(integer(graph)).run({"x": x})[0])


def test_better_than_uniform():
    """What it is for: attention at 3 bits, activations at 4 and 3; found bases are never worse than log2."""
    model = attention(0.3)  # probabilities of many sizes
    only = {"precision": "w8a8", "rules": ({"op_type": "Softmax", "activation": "uint3"},)}
    errors = {kind: error(quantized(model, **only, softmax=kind)[0], model) for kind in ("int", *KINDS)}
    assert errors["adalog"] < errors["int"]


def test_errors():
    graph = attention()
    with pytest.raises(RecipeError, match="decide"):
        logarithms.run(graph, logarithms.Options(softmax="log2"), context_of(graph))
    context = context_of(graph)
    graph = decide.run(graph, decide.Options(precision="w4a4"), context)
    with pytest.raises(RecipeError, match="no format of softmax"):
        logarithms.run(graph, logarithms.Options(softmax="log3"), context)
    context.samples = None
    with pytest.raises(CalibrationError, match="calibration"):
        logarithms.run(graph, logarithms.Options(softmax="log2"), context)


def test_a_logarithm_of_a_float_value_is_refused():
    graph, _ = quantized(layers(), gelu="log2")
    (node,) = graph.nodes("LogQuantize")
    node.replace_input_with(0, graph.value("g"))
    with pytest.raises(UnsupportedError, match="needs a quantizer before it"):
        integer(graph)


# -- searches ----------------------------------------------------------------------------------------------------


def heads(seed: int, k: int = 17) -> search.Objective:
    rng = np.random.default_rng(seed)
    scores = rng.standard_normal((3, 9, k)) * rng.uniform(0.5, 5)
    a = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    return search.product_error([(a.astype(np.float32), rng.standard_normal((3, k, 6)).astype(np.float32))])


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_the_found_base_is_no_worse_than_any_other(bits: int):
    for seed in range(4):
        objective = heads(seed)
        found = objective(search.search_probabilities(search.bases("adalog", bits), [1.0, 0.5], objective))
        every = [objective(search.params_at(fmt, 1.0)) for fmt in search.bases("adalog", bits)]
        assert found <= min(every)
        for fmt in (Log(bits), Log(bits, 1, 2), Log(bits, 37, 37)):
            assert found <= objective(search.params_at(fmt, 1.0))


@pytest.mark.parametrize("seed", range(3))
def test_the_progressive_search_is_no_worse_than_its_grid(seed: int):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((60, 20)).astype(np.float32) * 2
    x = np.asarray(x / (1 + np.exp(-1.702 * x)), np.float32)
    objective = search.product_error([(x, rng.standard_normal((20, 5)).astype(np.float32))])
    formats, low, high, c = search.bases("adalog", 3)[::8], 1.5, float(x.max()) + 0.17, 0.17
    found = search.search_activation(formats, low, high, c, objective)
    beam = sorted(formats, key=lambda fmt: objective(search.params_at(fmt, high, c)))[:8]
    grid = min(objective(search.params_at(f, float(s), c)) for f in beam for s in np.linspace(low, high, search.SCALES))
    assert objective(found) <= grid
    assert objective(found) <= min(objective(search.params_at(fmt, high, c)) for fmt in formats)
    assert search.search_activation(formats, low, high, c, objective) == found


def test_a_constant_activation_has_parameters():
    found = search.search_activation([Log(4)], 1.0, 1.0, 0.17, search.tensor_error([np.zeros((2, 2), np.float32)]))
    assert isinstance(found, QuantParams) and float(found.scale) > 0
