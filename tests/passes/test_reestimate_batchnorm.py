"""reestimate_batchnorm: the identity it starts from, the variance it restores, the codes it leaves."""

from __future__ import annotations

import numpy as np
import pytest

from qcompiler.calibrate.data import load_samples
from qcompiler.calibrate.moments import ChannelMoments, channel_moments
from qcompiler.context import Context
from qcompiler.errors import CalibrationError, RecipeError
from qcompiler.execute.ort import Session
from qcompiler.graph import qdq
from qcompiler.graph.model import Graph
from qcompiler.graph.normal import mark_normal
from qcompiler.passes import bias_correction, decide, insert_qdq, set_ranges, solve_weights
from qcompiler.passes import reestimate_batchnorm as tune
from qcompiler.recipe import parse_recipe
from tests.quantized import differences, float_graph, integer

BODY = """[c1] h1 = Conv<pads = [1, 1, 1, 1]>(x, w1, b1)  r1 = Relu(h1)
[c2] h2 = Conv<group = 8, pads = [1, 1, 1, 1]>(r1, w2)  r2 = Relu(h2)
[ct] h3 = ConvTranspose<strides = [2, 2]>(r2, w3, b3)  r3 = Relu(h3)  p = GlobalAveragePool(r3)  f = Flatten(p)
[fc] g = Gemm(f, w4, b4)  r4 = Relu(g)  [mm] m = MatMul(r4, w5)  y = Add(m, b5)"""
SHAPES = {
    "w1": (8, 3, 3, 3), "b1": (8,), "w2": (8, 1, 3, 3), "w3": (8, 6, 2, 2), "b3": (6,), "w4": (6, 7), "b4": (7,),
    "w5": (7, 4), "b5": (4,),
}  # fmt: skip
LAYERS = ["c1", "c2", "ct", "fc", "mm"]


def network() -> Graph:
    rng = np.random.default_rng(0)
    arrays = {name: rng.standard_normal(shape).astype(np.float32) * 0.5 for name, shape in SHAPES.items()}
    return float_graph("float[1,3,8,8] x => float[1,4] y", BODY, **arrays)


def prepared(graph: Graph | None = None, count: int = 32, **options) -> tuple[Graph, Context]:
    graph = network() if graph is None else graph
    x = np.random.default_rng(1).standard_normal((count, 3, 8, 8)).astype(np.float32)
    context = Context(samples=load_samples({"x": x}, graph))
    options = {"precision": "w3a8", "keep_first_last": False, **options}
    graph = decide.run(graph.clone(), decide.Options(**options), context)
    graph = set_ranges.run(graph, set_ranges.Options(), context)
    return insert_qdq.run(graph, insert_qdq.Options(), context), context


def spoil(graph: Graph, low: float = 0.7, high: float = 1.4) -> Graph:
    """What a bad choice of scales does: every channel of every weight is too large or too small by a factor."""
    rng = np.random.default_rng(2)
    for node in graph.nodes("Conv", "ConvTranspose", "Gemm", "MatMul"):
        maker = node.inputs[1].producer()
        scale = graph.const(maker.inputs[1])
        graph.set_input_const(maker, 1, (scale * rng.uniform(low, high, scale.shape)).astype(np.float32))
    return graph


def codes(graph: Graph) -> list[np.ndarray]:
    reads = [qdq.quantizer_of(graph, node.inputs[1]) for node in graph.nodes("Conv", "ConvTranspose", "Gemm", "MatMul")]
    return [read.codes for read in reads]


def moments(graph: Graph, reference: bool, layers: list, context: Context) -> list[ChannelMoments]:
    of = context.float_graph if reference else graph
    known = {value.name for value in of.values()}
    places = [(bias_correction.float_name(layer.output, known), layer.axis) for layer in layers]
    return channel_moments(of, places, context.samples)


def test_moments_are_those_of_all_samples_at_once():
    rng = np.random.default_rng(0)
    parts = [rng.standard_normal((2, 5, n)) * 1e-3 + np.arange(5)[:, None] * 1e4 for n in (1, 7, 3)]
    found = ChannelMoments(1)
    for part in parts:
        found.add(part)
    rows = np.concatenate([part.transpose(1, 0, 2).reshape(5, -1) for part in parts], axis=1)
    np.testing.assert_allclose(found.mean, rows.mean(1), rtol=1e-14)
    np.testing.assert_allclose(found.variance, rows.var(1), rtol=1e-7)
    assert found.count == rows.shape[1]


def test_the_inserted_normalization_is_the_identity():
    """CalibTIP's start: BatchNormalizations behind all layers of the float network change its outputs by < 1e-6."""
    graph, context = prepared()
    graph = context.float_graph
    layers = ["h1", "h2", "h3"]
    session, samples = Session(graph), list(context.samples)
    before = [session.run(sample)[0] for sample in samples]
    for name, found in zip(layers, channel_moments(graph, [(n, 1) for n in layers], samples), strict=True):
        value = graph.value(name)
        arrays = tune.identity(tune.Normal(found.mean, found.variance))
        constants = [graph.add_const(f"{name}_{i}", array.astype(np.float32)) for i, array in enumerate(arrays)]
        users = list(value.uses())
        values = {"epsilon": tune.EPSILON}
        node = graph.add_node("BatchNormalization", [value, *constants], values, after=value.producer(), like=value)
        for use in users:
            use.node.replace_input_with(use.idx, node.outputs[0])
    session = Session(graph)
    assert len(graph.nodes("BatchNormalization")) == 3
    for sample, want in zip(samples, before, strict=True):
        np.testing.assert_allclose(session.run(sample)[0], want, atol=1e-6 * np.abs(want).max())


def test_statistics_that_did_not_move_change_no_integer():
    graph, context = prepared()
    layers, before = bias_correction.find_layers(graph), graph.fingerprint()
    assert [layer.name for layer in layers] == LAYERS
    nodes = {node.name: node for node in graph.nodes()}
    for layer, found in zip(layers, moments(graph, True, layers, context), strict=True):
        target = tune.Normal(found.mean, found.variance)
        r = tune.renormalize(graph, layer, nodes[layer.name], target, target, 2.0, context)
        assert (r == 1).all()
    assert graph.fingerprint() == before
    assert tune.run(graph, tune.Options(samples=0), context).fingerprint() == before


def test_scales_that_were_off_come_back_and_codes_stay():
    graph, context = prepared()
    graph = spoil(graph)
    layers, before = bias_correction.find_layers(graph), codes(graph)
    want, spoiled = moments(graph, True, layers, context), moments(graph, False, layers, context)
    graph = tune.run(graph, tune.Options(), context)
    facts, after = context.facts["reestimate_batchnorm"], moments(graph, False, layers, context)
    assert facts["kept"] and facts["error_after"] < 0.2 * facts["error_before"] and facts["layers"] == 5
    for w, s, a in zip(want, spoiled, after, strict=True):
        np.testing.assert_allclose(a.mean, w.mean, atol=0.02 * np.sqrt(w.variance).max())
        np.testing.assert_allclose(a.variance, w.variance, rtol=0.02)
        assert not np.allclose(s.variance, w.variance, rtol=0.2)
    for old, new in zip(before, codes(graph), strict=True):
        np.testing.assert_array_equal(old, new)
    worst, differing = differences(graph, integer(graph))
    assert worst <= 1 and differing < 0.02


@pytest.mark.parametrize("arithmetic", ["float", "fixed"])
def test_the_integer_graph_follows(arithmetic: str):
    graph, context = prepared(precision="w4a4")
    graph = tune.run(spoil(graph), tune.Options(), context)
    assert context.facts["reestimate_batchnorm"]["kept"]
    worst, differing = differences(graph, integer(graph, arithmetic))
    assert worst <= 1 and differing < 0.05


def test_what_the_batchnorm_said_is_the_target():
    graph, context = prepared()
    layers = bias_correction.find_layers(graph)
    value = context.float_graph.value("h1")
    found = moments(graph, True, layers, context)[0]
    mark_normal(value, found.mean + 0.5, np.sqrt(found.variance) * 1.5)
    targets = tune._targets(context.float_graph, layers, list(context.samples), "batchnorm")
    np.testing.assert_allclose(targets["c1"].mean, found.mean + 0.5, rtol=1e-6)
    np.testing.assert_allclose(targets["c1"].variance, 2.25 * found.variance, rtol=1e-6)
    measured = tune._targets(context.float_graph, layers, list(context.samples), "measured")
    np.testing.assert_allclose(measured["c1"].mean, found.mean)
    np.testing.assert_allclose(targets["mm"].mean, measured["mm"].mean)  # nothing was folded there


def test_factors_are_bounded_and_constants_stay():
    graph, context = prepared()
    layer = bias_correction.find_layers(graph)[0]
    node = next(node for node in graph.nodes() if node.name == "c1")
    target = tune.Normal(np.zeros(8), np.ones(8))
    variance = np.array([1e-12, 1e-3, 1, 1, 1, 4, 1e4, 1.0])
    target.variance[3] = 1e-9  # a channel that was a constant in the float network
    bias = bias_correction.read_layer_bias(graph, layer)
    r = tune.renormalize(graph, layer, node, target, tune.Normal(np.ones(8), variance), 2.0, context)
    np.testing.assert_allclose(r, [1, 2, 1, 1, 1, 0.5, 0.5, 1], rtol=1e-4)
    new = bias_correction.read_layer_bias(graph, layer)
    step = qdq.quantizer_of(graph, node.inputs[0]).params.scale * qdq.quantizer_of(graph, node.inputs[1]).params.scale
    want = np.where([False, True, True, False, True, True, True, True], r * (bias - 1), bias)
    assert (np.abs(new - want) <= step).all()


def test_a_bias_that_would_not_fit_keeps_its_channel():
    graph, context = prepared()
    layer, node = bias_correction.find_layers(graph)[0], next(node for node in graph.nodes() if node.name == "c1")
    mean = np.zeros(8)
    mean[2] = -1e9
    before = graph.const(node.inputs[2].producer().inputs[0])
    seen = tune.Normal(mean, np.full(8, 1 / 1.44))
    r = tune.renormalize(graph, layer, node, tune.Normal(np.zeros(8), np.ones(8)), seen, 2.0, context)
    after = graph.const(node.inputs[2].producer().inputs[0])
    assert r[2] == 1 and before[2] == after[2]
    np.testing.assert_allclose(np.delete(r, 2), 1.2, rtol=1e-4)
    np.testing.assert_allclose(np.delete(after, 2), np.delete(before, 2), atol=1)  # scale and bias by one factor


def test_weights_with_one_scale_get_their_means_only():
    graph, context = prepared(per_tensor=True)
    layers = bias_correction.find_layers(graph)
    scales = [qdq.quantizer_of(graph, node.inputs[1]).params for node in graph.nodes("Conv", "Gemm")]
    want, before = moments(graph, True, layers, context), moments(graph, False, layers, context)
    graph = tune.run(graph, tune.Options(), context)
    after = moments(graph, False, layers, context)
    assert context.facts["reestimate_batchnorm"]["kept"]
    assert [qdq.quantizer_of(graph, node.inputs[1]).params for node in graph.nodes("Conv", "Gemm")] == scales
    assert {note.where for note in context.notes} >= set(LAYERS)
    assert "has one scale" in context.notes[-1].text
    for w, b, a in zip(want, before, after, strict=True):
        assert np.abs(a.mean - w.mean).sum() < 0.1 * np.abs(b.mean - w.mean).sum() + 0.02


def test_a_change_for_the_worse_is_undone():
    graph, context = prepared(precision="w8a8")
    for value in context.float_graph.values():  # statistics that are nonsense
        if value.name in ("h1", "h2", "h3"):
            channels = value.shape[1]
            mark_normal(value, np.full(channels, -3.0), np.ones(channels))
    before = graph.fingerprint()
    graph = tune.run(graph, tune.Options(source="batchnorm"), context)
    assert not context.facts["reestimate_batchnorm"]["kept"] and "undone" in context.notes[-1].text
    assert graph.fingerprint() == before


def test_same_samples_same_result_and_it_goes_on_behind_solvers():
    prints = []
    for _ in range(2):
        graph, context = prepared(precision="w3a4")
        graph = solve_weights.run(graph, solve_weights.Options(), context)
        graph = tune.run(graph, tune.Options(), context)
        prints.append(bias_correction.run(graph, bias_correction.Options(), context).fingerprint())
    assert prints[0] == prints[1]


def test_refusals_and_order():
    graph, context = prepared()
    with pytest.raises(RecipeError, match="`source` is one of"):
        tune.run(graph, tune.Options(source="guess"), context)
    with pytest.raises(CalibrationError, match="calibration data"):
        tune.run(graph, tune.Options(), Context(float_graph=context.float_graph))
    with pytest.raises(RecipeError, match="float graph"):
        tune.run(graph, tune.Options(), Context())
    recipe = '[recipe]\nbase = "default"\n[recipe.after]\n'
    parse_recipe(recipe + 'insert_qdq = ["solve_weights", "reestimate_batchnorm"]')
    late, early = 'bias_correction = ["reestimate_batchnorm"]', 'insert_qdq = ["reestimate_batchnorm", "solve_weights"]'
    for wrong in (late, early):
        with pytest.raises(RecipeError, match="must run behind"):
            parse_recipe(recipe + wrong)
