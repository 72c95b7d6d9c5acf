"""awq: the search is never worse than no scaling, the function stays, ranges that it finds are kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from qcompiler.calibrate.channels import as_matrices, collect_rows
from qcompiler.calibrate.data import load_samples
from qcompiler.calibrate.ranges import find_weight_range
from qcompiler.context import Context
from qcompiler.errors import CalibrationError, RecipeError
from qcompiler.execute.ort import Session
from qcompiler.graph.io import load_graph
from qcompiler.graph.model import Graph
from qcompiler.passes import awq, decide, insert_qdq, set_ranges
from qcompiler.quantizer import fake_quantize
from tests.passes.folds import HEADER, NORM, QKV, RMS, calibrated, close, constants, prepared, rms_constants


def decided(graph: Graph, precision: str = "w3a8", **options) -> Context:
    context = calibrated(graph)
    decide.run(graph, decide.Options(precision=precision, keep_first_last=False, **options), context)
    return context


def error(graph: Graph, context: Context, weights: dict[str, object] | None = None) -> float:
    """Sum over MatMuls of |X (Q(W) - W)|^2 / |X W|^2 with all samples: independent of the pass's own computation."""
    total = 0.0
    nodes = graph.nodes("MatMul")
    for node, (rows,) in collect_rows(graph, nodes, context, 10**6, 10**6).items():
        w = graph.const(node.inputs[1])
        spec = context.assignment.constants[node.inputs[1].name]
        params = (weights or {}).get(node.inputs[1].name) or find_weight_range(w, spec, "mse")
        total += np.square(rows @ (fake_quantize(w, params) - w)).sum() / np.square(rows @ w).sum()
    return total


@pytest.mark.parametrize("kind", ["layer", "rms"])
@pytest.mark.parametrize("seed", range(3))
def test_never_worse_and_the_same_function(make, kind, seed):
    shapes = {"wq": (8, 4), "wk": (8, 4), "wv": (8, 5)}
    norm, arrays = (NORM, constants(seed, **shapes)) if kind == "layer" else (RMS, rms_constants(seed, **shapes))
    graph = prepared(make(QKV, f"{norm}  q = MatMul(n, wq)  k = MatMul(n, wk)  v = MatMul(n, wv)", **arrays))
    context = decided(graph)
    samples = [sample["x"] for sample in context.samples]
    before, want = error(graph, context), [graph.run(x=one) for one in samples]
    after = awq.run(graph, awq.Options(), context)
    facts = context.facts["awq"]
    assert facts["error_after"] <= facts["error_before"]
    assert error(after, context) == pytest.approx(facts["error_after"], rel=1e-3)
    assert before == pytest.approx(facts["error_before"], rel=1e-3)
    for one, outputs in zip(samples, want, strict=True):
        for a, b in zip(after.run(x=one), outputs, strict=True):
            close(a, b)


def test_one_salient_channel_is_found(make):
    arrays = constants(w=(8, 64))
    arrays["gamma"][:], arrays["beta"][:] = 0.05, 0
    arrays["gamma"][3] = 20
    graph = prepared(make("float[1,6,8] x => float[1,6,64] y", f"{NORM}  y = MatMul(n, w)", **arrays))
    context = decided(graph)
    after = awq.run(graph, awq.Options(), context)
    facts = context.facts["awq"]
    assert facts["exponents"]["n"] > 0 and facts["error_after"] < 0.5 * facts["error_before"]
    ratio = after.const(after.nodes("MatMul")[0].inputs[1]) / arrays["w"]
    assert ratio[3].min() > 2 * np.delete(ratio, 3, axis=0).max()


def test_r_0_leaves_the_graph_alone(make):
    graph = prepared(make(HEADER, f"{NORM}  y = MatMul(n, w)", **constants(w=(8, 5))))
    context, before = decided(graph), graph.fingerprint()
    assert awq.run(graph, awq.Options(steps=1), context).fingerprint() == before
    assert context.facts["awq"]["error_before"] == context.facts["awq"]["error_after"] > 0


def test_a_chain_of_products_is_searched_with_what_was_folded_before(make):
    arrays = constants(w=(8, 8), b=(8,), v=(8, 8), u=(8, 5))
    body = f"{NORM}  t = MatMul(n, w)  h = Add(t, b)  r = Relu(h)  m = MatMul(r, v)  y = MatMul(m, u)"
    graph = prepared(make(HEADER, body, **arrays))
    context = decided(graph)
    x = next(iter(context.samples))["x"]
    want, before = graph.run(x=x), error(graph, context)
    after = awq.run(graph, awq.Options(), context)
    assert len(context.facts["awq"]["exponents"]) == 3
    close(after.run(x=x), want)
    assert error(after, context) < before
    # rows scaled by a later fold weigh the outputs of an earlier one anew: nearly the sum that was searched
    assert error(after, context) == pytest.approx(context.facts["awq"]["error_after"], rel=5e-2)
    only = awq.run(graph.clone(), awq.Options(products=False), decided(graph))
    close(only.run(x=x), want)


def test_rows_of_a_convolution_are_what_it_reads(make):
    rng = np.random.default_rng(0)
    w = rng.standard_normal((6, 2, 3, 2)).astype(np.float32)
    body = "y = Conv<group = 2, pads = [1, 0, 2, 1], strides = [2, 1], dilations = [1, 2]>(x, w)"
    graph = make("float[1,4,7,6] x => float[a,b,c,d] y", body, w=w)
    context = calibrated(graph, 2)
    (node,) = graph.nodes("Conv")
    rows = collect_rows(graph, [node], context, 10**6, 10)[node]
    want = np.concatenate([graph.run(x=sample["x"])[0].reshape(2, 3, -1) for sample in context.samples], axis=2)
    np.testing.assert_allclose((rows @ as_matrices(node, w)).transpose(0, 2, 1), want, rtol=1e-4, atol=1e-4)
    few = collect_rows(graph, [node], context, 10, 10)[node]
    assert few.shape[1] == 10 and np.array_equal(few, collect_rows(graph, [node], context, 10, 10)[node])


def test_convolutions_are_scaled_through_relu(make):
    rng = np.random.default_rng(0)
    shapes = {"w": (8, 4, 3, 3), "b": (8,), "v": (5, 8, 3, 3)}
    arrays = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    body = "h = Conv(x, w, b)  r = Relu(h)  y = Conv<pads = [1, 1, 1, 1]>(r, v)"
    graph = make("float[1,4,8,8] x => float[1,5,6,6] y", body, **arrays)
    context = decided(graph)
    x = next(iter(context.samples))["x"]
    want = graph.run(x=x)
    after = awq.run(graph, awq.Options(), context)
    facts = context.facts["awq"]
    assert facts["exponents"] and facts["error_after"] <= facts["error_before"]
    close(after.run(x=x), want)


def test_clipped_ranges_are_kept_and_not_worse(make):
    rng = np.random.default_rng(1)
    arrays = constants(w=(8, 64))
    arrays["w"] *= np.exp(rng.standard_normal((8, 64))).astype(np.float32)
    graph = prepared(make("float[1,6,8] x => float[1,6,64] y", f"{NORM}  y = MatMul(n, w)", **arrays))
    context = decided(graph)
    after = awq.run(graph, awq.Options(clip=True), context)
    assert context.facts["awq"]["clipped"] == 1
    name = after.nodes("MatMul")[0].inputs[1].name
    found = context.assignment.params[name]
    full = find_weight_range(after.const(after.value(name)), context.assignment.constants[name], "mse")
    ratios = found.scale / full.scale
    assert ratios.min() >= 0.5499 and ratios.max() <= 1 and (ratios < 1).any()
    assert error(after, context, {name: found}) < error(after, context)
    set_ranges.run(after, set_ranges.Options(), context)
    assert context.assignment.params[name] is found
    insert_qdq.run(after, insert_qdq.Options(), context).run(x=next(iter(context.samples))["x"])


def test_what_is_left_alone(make):
    body = f"{NORM}  t = MatMul(n, w)  y = Add(t, n)"
    graph = prepared(make("float[1,6,8] x => float[1,6,8] y", body, **constants(w=(8, 8))))
    context, before = decided(graph), graph.fingerprint()
    assert awq.run(graph, awq.Options(), context).fingerprint() == before
    assert "(Add) reads it" in context.notes[-1].text
    wide = prepared(make(HEADER, f"{NORM}  y = MatMul(n, w)", **constants(w=(8, 5))))
    context, before = decided(wide, "w8a8"), wide.fingerprint()
    assert awq.run(wide, awq.Options(), context).fingerprint() == before
    assert context.facts["awq"]["exponents"] == {}


def test_bad_use_is_named(make):
    graph = prepared(make(HEADER, f"{NORM}  y = MatMul(n, w)", **constants(w=(8, 5))))
    with pytest.raises(RecipeError, match="decide"):
        awq.run(graph, awq.Options(), Context())
    context = decided(graph)
    with pytest.raises(RecipeError, match="at least 1"):
        awq.run(graph, awq.Options(steps=0), context)
    context.samples = None
    with pytest.raises(CalibrationError, match="calibration data"):
        awq.run(graph, awq.Options(), context)


def test_a_trained_language_model(assets: Path):
    graph = prepared(load_graph(assets / "models" / "stories260k_prefill.onnx", dims={"N": 1}))
    with np.load(assets / "data" / "tinystories_tokens.npz") as data:
        feed = {"ids": data["ids_calib"][:3].astype(np.int64)}
    context = Context(samples=load_samples(feed, graph))
    decide.run(graph, decide.Options(precision="w3a8"), context)
    sample = next(iter(context.samples))
    want = Session(graph).run(sample)[0]
    after = awq.run(graph, awq.Options(steps=5, rows=256), context)
    facts = context.facts["awq"]
    assert len(facts["exponents"]) >= 20 and facts["error_after"] < 0.95 * facts["error_before"]
    close(Session(after).run(sample)[0], want)
