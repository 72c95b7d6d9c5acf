"""Ranges that weigh errors by squared gradients: the sums are right, the search lowers what it says it lowers."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcompiler.calibrate.data import load_samples
from qcompiler.calibrate.observers import BINS, Histogram
from qcompiler.calibrate.ranges import find_range, find_weight_range
from qcompiler.context import Context
from qcompiler.errors import CalibrationError, RecipeError, UnsupportedError
from qcompiler.formats import Int, QuantSpec, per_channel
from qcompiler.graph.model import Graph
from qcompiler.passes import decide, set_ranges
from qcompiler.quantizer import fake_quantize
from tests.quantized import float_graph

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'qcompiler[learn]'")
RNG = np.random.default_rng(0)
BODY = """h = Conv<pads = [1, 1, 1, 1]>(x, w)  r = Relu(h)  k = Conv(r, v)  c = Concat<axis = 1>(k, t)  q = Relu(c)
p = GlobalAveragePool(q)  f = Flatten(p)  [fc] y = Gemm(f, u, b)"""


def network() -> Graph:
    rng = np.random.default_rng(3)
    shapes = {"w": (6, 2, 3, 3), "v": (4, 6, 1, 1), "t": (1, 1, 6, 6), "u": (5, 3), "b": (3,)}
    arrays = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    return float_graph("float[1,2,6,6] x => float[1,3] y", BODY, **arrays)


def prepared(graph: Graph, count: int = 24, **options) -> Context:
    shape = graph.shape(graph.inputs[0])
    x = np.random.default_rng(1).standard_t(3, (count, *shape[1:])).astype(np.float32)
    context = Context(samples=load_samples({"x": x}, graph))
    decide.run(graph, decide.Options(**{"precision": "w3a3", "keep_first_last": False, **options}), context)
    return context


def ranges(graph: Graph, method: str, weights: str = "mse", **options) -> Context:
    context = prepared(graph, **options)
    set_ranges.run(graph, set_ranges.Options(method=method, weight_method=weights), context)
    return context


def pairs(graph: Graph, context: Context, name: str, loss: str = "kl") -> tuple[np.ndarray, np.ndarray]:
    from qcompiler.execute.torch import value_gradients

    found = [chunk[name] for chunk in value_gradients(graph, context.samples, [name], loss, seed=context.seed)]
    return tuple(np.concatenate(side) for side in zip(*found, strict=True))


@given(seed=st.integers(0, 2**32 - 1), exponents=st.lists(st.integers(-20, 20), min_size=1, max_size=4))
def test_bins_hold_the_sums_of_weights(seed: int, exponents: list[int]):
    rng = np.random.default_rng(seed)
    parts = [np.maximum(rng.standard_normal(60), -0.5).astype(np.float32) * np.float32(2.0**e) for e in exponents]
    parts = [np.where(rng.random(60) < 0.2, 0, part).astype(np.float32) for part in parts]
    weights = [rng.integers(0, 5, 60).astype(np.float64) for _ in parts]  # sums of integers are exact
    weighted, repeated, merged = Histogram.weighted(), Histogram(), Histogram.weighted()
    for x, w in zip(parts, weights, strict=True):
        weighted.add(x, w)
        one = Histogram.weighted()
        one.add(x, w)
        merged.merge(one)
        repeated.add(np.repeat(x, w.astype(int)))
        repeated.add(x[w == 0])  # its weight is nothing, its range counts
    repeated.counts = sum_of(repeated, parts, weights)
    np.testing.assert_array_equal(weighted.counts, repeated.counts)
    np.testing.assert_array_equal(merged.counts, weighted.counts)
    assert (weighted.minimum, weighted.maximum) == (repeated.minimum, repeated.maximum)
    assert weighted.total == 60 * len(parts) and weighted.counts.dtype == np.float64


def sum_of(histogram: Histogram, parts: list[np.ndarray], weights: list[np.ndarray]) -> np.ndarray:
    x, w = np.concatenate(parts).astype(np.float64), np.concatenate(weights)
    index = np.floor(x[x != 0] / histogram.width).astype(np.int64) - histogram.start
    return np.bincount(index, w[x != 0], BINS)


def test_gradients_are_those_of_each_element():
    """y = x A: for the loss mse with signs s the gradient is A s, whatever x; for r = relu it is masked by x > 0."""
    a = RNG.standard_normal((4, 1)).astype(np.float32)
    graph = float_graph("float[1,4] x => float[1,1] y", "r = Relu(x)  y = MatMul(r, a)", a=a)
    context = prepared(graph)
    x, squares = pairs(graph, context, "x", "mse")
    np.testing.assert_allclose(squares, np.where(x > 0, a.T**2, 0), rtol=1e-6)
    r, squares = pairs(graph, context, "r", "mse")
    np.testing.assert_allclose(squares, np.broadcast_to(a.T**2, r.shape), rtol=1e-6)
    assert r.dtype == np.float32 and squares.dtype == np.float64


def test_weight_gradients_square_sample_by_sample():
    from qcompiler.execute.torch import weight_gradients

    a = RNG.standard_normal((4, 2)).astype(np.float32)
    graph = float_graph("float[1,4] x => float[1,2] y", "y = MatMul(x, a)", a=a)
    context = prepared(graph, 7)
    x = np.concatenate([sample["x"] for sample in context.samples])
    got = weight_gradients(graph, context.samples, ["a"], "mse")["a"]
    np.testing.assert_allclose(got, np.repeat((x**2).mean(0)[:, None], 2, axis=1), rtol=1e-6)
    some = weight_gradients(graph, context.samples, ["a"], "mse", limit=3)["a"]
    np.testing.assert_allclose(some[:, 0], (x[:3] ** 2).mean(0), rtol=1e-6)
    with pytest.raises(CalibrationError, match="no samples"):
        weight_gradients(graph, [], ["a"])
    with pytest.raises(RecipeError, match="`l1` is no loss"):
        weight_gradients(graph, context.samples, ["a"], "l1")  # type: ignore[arg-type]


@pytest.mark.parametrize("precision", ["w2a2", "w3a3", "w4a4", "w8a8"])
@pytest.mark.parametrize("symmetric", [False, True])
def test_no_range_is_worse_than_minmax_or_mse_by_its_own_measure(precision: str, symmetric: bool):
    graph = network()
    found = {m: ranges(graph, m, precision=precision, symmetric=symmetric) for m in ("fisher", "mse", "minmax")}
    strictly = 0
    for name in found["fisher"].assignment.activations:
        if len(found["fisher"].assignment.group_of(name)) > 1 or name == "y":
            continue
        x, squares = pairs(graph, found["fisher"], name)
        loss = {m: float((squares * (x - fake_quantize(x, c.assignment.params[name])) ** 2).sum())
                for m, c in found.items()}  # fmt: skip
        # A histogram is not the data; mse searches coarse, then fine, and so does fisher: a ratio may be missed.
        assert loss["fisher"] <= loss["minmax"] * 1.01 + 1e-12
        assert loss["fisher"] <= loss["mse"] * 1.05 + 1e-12
        strictly += loss["fisher"] < 0.99 * loss["mse"]
    assert strictly or precision == "w8a8"


@given(seed=st.integers(0, 2**32 - 1), bits=st.integers(2, 8), axis=st.sampled_from([None, 0, 1]))
def test_weight_ranges_lower_the_weighted_error_of_every_channel(seed: int, bits: int, axis: int | None):
    rng = np.random.default_rng(seed)
    w, care = rng.standard_normal((5, 7, 3)).astype(np.float32), rng.gamma(0.3, size=(5, 7, 3))
    granularity = QuantSpec(Int(8)).granularity if axis is None else per_channel(axis)
    spec = QuantSpec(Int(bits), granularity, symmetric=True)
    other = tuple(i for i in range(3) if i != axis) if axis is not None else (0, 1, 2)
    params = [
        find_weight_range(w, spec, "mse", 2.0, importance=care), find_weight_range(w, spec, "mse", 2.0),
        find_weight_range(w, spec, "minmax"),
    ]  # fmt: skip
    errors = [(care * (w - fake_quantize(w, one)).astype(np.float64) ** 2).sum(axis=other) for one in params]
    assert np.all(errors[0] <= errors[1] * (1 + 1e-5)) and np.all(errors[0] <= errors[2] * (1 + 1e-5))


def test_channels_that_nothing_depends_on_weigh_all_errors_the_same():
    w, care = RNG.standard_normal((3, 40)).astype(np.float32), RNG.gamma(0.3, size=(3, 40))
    care[1] = 0
    spec = QuantSpec(Int(3), per_channel(0), symmetric=True)
    got, plain = find_weight_range(w, spec, "mse", 2.0, importance=care), find_weight_range(w, spec, "mse", 2.0)
    assert got.scale[1] == plain.scale[1] and (got.scale != plain.scale).any()


def test_values_without_gradients_fall_back_to_mse():
    graph = float_graph("float[1,4] x => float[1,4] y", "a = Mul(x, z)  y = Add(a, o)", z=np.float32([0.0]),
                        o=np.float32([1, 2, 3, 4]))  # fmt: skip
    assert ranges(graph, "fisher").assignment.params["x"] == ranges(graph, "mse").assignment.params["x"]


def test_outputs_keep_the_least_squared_error():
    graph = network()
    fisher, plain = (ranges(graph, method).assignment for method in ("fisher", "mse"))
    assert fisher.params["y"] == plain.params["y"] and fisher.params["q"] != plain.params["q"]


def test_weighted_histograms_of_nothing_give_plain_ranges():
    histogram = Histogram.weighted()
    histogram.add(np.float32([-1, 2]), np.zeros(2))
    params = find_range(histogram, QuantSpec(Int(8, signed=False)), "mse")
    np.testing.assert_allclose(params.scale, 3 / 255, rtol=1e-6)


def test_deterministic_and_different_from_mse():
    graph = network()
    first, second, plain = (ranges(graph, m, m) for m in ("fisher", "fisher", "mse"))
    assert first.assignment.params == second.assignment.params
    assert first.facts["set_ranges"] == {"fisher_loss": "kl"}
    differs = {name for name, params in first.assignment.params.items() if params != plain.assignment.params[name]}
    assert differs & {"r", "q", "f"} and differs & {"w", "v", "u"}


def test_a_rule_may_ask_for_it():
    graph = network()
    context = ranges(graph, "mse", rules=({"op_type": "GlobalAveragePool", "method": "fisher"},))
    plain = ranges(graph, "mse").assignment.params
    fisher = ranges(graph, "fisher").assignment.params
    assert context.assignment.methods and set(context.assignment.methods.values()) == {"fisher"}
    for name, params in context.assignment.params.items():
        asked = set(context.assignment.group_of(name)) & set(context.assignment.methods)
        assert params == (fisher if asked else plain)[name]


@pytest.mark.parametrize(
    ("header", "body", "want"),
    [
        ("float[1,16] x => float[1,4] y", "y = MatMul(x, w)", "kl"),
        ("float[1,16] x => float[1,4] y", "h = MatMul(x, w)  y = Add(h, b)", "kl"),
        ("float[1,16] x => float[1,4] y", "h = MatMul(x, w)  y = Softmax(h)", "kl"),
        ("float[1,16] x => float[1,4] y", "h = MatMul(x, w)  y = Tanh(h)", "mse"),
        ("float[1,4] x => float[1,4] y", "y = MatMul(x, s)", "mse"),  # as an autoencoder has it
        ("float[1,3,16] x => float[1,3,4] y", "y = MatMul(x, w)", "mse"),
    ],
)
def test_the_loss_that_fits_the_model(header: str, body: str, want: str):
    from qcompiler.calibrate.fisher import loss_of

    constants = {"w": np.ones((16, 4), np.float32), "b": np.ones(4, np.float32), "s": np.eye(4, dtype=np.float32)}
    used = {name: array for name, array in constants.items() if f", {name})" in body}
    assert loss_of(float_graph(header, body, **used)) == want


def test_refusals(monkeypatch: pytest.MonkeyPatch):
    graph = network()
    with pytest.raises(RecipeError, match="`fish` is no range method"):
        set_ranges.run(graph, set_ranges.Options(method="fish"), prepared(graph))
    with pytest.raises(RecipeError, match="`fisher_samples` at least 1"):
        set_ranges.run(graph, set_ranges.Options(method="fisher", fisher_samples=0), prepared(graph))
    for module in [name for name in sys.modules if name.startswith("qcompiler.execute.torch")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UnsupportedError, match="need torch") as error:
        set_ranges.run(graph, set_ranges.Options(method="fisher"), prepared(graph))
    assert "qcompiler[learn]" in str(error.value.hint)
