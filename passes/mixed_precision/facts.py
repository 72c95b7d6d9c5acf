"""A solved assignment as plain data for the report, from which other budgets are solved without probes."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from qcompiler.errors import BudgetError, RecipeError
from qcompiler.passes.mixed_precision.candidates import Item
from qcompiler.passes.mixed_precision.greedy import solve_greedy
from qcompiler.passes.mixed_precision.problem import Problem, Solution
from qcompiler.passes.mixed_precision.refine import uniform_choices
from qcompiler.passes.mixed_precision.solve import pareto, solve_linear, solve_pairwise

SOLVERS = ("ilp", "pairwise", "greedy")
UNITS = {
    "": 1.0, "B": 1.0, "kB": 1e3, "KB": 1e3, "MB": 1e6, "KiB": 2.0**10, "MiB": 2.0**20, "GiB": 2.0**30,
    "s": 1e3, "ms": 1.0, "us": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12,
}  # fmt: skip
TIMES = ("s", "ms", "us")
"""Units of latency, which is in milliseconds; the others are of what is counted."""


def parse_budget(name: str, given: Any, problem: Problem, items: Sequence[Item]) -> float:
    """A budget as a number, or as text: `180KiB`, `1.5MiB`, `12ms`, `3G`, or `0.6x` of what the widest options cost.

    A number for latency is milliseconds. Raises RecipeError.
    """
    if name not in problem.known:
        hint = f"There are budgets for {', '.join(problem.known)} here; others need a cost model of the target."
        raise RecipeError(f"nothing says what `{name}` costs.", where="budget", hint=hint)
    if isinstance(given, int | float) and not isinstance(given, bool) and np.isfinite(given) and given > 0:
        return float(given)
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+(?:[eE][+-]?\d+)?)\s*([A-Za-z]*)\s*", str(given))
    if isinstance(given, str) and match is not None and float(match[1]) > 0:
        if match[2] == "x":
            return float(match[1]) * problem.cost([len(item.bits) - 1 for item in items])[name]
        if match[2] in _units(name):
            return float(match[1]) * UNITS[match[2]]
    units = ", ".join(unit for unit in _units(name) if unit)
    hint = f"Give a number, one with a unit ({units}), or a share such as 0.6x."
    raise RecipeError(f"`{given}` is no budget for {name}.", where="assign_bits", hint=hint)


def _units(name: str) -> list[str]:
    return ["", *TIMES] if name == "latency" else [unit for unit in UNITS if unit not in TIMES]


def run_solver(problem: Problem, solver: str, *, gap: float = 1e-6, time_limit: float = 60.0) -> Solution:
    """By name: ilp, pairwise or greedy. Raises RecipeError, BudgetError."""
    if solver not in SOLVERS:
        raise RecipeError(f"`{solver}` is no solver.", where="assign_bits", hint=f"Known: {', '.join(SOLVERS)}.")
    if solver == "greedy":
        return solve_greedy(problem)
    return (solve_pairwise if solver == "pairwise" else solve_linear)(problem, gap=gap, time_limit=time_limit)


def describe(
    items: Sequence[Item],
    problem: Problem,
    budgets: Mapping[str, float],
    solution: Solution,
    *,
    solver: str,
    points: int,
    time_limit: float,
    about: Mapping[str, Any],
) -> dict[str, Any]:
    """Everything as JSON. about: further entries (score, samples, ...).

    items: name, kind, values, bits (options), chosen. scores, costs: lists by item. pairs, pair_costs: [i, j, matrix].
    budgets; score, bound, gap, status, total (costs) of the choice; uniform: all free items at one width; curve: over
    `curve_over`, the first budget that widths change: budget, total, score, bits.
    """
    document = {
        **about,
        "items": [
            {"name": i.name, "kind": i.kind, "values": list(i.values), "bits": list(i.bits), "pinned": i.pinned,
             "inner": i.inner, "chosen": i.bits[k],
             **({"formats": list(i.tokens), "option": i.labels[k]} if i.tokens else {})}
            for i, k in zip(items, solution.choice, strict=True)
        ],
        "scores": [_plain(one) for one in problem.scores],
        "costs": {name: [_plain(one) for one in rows] for name, rows in problem.costs.items()},
        "pairs": [[i, j, _plain(one)] for (i, j), one in problem.pairs.items()],
        "pair_costs": {
            name: [[i, j, _plain(one)] for (i, j), one in pairs.items()] for name, pairs in problem.pair_costs.items()
        },
        "fixed": dict(problem.fixed), "budgets": dict(budgets),
        "solver": solver, "points": points, "time_limit": time_limit,
        "score": solution.score, "bound": _number(solution.bound), "gap": _number(solution.gap),
        "status": solution.status, "total": dict(solution.costs),
    }  # fmt: skip
    linear = solver != "pairwise"
    document["uniform"] = _uniform(items, problem, linear)
    document["curve_over"] = _curve_over(problem, budgets)
    document["curve"] = _curve(items, problem, document["curve_over"], solver, points, time_limit)
    return document


def resolve(facts: Mapping[str, Any], budgets: Mapping[str, Any], solver: str | None = None) -> dict[str, Any]:
    """The same document for other budgets (name -> number or text, as `parse_budget`), without any probe.

    Its `choice_of` are the option `choice` of the pass assign_bits. Raises RecipeError, BudgetError.
    """
    items, problem = problem_of(facts)
    solver = solver or str(facts["solver"])
    given = {name: parse_budget(name, value, problem, items) for name, value in budgets.items()}
    problem = dataclasses.replace(problem, budgets=given)
    points, limit = int(facts["points"]), float(facts["time_limit"])
    solution = run_solver(problem, solver, time_limit=limit)
    kept = ("score_name", "pairs_name", "samples", "loss", "base", "final_solver")
    about = {key: facts[key] for key in kept if key in facts}
    return describe(items, problem, given, solution, solver=solver, points=points, time_limit=limit, about=about)


def choice_of(facts: Mapping[str, Any]) -> tuple[str, ...]:
    """`name=bits` (or `name=format`) of every item that was free: what the option `choice` of assign_bits takes."""
    return tuple(f"{one['name']}={one.get('option', one['chosen'])}" for one in facts["items"] if not one["pinned"])


def problem_of(facts: Mapping[str, Any]) -> tuple[list[Item], Problem]:
    """Items and problem (without budgets) of a document. Raises RecipeError when it is none."""
    try:
        items = [
            Item(i["name"], i["kind"], tuple(i["values"]), tuple(i["bits"]), i["inner"], i["pinned"],
                 tuple(i.get("formats", ())))  # fmt: skip
            for i in facts["items"]
        ]
        problem = Problem(
            [np.array(one, float) for one in facts["scores"]],
            {name: [np.array(one, float) for one in rows] for name, rows in facts["costs"].items()},
            {},
            {(i, j): np.array(one, float) for i, j, one in facts["pairs"]},
            {name: {(i, j): np.array(one, float) for i, j, one in v} for name, v in facts["pair_costs"].items()},
            [item.name for item in items],
            facts.get("fixed", {}),
        )
    except (KeyError, TypeError, ValueError) as error:
        hint = "It is the entry `assign_bits` of the facts in a report."
        raise RecipeError(f"this is no solved assignment ({error}).", where="assign_bits", hint=hint) from error
    return items, problem


def _uniform(items: Sequence[Item], problem: Problem, linear: bool) -> list[dict[str, Any]]:
    return [
        {"bits": bits, "total": problem.cost(choice), "score": problem.score(choice, linear=linear),
         "fits": problem.fits(choice)}
        for bits, choice in uniform_choices(items).items()
    ]  # fmt: skip


def _curve_over(problem: Problem, budgets: Mapping[str, float]) -> str:
    """The first budget that the choice changes."""
    return next((name for name in budgets if name in problem.costs or name in problem.pair_costs), "size")


def _curve(
    items: Sequence[Item], problem: Problem, name: str, solver: str, points: int, time_limit: float
) -> list[dict[str, Any]]:
    if points < 2:
        return []
    if solver != "pairwise":
        problem = dataclasses.replace(problem, pairs={})
    try:
        curve = pareto(problem, name, points, gap=1e-4, time_limit=max(time_limit / points, 1.0))
    except BudgetError:  # the other budgets alone cannot be met: the solution has said so
        return []
    return [
        {"budget": budget, "total": dict(one.costs), "score": one.score, "status": one.status,
         "bits": [item.bits[k] for item, k in zip(items, one.choice, strict=True)]}
        for budget, one in curve
    ]  # fmt: skip


def _plain(array: Any) -> Any:
    return np.asarray(array, float).tolist()


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
