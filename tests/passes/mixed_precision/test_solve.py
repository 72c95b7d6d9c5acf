"""Solvers of the bit assignment: against brute force, against the published arrays of HAWQ-V3, and what they refuse."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest

from qcompiler.errors import BudgetError, RecipeError
from qcompiler.passes.mixed_precision.greedy import descend, solve_bisection, solve_greedy
from qcompiler.passes.mixed_precision.problem import Problem
from qcompiler.passes.mixed_precision.solve import least_cost, pareto, project_psd, solve_linear, solve_pairwise


def instance(seed: int, items: int, options: int, budgets: int, *, pairs: bool = False, products: bool = False):
    """Scores that fall and costs that rise with the option, roughly; budgets somewhere between."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, options + 1, items)
    scores = [np.sort(rng.exponential(1, k) * 10.0 ** rng.uniform(-4, 1))[::-1] for k in sizes]
    costs = {f"c{b}": [np.sort(rng.integers(1, 1000, k)).astype(float) for k in sizes] for b in range(budgets)}
    if budgets > 1:  # one that does not simply rise
        costs["c1"] = [rng.permutation(one) for one in costs["c1"]]
    sides = [(i, j) for i in range(items) for j in range(i + 1, items) if rng.random() < 0.5]
    crossed = {k: rng.standard_normal((sizes[k[0]], sizes[k[1]])) * 0.3 for k in sides} if pairs else {}
    product = {"c0": {k: rng.integers(0, 300, (sizes[k[0]], sizes[k[1]])).astype(float) for k in sides[:4]}}
    bare = Problem(scores, costs, {}, crossed, product if products else {})
    some = [bare.cost([int(rng.integers(k)) for k in sizes]) for _ in range(3)]
    limits = {name: float(np.mean([one[name] for one in some])) for name in costs}
    return Problem(scores, costs, limits, crossed, product if products else {})


def brute_force(problem: Problem) -> tuple[float, tuple[int, ...]] | None:
    """The least score of all choices that fit, by trying all of them, vectorized."""
    choices = np.array(list(itertools.product(*(range(k) for k in problem.sizes))))

    def total(linear, pairs) -> np.ndarray:
        found = sum(one[choices[:, i]] for i, one in enumerate(linear))
        return found + sum(one[choices[:, i], choices[:, j]] for (i, j), one in pairs.items())

    good = np.ones(len(choices), bool)
    for name, budget in problem.budgets.items():
        good &= total(problem.costs[name], problem.pair_costs.get(name, {})) <= budget * (1 + 1e-9)
    if not good.any():
        return None
    scores = np.where(good, total(problem.scores, problem.pairs), np.inf)
    return float(scores.min()), tuple(choices[scores.argmin()].tolist())


@pytest.mark.parametrize("start", range(0, 200, 20))
def test_linear_equals_brute_force(start: int) -> None:
    for seed in range(start, start + 20):
        items = 1 + seed % 12
        options = 5 if items <= 6 else 3 if items <= 10 else 2
        problem = instance(seed, items, options, 1 + seed % 3, products=seed % 2 > 0)
        want = brute_force(problem)
        if want is None:
            with pytest.raises(BudgetError):
                solve_linear(problem)
            continue
        got = solve_linear(problem)
        assert problem.fits(got.choice)
        assert got.score == pytest.approx(want[0], rel=1e-6, abs=1e-8 * max(one.max() for one in problem.scores))
        assert got.status == "optimal" and got.gap <= 1e-6 and got.bound <= got.score
        assert got.costs == problem.cost(got.choice)
        try:
            assert solve_greedy(problem).score >= want[0] * (1 - 1e-9)
        except BudgetError:
            assert len(problem.budgets) > 1


def test_large_instances_are_quick() -> None:
    for seed in range(3):
        rng = np.random.default_rng(seed)
        bits = np.array([2, 3, 4, 5, 6, 8])
        size = 10.0 ** rng.uniform(3, 6, 60)
        scores = [10.0 ** rng.uniform(-3, 0) * 4.0 ** -(bits - 2) * rng.uniform(0.7, 1.3, 6) for _ in size]
        costs = {
            "bytes": [s * bits / 8 for s in size], "bops": [s * 10.0 ** rng.uniform(0, 2) * bits * 8 for s in size],
            "latency": [s * rng.uniform(0.5, 1) * np.maximum(bits, 4) for s in size],
        }  # fmt: skip
        budgets = {name: sum(0.6 * one[0] + 0.4 * one[-1] for one in rows) for name, rows in costs.items()}
        begin = time.perf_counter()
        found = solve_linear(Problem(scores, costs, budgets), gap=1e-3, time_limit=5)
        assert found.gap <= 1e-3 and time.perf_counter() - begin < 5
        assert solve_greedy(Problem(scores, costs, budgets)).score >= found.bound


@pytest.mark.parametrize("seed", range(24))
def test_pairwise_equals_brute_force(seed: int) -> None:
    problem = instance(seed, 2 + seed % 6, 4, seed % 3, pairs=True, products=seed % 2 > 0)
    want = brute_force(problem)
    if want is None:
        with pytest.raises(BudgetError):
            solve_pairwise(problem)
        return
    got = solve_pairwise(problem)
    assert problem.fits(got.choice) and got.status == "optimal"
    assert got.score == pytest.approx(want[0], rel=1e-6, abs=1e-7)
    local = descend(problem, want[1])
    assert problem.score(local) == pytest.approx(want[0], rel=1e-9)  # the best has no better neighbour


def test_pairwise_keeps_the_local_search_when_time_is_up() -> None:
    problem = instance(0, 40, 6, 1, pairs=True)
    found = solve_pairwise(problem, time_limit=1.0)
    assert problem.fits(found.choice) and found.bound <= found.score
    assert found.status == ("optimal" if found.gap <= 1e-6 else "time limit")
    assert found.score <= problem.score(descend(problem, solve_greedy(problem).choice)) + 1e-9


def test_positive_semidefinite_projection() -> None:
    problem = instance(3, 5, 4, 1, pairs=True)
    scores, pairs = project_psd(problem.scores, problem.pairs)
    n = sum(problem.sizes)
    starts = np.cumsum([0, *problem.sizes])
    matrix = np.diag(2 * np.concatenate(scores))
    for (i, j), block in pairs.items():
        matrix[starts[i] : starts[i + 1], starts[j] : starts[j + 1]] = block
        matrix[starts[j] : starts[j + 1], starts[i] : starts[i + 1]] = block.T
    # Entries of two options of one item are not kept: the rest is psd up to them, so one-hot values are not negative.
    for choice in itertools.product(*(range(k) for k in problem.sizes)):
        one = np.zeros(n)
        one[starts[:-1] + np.array(choice)] = 1
        assert one @ matrix @ one >= -1e-9
    again, same = project_psd([np.array([1.0, 0.5]), np.array([2.0])], {(0, 1): np.array([[0.1], [0.2]])})
    np.testing.assert_allclose(np.concatenate(again), [1, 0.5, 2])
    np.testing.assert_allclose(same[0, 1], [[0.1], [0.2]], atol=1e-12)


def test_the_curve_is_monotone_and_every_point_optimal() -> None:
    problem = instance(7, 8, 3, 1)
    curve = pareto(problem, "c0", 12)
    assert len(curve) > 3
    costs, scores = [one.costs["c0"] for _, one in curve], [one.score for _, one in curve]
    assert all(a < b for a, b in itertools.pairwise(costs)) and all(a > b for a, b in itertools.pairwise(scores))
    assert costs[0] == least_cost(problem, "c0") == sum(one.min() for one in problem.costs["c0"])
    assert scores[-1] == pytest.approx(sum(one.min() for one in problem.scores))
    for limit, one in curve:
        want = brute_force(Problem(problem.scores, problem.costs, {"c0": limit}))
        assert want is not None and one.score == pytest.approx(want[0], rel=1e-6)
    assert pareto(problem, "c0", [costs[0] - 1, costs[0]])[0][1].costs["c0"] == costs[0]


# Average trace times (|dW|^2 at 4 bits - at 8 bits) of the 19 inner convolutions of ResNet-18, parameters and
# multiply-accumulates: published with HAWQ-V3 (Zhen-Dong/HAWQ, the notebook of the integer linear program).
HAWQ = [
    0.4608, 0.1251, 0.1094, 0.0322, 0.1047, 0.0630, 0.0472, 0.0732, 0.0182, 0.0569, 0.0453, 0.0063, 0.0305, 0.0165,
    0.0296, 0.0284, 0.0142, 0.0292, 0.0127,
]  # fmt: skip
PARAMETERS = [
    *[36864] * 4, 73728, 147456, 8192, 147456, 147456, 294912, 589824, 32768, 589824, 589824, 1179648, 2359296, 131072,
    2359296, 2359296,
]  # fmt: skip
MACS = [57.802752 if i in (4, 9, 14) else 6.422528 if i in (6, 11, 16) else 115.605504 for i in range(19)]
MS_4 = [
    0.21094404, 0.21092674, 0.21104113, 0.21086851, 0.13642465, 0.19167506, 0.02532183, 0.19148203, 0.19142914,
    0.11395316, 0.20556011, 0.01917474, 0.20566918, 0.20566509, 0.13185102, 0.22287786, 0.01790088, 0.22304611,
    0.22286099,
]  # fmt: skip
"""Milliseconds on a T4 with 4 bits; then with 8."""
MS_8 = [
    0.36189111, 0.36211718, 0.31141909, 0.30454471, 0.19184896, 0.38948934, 0.0334169, 0.38904905, 0.3892859,
    0.19134735, 0.34307431, 0.02802354, 0.34313329, 0.34310756, 0.21117103, 0.37376585, 0.02896843, 0.37398187,
    0.37405185,
]  # fmt: skip
TIES = [(4, 6), (9, 11), (14, 16)]


def resnet18(at8: list[float], at4: list[float], limit: float) -> tuple[Problem, list[list[int]]]:
    """Options 4 and 8 bits; a convolution on a shortcut goes with its neighbour."""
    partner = dict(TIES)
    groups = [[i, partner[i]] if i in partner else [i] for i in range(19) if i not in partner.values()]
    scores = [np.array([sum(HAWQ[i] for i in group), 0.0]) for group in groups]
    costs = [np.array([sum(at4[i] for i in group), sum(at8[i] for i in group)]) for group in groups]
    return Problem(scores, {"limit": costs}, {"limit": limit}), groups


def four_bit(problem: Problem, groups: list[list[int]]) -> tuple[set[int], float, float]:
    found = solve_linear(problem)
    layers = {i for group, k in zip(groups, found.choice, strict=True) if k == 0 for i in group}
    return layers, found.costs["limit"], sum(HAWQ) - found.score


def test_hawq_v3_size() -> None:
    at8 = [p / 2**20 for p in PARAMETERS]
    at4 = [p / 2**21 for p in PARAMETERS]
    limit = sum(at4) + 0.5 * (sum(at8) - sum(at4))
    assert limit == pytest.approx(7.98047, abs=5e-6)
    problem, groups = resnet18(at8, at4, limit)
    layers, size, gain = four_bit(problem, groups)
    assert layers == {15, 17, 18}
    assert size == pytest.approx(7.2656, abs=5e-5) and gain == pytest.approx(1.23321, abs=5e-4)


def test_hawq_v3_bops() -> None:
    at8, at4 = [m / 16 for m in MACS], [m / 64 for m in MACS]
    limit = sum(at4) + 0.5 * (sum(at8) - sum(at4))
    assert limit == pytest.approx(66.232, abs=5e-4)
    problem, groups = resnet18(at8, at4, limit)
    layers, bops, gain = four_bit(problem, groups)
    assert layers == {3, 8, *range(12, 19)}
    assert bops == pytest.approx(65.028, abs=5e-4) and gain == pytest.approx(1.09202, abs=5e-4)


def test_hawq_v3_latency() -> None:
    limit = sum(MS_4) + 0.5 * (sum(MS_8) - sum(MS_4))
    assert limit == pytest.approx(4.24618, abs=5e-6)
    problem, groups = resnet18(MS_8, MS_4, limit)
    layers, latency, gain = four_bit(problem, groups)
    assert layers == {5, 8, 12, 13, 15, 17, 18}
    assert latency == pytest.approx(4.22010, abs=5e-6) and gain == pytest.approx(1.10504, abs=5e-4)


def test_what_cannot_be_met_says_what_could() -> None:
    scores = [np.array([1.0, 0.5]), np.array([2.0, 1.0])]
    costs = {"bytes": [np.array([10.0, 20.0]), np.array([96.0, 192.0])], "bops": [np.array([9.0, 1.0])] * 2}
    with pytest.raises(BudgetError, match="bytes needs at least 106, of which `head` 96") as raised:
        solve_linear(Problem(scores, costs, {"bytes": 100}, names=["stem", "head"]))
    assert "bytes to 106" in raised.value.hint
    with pytest.raises(BudgetError, match="all budgets at once") as raised:
        solve_linear(Problem(scores, costs, {"bytes": 110, "bops": 5}))
    assert "bytes 212" in raised.value.hint and "bops 18" in raised.value.hint
    with pytest.raises(BudgetError):
        solve_greedy(Problem(scores, costs, {"bytes": 100}))


def test_problems_that_make_no_sense() -> None:
    with pytest.raises(RecipeError, match="nothing costs"):
        Problem([np.ones(2)], {}, {"bytes": 3})
    with pytest.raises(RecipeError, match="one number for each option"):
        Problem([np.ones(2)], {"bytes": [np.ones(3)]})
    with pytest.raises(RecipeError, match="NaN"):
        Problem([np.array([1.0, np.nan])])
    with pytest.raises(RecipeError, match="shape"):
        Problem([np.ones(2), np.ones(3)], pairs={(0, 1): np.ones((3, 2))})


@pytest.mark.parametrize("seed", range(20))
def test_bisection_meets_its_target(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n, k = int(rng.integers(1, 40)), 3
    scores = [np.sort(rng.exponential(1, k))[::-1] * np.array([1, 1, 0]) for _ in range(n)]
    asked = []

    def evaluate(choice: tuple[int, ...]) -> float:
        asked.append(choice)
        return -sum(float(one[c]) for one, c in zip(scores, choice, strict=True))

    target = evaluate(tuple([0] * n)) * float(rng.uniform(0.05, 0.9))
    asked.clear()
    choice, probes = solve_bisection(scores, evaluate, target)
    assert choice in asked and probes == len(asked) <= k * (np.log2(n) + 1) + 1
    assert evaluate(choice) >= target
    for option in range(k):  # no uniform choice that meets the target is narrower
        if evaluate(tuple([option] * n)) >= target:
            assert sum(choice) <= option * n
    with pytest.raises(BudgetError, match="widest precision"):
        solve_bisection(scores, evaluate, 1.0)
