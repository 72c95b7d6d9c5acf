"""bias_correction from BatchNormalizations: the statistics survive, the moments are right, the means come back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcompiler.calibrate.data import load_samples
from qcompiler.calibrate.expected import Expected, clipped, expected, product_mean
from qcompiler.context import Context
from qcompiler.errors import CalibrationError, RecipeError
from qcompiler.graph import qdq
from qcompiler.graph.model import Graph
from qcompiler.graph.normal import normal_of
from qcompiler.passes import (
    bias_correction,
    canonicalize,
    cross_layer_equalization,
    decide,
    equalize_activations,
    fold_batchnorm,
    insert_qdq,
    set_ranges,
)
from tests.quantized import float_graph

RNG = np.random.default_rng(0)


def norm(name: str, channels: int, rng: np.random.Generator = RNG) -> dict[str, np.ndarray]:
    found = {
        f"g{name}": rng.uniform(0.5, 1.5, channels) * rng.choice([-1, 1], channels),
        f"b{name}": rng.standard_normal(channels), f"m{name}": np.zeros(channels), f"v{name}": np.ones(channels),
    }  # fmt: skip
    return {key: value.astype(np.float32) for key, value in found.items()}


def batchnorm(x: str, name: str) -> str:
    return f"BatchNormalization({x}, g{name}, b{name}, m{name}, v{name})"


BODY = f"""h1 = Conv<pads = [1, 1, 1, 1]>(x, w1)  n1 = {batchnorm("h1", "1")}  r1 = Relu(n1)
h2 = Conv(r1, w2)  n2 = {batchnorm("h2", "2")}  r2 = Clip(n2, low, high)
h3 = Conv(r2, w3)  n3 = {batchnorm("h3", "3")}  s = Add(n3, r1)  r3 = Relu(s)
p = GlobalAveragePool(r3)  f = Flatten(p)  y = Gemm(f, w4, b4)"""


CHAIN = BODY.replace("s = Add(n3, r1)  r3 = Relu(s)", "r3 = Relu(n3)").replace("Clip(n2, low, high)", "Identity(n2)")


def network(body: str = BODY, count: int = 64) -> tuple[Graph, np.ndarray]:
    """Three convolutions with BatchNormalizations whose statistics are those of the data, a residual, a classifier."""
    rng = np.random.default_rng(0)
    constants = {
        "w1": rng.standard_normal((6, 3, 3, 3)) / 5, **norm("1", 6, rng), "w2": rng.standard_normal((8, 6, 1, 1)) / 2,
        **norm("2", 8, rng), "w3": rng.standard_normal((6, 8, 1, 1)) / 2, **norm("3", 6, rng),
        "w4": rng.standard_normal((6, 4)), "b4": rng.standard_normal(4),
        **({"low": np.float32(0), "high": np.float32(2)} if "low" in body else {}),
    }  # fmt: skip
    constants = {key: np.asarray(value, np.float32) for key, value in constants.items()}
    x = rng.standard_normal((count, 3, 8, 8)).astype(np.float32)
    header = "float[1,3,8,8] x => float[1,4] y"
    for i in "123":  # statistics of the data, layer by layer
        graph = float_graph(header, body, **constants)
        values = np.concatenate([run_to(graph, one[None], f"h{i}") for one in x])
        constants[f"m{i}"], constants[f"v{i}"] = values.mean((0, 2, 3)), values.var((0, 2, 3))
    return float_graph(header, body, **constants), x


def run_to(graph: Graph, x: np.ndarray, name: str) -> np.ndarray:
    from qcompiler.calibrate.statistics import with_outputs
    from qcompiler.execute.ort import Session

    return Session(with_outputs(graph, [name])).run({"x": x})[0]


def folded(graph: Graph) -> Graph:
    return fold_batchnorm.run(graph.clone(), fold_batchnorm.Options(), Context())


def prepared(graph: Graph, x: np.ndarray, **options) -> tuple[Graph, Context]:
    context = Context(samples=load_samples({"x": x}, graph))
    options = {"precision": "w3a8", "keep_first_last": False, **options}
    graph = decide.run(graph.clone(), decide.Options(**options), context)
    graph = set_ranges.run(graph, set_ranges.Options(), context)
    return insert_qdq.run(graph, insert_qdq.Options(), context), context


def mean_errors(graph: Graph, context: Context) -> list[float]:
    """Mean error of the outputs of all layers, before their clips."""
    layers = bias_correction.find_layers(graph)
    known = {value.name for value in context.float_graph.values()}
    own = bias_correction.means(graph, [(one.output, None, one.axis) for one in layers], context, 64)
    names = [(bias_correction.float_name(one.output, known), None, one.axis) for one in layers]
    want = bias_correction.means(context.float_graph, names, context, 64)
    return [float(np.abs(a - b).mean()) for (a, _), (b, _) in zip(own, want, strict=True)]


@given(
    mean=st.floats(-4, 4), deviation=st.floats(0, 3),
    bounds=st.sampled_from([(0.0, np.inf), (0.0, 6.0), (-1.0, 0.5), (-np.inf, 0.0)]),
)  # fmt: skip
def test_clipped_normals_against_quadrature(mean: float, deviation: float, bounds: tuple[float, float]):
    z = np.linspace(-9, 9, 200_001)
    weight = np.exp(-z * z / 2)
    x = np.clip(mean + deviation * z, *bounds)
    want = np.average(x, weights=weight), np.average((x - np.average(x, weights=weight)) ** 2, weights=weight)
    got = clipped(Expected(np.array([mean]), np.array([deviation**2])), *bounds)
    assert got is not None and got.variance is not None
    np.testing.assert_allclose([got.mean[0], got.variance[0]], want, atol=2e-5)


def test_the_rule_of_the_paper_for_relu():
    from scipy.stats import norm as normal

    beta, gamma = np.array([-1.0, 0.3, 2.0]), np.array([0.5, 1.0, 2.0])
    got = clipped(Expected(beta, gamma**2), 0.0, np.inf)
    want = gamma * normal.pdf(-beta / gamma) + beta * (1 - normal.cdf(-beta / gamma))
    np.testing.assert_allclose(got.mean, want, rtol=1e-12)


def test_folding_leaves_the_statistics_and_they_follow_to_every_reader():
    graph, x = network()
    graph = folded(graph)
    assert not graph.nodes("BatchNormalization")
    said = expected(graph.clone())
    assert {"h1", "r1", "h2", "r2", "h3", "s", "r3", "p", "f"} <= set(said)
    # r3 is behind a sum, whose terms are not independent.
    for name, tolerance in (("h1", 1e-3), ("r1", 0.05), ("h2", 1e-3), ("r2", 0.05), ("h3", 1e-3), ("r3", 0.3)):
        found = np.concatenate([run_to(graph, one[None], name) for one in x])
        np.testing.assert_allclose(said[name].mean, found.mean((0, 2, 3)), atol=tolerance)
        if name != "r3":
            np.testing.assert_allclose(said[name].variance, found.var((0, 2, 3)), atol=3 * tolerance, rtol=0.1)
    assert said["f"].variance is None  # what averaging leaves of the variance is not known


@pytest.mark.parametrize("module", [cross_layer_equalization, equalize_activations])
def test_passes_that_scale_channels_scale_the_statistics(module):
    graph, x = network(CHAIN)
    context = Context(samples=load_samples({"x": x}, graph))
    before = canonicalize.run(folded(graph), canonicalize.Options(), context)  # without the Identity
    after = module.run(before.clone(), module.Options(), context)
    for name in ("h1", "h2", "h3"):
        mean, deviation = normal_of(after.value(name))
        found = np.concatenate([run_to(after, one[None], name) for one in x])
        np.testing.assert_allclose(mean, found.mean((0, 2, 3)), atol=5e-3)
        np.testing.assert_allclose(deviation, found.std((0, 2, 3)), rtol=5e-3)
    assert not np.array_equal(normal_of(after.value("h2"))[1], normal_of(before.value("h2"))[1])


def test_scales_behind_a_batchnorm_count_and_quantized_files_stay_small():
    graph, _ = network()
    body = f"h = Conv(x, w)  n = {batchnorm('h', '1')}  a = Mul(n, c)  y = Add(a, d)"
    scale, shift = np.float32([2, -3, 1, 1, 1, 1]).reshape(6, 1, 1), np.float32([[[1.0]]])
    constants = {**norm("1", 6), "w": np.ones((6, 3, 1, 1), np.float32), "c": scale, "d": shift}
    graph = folded(float_graph("float[1,3,4,4] x => float[1,6,4,4] y", body, **constants))
    mean, deviation = normal_of(graph.outputs[0])
    np.testing.assert_allclose(mean, constants["b1"] * scale.ravel() + 1, rtol=1e-6)
    np.testing.assert_allclose(deviation, np.abs(constants["g1"] * scale.ravel()), rtol=1e-4)
    again = Graph.parse(TEXT_ROUND)  # a graph without any
    assert normal_of(again.outputs[0]) is None
    quantized, context = prepared(graph, RNG.standard_normal((4, 3, 4, 4)).astype(np.float32))
    assert all(normal_of(value) is None for value in quantized.values())
    assert normal_of(context.float_graph.value("y")) is not None


TEXT_ROUND = '<ir_version: 10, opset_import: ["": 21]> g (float[1,3] x) => (float[1,3] y) { y = Relu(x) }'


def test_analytic_needs_no_data_and_restores_the_means():
    graph, x = network()
    graph, context = prepared(folded(graph), x)
    before, samples = mean_errors(graph, context), context.samples
    context.samples = None
    bias_correction.run(graph, bias_correction.Options(method="analytic"), context)
    again = bias_correction.run(graph.clone(), bias_correction.Options(method="analytic"), context)
    assert again.fingerprint() == graph.fingerprint()  # it starts from the float bias
    assert {note.where for note in context.notes} == {bias_correction.find_layers(graph)[0].name}  # reads the input
    context.samples = samples
    after = mean_errors(graph, context)
    assert all(a < 0.6 * b for a, b in zip(after[1:], before[1:], strict=True)), (before, after)


@pytest.mark.parametrize("known", [True, False])
def test_with_data_every_layer_is_corrected_and_worse_is_undone(known: bool):
    graph, x = network()
    graph = folded(graph)
    if not known:
        for value in graph.values():
            value.metadata_props.clear()
    graph, context = prepared(graph, x)
    before = mean_errors(graph, context)
    bias_correction.run(graph, bias_correction.Options(method="analytic"), context)
    facts = context.facts["bias_correction"]
    assert facts["kept"] and facts["error_after"] < facts["error_before"] and not context.notes
    assert sum(mean_errors(graph, context)) < 0.5 * sum(before)
    print_before = graph.fingerprint()
    bias_correction.run(graph, bias_correction.Options(method="analytic"), context)
    assert graph.fingerprint() == print_before and not context.facts["bias_correction"]["kept"]


@pytest.mark.parametrize("op", ["Conv", "ConvTranspose"])
@pytest.mark.parametrize("groups", [1, 2])
def test_the_mean_of_a_product_is_the_product_of_the_mean(op: str, groups: int):
    w = RNG.standard_normal((4, 4 // groups, 2, 2)).astype(np.float32)
    step = 2 if op == "ConvTranspose" else 1  # 2x2 windows side by side: every output meets one tap
    body = f"y = {op}<group = {groups}, strides = [{step}, {step}]>(x, w)"
    graph = float_graph(f"float[1,4,6,6] x => float[1,{'4,5,5' if op == 'Conv' else '4,12,12'}] y", body, w=w)
    mean = RNG.standard_normal(4)
    x = np.broadcast_to(mean.astype(np.float32).reshape(1, 4, 1, 1), (1, 4, 6, 6)).copy()
    got = product_mean(graph.nodes(op)[0], w, mean)
    np.testing.assert_allclose(got, run_to(graph, x, "y").mean((0, 2, 3)), rtol=1e-4, atol=1e-5)


def test_refusals():
    graph, x = network()
    graph, context = prepared(folded(graph), x)
    with pytest.raises(RecipeError, match="`guess` is no method of correction"):
        bias_correction.run(graph, bias_correction.Options(method="guess"), context)
    context.samples = None
    with pytest.raises(CalibrationError, match="analytic"):
        bias_correction.run(graph, bias_correction.Options(), context)
    assert qdq.is_quantizer(graph.outputs[0].producer())
