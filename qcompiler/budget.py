"""Budgets on the target's costs: what the integer program is given to know them.

A cost model prices products one by one, while it searches; a plan of the whole network, through the same passes but
those that fit numbers, tells what a choice costs as it will be built (arena, code, everything that is no product).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from typing import Any

from qcompiler.calibrate.data import Samples
from qcompiler.context import Context
from qcompiler.cost import Cost, CostModel
from qcompiler.errors import BudgetError, RecipeError, UnsupportedError
from qcompiler.graph.model import Graph
from qcompiler.pipeline import run_pipeline
from qcompiler.recipe import Recipe, pass_module
from qcompiler.target import Target

PREFIX = "budget_"
OPTION = "assign_bits"
PLANNED_ON = 2
"""Calibration samples for a plan: ranges do not matter to it."""


def asked(plan: Recipe) -> set[str]:
    """Names of the budgets of a recipe; none where it has its bits already."""
    given = plan.options.get(OPTION, {}) if OPTION in plan.passes else {}
    if given.get("choice"):
        return set()
    return {key.removeprefix(PREFIX) for key, value in given.items() if key.startswith(PREFIX) and value is not None}


def with_packing(
    options: Mapping[str, Any] | None, budget: Mapping[str, Any] | None, target: Target
) -> dict[str, Any]:
    """Options of the target's `build`: a budget for bytes wants weights that stay packed, where the target can."""
    found = dict(options or {})
    if {"size", "flash"} & {*(budget or {})} and "pack" in target.options and found.get("object") is None:
        found.setdefault("pack", True)
    return found


def give_costs(
    context: Context, plan: Recipe, graph: Graph, target: Target, options: Mapping[str, Any], arithmetic: str
) -> None:
    """Set `context.cost` and `context.whole`, if the recipe has a budget that needs them.

    graph: FLOAT, as loaded. options: those of the target's `build`. Raises UnsupportedError for a target without a cost
    model, and what making that raises.
    """
    if not asked(plan) - pass_module(OPTION).ADDED:
        return
    if target.cost is None:
        raise UnsupportedError(
            "it has no cost model.", where=f"target `{target.name}`", hint="Give a budget for size or bops."
        )
    model, note = target.cost({**options, "arithmetic": arithmetic})
    context.note(f"target `{target.name}`", note)
    context.cost = model
    context.whole = _Planner(plan, graph, context, model, arithmetic)


@contextmanager
def with_ways_out(plan: Recipe, target: Target, options: Mapping[str, Any]) -> Iterator[None]:
    """A budget that nothing meets is refused with the option of the target that might help."""
    try:
        yield
    except BudgetError as error:
        if "ram" in asked(plan) and "optimize_for" in target.options and options.get("optimize_for") != "memory":
            hint = f"{error.hint} A smaller arena: --optimize-for memory."
            raise BudgetError(error.why, where=error.where, hint=hint) from error
        raise


class _Planner:
    """Cost of the whole network by a choice of bits."""

    def __init__(self, plan: Recipe, graph: Graph, context: Context, model: CostModel, arithmetic: str) -> None:
        kept = tuple(n for n in plan.passes if n == OPTION or not getattr(pass_module(n), "FITS", False))
        self.recipe = plan.only(kept).override({"set_ranges.method": "minmax"})
        few = [] if context.samples is None else list(islice(context.samples, PLANNED_ON))
        if not few:
            raise RecipeError("plans need a sample.", where=OPTION, hint="Pass --calib.")
        self.graph, self.model, self.arithmetic, self.seed = graph, model, arithmetic, context.seed
        self.samples = Samples("plan", lambda: iter(few), None, len(few))
        self.capabilities = context.capabilities
        self.known: dict[tuple[str, ...], Cost] = {}

    def __call__(self, choice: tuple[str, ...]) -> Cost:
        if choice not in self.known:
            context = Context(capabilities=self.capabilities, samples=self.samples, seed=self.seed)
            recipe = self.recipe.override({f"{OPTION}.choice": list(choice)})
            done = run_pipeline(self.graph, recipe, context, arithmetic=self.arithmetic)
            if done.integer_graph is None:
                raise RecipeError("it makes no integer graph.", where=f"recipe `{recipe.name}`",
                                  hint="Let it end with integerize.")  # fmt: skip
            self.known[choice] = self.model.whole(done.integer_graph)
        return self.known[choice]
