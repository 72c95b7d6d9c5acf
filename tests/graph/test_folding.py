"""Folding factors and terms: the function stays, whatever reads the channels; what must not be folded is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from qcompiler.execute.ort import Session
from qcompiler.graph.folding import find_sites, fold
from qcompiler.graph.io import load_graph
from qcompiler.graph.model import Graph
from tests.passes.conftest import make  # noqa: F401 (a fixture)
from tests.passes.folds import HEADER, NORM, QKV, RMS, constants, prepared, rms_constants


def folded(graph: Graph, *, products: bool = False, terms: bool = True, seed: int = 1) -> Graph:
    """A copy with random factors (and terms, where they may be) in every site."""
    rng, copy = np.random.default_rng(seed), graph.clone()
    for site in find_sites(copy, products=products)[0]:
        channels = len(site.free)
        term = rng.standard_normal(channels) if terms and site.shifts else None
        fold(copy, site, np.exp(rng.standard_normal(channels)), term)
    copy.sweep()
    return copy


def same(graph: Graph, other: Graph, seed: int = 0, tolerance: float = 1e-5) -> None:
    rng = np.random.default_rng(seed)
    inputs = {
        str(v.name): rng.standard_normal(graph.shape(v)).astype(np.float32)
        if v.dtype.numpy().kind == "f"
        else rng.integers(0, 500, graph.shape(v))
        for v in graph.inputs
    }
    assert other.fingerprint() != graph.fingerprint()
    assert [v.name for v in other.outputs] == [v.name for v in graph.outputs]
    for a, b in zip(Session(other).run(inputs), Session(graph).run(inputs), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.abs(b).max())


def test_separate_q_k_v_products_are_all_rewritten(make):  # noqa: F811
    body = f"{NORM}  qm = MatMul(n, wq)  q = Add(qm, bq)  k = MatMul(n, wk)  v = MatMul(n, wv)"
    graph = prepared(make(QKV, body, **constants(wq=(8, 4), bq=(4,), wk=(8, 4), wv=(8, 5))))
    (site,), refused = find_sites(graph)
    assert site.shifts and site.free.all() and len(site.sinks) == 3 and not refused
    after = folded(graph)
    same(graph, after)
    assert len(after.nodes("Add")) == 3  # the biases of k and v were missing
    assert {str(v.name) for v in after.outputs} == {"q", "k", "v"}


def test_one_weight_behind_two_normalizations_is_copied(make):  # noqa: F811
    body = f"{NORM}  t = MatMul(n, w)  m = LayerNormalization<axis = -1>(t, beta, gamma)  y = MatMul(m, w)"
    graph = prepared(make("float[1,6,8] x => float[1,6,8] y", body, **constants(w=(8, 8))))
    assert len(find_sites(graph)[0]) == 2
    same(graph, folded(graph))


def test_a_normalization_without_bias_gets_one(make):  # noqa: F811
    body = "n = LayerNormalization<axis = -1>(x, gamma)  y = MatMul(n, w)"
    made = constants(w=(8, 5))
    del made["beta"]
    graph = prepared(make(HEADER, body, **made))
    after = folded(graph)
    same(graph, after)
    assert len(after.nodes("LayerNormalization")[0].inputs) == 3


def test_a_product_keeps_the_name_of_its_output(make):  # noqa: F811
    body = f"{NORM}  t = MatMul(n, w)  y = Relu(t)"
    graph = prepared(make(HEADER, body, **constants(w=(8, 5))))
    after = folded(graph)
    same(graph, after)
    (add,) = after.nodes("Add")
    assert add.outputs[0].name == "t" and after.nodes("Relu")[0].inputs[0] is add.outputs[0]


def test_rms_normalization_takes_factors_only(make):  # noqa: F811
    graph = prepared(make(HEADER, f"{RMS}  y = MatMul(n, w)", **rms_constants(w=(8, 5))))
    (site,), _ = find_sites(graph)
    assert site.node.op_type == "RMSNormalization" and not site.shifts
    same(graph, folded(graph))
    with pytest.raises(ValueError, match="no term"):
        fold(graph, site, np.ones(8), np.ones(8))


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (f"{NORM}  t = MatMul(n, w)  y = Add(t, n)", "(Add) reads it"),
        (f"{NORM}  t = MatMul(n, w)  s = Softmax(n)  y = Add(t, s)", "(Softmax) reads it"),
        (f"{NORM}  a = MatMul(n, w)  b = Transpose<perm = [0, 2, 1]>(a)  c = MatMul(n, b)  y = MatMul(c, v)", "sum"),
        (f"{NORM}  y = Add(n, x)", "(Add) reads it"),
        (f"{NORM}  r = Reshape(n, turned)  y = MatMul(r, u)", "sums over other axes"),
        ("n = LayerNormalization<axis = 1>(x, big, big)  y = MatMul(n, w)", "several axes"),
    ],
)
def test_other_readers_block_the_whole_normalization(make, body, why):  # noqa: F811
    more = {"turned": np.array([1, 8, 6])} if "turned" in body else {}
    shapes = {"w": (8, 8), "v": (6, 8), "u": (6, 8), "big": (6, 8)}
    made = {k: v for k, v in constants(**shapes, **more).items() if f" {k})" in body or f" {k}," in body}
    header = "float[1,6,8] x => float[1,8,8] y" if more else "float[1,6,8] x => float[1,6,8] y"
    graph = prepared(make(header, body, **made))
    sites, refused = find_sites(graph)
    assert not sites and len(refused) == 1
    if why != "sum":  # the product of two activations sums over the channels
        assert why in refused[0][1]


def test_an_output_of_the_network_is_not_scaled(make):  # noqa: F811
    header = "float[1,6,8] x => float[1,6,5] y, float[1,6,8] n"
    graph = prepared(make(header, f"{NORM}  y = MatMul(n, w)", **constants(w=(8, 5))))
    sites, refused = find_sites(graph)
    assert not sites and "output of the network" in refused[0][1]


def test_zero_padding_forbids_the_term_and_not_the_factor(make):  # noqa: F811
    body = f"{NORM}  t = Transpose<perm = [0, 2, 1]>(n)  y = Conv<pads = [1, 1]>(t, w)"
    graph = prepared(make("float[1,6,8] x => float[1,5,6] y", body, **constants(w=(5, 8, 3))))
    (site,), _ = find_sites(graph)
    assert not site.shifts
    same(graph, folded(graph))
    body = body.replace("[1, 1]", "[0, 0]")
    free = prepared(make("float[1,6,8] x => float[1,5,4] y", body, **constants(w=(5, 8, 3))))
    assert find_sites(free)[0][0].shifts
    same(free, folded(free))


ATTENTION = """{norm}  a = MatMul(n, wa)  qkv = Add(a, ba)  h = Reshape(qkv, heads)
p = Transpose<perm = [2, 0, 3, 1, 4]>(h)  q, k, v = Split<axis = 0, num_outputs = 3>(p)
kt = Transpose<perm = [0, 1, 2, 4, 3]>(k)  s = MatMul(q, kt)
z = Softmax(s)  o = MatMul(z, v)  b = Transpose<perm = [0, 1, 3, 2, 4]>(o)  f = Reshape(b, flat)  y = MatMul(f, wo)"""


def test_attention_keeps_the_channels_of_v_apart(make):  # noqa: F811
    more = {"heads": np.array([1, 6, 3, 2, 4]), "flat": np.array([1, 6, 8])}
    body = ATTENTION.format(norm=NORM)
    graph = prepared(make(HEADER, body, **constants(wa=(8, 24), ba=(24,), wo=(8, 5), **more)))
    norm, product = find_sites(graph, products=True)[0]
    assert norm.is_norm and norm.shifts
    np.testing.assert_array_equal(np.flatnonzero(product.free), np.arange(16, 24))  # v, not q and k
    assert not product.shifts and product.sinks[0].labels.tolist() == list(range(16, 24))
    same(graph, folded(graph, products=True))


def test_heads_that_share_v_share_the_factor_and_a_gate_hands_it_on(make):  # noqa: F811
    body = """a = MatMul(x, wv)  h = Reshape(a, heads)  t = Transpose<perm = [0, 2, 1, 3]>(h)  u = Unsqueeze(t, two)
    e = Expand(u, shared)  v = Reshape(e, all)  g = MatMul(p, v)  b = Transpose<perm = [0, 2, 1, 3]>(g)
    f = Reshape(b, flat)  o = MatMul(f, wo)  i = Sigmoid(o)  j = MatMul(o, wu)  k = Mul(i, j)  y = MatMul(k, wd)"""
    more = {
        "heads": np.array([1, 6, 2, 2]), "two": np.array([2]), "shared": np.array([1, 2, 2, 6, 2]),
        "all": np.array([1, 4, 6, 2]), "flat": np.array([1, 6, 8]), "p": np.random.rand(1, 4, 6, 6).astype(np.float32),
    }  # fmt: skip
    made = constants(wv=(8, 4), wo=(8, 8), wu=(8, 8), wd=(8, 5), **more)
    graph = prepared(make(HEADER, body, **{k: v for k, v in made.items() if k not in ("gamma", "beta")}))
    values, gate = find_sites(graph, products=True)[0]
    assert values.sinks[0].labels.tolist() == [0, 1, 0, 1, 2, 3, 2, 3]
    assert gate.value.name == "j" and gate.free.all()
    same(graph, folded(graph, products=True))


@pytest.mark.parametrize(
    "between", ["r = Relu(h)", "r = LeakyRelu<alpha = 0.1>(h)", "q = Relu(h)  r = Concat<axis = 1>(q, x)"]
)
def test_convolutions_through_homogeneous_operators(make, between):  # noqa: F811
    rng = np.random.default_rng(0)
    channels = 12 if "Concat" in between else 8
    made = {"w": (8, 4, 3, 3), "b": (8,), "v": (5, channels, 3, 3)}
    arrays = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in made.items()}
    body = f"h = Conv<pads = [1, 1, 1, 1]>(x, w, b)  {between}  y = Conv<pads = [1, 1, 1, 1]>(r, v)"
    graph = make("float[1,4,6,6] x => float[1,5,6,6] y", body, **arrays)
    (site,), _ = find_sites(graph, products=True)
    assert site.free.all() and site.sinks[0].labels.tolist() == [*range(8), *[-1] * (channels - 8)]
    same(graph, folded(graph, products=True))


@pytest.mark.parametrize(
    "between", ["r = Sigmoid(h)", "r = Clip(h, zero, six)", "r = Mul(h, h)", "q = Relu(h)  r = Add(q, h)"]
)
def test_what_is_not_homogeneous_blocks(make, between):  # noqa: F811
    more = {"zero": np.float32(0), "six": np.float32(6)} if "Clip" in between else {}
    body = f"h = Conv(x, w)  {between}  y = Conv(r, v)"
    rng = np.random.default_rng(0)
    arrays = {"w": rng.standard_normal((8, 4, 1, 1)), "v": rng.standard_normal((5, 8, 1, 1))}
    arrays = {name: array.astype(np.float32) for name, array in arrays.items()}
    graph = make("float[1,4,6,6] x => float[1,5,6,6] y", body, **arrays, **more)
    assert find_sites(graph, products=True)[0] == []


@pytest.mark.parametrize("name", ["vit_digits", "stories260k_prefill"])
def test_trained_transformers_stay_the_same_function(assets: Path, name: str):
    from qcompiler.context import Context
    from qcompiler.passes import recognize_functions, spell_out

    graph = prepared(load_graph(assets / "models" / f"{name}.onnx", dims={"N": 1}))
    for module in (recognize_functions, spell_out):
        graph = module.run(graph, module.Options(), Context())
    sites, _ = find_sites(graph, products=True)
    assert sum(site.is_norm for site in sites) == len(graph.nodes("LayerNormalization", "RMSNormalization"))
    assert sum(not site.is_norm for site in sites) >= 4
    same(graph, folded(graph, products=True))
