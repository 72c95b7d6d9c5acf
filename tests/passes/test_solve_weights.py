"""solve_weights on networks with every kind of layer: it is never worse than rounding, and writes what it says."""

from __future__ import annotations

import numpy as np
import pytest

from qcompiler.calibrate.data import load_samples
from qcompiler.context import Context
from qcompiler.errors import CalibrationError, RecipeError
from qcompiler.execute.oracle import Oracle
from qcompiler.execute.ort import Session
from qcompiler.graph import qdq
from qcompiler.graph.io import load_graph
from qcompiler.graph.model import Graph
from qcompiler.passes import bias_correction, decide, insert_qdq, integerize, set_ranges, solve_weights
from qcompiler.solve.moments import Moments

TEXT = """<ir_version: 10, opset_import: ["": 21]>
g (float[1,3,8,8] x, float[8,3,3,3] w1, float[8] b1, float[8,1,3,3] w2, float[8,4,1,1] w3, float[8] b3, float[128,6] w4,
   float[6,7] w5, float[7] b5, float[7,4] w6, int64[2] shape) => (float[1,4] y) {
  [c1] h1 = Conv <pads = [1,1,1,1]> (x, w1, b1)
  [r1] a1 = Relu(h1)
  [c2] h2 = Conv <group = 8, pads = [1,1,1,1], strides = [2,2]> (a1, w2)
  [r2] a2 = Relu(h2)
  [c3] h3 = Conv <group = 2> (a2, w3, b3)
  [sum] s = Add(h3, a2)
  [flat] f = Reshape(s, shape)
  [fc] m = Gemm(f, w4)
  [r4] a4 = Relu(m)
  [mm] p = MatMul(a4, w5)
  [mb] q = Add(p, b5)
  [r5] a5 = Relu(q)
  [last] y = MatMul(a5, w6)
}"""


def network() -> Graph:
    rng = np.random.default_rng(0)
    shapes = {
        "w1": (8, 3, 3, 3), "b1": (8,), "w2": (8, 1, 3, 3), "w3": (8, 4, 1, 1), "b3": (8,), "w4": (128, 6),
        "w5": (6, 7), "b5": (7,), "w6": (7, 4),
    }  # fmt: skip
    constants = {name: rng.standard_normal(shape).astype(np.float32) * 0.5 for name, shape in shapes.items()}
    return load_graph(Graph.parse(TEXT, shape=np.int64([1, 128]), **constants).to_proto())


def prepared(graph: Graph, **options) -> tuple[Graph, Context]:
    # Correlated inputs: what solvers of second order live on.
    rng = np.random.default_rng(1)
    x = np.cumsum(np.cumsum(rng.standard_normal((48, 3, 8, 8)), axis=2), axis=3).astype(np.float32) / 4
    context = Context(samples=load_samples({"x": x}, graph))
    graph = decide.run(
        graph.clone(), decide.Options(**{"precision": "w4a8", "keep_first_last": False, **options}), context
    )
    graph = set_ranges.run(graph, set_ranges.Options(), context)
    return insert_qdq.run(graph, insert_qdq.Options(), context), context


def output_error(graph: Graph, context: Context) -> float:
    assert context.float_graph is not None
    return bias_correction.output_error(graph, context.float_graph, context, 48)


@pytest.mark.parametrize("method", solve_weights.METHODS)
@pytest.mark.parametrize("precision", ["w4a8", "w3a4"])
def test_every_method_lowers_the_error(method: str, precision: str) -> None:
    graph, context = prepared(network(), precision=precision)
    before = output_error(graph, context)
    names = [node.name for node in graph.nodes()]
    graph = solve_weights.run(graph, solve_weights.Options(method=method), context)
    assert output_error(graph, context) < before
    assert [node.name for node in graph.nodes()] == names
    facts = context.facts["solve_weights"]
    assert set(facts) == {"c1", "c2", "c3", "fc", "mm", "last"}
    assert all(one["error_after"] <= one["error_before"] * (1 + 1e-6) for one in facts.values())


def test_gptq_with_refit_beats_rounding_with_refit() -> None:
    errors = {}
    for method in ("nearest", "gptq"):
        graph, context = prepared(network())
        graph = solve_weights.run(graph, solve_weights.Options(method=method, sweeps=0), context)
        errors[method] = output_error(graph, context)
    assert errors["gptq"] < errors["nearest"]


def test_codes_stay_in_the_format_and_the_oracle_agrees() -> None:
    graph, context = prepared(network(), precision="w3a8")
    graph = solve_weights.run(graph, solve_weights.Options(), context)
    for node in graph.nodes("DequantizeLinear"):
        read = qdq.quantizer_of(graph, node.outputs[0])
        if read is not None and read.codes is not None:
            assert read.codes.min() >= read.params.format.min and read.codes.max() <= read.params.format.max
    oracle = Oracle(integerize.run(graph.clone(), integerize.Options(), Context()))
    session = Session(graph)
    for sample in context.samples:
        got, want = oracle.run(sample)[0], session.run(sample)[0]
        assert np.abs(got - want).max() <= 2.5 * float(qdq.quantizer_of(graph, graph.outputs[0]).params.scale)


def test_little_data_hold_the_weight() -> None:
    """The fewer rows, the more the refit is held to the float weight."""
    rng = np.random.default_rng(3)
    weight = rng.standard_normal((1, 8, 30))
    picked = {}
    for rows in (20, 5000):
        parts = (Moments.zeros(1, 30), Moments.zeros(1, 30))
        for part in parts:
            x = rng.standard_normal((1, rows, 30)).astype(np.float32)
            part.add(x, x + 0.3 * rng.standard_normal(x.shape).astype(np.float32))
        layer = solve_weights.Layer(None, "x", weight, weight.shape[1:], None, None, None)
        picked[rows] = solve_weights.choose_ridge(layer, parts)
    assert set(picked.values()) <= set(solve_weights.RIDGES)
    assert picked[20] > picked[5000]


def test_per_tensor_weights_keep_one_scale() -> None:
    graph, context = prepared(network(), per_tensor=True)
    before = output_error(graph, context)
    graph = solve_weights.run(graph, solve_weights.Options(), context)
    reads = [qdq.quantizer_of(graph, node.inputs[1]) for node in graph.nodes("Conv", "Gemm", "MatMul")]
    assert all(read.params.scale.ndim == 0 for read in reads)
    assert output_error(graph, context) < before


def test_same_samples_same_codes() -> None:
    prints = []
    for _ in range(2):
        graph, context = prepared(network())
        prints.append(solve_weights.run(graph, solve_weights.Options(), context).fingerprint())
    assert prints[0] == prints[1]


def test_shared_and_transposed_weights_are_left_with_a_note() -> None:
    text = """<ir_version: 10, opset_import: ["": 21]>
    g (float[1,2,6,6] x, float[2,2,2,2] t, float[6,6] w) => (float[1,2,7,7] a, float[1,2,6,6] b) {
      [up] a = ConvTranspose(x, t)
      [m1] h = MatMul(x, w)
      [m2] b = MatMul(h, w)
    }"""
    rng = np.random.default_rng(2)
    constants = {"t": rng.standard_normal((2, 2, 2, 2)), "w": rng.standard_normal((6, 6))}
    model = load_graph(Graph.parse(text, **{k: v.astype(np.float32) for k, v in constants.items()}).to_proto())
    context = Context(samples=load_samples({"x": rng.standard_normal((4, 2, 6, 6)).astype(np.float32)}, model))
    graph = decide.run(model, decide.Options(precision="w4a8", keep_first_last=False), context)
    graph = insert_qdq.run(set_ranges.run(graph, set_ranges.Options(), context), insert_qdq.Options(), context)
    before = graph.fingerprint()
    graph = solve_weights.run(graph, solve_weights.Options(), context)
    assert graph.fingerprint() == before
    said = {note.where: note.text for note in context.notes}
    assert "ConvTranspose" in said["up"] and "shared" in said["m1"] and "shared" in said["m2"]


def test_refusals() -> None:
    graph, context = prepared(network())
    with pytest.raises(RecipeError, match="is no solver"):
        solve_weights.run(graph, solve_weights.Options(method="magic"), context)
    with pytest.raises(RecipeError, match="float graph"):
        solve_weights.run(graph, solve_weights.Options(), Context(samples=context.samples))
    with pytest.raises(CalibrationError):
        solve_weights.run(graph, solve_weights.Options(), Context(float_graph=context.float_graph))
