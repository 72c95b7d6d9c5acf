"""Budgets on the target's costs: what the integer program is given to know them.

A cost model prices products one by one, while it searches; a plan of the whole network, through the same passes but
those that fit numbers, tells what a choice costs as it will be built (arena, code, everything that is no product).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from qcompiler.calibrate.data import Samples
from qcompiler.context import Context
from qcompiler.cost import Cost, CostModel, totals
from qcompiler.energy import EnergyCost, EnergyTable
from qcompiler.errors import BudgetError, RecipeError, UnsupportedError
from qcompiler.graph.model import Graph
from qcompiler.pipeline import PipelineResult, run_pipeline
from qcompiler.recipe import Recipe, pass_module
from qcompiler.target import Target

PREFIX = "budget_"
OPTION = "assign_bits"
RATE = 1000
"""Images a second of a circuit with a budget, where nobody says: its cost model's."""
MARGINS = 5
"""How often a network is built for budgets that its plans hold."""
SLACK = 1e-9
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
    """Options of the target's `build`: a budget for bytes wants weights that stay packed, where the target can, and one
    for look-up tables a rate of images."""
    found = dict(options or {})
    if "lut" in (budget or {}) and "fps" in target.options:  # else the fastest circuit takes what there is
        found.setdefault("fps", RATE)
    if {"size", "flash"} & {*(budget or {})} and "pack" in target.options and found.get("object") is None:
        found.setdefault("pack", True)
    return found


def give_costs(
    context: Context,
    plan: Recipe,
    graph: Graph,
    target: Target,
    options: Mapping[str, Any],
    arithmetic: str,
    energy: str | Path | None = None,
) -> None:
    """Set `context.cost` and `context.whole`, if the recipe has a budget that needs them.

    graph: FLOAT, as loaded. options: those of the target's `build`. energy: file of a table (qcompiler/energy.py).
    Raises UnsupportedError for a target without a cost model, and what making that raises.
    """
    table = None if energy is None else EnergyTable.read(energy)
    needed = asked(plan) - pass_module(OPTION).ADDED
    if "energy" in needed and table is None:
        raise RecipeError("nothing says what energy costs.", where="budget", hint="Pass --energy-table with a file.")
    if not needed:
        return
    model: CostModel | None = None
    if target.cost is not None:
        model, note = target.cost({**options, "arithmetic": arithmetic})
        context.note(f"target `{target.name}`", note)
    elif needed != {"energy"}:
        raise UnsupportedError(
            "it has no cost model.", where=f"target `{target.name}`", hint="Give a budget for size or bops."
        )
    if table is not None:
        model = EnergyCost(model, table)
        context.note("energy", f"by the table {energy}: {table.origin}")
    assert model is not None
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


def run_within(
    graph: Graph, recipe: Recipe, context: Context, *, arithmetic: str
) -> tuple[PipelineResult, Context]:
    """`run_pipeline`, and again with a margin while what it makes is over a budget of the target: also the context.

    A plan does not fit numbers (weights, ranges), and what they come to has a cost: the multipliers of a circuit's
    requantizers, constants that code holds. Costs of what was made are `built` in the facts of assign_bits. Raises
    BudgetError where margins do not help.
    """
    planner = context.whole
    if not isinstance(planner, _Planner):
        return run_pipeline(graph, recipe, context, arithmetic=arithmetic), context
    over: dict[str, tuple[float, float]] = {}
    for attempt in range(MARGINS):
        own = replace(context, notes=[*context.notes], facts={**context.facts})
        done = run_pipeline(graph, recipe, own, arithmetic=arithmetic)
        facts = own.facts.get(OPTION)
        if done.integer_graph is None or not facts:
            return done, own
        real = totals(planner.model.whole(done.integer_graph))
        facts["built"] = real
        over = {
            name: (real[name], limit) for name, limit in facts["budgets"].items()
            if name in real and real[name] > limit * (1 + SLACK)
        }  # fmt: skip
        if not over:
            return done, own
        for name, (now, limit) in over.items():
            # Other choices are off by other amounts, so what is added to the margin doubles.
            planner.margins[name] = planner.margins.get(name, 0.0) + (now - limit) * 2**attempt
            # A share of the widest network's cost stays what it was without the margin.
            recipe = recipe.override({f"{OPTION}.{PREFIX}{name}": limit})
    told = "; ".join(f"{name} {now:.10g} of {limit:.10g}" for name, (now, limit) in over.items())
    hint = "Raise the budget by that difference."
    raise BudgetError(f"what is built does not hold the budgets that its plan holds: {told}.", where="bits", hint=hint)


class _Planner:
    """Cost of the whole network by a choice of bits. margins: by budget, what built networks took beyond theirs."""

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
        self.margins: dict[str, float] = {}

    def __call__(self, choice: tuple[str, ...]) -> Cost:
        if choice not in self.known:
            context = Context(capabilities=self.capabilities, samples=self.samples, seed=self.seed)
            recipe = self.recipe.override({f"{OPTION}.choice": list(choice)})
            done = run_pipeline(self.graph, recipe, context, arithmetic=self.arithmetic)
            if done.integer_graph is None:
                raise RecipeError("it makes no integer graph.", where=f"recipe `{recipe.name}`",
                                  hint="Let it end with integerize.")  # fmt: skip
            self.known[choice] = self.model.whole(done.integer_graph)
        found = self.known[choice]
        errors = {f"{name}_error": found.resources.get(f"{name}_error", 0) + m for name, m in self.margins.items()}
        return replace(found, resources={**found.resources, **errors}) if errors else found
