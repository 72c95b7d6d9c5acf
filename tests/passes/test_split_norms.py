"""split_norms: bit-identical, and what blocked a fold no longer does."""

from __future__ import annotations

import numpy as np
import pytest

from qcompiler.context import Context
from qcompiler.graph.folding import find_sites
from qcompiler.graph.stages import Stage, check
from qcompiler.passes import awq, decide, insert_qdq, repq, set_ranges, smoothquant, split_norms
from tests.passes.folds import NORM, RMS, calibrated, close, constants, prepared, rms_constants
from tests.quantized import differences, integer

POST = "q = MatMul(n, w)  k = MatMul(n, v)  a = Relu(k)  t = MatMul(a, u)  z = Add(t, q)  y = Add(z, n)"
HEADER = "float[1,6,8] x => float[1,6,8] y"
SHAPES = {"w": (8, 8), "v": (8, 12), "u": (12, 8)}


@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_a_residual_reader_no_longer_blocks(make, kind):
    norm, arrays = (NORM, constants(**SHAPES)) if kind == "layer" else (RMS, rms_constants(**SHAPES))
    graph = prepared(make(HEADER, f"{norm}  {POST}", **arrays))
    x = np.random.default_rng(0).standard_normal((1, 6, 8)).astype(np.float32)
    want = graph.run(x=x)
    assert not find_sites(graph)[0]
    context = Context()
    after = split_norms.run(graph, split_norms.Options(), context)
    np.testing.assert_array_equal(after.run(x=x), want)
    (site,), refused = find_sites(after)
    assert len(site.sinks) == 2 and len(refused) == 1 and site.shifts == (kind == "layer")
    assert context.facts["split_norms"] == {"normalizations": 1} and "2 products" in context.notes[0].text
    close(smoothquant.run(after.clone(), smoothquant.Options(), calibrated(after)).run(x=x), want)


def test_later_passes_take_it_down_to_integers(make):
    graph = prepared(make(HEADER, f"{NORM}  {POST}", **constants(**SHAPES)))
    context = calibrated(graph)
    x = next(iter(context.samples))["x"]
    want = graph.run(x=x)
    graph = split_norms.run(graph, split_norms.Options(), context)
    graph = decide.run(graph, decide.Options(precision="w4a4", keep_first_last=False), context)
    graph = awq.run(graph, awq.Options(), context)
    graph = set_ranges.run(graph, set_ranges.Options(), context)
    graph = repq.run(graph, repq.Options(), context)
    assert context.facts["repq"]["normalizations"] == 1
    close(graph.run(x=x), want)
    graph = insert_qdq.run(graph, insert_qdq.Options(), context)
    check(graph, Stage.QDQ)
    assert differences(graph, integer(graph))[0] <= 1


@pytest.mark.parametrize(
    "body",
    [
        f"{NORM}  y = MatMul(n, w)",  # products alone
        f"{NORM}  s = Softmax(n)  y = Add(n, s)",  # no product
        "n = LayerNormalization<axis = 1>(x, big, big)  t = MatMul(n, w)  y = Add(t, n)",  # no fold would be possible
    ],
)
def test_what_gains_nothing_stays(make, body):
    arrays = {k: v for k, v in constants(w=(8, 8), big=(6, 8)).items() if f" {k})" in body or f" {k}," in body}
    graph = prepared(make(HEADER, body, **arrays))
    before, context = graph.fingerprint(), Context()
    assert split_norms.run(graph, split_norms.Options(), context).fingerprint() == before
    assert context.facts["split_norms"] == {"normalizations": 0} and not context.notes


def test_an_output_of_the_network_keeps_its_values(make):
    graph = prepared(make("float[1,6,8] x => float[1,6,5] y, float[1,6,8] n", f"{NORM}  y = MatMul(n, w)",
                          **constants(w=(8, 5))))  # fmt: skip
    x = np.random.default_rng(0).standard_normal((1, 6, 8)).astype(np.float32)
    want = graph.run(x=x)
    after = split_norms.run(graph, split_norms.Options(), Context())
    assert len(find_sites(after)[0]) == 1 and [v.name for v in after.outputs] == ["y", "n"]
    for a, b in zip(after.run(x=x), want, strict=True):
        np.testing.assert_array_equal(a, b)
