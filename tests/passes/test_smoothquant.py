"""smoothquant: the formula, the function stays, what must not be touched is not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from qcompiler.calibrate.data import load_samples
from qcompiler.calibrate.statistics import with_outputs
from qcompiler.context import Context
from qcompiler.errors import CalibrationError, RecipeError
from qcompiler.execute.ort import Session
from qcompiler.graph.folding import find_sites, row_maxima
from qcompiler.graph.io import load_graph
from qcompiler.graph.model import Graph
from qcompiler.passes import smoothquant
from tests.passes.folds import HEADER, NORM, RMS, calibrated, close, constants, prepared, rms_constants


def reach(graph: Graph, name: str, context: Context) -> np.ndarray:
    """max |x_j| over the samples."""
    session = Session(with_outputs(graph, [name]))
    return np.max([np.abs(session.run(sample, [name])[0]).max(axis=(0, 1)) for sample in context.samples], axis=0)


@pytest.mark.parametrize("kind", ["layer", "rms"])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.85, 1.0])
def test_ranges_move_by_the_formula(make, kind, alpha):
    shapes = {"w": (8, 5), "v": (8, 5)}
    body, arrays = (NORM, constants(**shapes)) if kind == "layer" else (RMS, rms_constants(**shapes))
    graph = prepared(make(HEADER, f"{body}  a = MatMul(n, w)  b = MatMul(n, v)  y = Add(a, b)", **arrays))
    context = calibrated(graph)
    (site,), _ = find_sites(graph)
    name = str(site.value.name)
    x, w = reach(graph, name, context), np.maximum(*(row_maxima(graph, sink.node) for sink in site.sinks))
    samples = [sample["x"] for sample in context.samples]
    before = [graph.run(x=one) for one in samples]
    after = smoothquant.run(graph, smoothquant.Options(alpha=alpha), context)
    for one, want in zip(samples, before, strict=True):
        close(after.run(x=one), want)
    s = x**alpha / w ** (1 - alpha)
    np.testing.assert_allclose(x / reach(after, name, context), s / np.exp(np.log(s).mean()), rtol=1e-4)
    moved = np.maximum(*(row_maxima(after, node) for node in after.nodes("MatMul")))
    np.testing.assert_allclose(moved / w, x / reach(after, name, context), rtol=1e-4)
    assert context.facts["smoothquant"]["values"] == 1


def test_products_are_treated_on_request_and_dead_channels_stay(make):
    arrays = {k: v for k, v in constants(w=(8, 6), b=(6,), v=(6, 5)).items() if k not in ("gamma", "beta")}
    arrays["w"][:, 2] = arrays["b"][2] = arrays["v"][4] = 0
    graph = prepared(make(HEADER, "t = MatMul(x, w)  h = Add(t, b)  r = Relu(h)  y = MatMul(r, v)", **arrays))
    context = calibrated(graph)
    x = next(iter(context.samples))["x"]
    want, print_ = graph.run(x=x), graph.fingerprint()
    assert smoothquant.run(graph, smoothquant.Options(), context).fingerprint() == print_
    after = smoothquant.run(graph, smoothquant.Options(products=True), context)
    assert after.fingerprint() != print_
    close(after.run(x=x), want)
    first, second = (after.const(node.inputs[1]) for node in after.nodes("MatMul"))
    np.testing.assert_array_equal(first[:, [2, 4]], arrays["w"][:, [2, 4]])
    np.testing.assert_array_equal(second[[2, 4]], arrays["v"][[2, 4]])


def test_a_residual_reader_blocks_and_is_named(make):
    body = f"{NORM}  t = MatMul(n, w)  y = Add(t, n)"
    graph = prepared(make("float[1,6,8] x => float[1,6,8] y", body, **constants(w=(8, 8))))
    context, before = calibrated(graph), graph.fingerprint()
    assert smoothquant.run(graph, smoothquant.Options(), context).fingerprint() == before
    assert "(Add) reads it" in context.notes[0].text


def test_bad_use_is_named(make):
    graph = prepared(make(HEADER, f"{NORM}  y = MatMul(n, w)", **constants(w=(8, 5))))
    with pytest.raises(CalibrationError, match="calibration data"):
        smoothquant.run(graph, smoothquant.Options(), Context(source="smoothquant"))
    with pytest.raises(RecipeError, match="alpha"):
        smoothquant.run(graph, smoothquant.Options(alpha=1.5), calibrated(graph))


@pytest.mark.parametrize("name", ["vit_digits", "stories260k_prefill"])
def test_trained_transformers(assets: Path, name: str):
    graph = prepared(load_graph(assets / "models" / f"{name}.onnx", dims={"N": 1}))
    if name == "vit_digits":
        with np.load(assets / "data" / "digits.npz") as data:
            feed = {"input": data["x_calib"][:4]}
    else:
        with np.load(assets / "data" / "tinystories_tokens.npz") as data:
            feed = {"ids": data["ids_calib"][:2].astype(np.int64)}
    context = Context(samples=load_samples(feed, graph))
    sample = next(iter(context.samples))
    want = graph.run(**sample)
    after = smoothquant.run(graph, smoothquant.Options(products=True), context)
    assert context.facts["smoothquant"]["values"] >= 9
    close(after.run(**sample), want)
