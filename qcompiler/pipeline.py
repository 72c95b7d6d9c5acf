"""Run the passes of a recipe over a graph."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from qcompiler.context import Context
from qcompiler.graph.model import Graph
from qcompiler.graph.stages import Stage
from qcompiler.recipe import Recipe, check, pass_module


@dataclass
class PipelineResult:
    """The graph at the end of each stage; a stage that the recipe does not reach is None."""

    float_graph: Graph
    qdq_graph: Graph | None
    integer_graph: Graph | None
    seconds: dict[str, float] = field(default_factory=dict)
    """Seconds by pass, in the order in which they ran."""
    steps: list[tuple[str, Graph]] = field(default_factory=list)
    """The QDQ graph behind the pass that made it and behind each that refined it."""


def run_pipeline(graph: Graph, recipe: Recipe, context: Context, *, arithmetic: str | None = None) -> PipelineResult:
    """Run a recipe on a copy of `graph`, which stays as it is.

    arithmetic: for passes that have such an option, unless the recipe sets it. Raises RecipeError before any pass
    has run, and whatever the passes raise.
    """
    check(recipe)
    options = {name: recipe.options_of(name, arithmetic=arithmetic, seed=context.seed) for name in recipe.passes}
    ends: dict[Stage, Graph] = {}
    seconds: dict[str, float] = {}
    steps: list[tuple[str, Graph]] = []
    work = graph.clone()
    for i, name in enumerate(recipe.passes):
        module = pass_module(name)
        wants, gives = module.STAGE
        if gives != wants:
            ends[wants] = work.clone()
        context.source = name
        context.progress(name, i, len(recipe.passes))
        start = time.perf_counter()
        work = module.run(work, options[name], context)
        seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - start
        if gives is Stage.QDQ:
            steps.append((name, work.clone()))
    context.source = ""
    ends[pass_module(recipe.passes[-1]).STAGE[1]] = work
    return PipelineResult(ends.get(Stage.FLOAT, graph), ends.get(Stage.QDQ), ends.get(Stage.INTEGER), seconds, steps)
