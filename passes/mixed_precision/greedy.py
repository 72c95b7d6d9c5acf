"""Heuristic solvers: greedy, local search, and bisection with evaluation."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from qcompiler.errors import BudgetError, RecipeError
from qcompiler.passes.mixed_precision.problem import SLACK, Marginals, Problem, Solution


def solve_greedy(problem: Problem) -> Solution:
    """Start with the best option of every item; while a budget is exceeded, make the change that raises the score least
    for each unit of excess that it saves; then spend what is left. Pairwise terms count.

    Excess is relative to its budget, summed over budgets. Deterministic, no bound. Raises BudgetError when it finds no
    way, which with several budgets does not prove that there is none.
    """
    choice = [int(one.argmin()) for one in problem.scores]
    state = _State(problem, choice)
    while (over := state.excess()) > 0:
        best: tuple[float, int, int] | None = None
        for i in range(len(choice)):
            for k, (rise, after) in enumerate(zip(state.scores.deltas(i), state.excess_after(i), strict=True)):
                saved = over - after
                if saved > 1e-15 * over and (best is None or rise / saved < best[0]):
                    best = (float(rise / saved), i, k)
        if best is None:
            hint = "The solver `ilp` says what is possible."
            raise BudgetError("going step by step finds no assignment that fits.", where="bits", hint=hint)
        state.move(best[1], best[2])
    return _heuristic(problem, descend(problem, state.scores.choice, pairs=False), "greedy")


def descend(problem: Problem, choice: Sequence[int], *, pairs: bool = True) -> tuple[int, ...]:
    """Change single items, or (with `pairs`) two at once, while that lowers the score within the budgets."""
    state = _State(problem, list(choice))
    while True:
        best = _single(state)
        if best is None and pairs:
            best = _double(problem, state)
        if best is None:
            return tuple(state.scores.choice)
        for i, k in best:
            state.move(i, k)


def solve_bisection(
    scores: Sequence[NDArray], evaluate: Callable[[tuple[int, ...]], float], target: float
) -> tuple[tuple[int, ...], int]:
    """Sensitivity-guided bisection: (choice, number of evaluations). Options of all items are the same precisions,
    cheapest first, the last one safe.

    scores: float [K] of each item; items are ordered by the score of their cheapest option. evaluate(choice): a metric
    that is to be at least `target`. For each precision in turn, bisection finds the largest number of the least
    sensitive free items that can take it while the other free ones keep the last; those are then fixed. All free items
    are tried first, so a uniform choice that meets the target is never missed. At most
    1 + (K - 1) (2 + log2 N) evaluations. What is returned has been evaluated and meets the target.

    Source: Schaefer et al. 2023, Mixed Precision PTQ of Neural Networks with Sensitivity Guided Search. Raises
    BudgetError when even the last option everywhere misses the target.
    """
    sizes = {len(one) for one in scores}
    if len(sizes) != 1:
        raise RecipeError("bisection needs the same options for all items.", where="bits")
    top = sizes.pop() - 1
    free = sorted(range(len(scores)), key=lambda i: (float(scores[i][0]), i))
    choice = [top] * len(scores)
    probes = 1
    value = evaluate(tuple(choice))
    if value < target:
        hint = "Lower the target, or offer more bits."
        raise BudgetError(f"the widest precision reaches {value:.6g}, not {target:.6g}.", where="bits", hint=hint)
    for option in range(top):
        if not free:
            break

        def meets(count: int, option: int = option, free: list[int] = free) -> bool:
            nonlocal probes
            probes += 1
            trial = list(choice)
            for i in free[:count]:
                trial[i] = option
            return evaluate(tuple(trial)) >= target

        if meets(len(free)):
            low = len(free)
        else:
            low, high = 0, len(free)
            while high - low > 1:
                middle = (low + high) // 2
                low, high = (middle, high) if meets(middle) else (low, middle)
        for i in free[:low]:
            choice[i] = option
        free = free[low:]
    return tuple(choice), probes


class _State:
    """Scores and costs around a choice."""

    def __init__(self, problem: Problem, choice: Sequence[int]) -> None:
        self.scores = Marginals(problem.scores, problem.pairs, choice)
        none = [np.zeros(k) for k in problem.sizes]
        names = list(problem.budgets)
        self.costs = [
            Marginals(problem.costs.get(name, none), problem.pair_costs.get(name, {}), choice) for name in names
        ]
        cost = problem.cost(choice)
        self.now = np.array([cost[name] for name in names])
        self.limits = np.array([problem.budgets[name] for name in names])
        self.unit = np.maximum(np.abs(self.limits), 1e-300)

    def excess(self) -> float:
        """By how much the budgets are exceeded, relative to them."""
        return self._excess(self.now[:, None])[0] if len(self.now) else 0.0

    def excess_after(self, item: int) -> NDArray[np.float64]:
        """The same behind each option of an item, [K]."""
        return self._excess(self.now[:, None] + np.stack([one.deltas(item) for one in self.costs]))

    def after(self, item: int) -> NDArray[np.float64]:
        """Costs behind each option of an item, [budgets, K]."""
        if not len(self.now):
            return np.zeros((0, len(self.scores.rows[item])))
        return self.now[:, None] + np.stack([one.deltas(item) for one in self.costs])

    def fits(self, costs: NDArray) -> NDArray[np.bool_]:
        """[budgets, K] -> [K]."""
        return np.asarray((costs <= (self.limits + SLACK * self.unit)[:, None]).all(0))

    def move(self, item: int, option: int) -> None:
        self.now = self.now + np.array([one.deltas(item)[option] for one in self.costs])
        for one in (self.scores, *self.costs):
            one.move(item, option)

    def _excess(self, costs: NDArray) -> NDArray[np.float64]:
        over = np.maximum(costs - (self.limits + SLACK * self.unit)[:, None], 0)
        return np.asarray((over / self.unit[:, None]).sum(0))


def _single(state: _State) -> list[tuple[int, int]] | None:
    best, move = -_least_gain(state), None
    for i in range(len(state.scores.rows)):
        deltas = np.where(state.fits(state.after(i)), state.scores.deltas(i), np.inf)
        if deltas.min() < best:
            best, move = float(deltas.min()), [(i, int(deltas.argmin()))]
    return move


def _double(problem: Problem, state: _State) -> list[tuple[int, int]] | None:
    """The best change of two items that no change of one makes, each pair of items looked at once."""
    choice, limit = state.scores.choice, (state.limits + SLACK * state.unit)[:, None, None]
    best, move = -_least_gain(state), None
    for i in range(len(choice)):
        for j in range(i + 1, len(choice)):
            gain = state.scores.deltas(i)[:, None] + state.scores.deltas(j)
            if gain.min() >= best and (i, j) not in problem.pairs:
                continue
            gain = gain + _cross(problem.pairs.get((i, j)), choice[i], choice[j])
            if not gain.min() < best:
                continue
            good = np.ones(gain.shape, bool)
            if len(state.now):
                costs = state.after(i)[:, :, None] + state.after(j)[:, None] - state.now[:, None, None]
                costs = costs + np.stack([
                    np.broadcast_to(_cross(problem.pair_costs.get(n, {}).get((i, j)), choice[i], choice[j]), gain.shape)
                    for n in problem.budgets
                ])  # fmt: skip
                good = (costs <= limit).all(0)
            gain = np.where(good, gain, np.inf)
            if gain.min() < best:
                k, other = np.unravel_index(int(gain.argmin()), gain.shape)
                best, move = float(gain.min()), [(i, int(k)), (j, int(other))]
    return move


def _cross(matrix: NDArray | None, k: int, other: int) -> NDArray | float:
    """What two changes at once change beyond the sum of both."""
    return 0.0 if matrix is None else matrix - matrix[:, [other]] - matrix[[k]] + matrix[k, other]


def _least_gain(state: _State) -> float:
    """Below this a change is rounding."""
    return 1e-12 * max((float(np.abs(row).max()) for row in state.scores.rows), default=0.0)


def _heuristic(problem: Problem, choice: tuple[int, ...], name: str) -> Solution:
    return Solution(choice, problem.score(choice), problem.cost(choice), -np.inf, np.inf, name)
