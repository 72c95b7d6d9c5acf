"""State: caches of fixed length against the growing cache that the exporter wrote; states kept in a bundle."""

from __future__ import annotations

import numpy as np
import pytest

from qcompiler.calibrate.rollout import EVERY, rollout
from qcompiler.driver import compile, quantize
from qcompiler.errors import CalibrationError, RecipeError, UnsupportedError
from qcompiler.execute.oracle import Oracle
from qcompiler.execute.ort import Session
from qcompiler.graph.io import load_graph
from qcompiler.graph.model import Graph
from qcompiler.graph.state import bind_state, state_pairs
from qcompiler.runtime.loader import BundleLoadError

STEPS = 12
TEXT = """<ir_version: 10, opset_import: ["": 21]>
decoder (float[1,1,8] x, float[1,2,past,4] past_key, float[1,2,past,4] past_value, float[8,8] wq, float[8,8] wk,
         float[8,8] wv, int64[4] heads, int64[3] flat, float scale) =>
        (float[1,1,8] y, float[1,2,all,4] present_key, float[1,2,all,4] present_value)
{
  q1 = MatMul(x, wq)  q2 = Reshape(q1, heads)  q = Transpose <perm=[0,2,1,3]> (q2)
  k1 = MatMul(x, wk)  k2 = Reshape(k1, heads)  k = Transpose <perm=[0,2,1,3]> (k2)
  v1 = MatMul(x, wv)  v2 = Reshape(v1, heads)  v = Transpose <perm=[0,2,1,3]> (v2)
  present_key = Concat <axis=2> (past_key, k)
  present_value = Concat <axis=2> (past_value, v)
  kt = Transpose <perm=[0,1,3,2]> (present_key)
  s1 = MatMul(q, kt)  s2 = Mul(s1, scale)  p = Softmax <axis=-1> (s2)
  c = MatMul(p, present_value)  ct = Transpose <perm=[0,2,1,3]> (c)  y = Reshape(ct, flat)
}"""


def decoder(past: int | None) -> Graph:
    rng = np.random.default_rng(1)
    weights = {name: rng.standard_normal((8, 8)).astype(np.float32) for name in ("wq", "wk", "wv")}
    graph = Graph.parse(TEXT, heads=np.array([1, 1, 2, 4]), flat=np.array([1, 1, 8]), scale=np.float32(0.5), **weights)
    if past is None:
        return graph
    for value in graph.outputs[1:]:
        value.shape = None
    return load_graph(graph.model, dims={"past": past})


def sequences(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, STEPS, 8)).astype(np.float32)


def growing(sequence: np.ndarray) -> list[np.ndarray]:
    """The exporter's own graph, whose cache grows."""
    session, found = Session(decoder(None)), []
    past = {name: np.zeros((1, 2, 0, 4), np.float32) for name in ("past_key", "past_value")}
    for x in sequence:
        y, *present = session.run({"x": x.reshape(1, 1, 8), **past})
        past = dict(zip(past, present, strict=True))
        found.append(y)
    return found


def steps(run, graph: Graph, sequence: np.ndarray) -> list[np.ndarray]:
    """A bound graph, its states handed on as float32."""
    pairs, names, found = state_pairs(graph), [str(v.name) for v in graph.outputs], []
    state = {name: np.zeros(graph.shape(graph.value(name)), np.float32) for name in pairs.values()}
    for t, x in enumerate(sequence):
        outputs = dict(zip(names, run({"x": x.reshape(1, 1, 8), "position": np.array([t]), **state}), strict=True))
        state = {name: outputs[output] for output, name in pairs.items()}
        found.append(outputs["y"])
    return found


def test_a_cache_of_fixed_length_gives_what_the_growing_one_gives():
    graph = bind_state(decoder(STEPS - 1), "auto")
    assert state_pairs(graph) == {"present_key": "past_key", "present_value": "past_value"}
    assert graph.shape(graph.value("past_key")) == (1, 2, STEPS, 4)
    (sequence,) = sequences(1)
    for want, got in zip(growing(sequence), steps(Session(graph).run, graph, sequence), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_a_full_cache_is_a_sliding_window():
    graph = bind_state(decoder(3), "auto")
    (sequence,) = sequences(1)
    got = steps(Session(graph).run, graph, sequence)[-1]
    np.testing.assert_allclose(got, growing(sequence[-4:])[-1], rtol=1e-5, atol=1e-6)


def test_rollout_takes_every_eighth_step_with_the_states_of_the_float_model():
    graph = bind_state(decoder(STEPS - 1), "auto")
    data = rollout({"x": sequences(2)}, graph)
    found = list(data)
    assert len(found) == len(data) and [int(s["position"][0]) for s in found] == [0, EVERY, 1, EVERY + 1]
    assert not found[0]["past_key"].any() and found[1]["past_key"][0, :, :EVERY].any()
    assert not found[1]["past_key"][0, :, EVERY:].any()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    path = tmp_path_factory.mktemp("state") / "bundle"
    return compile(
        decoder(STEPS - 1).model, "cpu", {"x": sequences(8)}, output=path, state="auto", options={"precision": "w8a8"}
    )


def test_a_bundle_keeps_its_state(bundle):
    graph = bundle.integer_graph()
    with bundle.load() as session:
        for sequence in sequences(2, seed=5):
            session.reset()
            want = steps(Oracle(graph).run, graph, sequence)
            for t, (x, y) in enumerate(zip(sequence, want, strict=True)):
                (got,) = session.step({"x": x.reshape(1, 1, 8), "position": np.array([t])})
                np.testing.assert_array_equal(got, y)


def test_run_shows_the_states_and_leaves_those_inside_alone(bundle):
    graph = bundle.integer_graph()
    (sequence,) = sequences(1, seed=6)
    with bundle.load() as session:
        session.self_test()
        for want, got in zip(
            steps(Oracle(graph).run, graph, sequence), steps(session.run, graph, sequence), strict=True
        ):
            np.testing.assert_array_equal(got, want)
        first = session.step({"x": sequence[:1].reshape(1, 1, 8), "position": np.array([0])})[0]
        np.testing.assert_array_equal(first, steps(Oracle(graph).run, graph, sequence[:1])[0])
        with pytest.raises(BundleLoadError, match="inputs are"):
            session.step({"x": sequence[:1].reshape(1, 1, 8)})


def test_a_bundle_without_state_has_no_step(digits_bundle):
    from qcompiler.bundle import Bundle

    with Bundle.open(digits_bundle).load() as session, pytest.raises(BundleLoadError, match="no state"):
        session.step({"x": np.zeros((1, 1, 8, 8), np.float32)})


def test_the_c_target_shows_the_states(tmp_path):
    made = compile(decoder(STEPS - 1).model, "c", {"x": sequences(8)}, output=tmp_path / "c", state="auto")
    assert made.report()["verification"]["bit_exact"]


def test_states_of_one_shape_are_only_written_down():
    graph = load_graph(Graph.parse(
        '<ir_version: 10, opset_import: ["": 21]> g (float[1,4] x, float[1,4] h_in) => (float[1,4] y, float[1,4] h_out)'
        "{ h_out = Add(x, h_in) y = Relu(h_out) }"
    ).model)  # fmt: skip
    bound = bind_state(graph, "auto")
    assert state_pairs(bound) == {"h_out": "h_in"} and [n.op_type for n in bound.nodes()] == ["Add", "Relu"]


@pytest.mark.parametrize(("pairs", "error", "word"), [
    ({"nothing": "past_key"}, RecipeError, "no output `nothing`"),
    ({"present_key": "nothing"}, RecipeError, "no input `nothing`"),
    ({"y": "past_key"}, UnsupportedError, "another shape"),
])  # fmt: skip
def test_refusals_name_the_reason(pairs, error, word):
    with pytest.raises(error, match=word):
        bind_state(decoder(3), pairs)


def test_names_that_say_nothing_are_refused():
    graph = load_graph(Graph.parse('<ir_version: 10, opset_import: ["": 21]> g (float[1] x) => (float[1] y) '
                                   "{ y = Relu(x) }").model)  # fmt: skip
    with pytest.raises(RecipeError, match="--state|named like"):
        bind_state(graph, "auto")


@pytest.mark.parametrize(("data", "word"), [({}, "no sequences"), ({"x": np.zeros((2, 5, 3), np.float32)}, "shape")])
def test_sequences_that_do_not_fit_are_refused(data, word):
    with pytest.raises(CalibrationError, match=word):
        quantize(decoder(3).model, data, state="auto")
