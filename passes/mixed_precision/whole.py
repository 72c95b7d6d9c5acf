"""Costs of the whole network: what nodes do not add up to, and whether a choice holds its budgets as it will be built.

Costs of products add up; the rest of a network (what is added, pooled and moved, the arena, code, what one call takes)
is the same for every choice as far as the integer program knows. It is found as the cost of the whole at the widest
options, less what the program adds up there. Where the whole of the program's choice costs more than it thought,
because kernels of other widths need code or room of their own, that difference joins what is fixed, and the program is
solved again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qcompiler.cost import Cost, totals
from qcompiler.errors import BudgetError
from qcompiler.passes.mixed_precision.candidates import Item
from qcompiler.passes.mixed_precision.problem import SLACK, Problem, Solution

Whole = Callable[[tuple[str, ...]], Cost]
CORRECTIONS = 6
"""How often a choice is solved anew."""


def named(items: Sequence[Item], choice: Sequence[int]) -> tuple[str, ...]:
    """`name=bits` (or `name=format`) of the items that are free: what the option `choice` of assign_bits takes."""
    return tuple(f"{item.name}={item.labels[k]}" for item, k in zip(items, choice, strict=True) if not item.pinned)


def with_fixed(problem: Problem, items: Sequence[Item], whole: Whole) -> Problem:
    """The problem with all that is not of its items, from one plan of the network at the widest options."""
    return _moved(problem, items, [len(item.bits) - 1 for item in items], whole)[0]


@dataclass(frozen=True)
class Answer:
    """A solved problem: with scores of this name, and what was measured of whole choices, if anything was."""

    problem: Problem
    solution: Solution
    score: str
    measured: Mapping[str, Any] | None = None


def hold(
    solve: Callable[[Mapping[str, float]], Answer], fixed: Mapping[str, float], items: Sequence[Item], whole: Whole
) -> tuple[Answer, dict[str, float]]:
    """The answer whose plan meets the budgets, and the costs of that plan. solve: an answer where this is fixed.

    Raises BudgetError where no plan does.
    """
    over: dict[str, tuple[float, float]] = {}
    for _ in range(CORRECTIONS):
        answer = solve(fixed)
        problem, real = _moved(answer.problem, items, answer.solution.choice, whole)
        over = {
            name: (real[name], limit) for name, limit in problem.budgets.items()
            if name in real and real[name] > limit + SLACK * abs(limit)
        }  # fmt: skip
        if not over:
            solution = dataclasses.replace(answer.solution, costs=problem.cost(answer.solution.choice))
            return dataclasses.replace(answer, problem=problem, solution=solution), real
        fixed = problem.fixed
    told = "; ".join(f"{name} {now:.10g} of {limit:.10g}" for name, (now, limit) in over.items())
    hint = "Raise the budget by that difference."
    raise BudgetError(f"no choice was found whose plan holds the budgets: {told}.", where="bits", hint=hint)


def _moved(
    problem: Problem, items: Sequence[Item], choice: Sequence[int], whole: Whole
) -> tuple[Problem, dict[str, float]]:
    """The problem whose costs at `choice` are those of the plan, and these."""
    real: Mapping[str, float] = totals(whole(named(items, choice)))
    told = problem.cost(choice)
    fixed = {
        **problem.fixed, **{name: problem.fixed.get(name, 0.0) + cost - told.get(name, 0.0)
                            for name, cost in real.items()},
    }  # fmt: skip
    return dataclasses.replace(problem, fixed=fixed), dict(real)
