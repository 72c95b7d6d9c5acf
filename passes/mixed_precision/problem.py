"""The problem that solvers see: arrays, no layers.

Each item i takes one of K_i options. With one option k_i each,

    score = sum_i scores[i][k_i] + sum_(i,j) pairs[i,j][k_i, k_j]                                      is minimised, and
    cost  = fixed[name] + sum_i costs[name][i][k_i] + sum_(i,j) pair_costs[name][i,j][k_i, k_j] <= budgets[name]

for every name. pair_costs are for costs that are products, such as BOPs (bits of the weight times bits of what it
meets); fixed is what nobody chooses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcompiler.errors import RecipeError

Pairs = Mapping[tuple[int, int], NDArray]
SLACK = 1e-9
"""A budget is met within this share of it: sums of floats are no more exact."""


@dataclass(frozen=True, eq=False)
class Problem:
    """scores: float [K_i] of every item, lower is better. costs: name -> [K_i] of every item. budgets: name -> limit;
    costs without a budget are only reported. pairs, pair_costs: (i, j) with i < j -> [K_i, K_j]. names: of items, for
    messages. fixed: name -> a cost beside those of the items. Raises RecipeError for arrays that do not fit each other
    or are not finite."""

    scores: Sequence[NDArray]
    costs: Mapping[str, Sequence[NDArray]] = field(default_factory=dict)
    budgets: Mapping[str, float] = field(default_factory=dict)
    pairs: Pairs = field(default_factory=dict)
    pair_costs: Mapping[str, Pairs] = field(default_factory=dict)
    names: Sequence[str] = ()
    fixed: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        put = object.__setattr__
        put(self, "scores", [np.asarray(one, np.float64) for one in self.scores])
        put(self, "costs", {k: [np.asarray(one, np.float64) for one in v] for k, v in self.costs.items()})
        put(self, "pairs", {k: np.asarray(one, np.float64) for k, one in self.pairs.items()})
        put(self, "pair_costs", {
            name: {k: np.asarray(one, np.float64) for k, one in v.items()} for name, v in self.pair_costs.items()
        })  # fmt: skip
        put(self, "names", list(self.names) or [f"item {i}" for i in range(len(self.scores))])
        sizes = self.sizes
        if not sizes or min(sizes) < 1 or any(one.ndim != 1 for one in self.scores):
            raise RecipeError("every item needs at least one option.", where="bits", hint="Give scores [K] of each.")
        for name, budget in self.budgets.items():
            if name not in self.known:
                hint = f"Costs are known for {', '.join(self.known) or 'nothing'}."
                raise RecipeError(f"there is a budget for `{name}`, which nothing costs.", where="bits", hint=hint)
            if not np.isfinite(budget):
                raise RecipeError(f"the budget for `{name}` is {budget}.", where="bits", hint="Give a number.")
        for what, rows in (("scores", self.scores), *self.costs.items()):
            if [one.shape for one in rows] != [(k,) for k in sizes]:
                raise RecipeError(f"`{what}` does not have one number for each option of each item.", where="bits")
            _finite(what, dict(zip(self.names, rows, strict=True)))
        for what, pairs in (("pairs", self.pairs), *self.pair_costs.items()):
            for (i, j), one in pairs.items():
                if not 0 <= i < j < len(sizes) or one.shape != (sizes[i], sizes[j]):
                    raise RecipeError(f"`{what}` of items {i} and {j} have shape {one.shape}.", where="bits",
                                      hint="Keys are (i, j) with i < j, arrays [K_i, K_j].")  # fmt: skip
            _finite(what, pairs)

    @property
    def known(self) -> list[str]:
        """Names of costs."""
        return sorted({*self.costs, *self.pair_costs, *self.fixed})

    @property
    def sizes(self) -> list[int]:
        """K_i."""
        return [one.size for one in self.scores]

    def score(self, choice: Sequence[int], *, linear: bool = False) -> float:
        """Of one option each; `linear` leaves the pairs out."""
        return _sum(self.scores, {} if linear else self.pairs, choice)

    def cost(self, choice: Sequence[int]) -> dict[str, float]:
        """Of one option each, by name."""
        none = [np.zeros(k) for k in self.sizes]
        return {
            n: self.fixed.get(n, 0.0) + _sum(self.costs.get(n, none), self.pair_costs.get(n, {}), choice)
            for n in self.known
        }  # fmt: skip

    def fits(self, choice: Sequence[int]) -> bool:
        """Whether all budgets are met."""
        cost = self.cost(choice)
        return all(cost[name] <= budget + SLACK * abs(budget) for name, budget in self.budgets.items())


@dataclass(frozen=True)
class Solution:
    """choice: option of each item. score, costs: of it. bound: no choice within the budgets scores less.
    gap: (score - bound) / max(|score|, a hundredth of the largest spread of an item's scores), inf where nothing is
    proved. status: optimal, `time limit`, or the name of a heuristic."""

    choice: tuple[int, ...]
    score: float
    costs: Mapping[str, float]
    bound: float
    gap: float
    status: str


class Marginals:
    """Score or cost of every option of every item, given the present choice of the others; follows moves."""

    def __init__(self, linear: Sequence[NDArray], pairs: Pairs, choice: Sequence[int]) -> None:
        self.choice = list(choice)
        self.rows = [np.array(one) for one in linear]
        self._around: list[list[tuple[int, NDArray]]] = [[] for _ in linear]
        for (i, j), matrix in pairs.items():
            self._around[i].append((j, matrix))
            self._around[j].append((i, matrix.T))
            self.rows[i] += matrix[:, self.choice[j]]
            self.rows[j] += matrix[self.choice[i]]

    def deltas(self, item: int) -> NDArray[np.float64]:
        """What each option of an item changes, [K]."""
        return np.asarray(self.rows[item] - self.rows[item][self.choice[item]])

    def move(self, item: int, option: int) -> None:
        """Take an option."""
        before, self.choice[item] = self.choice[item], option
        for other, matrix in self._around[item]:
            self.rows[other] += matrix[option] - matrix[before]


def _sum(linear: Sequence[NDArray], pairs: Pairs, choice: Sequence[int]) -> float:
    total = sum(float(one[k]) for one, k in zip(linear, choice, strict=True))
    return total + sum(float(one[choice[i], choice[j]]) for (i, j), one in pairs.items())


def _finite(what: str, arrays: Mapping[Any, NDArray]) -> None:
    for key, one in arrays.items():
        if not np.isfinite(one).all():
            raise RecipeError(f"`{what}` of {key} hold NaN or infinity.", where="bits",
                              hint="The network overflows there, or a probe failed; look at its ranges.")  # fmt: skip
