"""search_ranges: never worse than the start, consistent graphs, what is left alone."""

from __future__ import annotations

import numpy as np
import pytest

from qcompiler.calibrate.data import load_samples
from qcompiler.calibrate.statistics import with_outputs
from qcompiler.context import Context
from qcompiler.errors import CalibrationError, RecipeError
from qcompiler.execute.ort import Session
from qcompiler.graph import qdq
from qcompiler.graph.model import Graph
from qcompiler.graph.stages import Stage, check
from qcompiler.passes import decide, insert_qdq, search_ranges, set_ranges
from tests.quantized import differences, float_graph, integer

CHAIN = "h = Conv<pads = [1, 1, 1, 1]>(x, w, b)  r = Relu(h)  k = Conv(r, v)  t = Tanh(k)  y = Add(t, k)"
HEADER = "float[1,3,6,6] x => float[1,5,6,6] y"


def arrays(seed: int = 0, **shapes: tuple[int, ...]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def chain(seed: int = 0) -> Graph:
    return float_graph(HEADER, CHAIN, **arrays(seed, w=(8, 3, 3, 3), b=(8,), v=(5, 8, 1, 1)))


def quantized(graph: Graph, precision: str = "w8a4", method: str = "minmax", **options) -> tuple[Graph, Context]:
    """A QDQ graph with ranges that leave room, and its context; data with rare large values."""
    rng = np.random.default_rng(9)
    shape = graph.shape(graph.inputs[0])
    data = rng.standard_normal((12, *shape[1:])) * np.where(rng.random((12, *shape[1:])) < 0.01, 8, 1)
    context = Context(samples=load_samples({str(graph.inputs[0].name): data.astype(np.float32)}, graph))
    graph = decide.run(graph, decide.Options(precision=precision, keep_first_last=False, **options), context)
    graph = set_ranges.run(graph, set_ranges.Options(method=method), context)
    return insert_qdq.run(graph, insert_qdq.Options(), context), context


def output_error(graph: Graph, context: Context) -> float:
    error = energy = 0.0
    for sample in context.samples:
        got, want = (Session(g).run(sample)[0].astype(np.float64) for g in (graph, context.float_graph))
        error, energy = error + np.square(got - want).sum(), energy + np.square(want).sum()
    return error / energy


def parameters(graph: Graph) -> dict[str, tuple[float, int]]:
    found = {}
    for node in graph.nodes("DequantizeLinear"):
        read = qdq.quantizer_of(graph, node.outputs[0])
        if read is not None and read.codes is None:
            found[str(read.source.name)] = (float(read.params.scale), int(read.params.zero_point))
    return found


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("precision", ["w8a4", "w4a8"])
def test_the_networks_error_shrinks_as_told_and_the_graph_is_consistent(seed, precision):
    graph, context = quantized(chain(seed), precision)
    before, old = output_error(graph, context), parameters(graph)
    graph = search_ranges.run(graph, search_ranges.Options(), context)
    facts, new = context.facts["search_ranges"], parameters(graph)
    assert facts["error_before"] == pytest.approx(before)
    assert facts["error_after"] == pytest.approx(output_error(graph, context))
    assert facts["error_after"] <= facts["error_before"] and facts["of"] == len(old)
    assert facts["changed"] == sum(old[name] != new[name] for name in old)
    if precision == "w8a4":
        assert facts["error_after"] < 0.9 * before
    check(graph, Stage.QDQ)  # biases have the scale of their product
    largest, share = differences(graph, integer(graph))
    assert largest <= 1 and share < 0.02


def test_one_search_is_never_worse_for_the_readers_and_finds_the_best_of_its_grid():
    graph, context = quantized(chain())
    problems = search_ranges.find_problems(graph, context.float_graph, context, 8)
    assert [p.quantizers[0].inputs[1].name for p in problems] == ["x_scale", "r_scale", "k_scale", "t_scale", "y_scale"]
    assert [list(p.outputs.values()) for p in problems] == [["r"], ["k"], ["t", "y"], ["y"], ["y"]]
    problem = problems[1]
    search_ranges._feed(graph, context.float_graph, [problem], context, 12)
    found = search_ranges.search(graph, problem)

    def error(params) -> float:
        trial = graph.clone()
        scale = next(n for n in trial.nodes("DequantizeLinear") if n.inputs[1].name == "r_scale")
        trial.set_const(scale.inputs[1], params.scale)
        trial.set_const(scale.inputs[2], params.zero_point.astype(np.uint8))
        total = 0.0
        for sample in context.samples:
            got, want = (Session(with_outputs(g, ["k"])).run(sample)[0] for g in (trial, context.float_graph))
            total += np.square(got - want, dtype=np.float64).sum()
        return total

    tried = [error(search_ranges._scaled(problem.params, ratio)) for ratio in search_ranges.RATIOS]
    assert error(found) <= min(tried) * (1 + 1e-6)
    assert min(tried) < error(problem.params)


def test_values_that_share_parameters_stay_together():
    body = "h = Conv(x, w)  g = Reshape(h, s)  m = Transpose<perm = [0, 2, 1]>(g)  p = MatMul(m, v)  y = Tanh(p)"
    made = arrays(0, w=(4, 3, 1, 1), v=(4, 5))
    graph, context = quantized(
        float_graph("float[1,3,6,6] x => float[1,36,5] y", body, **made, s=np.array([1, 4, 36]))
    )
    old = parameters(graph)
    graph = search_ranges.run(graph, search_ranges.Options(), context)
    new = parameters(graph)
    assert new["h"] == new["g"] == new["m"] != old["h"]
    check(graph, Stage.QDQ)
    assert differences(graph, integer(graph))[0] <= 1


def test_a_concat_moves_all_its_inputs():
    body = "a = Conv(x, w)  b = Tanh(x)  c = Concat<axis = 1>(a, b)  y = Conv(c, v)"
    graph, context = quantized(float_graph(HEADER, body, **arrays(0, w=(4, 3, 1, 1), v=(5, 7, 1, 1))))
    graph = search_ranges.run(graph, search_ranges.Options(), context)
    new = parameters(graph)
    assert new["a"] == new["b"] == new["c"]
    assert differences(graph, integer(graph))[0] <= 1


def test_what_is_left_alone():
    body = "a = Conv(x, w)  c = Concat<axis = 1>(a, k)  s = Softmax<axis = 1>(c)  y = Mul(s, c)"
    made = arrays(0, w=(4, 3, 1, 1), k=(1, 2, 6, 6))
    graph, context = quantized(float_graph("float[1,3,6,6] x => float[1,6,6,6] y", body, **made))
    old = parameters(graph)
    new = parameters(search_ranges.run(graph, search_ranges.Options(), context))
    for name in ("a", "c", "s"):  # a constant shares the parameters of a and c; s is a probability
        assert new[name] == old[name]
    wide, context = quantized(chain(), "w8a16")
    old = parameters(wide)
    assert parameters(search_ranges.run(wide, search_ranges.Options(), context)) == old


def test_zero_stays_at_the_end_behind_relu_and_ranges_end_at_the_bounds_of_a_clip():
    body = "h = Conv(x, w)  r = Clip(h, low, high)  k = Conv(r, v)  q = Relu(k)  y = Conv(q, u)"
    made = arrays(0, w=(8, 3, 1, 1), v=(6, 8, 1, 1), u=(5, 6, 1, 1))
    graph, context = quantized(float_graph(HEADER, body, **made, low=np.float32(0), high=np.float32(6)))
    old = parameters(graph)
    new = parameters(search_ranges.run(graph, search_ranges.Options(), context))
    assert new["r"][1] == new["q"][1] == 0 and new["r"][0] <= old["r"][0] * 1.0001
    assert differences(graph, integer(graph))[0] <= 1


def test_the_same_result_twice_and_symmetric_formats_keep_their_zero():
    def found() -> dict[str, tuple[float, int]]:
        graph, context = quantized(chain(), symmetric=True)
        return parameters(search_ranges.run(graph, search_ranges.Options(), context))

    first, second = found(), found()
    assert first == second and {zero for _, zero in first.values()} == {0}


def test_powers_of_two_stay_such():
    graph, context = quantized(chain(), power_of_two=True)
    new = parameters(search_ranges.run(graph, search_ranges.Options(), context))
    assert context.facts["search_ranges"]["changed"] > 0
    assert all(np.log2(scale) % 1 == 0 for scale, _ in new.values())


def test_nothing_better_leaves_every_bit(monkeypatch):
    graph, context = quantized(chain())
    before = graph.fingerprint()
    monkeypatch.setattr(search_ranges, "SLACK", 0.0)
    assert search_ranges.run(graph, search_ranges.Options(), context).fingerprint() == before
    assert context.facts["search_ranges"]["changed"] == 0


def test_bad_use_is_named():
    graph, context = quantized(chain())
    with pytest.raises(RecipeError, match="float graph"):
        search_ranges.run(graph, search_ranges.Options(), Context())
    context.samples = None
    with pytest.raises(CalibrationError, match="calibration data"):
        search_ranges.run(graph, search_ranges.Options(), context)
