"""Scores against what they estimate: measured losses, exact traces, the true loss of the whole choice."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from qcompiler.errors import CalibrationError, RecipeError
from qcompiler.evaluate import runner
from qcompiler.graph.model import Graph
from qcompiler.passes import insert_qdq, set_ranges
from qcompiler.passes.mixed_precision import candidates, losses, pushdown, sensitivity
from qcompiler.passes.mixed_precision.probe import Probes
from tests.passes.mixed_precision.networks import items_of, residual
from tests.quantized import float_graph


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("QCOMPILER_CACHE", str(tmp_path))
    return tmp_path / "probes"


def study(activations: tuple[int, ...] = (), **options) -> sensitivity.Study:
    graph, context = residual()
    return sensitivity.study(graph, context.assignment, items_of(graph, context, activations), context, **options)


def outputs(graph: Graph, samples) -> np.ndarray:
    run = runner(graph)
    return np.stack([run(sample)[0] for sample in samples])


def test_a_probe_is_the_network_with_that_item_quantized() -> None:
    one = study()
    place = next(i for i, item in enumerate(one.items) if item.name == "w3")
    graph = one.graph.clone()
    graph.set_const(graph.value("w3"), one.changes[place][0].constants["w3"])
    want = outputs(graph, one.probes.samples)
    np.testing.assert_allclose(one.probes.outputs([((place, 0),)])[0], want, rtol=1e-4, atol=1e-4)
    exact = outputs(one.graph, one.probes.samples)
    np.testing.assert_allclose(one.probes.exact(), exact, rtol=1e-4, atol=1e-4)
    p, q = (np.exp(z - z.max(-1, keepdims=True)) for z in (exact, want))
    p, q = p / p.sum(-1, keepdims=True), q / q.sum(-1, keepdims=True)
    divergence = (p * np.log(p / q)).sum(-1).mean()
    assert sensitivity.swap_loss(one)[place][0] == pytest.approx(divergence, rel=1e-3)


@pytest.mark.parametrize("bits", [4, 8])
def test_probes_of_everything_are_the_quantized_network(bits: int) -> None:
    """But for the rounding of biases, so they are 0 here."""
    graph, context = residual(biases=0.0)
    one = sensitivity.study(graph, context.assignment, items_of(graph, context, (4, 8)), context, base="decided")
    choice = [item.bits.index(bits) for item in one.items]
    found = one.probes.outputs([tuple(enumerate(choice))])[0]
    graph, context = one.graph.clone(), one.context
    context.assignment = candidates.change(one.assignment, one.items, choice)
    graph = insert_qdq.run(set_ranges.run(graph, set_ranges.Options(), context), insert_qdq.Options(), context)
    want = outputs(graph, one.probes.samples)
    np.testing.assert_allclose(found, want, atol=1e-4)


def test_probes_are_kept_and_go_on_where_they_were_interrupted(cache: Path) -> None:
    one = study()
    tasks = [((i, k),) for i in range(3) for k in range(len(one.items[i].bits))]
    first = one.probes.outputs(tasks[:3])
    assert one.probes.ran == 3 and len(list(cache.glob("*.npy"))) == 3
    other = study()
    again = other.probes.outputs(tasks)
    assert other.probes.ran == len(tasks) - 3
    np.testing.assert_array_equal(np.stack(again[:3]), np.stack(first))
    next(cache.glob("*.npy")).write_bytes(b"damaged")
    third = study()
    third.probes.outputs(tasks)
    assert third.probes.ran == 1
    graph, context = residual(count=23)  # other samples are other probes
    other = sensitivity.study(graph, context.assignment, items_of(graph, context), context)
    other.probes.outputs(tasks)
    assert other.probes.ran == len(tasks)


def test_processes_find_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QCOMPILER_CACHE", "off")
    told = []
    here = sensitivity.swap_loss(study())
    there = study(executor="processes:2")
    there.context.progress = lambda *state: told.append(state)
    for a, b in zip(here, sensitivity.swap_loss(there), strict=True):
        np.testing.assert_array_equal(a, b)
    total = sum(len(item.bits) for item in there.items)
    assert ("sensitivity", total, total) in told


def test_gauss_newton_is_the_loss_for_small_errors() -> None:
    one = study((4, 8))
    measured, predicted = sensitivity.swap_loss(one), sensitivity.gauss_newton(one)
    for item, a, b in zip(one.items, measured, predicted, strict=True):
        assert a[-1] == pytest.approx(b[-1], rel=0.15, abs=1e-7), item  # 8 bits
        assert (np.diff(b) <= 1e-9).all(), item  # fewer bits lose more


def test_gauss_newton_pairs_add_up() -> None:
    one = study()
    scores, pairs = sensitivity.gauss_newton(one), sensitivity.gauss_newton_pairs(one, signed=True)
    choice = [len(item.bits) - 1 for item in one.items]
    free = [i for i, item in enumerate(one.items) if not item.pinned]
    for i in free:
        choice[i] = 2  # 4 bits
    total = sum(one[k] for one, k in zip(scores, choice, strict=True))
    total += sum(matrix[choice[i], choice[j]] for (i, j), matrix in pairs.items())
    true = one.probes.evaluate(choice)
    assert total == pytest.approx(true, rel=0.5)
    assert total >= 0
    positive = sensitivity.gauss_newton_pairs(one)
    assert any((matrix < 0).any() for matrix in pairs.values())
    assert all(np.array_equal(positive[key], np.maximum(matrix, 0)) for key, matrix in pairs.items())


def test_measured_pairs_make_the_loss_of_two_items_exact() -> None:
    one = study()
    alone, pairs = sensitivity.swap_loss(one), sensitivity.pairwise(one, "all")
    (i, j), matrix = next((key, m) for key, m in pairs.items() if min(m.shape) > 1)
    both = one.probes.losses([((i, 1), (j, 0))])[0]
    assert alone[i][1] + alone[j][0] + matrix[1, 0] == pytest.approx(both, rel=1e-9)
    lowest = sensitivity.pairwise(one, "all", "lowest")
    assert lowest[i, j][0, 0] == pytest.approx(matrix[0, 0]) and lowest[i, j].shape == matrix.shape
    near = sensitivity.pairwise(one, "block")
    assert set(near) < set(pairs) and all(np.array_equal(near[key], pairs[key]) for key in near)
    with pytest.raises(RecipeError):
        sensitivity.pairwise(one, "some")


def test_branches_that_do_not_meet_do_not_interact() -> None:
    rng = np.random.default_rng(0)
    v, w = (rng.standard_normal((6, 4)).astype(np.float32) for _ in range(2))
    graph = float_graph(
        "float[1,6] a, float[1,6] b => float[1,4] y, float[1,4] z", "y = MatMul(a, v)  z = MatMul(b, w)", v=v, w=w
    )
    from qcompiler.calibrate.data import load_samples
    from qcompiler.context import Context
    from qcompiler.passes import decide

    arrays = {name: rng.standard_normal((16, 6)).astype(np.float32) for name in "ab"}
    context = Context(samples=load_samples(arrays, graph))
    graph = decide.run(graph, decide.Options(keep_first_last=False), context)
    one = sensitivity.study(graph, context.assignment, items_of(graph, context), context)
    assert one.probes.loss == losses.Loss("mse", ("y", "z"))
    for pairs in (sensitivity.pairwise(one, "all"), sensitivity.gauss_newton_pairs(one)):
        places = tuple(i for i, item in enumerate(one.items) if item.kind == "weight")
        np.testing.assert_allclose(pairs[places], 0, atol=1e-7)
    for a, b in zip(sensitivity.swap_loss(one), sensitivity.gauss_newton(one), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)  # the loss is quadratic


def test_one_score_from_traces_and_pairs() -> None:
    scores, measured = [np.array([2.0, 1.0]), np.array([4.0, 0.0])], [np.array([6.0, 5.0]), np.array([12.0, 1.0])]
    found = sensitivity.combine(scores, measured, {(0, 1): np.array([[-1.0, 3.0], [4.0, -5.0]])})
    np.testing.assert_allclose(found[0], [6 + 0, 3 + 2])
    np.testing.assert_allclose(found[1], [12 + 0, 0 + 1.5])


def test_the_final_solver_loses_less_than_rounding() -> None:
    rounded, solved = study(), study(final_solver=True)
    a, b = sensitivity.local_sqnr(rounded), sensitivity.local_sqnr(solved)
    weights = [i for i, item in enumerate(rounded.items) if item.kind == "weight"]
    assert all(b[i][0] < a[i][0] for i in weights)
    assert sum(x[0] for x in sensitivity.swap_loss(solved)) < sum(x[0] for x in sensitivity.swap_loss(rounded))
    again = study(final_solver=True)  # from disk
    for x, y in zip(again.changes, solved.changes, strict=True):
        assert [one.digest() for one in x] == [one.digest() for one in y]


def test_local_score_is_noise_over_signal() -> None:
    one = study((4,))
    scores = sensitivity.local_sqnr(one)
    x = np.stack([sample["x"] for sample in one.probes.samples]).reshape(-1)
    place = next(i for i, item in enumerate(one.items) if item.name == "x")
    from qcompiler.quantizer import fake_quantize

    noise = ((fake_quantize(x, one.changes[place][0].wide["x"]) - x) ** 2).sum() / (x**2).sum()
    assert scores[place][0] == pytest.approx(noise, rel=0.05)
    place = next(i for i, item in enumerate(one.items) if item.name == "w4")
    run = runner(sensitivity_values(one.graph, ["f"]))
    f = np.concatenate([run(sample)[0] for sample in one.probes.samples])
    w = one.graph.const(one.graph.value("w4"))
    want = ((f @ one.error(place, 0)) ** 2).sum() / ((f @ w) ** 2).sum()
    assert scores[place][0] == pytest.approx(want, rel=1e-3)


def sensitivity_values(graph: Graph, names: list[str]) -> Graph:
    from qcompiler.calibrate.statistics import with_outputs

    return with_outputs(graph, names)


def test_push_down() -> None:
    rng = np.random.default_rng(0)
    exact = pushdown.fixed_point(rng.standard_normal(5000) * 0.5, 6, 4)
    assert pushdown.push_down(exact, bins=int(np.ptp(exact) * 16)) == (6, 4)
    gauss = np.random.default_rng(1).standard_normal(200_000)
    for bins, words in ((50, {8}), (100, {9}), (200, {10, 11})):
        assert pushdown.push_down(gauss, bins=bins)[0] in words
    np.testing.assert_array_equal(pushdown.fixed_point(np.array([-2, 0.5 / 128, 1.5 / 128, 5]), 8, 7),
                                  [-1, 0, 2 / 128, 127 / 128])  # fmt: skip
    assert pushdown.divergence(gauss, gauss[::-1]) == 0  # histograms do not see order: the known weakness
    one = study((4, 8))
    scores = sensitivity.adapt_pushdown(one)
    for item, row in zip(one.items, scores, strict=True):
        assert row[0] >= row[-1] >= 0 and (item.inner or row[0] > 0)


def test_losses() -> None:
    with pytest.raises(RecipeError, match="no loss"):
        losses.find_loss(residual()[0], "l1")
    kl = losses.Loss("kl", ("z",))
    z = np.random.default_rng(0).standard_normal((7, 2, 5)).astype(np.float32)
    d = np.random.default_rng(1).standard_normal(z.shape).astype(np.float32) * 1e-2
    assert losses.loss_of(kl, z, z) == 0
    want = 0.5 * (losses.features(kl, z, z + d) ** 2).sum()
    assert losses.loss_of(kl, z, z + d) == pytest.approx(want, rel=0.02)
    assert losses.loss_of(kl, z, z + 3) == pytest.approx(0, abs=1e-12)  # shifts of all logits are none
    with pytest.raises(CalibrationError, match="NaN or infinite"):
        losses.loss_of(kl, z, z * np.nan)
    graph, context = residual()
    context.samples = None
    with pytest.raises(CalibrationError, match="calibration data"):
        Probes(graph, [], context, loss=kl)
