"""Choosing calibration samples: the methods' own aims, determinism, the way through driver and command line."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcompiler.calibrate.data import load_samples
from qcompiler.calibrate.select import METHODS, select
from qcompiler.calibrate.select.degradation import choose_degraded, divergence, output_losses, usual
from qcompiler.calibrate.select.features import Features, collect
from qcompiler.calibrate.select.kmeans import choose_clusters, kmeans
from qcompiler.calibrate.select.moments import choose_moments, discrepancy
from qcompiler.calibrate.select.outliers import choose_cover, coverage, greedy
from qcompiler.calibrate.select.strata import choose_strata, share_out
from qcompiler.driver import quantize
from qcompiler.errors import CalibrationError, RecipeError
from qcompiler.graph.io import load_graph
from qcompiler.graph.model import Graph

TEXT = """<ir_version: 10, opset_import: ["": 21]>
g (float[1,12] x, float[12,16] w, float[16] b, float[16,4] v) => (float[1,4] y) {
  h = Gemm(x, w, b)  r = Relu(h)  y = Gemm(r, v)
}"""


def network(seed: int = 0) -> Graph:
    rng = np.random.default_rng(seed)
    shapes = {"w": (12, 16), "b": (16,), "v": (16, 4)}
    arrays = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    return load_graph(Graph.parse(TEXT, **arrays).model)


def pool_of(graph: Graph, count: int = 120, seed: int = 1):
    x = np.random.default_rng(seed).standard_normal((count, 12)).astype(np.float32)
    return load_samples({"x": x}, graph), x


def outlier_maxima(seed: int, n: int = 500, channels: int = 40, share: float = 0.02) -> tuple[np.ndarray, np.ndarray]:
    """Ordinary maxima about 1; each of channels 0..4 is 20 times larger in `share` of the samples."""
    rng = np.random.default_rng(seed)
    maxima = rng.uniform(0.5, 1.0, (n, channels))
    fired = np.zeros((n, 5), bool)
    for channel in range(5):
        fired[rng.choice(n, int(share * n), replace=False), channel] = True
    maxima[:, :5] = np.where(fired, rng.uniform(19, 20, fired.shape), maxima[:, :5])
    return maxima.astype(np.float32), fired


@pytest.mark.parametrize("seed", range(5))
def test_outliers_are_covered_by_five_samples_where_random_misses_half(seed):
    maxima, fired = outlier_maxima(seed)
    covers, weight = coverage(maxima)
    assert fired[greedy(covers, weight, 5)].any(axis=0).all()
    rng = np.random.default_rng(seed)
    misses = np.mean([~fired[rng.choice(500, 32, replace=False)].any(axis=0) for _ in range(400)])
    assert misses == pytest.approx(0.98**32, abs=0.06)
    chosen = choose_cover(maxima, 32, rng)
    assert len(set(chosen.tolist())) == 32 and fired[chosen].any(axis=0).all()


@given(seed=st.integers(0, 1000))
def test_greedy_gains_fall_and_reach_their_bound(seed):
    rng = np.random.default_rng(seed)
    covers, weight = rng.random((10, 14)) < 0.25, rng.random(14)
    for count in (2, 3):
        chosen = greedy(covers, weight, count)
        covered = [weight[covers[chosen[: i + 1]].any(axis=0)].sum() for i in range(len(chosen))]
        gains = np.diff([0, *covered])
        assert (np.diff(gains) <= 1e-12).all()
        best = max(weight[covers[list(s)].any(axis=0)].sum() for s in combinations(range(10), count))
        assert (covered[-1] if covered else 0) >= (1 - 1 / np.e) * best


@pytest.mark.parametrize("count", [8, 32])
def test_moments_match_better_than_the_best_of_100_random_sets(count):
    graph = network()
    pool, _ = pool_of(graph, 300)
    moments = collect(pool, graph, 0, lambda *a: None).moments
    rng = np.random.default_rng(0)
    best = min(discrepancy(moments, rng.choice(300, count, replace=False)) for _ in range(100))
    chosen = choose_moments(moments, count)
    assert len(set(chosen.tolist())) == count and discrepancy(moments, chosen) < best
    kept = choose_moments(moments, count, np.array([5, 9]))
    assert {5, 9} <= set(kept.tolist()) and len(set(kept.tolist())) == count


def test_moments_are_those_of_the_activations():
    graph = network()
    pool, x = pool_of(graph, 50)
    found = collect(pool, graph, 3, lambda *a: None)
    rng = np.random.default_rng(3)
    for _ in range(2):
        rng.standard_normal((12 if _ == 0 else 16, 64))
    project = rng.standard_normal((12, 8))
    z = x.astype(np.float64) @ project
    norms = np.einsum("ni,nj->nij", z, z)
    want = np.square(norms / np.trace(norms.mean(axis=0))).sum(axis=(1, 2))
    np.testing.assert_allclose(np.square(found.moments[:, :36]).sum(axis=1), want, rtol=1e-4)
    np.testing.assert_allclose(found.maxima[:, :12], np.abs(x), rtol=1e-6)
    assert found.layers == (12, 16) and found.scores.shape == (50, 4)


def test_clusters_are_found_whole():
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((6, 10)) * 10
    x = np.repeat(centres, 20, axis=0) + rng.standard_normal((120, 10)) * 0.1
    chosen = choose_clusters(x, 6, np.random.default_rng(1))
    assert sorted(chosen // 20) == list(range(6))
    _, cluster = kmeans(x, 6, np.random.default_rng(1))
    assert all(len(set(cluster[i * 20 : i * 20 + 20])) == 1 for i in range(6))


@given(n=st.integers(3, 30), k=st.integers(1, 30), seed=st.integers(0, 99))
def test_clusters_of_equal_rows_still_give_different_samples(n, k, seed):
    k = min(n, k)
    x = np.random.default_rng(seed).integers(0, 2, (n, 2)).astype(float)
    assert len(set(choose_clusters(x, k, np.random.default_rng(seed)).tolist())) == k


@given(seed=st.integers(0, 999))
def test_shares_are_whole_proportional_and_bounded(seed):
    rng = np.random.default_rng(seed)
    most = rng.integers(0, 20, 6)
    count = int(rng.integers(0, most.sum() + 1))
    weights = rng.random(6) * (rng.random(6) < 0.7)
    given_ = share_out(count, weights, most)
    assert given_.sum() == count and (given_ <= most).all() and (given_ >= 0).all()
    np.testing.assert_array_equal(share_out(10, np.array([1, 1, 3]), np.full(3, 99)), [2, 2, 6])


def test_strata_keep_the_shares_and_forget_no_class():
    labels = np.repeat([0, 1, 2], [80, 15, 5])
    chosen = labels[choose_strata(labels, 20, np.random.default_rng(0))]
    assert np.bincount(chosen).tolist() == [16, 3, 1]
    assert set(labels[choose_strata(labels, 4, np.random.default_rng(0))]) == {0, 1, 2}


def test_divergence_of_distributions():
    p, q = np.array([[1.0, 0, 0], [0.5, 0.5, 0]]), np.array([[0, 1.0, 0], [0.5, 0.5, 0]])
    np.testing.assert_allclose(divergence(p, q), [1, 0])
    np.testing.assert_allclose(divergence(p, q), divergence(q, p))


def test_degradation_prefers_what_quantization_hurts_and_leaves_out_damaged_samples():
    rng = np.random.default_rng(0)
    embedding = np.repeat(rng.standard_normal((4, 8)) * 20, 50, axis=0) + rng.standard_normal((200, 8))
    losses = np.repeat([0.1, 0.1, 0.1, 1.7], 50)
    norm = rng.uniform(0.9, 1.1, 200)
    norm[160] = 50.0
    features = Features(embedding, norm, np.ones((200, 1)), (1,), np.ones((200, 1)), None)
    assert np.flatnonzero(~usual(features)).tolist() == [160]
    counts = np.zeros(4)
    for seed in range(10):
        chosen = choose_degraded(features, losses, 20, np.random.default_rng(seed))
        assert len(set(chosen.tolist())) == 20 and 160 not in chosen
        counts += np.bincount(chosen // 50, minlength=4)
    assert counts[3] > 150 and (counts[:3] > 0).all()


def test_losses_are_those_of_the_outputs():
    graph = network()
    pool, x = pool_of(graph, 6)
    assert output_losses(pool, graph, graph, lambda *a: None).tolist() == [0] * 6
    other = graph.clone()
    other.set_const(other.value("v"), graph.const(graph.value("v")) * np.float32(0.5))
    losses = output_losses(pool, graph, other, lambda *a: None)
    assert (losses > 0).all() and (losses <= 1).all()  # 4 scores: a divergence
    autoencoder = Graph.parse(TEXT.replace("float[1,4]", "float[1,12]"), **{
        "w": np.ones((12, 16), np.float32), "b": np.zeros(16, np.float32), "v": np.ones((16, 12), np.float32)
    })  # fmt: skip
    half = autoencoder.clone()
    half.set_const(half.value("v"), np.full((16, 12), 0.5, np.float32))
    pool = load_samples({"x": np.abs(x)}, autoencoder)
    np.testing.assert_allclose(output_losses(pool, autoencoder, half, lambda *a: None), 0.25, rtol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_same_seed_same_samples(method):
    graph = network()
    pool, x = pool_of(graph)

    def quantized(samples):
        assert len(samples) == 16
        other = graph.clone()
        other.set_const(other.value("w"), np.round(graph.const(graph.value("w"))))
        return other

    found = [select(pool, graph, method, 16, seed, quantize=quantized) for seed in (0, 0, 1)]
    first, again, other = found
    np.testing.assert_array_equal(first.indices, again.indices)
    assert (np.diff(first.indices) > 0).all() and len(first.indices) == 16 == len(first.samples)
    assert first.samples.digest == again.samples.digest != pool.digest
    for _ in range(2):
        np.testing.assert_array_equal(np.concatenate([s["x"] for s in first.samples]), x[first.indices])
    assert method in first.samples.source
    if method in ("random", "stratified", "kmeans", "degradation"):
        assert first.indices.tolist() != other.indices.tolist() and first.samples.digest != other.samples.digest


def test_a_small_pool_is_taken_whole_and_bad_use_is_named():
    graph = network()
    pool, _ = pool_of(graph, 10)
    assert select(pool, graph, "kmeans", 64).indices.tolist() == list(range(10))
    with pytest.raises(RecipeError, match="chooses no samples"):
        select(pool, graph, "best", 4)
    with pytest.raises(CalibrationError, match="at least one"):
        select(pool, graph, "random", 0)
    with pytest.raises(CalibrationError, match="3 labels for 10"):
        select(pool, graph, "stratified", 4, labels=np.zeros(3))
    with pytest.raises(RecipeError, match="quantized model"):
        select(pool, graph, "degradation", 4)


def test_images_and_tokens_have_features(assets: Path):
    graph = load_graph(assets / "models" / "stories260k_prefill.onnx", dims={"N": 1})
    with np.load(assets / "data" / "tinystories_tokens.npz") as data:
        pool = load_samples({"ids": data["ids_calib"][:12].astype(np.int64)}, graph)
    for method in ("kmeans", "outlier_cover", "moment_match", "composite"):
        assert len(select(pool, graph, method, 4).indices) == 4


@pytest.mark.parametrize("method", ["stratified", "degradation", "kmeans"])
def test_the_driver_chooses_from_the_whole_pool(digits, tmp_path: Path, method: str):
    x, y = digits.data["x_calib"][:96], digits.data["y_calib"][:96] if "y_calib" in digits.data else None
    arrays = {"x": x} if y is None else {"x": x, "y": y}
    np.savez(tmp_path / "pool.npz", **arrays)
    result = quantize(digits.cnn, tmp_path / "pool.npz", "fast", dims={"N": 1}, samples=12, select=method, seed=2)
    facts = result.context.facts["selection"]
    assert facts["method"] == method and facts["pool"] == 96 and len(facts["indices"]) == 12 == len(result.samples)
    assert max(facts["indices"]) > 12
    note = next(note for note in result.context.notes if note.source == "select")
    assert note.text == f"12 of 96 samples chosen by {method}, seed 2"


def test_labels_beside_the_data_are_used(digits, tmp_path: Path):
    labels = np.repeat(np.arange(8), 12)
    np.savez(tmp_path / "pool.npz", x=digits.data["x_calib"][:96], y=labels)
    result = quantize(digits.cnn, tmp_path / "pool.npz", "fast", dims={"N": 1}, samples=8, select="stratified")
    assert sorted(labels[result.context.facts["selection"]["indices"]]) == list(range(8))


def test_select_needs_a_number_and_data(digits):
    with pytest.raises(RecipeError, match="how many"):
        quantize(digits.cnn, {"x": digits.data["x_calib"]}, select="random")
    with pytest.raises(RecipeError, match="chooses no samples"):
        quantize(digits.cnn, {"x": digits.data["x_calib"]}, select="luck", samples=4)
    with pytest.raises(RecipeError, match="no calibration data"):
        quantize(digits.cnn, None, select="random", samples=4)
