"""repq: one quantizer gives the codes of the channel-wise ones, and the float function stays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from qcompiler.calibrate.channels import observe_histograms
from qcompiler.calibrate.statistics import with_outputs
from qcompiler.context import Context
from qcompiler.errors import RecipeError
from qcompiler.execute.ort import Session
from qcompiler.formats import QuantParams, QuantSpec, parse_format
from qcompiler.graph.folding import find_sites
from qcompiler.graph.io import load_graph
from qcompiler.graph.model import Graph
from qcompiler.passes import calibrate, decide, insert_qdq, repq, set_ranges
from qcompiler.quantizer import fake_quantize, quantize
from tests.passes.folds import HEADER, NORM, QKV, RMS, calibrated, close, constants, prepared, rms_constants

UINT4 = QuantSpec(parse_format("uint4"))


def ranged(graph: Graph, precision: str = "w8a4", **options) -> tuple[Graph, Context]:
    """A graph with ranges set, and its context."""
    context = calibrated(graph)
    plan = ((calibrate, {}), (decide, {"precision": precision, "keep_first_last": False, **options}), (set_ranges, {}))
    for module, values in plan:
        context.source = module.__name__
        graph = module.run(graph, module.Options(**values), context)
    return graph, context


def value_of(graph: Graph, name: str, x: np.ndarray) -> np.ndarray:
    return Session(with_outputs(graph, [name])).run({"x": x}, [name])[0]


def treated(graph: Graph, options: repq.Options | None = None, **more):
    """Graph before, graph after, context, the channel-wise quantizers and the normalization's output."""
    graph, context = ranged(graph, **more)
    (site,), _ = find_sites(graph)
    name = str(site.value.name)
    spec = context.assignment.activations[name]
    histogram = observe_histograms(graph, {name: -1}, context)[name]
    channels = repq.find_channels(histogram, spec, shifts=site.shifts)
    after = repq.run(graph.clone(), options or repq.Options(), context)
    return graph, after, context, channels, name


BODIES = {
    "layer": (f"{NORM}  y = MatMul(n, w)", constants(w=(8, 5))),
    "rms": (f"{RMS}  y = MatMul(n, w)", rms_constants(w=(8, 5))),
}


@pytest.mark.parametrize("kind", BODIES)
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [3, 4, 6])
def test_codes_are_those_of_the_channelwise_quantizers(make, kind, symmetric, bits):
    body, arrays = BODIES[kind]
    header = "float[1,900,8] x => float[1,900,5] y"
    before, after, context, channels, name = treated(
        prepared(make(header, body, **arrays)), precision=f"w8a{bits}", symmetric=symmetric
    )
    x = np.random.default_rng(7).standard_normal((1, 900, 8)).astype(np.float32)
    n, m = (value_of(g, name, x) for g in (before, after))
    close(after.run(x=x), before.run(x=x))
    params = context.assignment.params[name]
    fmt = params.format
    wanted = np.clip(np.rint(n / channels.scale) + channels.zero_point, fmt.min, fmt.max)
    assert (quantize(m, params) != wanted).mean() < 1e-3
    assert (fmt.bits, fmt.signed) == (bits, symmetric) and not (symmetric and params.zero_point)
    # 8.3: with float weights, the consumer sees the same either way
    w = before.const(before.nodes("MatMul")[0].inputs[1])
    v = after.const(after.nodes("MatMul")[0].inputs[1])
    bias = after.const(after.nodes("Add")[0].inputs[1]) if after.nodes("Add") else 0
    rowwise = (wanted - channels.zero_point) * channels.scale @ w.astype(np.float64)
    layerwise = fake_quantize(m, params).astype(np.float64) @ v.astype(np.float64) + bias
    same = (quantize(m, params) == wanted).all(axis=-1)
    np.testing.assert_allclose(layerwise[same], rowwise[same], rtol=0, atol=1e-5 * np.abs(rowwise).max())


@pytest.mark.parametrize("kind", BODIES)
def test_powers_of_two_stay_such(make, kind):
    body, arrays = BODIES[kind]
    before, after, context, _, name = treated(prepared(make(HEADER, body, **arrays)), power_of_two=True)
    assert float(np.log2(context.assignment.params[name].scale)) % 1 == 0
    x = next(iter(context.samples))["x"]
    close(after.run(x=x), before.run(x=x))


def test_the_rewrite_is_exact_in_float64():
    rng = np.random.default_rng(2)
    n, w = rng.standard_normal((50, 8)), rng.standard_normal((8, 5))
    s, z, fmt = np.exp(rng.standard_normal(8)), np.rint(rng.uniform(-3, 18, 8)), parse_format("uint4")
    params = repq.layerwise(repq.Channelwise(s, z), QuantSpec(fmt))
    r1, r2 = s / float(params.scale), z - int(params.zero_point)
    moved = (n + s * r2) / r1
    np.testing.assert_allclose(moved @ (w * r1[:, None]) - (s * r2) @ w, n @ w, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(moved / float(params.scale) + int(params.zero_point), n / s + z, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", BODIES)
def test_the_error_behind_the_quantizer_shrinks(make, kind):
    body, arrays = BODIES[kind]
    graph, context = ranged(prepared(make(HEADER, body, **arrays)))
    plain = insert_qdq.run(graph.clone(), insert_qdq.Options(), Context(assignment=context.assignment))
    x = np.concatenate([sample["x"] for sample in context.samples])
    want = np.stack([graph.run(x=one[None]) for one in x])
    without = np.stack([value_of(plain, "y_float", one[None]) for one in x])
    after = insert_qdq.run(repq.run(graph, repq.Options(), context), insert_qdq.Options(), context)
    within = np.stack([value_of(after, "y_float", one[None]) for one in x])
    assert np.square(within - want).sum() < 0.9 * np.square(without - want).sum()


def test_weight_ranges_are_found_anew(make):
    graph, context = ranged(prepared(make(HEADER, *[BODIES["layer"][0]], **BODIES["layer"][1])), "w4a4")
    old = context.assignment.params["w"]
    after = repq.run(graph, repq.Options(), context)
    weight = after.nodes("MatMul")[0].inputs[1]
    array = after.const(weight)
    expected = set_ranges.constant_params(context.assignment, context.assignment.constants[weight.name], array)
    assert context.assignment.params[weight.name] == expected != old


def test_a_shared_weight_keeps_its_values_for_the_other_reader(make):
    body = f"{NORM}  a = MatMul(n, w)  b = MatMul(x, w)  y = Add(a, b)"
    graph, context = ranged(prepared(make(HEADER, body, **constants(w=(8, 5)))))
    x = next(iter(context.samples))["x"]
    want, after = graph.run(x=x), repq.run(graph.clone(), repq.Options(), context)
    close(after.run(x=x), want)
    names = {node.inputs[1].name for node in after.nodes("MatMul")}
    assert len(names) == 2 and names <= set(context.assignment.params)
    insert_qdq.run(after, insert_qdq.Options(), context).run(x=x)


def test_dead_channels_have_a_floor(make):
    arrays = constants(w=(8, 5))
    arrays["gamma"][[1, 5]] = 0, 1e-9
    arrays["beta"][[1, 5]] = 7, 0
    before, after, context, channels, _ = treated(prepared(make(HEADER, BODIES["layer"][0], **arrays)))
    assert channels.scale.min() >= repq.FLOOR * channels.scale.max()
    gamma = after.const(after.nodes("LayerNormalization")[0].inputs[1])
    assert np.isfinite(gamma).all() and np.abs(gamma).max() < 1e5
    x = next(iter(context.samples))["x"]
    close(after.run(x=x), before.run(x=x))


def test_enough_bits_other_readers_and_shared_quantizers_are_left_alone(make):
    graph = prepared(make(HEADER, BODIES["layer"][0], **BODIES["layer"][1]))
    ready, context = ranged(graph, "w8a8")
    before = ready.fingerprint()
    assert repq.run(ready, repq.Options(), context).fingerprint() == before and not context.notes
    assert repq.run(ready, repq.Options(below=9), context).fingerprint() != before
    body = f"{NORM}  t = MatMul(n, w)  y = Add(t, n)"
    ready, context = ranged(prepared(make("float[1,6,8] x => float[1,6,8] y", body, **constants(w=(8, 8)))))
    before = ready.fingerprint()
    assert repq.run(ready, repq.Options(), context).fingerprint() == before
    assert "(Add) reads it" in context.notes[-1].text
    body = f"{NORM}  c = Concat<axis = 1>(n, x)  y = MatMul(c, w)"
    ready, context = ranged(prepared(make("float[1,6,8] x => float[1,12,5] y", body, **constants(w=(8, 5)))))
    before = ready.fingerprint()
    assert repq.run(ready, repq.Options(), context).fingerprint() == before
    assert len(context.notes) == 1


def test_it_needs_ranges(make):
    graph = prepared(make(HEADER, BODIES["layer"][0], **BODIES["layer"][1]))
    with pytest.raises(RecipeError, match="set_ranges"):
        repq.run(graph, repq.Options(), Context())


def test_separate_q_k_v_read_one_value(make):
    body = f"{NORM}  q = MatMul(n, wq)  k = MatMul(n, wk)  v = MatMul(n, wv)"
    before, after, context, *_ = treated(prepared(make(QKV, body, **constants(wq=(8, 4), wk=(8, 4), wv=(8, 5)))))
    x = next(iter(context.samples))["x"]
    for a, b in zip(after.run(x=x), before.run(x=x), strict=True):
        close(a, b)
    assert len(insert_qdq.run(after, insert_qdq.Options(), context).run(x=x)) == 3


def test_a_trained_transformer(assets: Path):
    graph = prepared(load_graph(assets / "models" / "vit_digits.onnx", dims={"N": 1}))
    with np.load(assets / "data" / "digits.npz") as data:
        x = data["x_calib"][:24]
    from qcompiler.calibrate.data import load_samples

    context = Context(samples=load_samples({"input": x}, graph))
    for module, options in ((decide, decide.Options(precision="w8a4")), (set_ranges, set_ranges.Options())):
        graph = module.run(graph, options, context)
    plain = insert_qdq.run(graph.clone(), insert_qdq.Options(), Context(assignment=context.assignment))
    after = repq.run(graph.clone(), repq.Options(), context)
    assert context.facts["repq"]["normalizations"] == 8  # the head's stays at 8 bits
    quantized = insert_qdq.run(after.clone(), insert_qdq.Options(), context)
    want, same, without, within = (
        np.concatenate([g.run(input=one[None]) for one in x]) for g in (graph, after, plain, quantized)
    )
    close(same, want)
    assert isinstance(context.assignment.params["layer_norm"], QuantParams)
    assert np.square(within - want).sum() < np.square(without - want).sum()


def test_a_second_narrower_quantizer_is_the_one_that_is_rewritten(make):
    graph = prepared(make(HEADER, BODIES["layer"][0], **BODIES["layer"][1]))
    context = calibrated(graph)
    decide.run(graph, decide.Options(precision="w8a4", keep_first_last=False), context)
    assignment = context.assignment
    assignment.narrowed["n"] = assignment.activations["n"]
    assignment.activations["n"] = QuantSpec(parse_format("uint16"))
    set_ranges.run(graph, set_ranges.Options(), context)
    want = graph.run(x=next(iter(context.samples))["x"])
    after = repq.run(graph, repq.Options(), context)
    narrow, wide = assignment.narrowed_params["n"], assignment.params["n"]
    assert (narrow.format.token, wide.format.token) == ("uint4", "uint16")
    low = float(wide.scale) * (wide.format.min - int(wide.zero_point))
    high = float(wide.scale) * (wide.format.max - int(wide.zero_point))
    for sample in context.samples:
        n = value_of(after, "n", sample["x"])
        assert low - float(wide.scale) <= n.min() and n.max() <= high + float(wide.scale)
    close(after.run(x=next(iter(context.samples))["x"]), want)
    names = [node.name for node in insert_qdq.run(after, insert_qdq.Options(), context).nodes("QuantizeLinear")]
    assert {"n/quantize", "n_narrow/quantize"} <= set(names)
