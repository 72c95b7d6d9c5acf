"""Choose the width of every weight (and of what products read) by an integer program on sensitivities and costs.

Each weight, and with `activations` each operand of products, is an item with the target's widths as options. A score
estimates what each option loses, on calibration data and without labels; the solver finds the options with the least
sum of scores within the budgets. What rules, `exclude` and `keep_first_last` of `decide` fixed stays as it is. The
chosen widths go into the assignment; scores, costs, choice, gap and the curve over the first budget into the facts,
from which `qcompiler.passes.mixed_precision.facts.resolve` solves other budgets without new probes.

score     gauss_newton, swap, hessian, fisher, local, pushdown, combined: see mixed_precision/sensitivity.py
compare   solve with these scores, too, and take what loses least when measured as a whole; uniform widths take part
rounds    the same, and solve anew around it: never worse on these samples than any of them
solver    ilp (optimal for the sum of scores), pairwise (with what pairs of items lose together), greedy, or bisection
          (as few bits as `max_loss` allows, measured)

Decide on w8a8: `decided` probes then have 8 bits around the item. Sources: Hubara et al. 2020 (CalibTIP), Yao et al.
2021 (HAWQ-V3), Deng et al. 2023 (CLADO), Schaefer et al. 2023 (bisection; pairs with Hessians).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcompiler.assignment import Assignment
from qcompiler.context import Context
from qcompiler.errors import RecipeError
from qcompiler.execute.tasks import check_executor
from qcompiler.formats import Minifloat, parse_format
from qcompiler.graph.model import Graph
from qcompiler.graph.stages import Stage
from qcompiler.passes.mixed_precision import facts, sensitivity
from qcompiler.passes.mixed_precision.candidates import Item, change, costs, find_items
from qcompiler.passes.mixed_precision.greedy import solve_bisection
from qcompiler.passes.mixed_precision.problem import Problem, Solution
from qcompiler.passes.mixed_precision.refine import refine
from qcompiler.passes.mixed_precision.sensitivity import Pairs, Scores, Study, study
from qcompiler.passes.mixed_precision.solve import project_psd, solve_linear
from qcompiler.passes.mixed_precision.whole import Answer, hold, with_fixed
from qcompiler.precision import check_minifloats

STAGE = (Stage.FLOAT, Stage.FLOAT)
FITS = True
AFTER = {"decide": "it narrows the widths that were decided, and leaves alone what was fixed there"}
WIDTHS = (2, 3, 4, 5, 6, 7, 8)
BUDGETS = ("size", "bops", "latency", "ram", "flash", "instructions", "energy", "lut")
ADDED = {"size", "bops"}
"""Costs that are known without a target."""
SCORES: dict[str, Callable[[Study], Scores]] = {
    "gauss_newton": sensitivity.gauss_newton,
    "swap": sensitivity.swap_loss,
    "hessian": sensitivity.hessian_trace,
    "fisher": sensitivity.fisher,
    "local": sensitivity.local_sqnr,
    "pushdown": sensitivity.adapt_pushdown,
    "combined": lambda one: sensitivity.combine(
        sensitivity.hessian_trace(one), sensitivity.swap_loss(one), sensitivity.pairwise(one, options="lowest")
    ),
}
PAIRS: dict[str, Callable[[Study], Pairs]] = {
    "gauss_newton": sensitivity.gauss_newton_pairs,
    "gauss_newton_signed": lambda one: sensitivity.gauss_newton_pairs(one, signed=True),
    "block": lambda one: sensitivity.pairwise(one, "block"),
    "all": lambda one: sensitivity.pairwise(one, "all"),
    "block_lowest": lambda one: sensitivity.pairwise(one, "block", "lowest"),
    "all_lowest": lambda one: sensitivity.pairwise(one, "all", "lowest"),
}


@dataclass(frozen=True, kw_only=True)
class Options:
    budget_size: Any = None
    """Bytes of packed weight codes: a number, `180KiB`, or `0.5x` of the widest options'."""
    budget_bops: Any = None
    """Multiply-accumulates times the bits of both operands: a number, `3G` or `0.5x`."""
    budget_latency: Any = None
    """By the target's cost model: milliseconds, `12ms` or `0.6x`."""
    budget_ram: Any = None
    """Bytes of RAM in the target's plan: a number, `64KiB` or `0.6x`."""
    budget_flash: Any = None
    """Bytes of code and constants as the target stores them: a number, `256KiB` or `0.6x`."""
    budget_instructions: Any = None
    """Of an inference, where the target counts them: a number, `3M` or `0.6x`."""
    budget_energy: Any = None
    """Of an inference, where the target has a table: a number or `0.6x`."""
    budget_lut: Any = None
    """Look-up tables of a circuit at the rate of --fps (target fpga): a number or `0.6x`."""
    score: str = "gauss_newton"
    """gauss_newton, swap, hessian, fisher, local, pushdown or combined."""
    solver: str = "ilp"
    """ilp, pairwise, greedy or bisection."""
    pairs: str = "gauss_newton"
    """Of solver pairwise: gauss_newton or gauss_newton_signed (no further probes), or measured: block, all,
    block_lowest, all_lowest."""
    project: bool = True
    """Of solver pairwise: make measured pairs a positive semidefinite form."""
    widths: tuple[int, ...] = WIDTHS
    """Bits of weights on offer, as far as the target has them."""
    minifloats: tuple[str, ...] = ()
    """Minifloats on offer for weights, as "e2m1": of each width the format with the least squared error is taken, or,
    where the target says that formats differ in cost, each is an option."""
    activations: bool = False
    """Choose the bits of what products read, too."""
    activation_widths: tuple[int, ...] = (3, 4, 5, 6, 8)
    """Bits of activations on offer, as far as the target has them."""
    final_solver: bool = False
    """Score weights as solve_weights would round them."""
    base: str = "float"
    """The rest of the network in a probe: float, or decided (every value quantized as decided)."""
    loss: str = "auto"
    """kl, mse, or auto: kl for the logits of a classifier."""
    samples: int = 128
    """Calibration samples that probes use, at most."""
    max_loss: float = 0.0
    """Of solver bisection: largest loss of the whole choice against the float network."""
    executor: str = "serial"
    """serial, processes, processes:N, or the address of a Dask scheduler."""
    compare: tuple[str, ...] = ()
    """Scores whose choices are measured beside that of `score`; solvers ilp and greedy."""
    rounds: int = 0
    """Solve anew around the choice so many times, with probes of the whole; see mixed_precision/refine.py."""
    points: int = 12
    """Of the curve over the first budget; 0 for none."""
    time_limit: float = 60.0
    """Seconds for the solver; where it ends the search, the gap says how far from the optimum it may be."""
    choice: tuple[str, ...] = ()
    """`name=bits`, or `name=e2m1` where formats are options of their own, of items: taken as they are, nothing is
    measured; other items keep what was decided."""


def run(graph: Graph, options: Options, context: Context) -> Graph:
    """Change `context.assignment`. Raises RecipeError (bad options, no budget), BudgetError (nothing fits),
    CalibrationError without data."""
    assignment = context.assignment
    if assignment is None:
        raise RecipeError("no formats were chosen yet.", where="assign_bits", hint="Run the pass `decide` before it.")
    items = _items(graph, assignment, options, context)
    if options.choice:
        context.assignment = change(assignment, *_given(items, assignment, options.choice))
        return graph
    budgets = _check(options)
    if not any(not item.pinned for item in items):
        hint = "Exclude less, or offer more widths."
        raise RecipeError("there is nothing to choose.", where="assign_bits", hint=hint)
    problem, limits = _problem(graph, items, assignment, context, budgets, options)
    one = study(
        graph, assignment, items, context, samples=options.samples, loss=options.loss, base=options.base,
        final_solver=options.final_solver, executor=options.executor,
    )  # fmt: skip

    def solve(fixed: Mapping[str, float]) -> Answer:
        return _solve(one, dataclasses.replace(problem, fixed=fixed), options)

    planned: dict[str, float] = {}
    if context.whole is not None and limits.keys() - ADDED:
        found, planned = hold(solve, problem.fixed, items, context.whole)
    else:
        found = solve(problem.fixed)
    about = {
        **({"measured": found.measured} if found.measured else {}), **({"planned": planned} if planned else {}),
        "score_name": found.score, "pairs_name": options.pairs if found.problem.pairs else "",
        "samples": len(one.probes.samples), "loss": one.probes.loss.kind, "base": options.base,
        "final_solver": options.final_solver,
    }  # fmt: skip
    solution, solver = found.solution, options.solver if options.solver in facts.SOLVERS else "ilp"
    context.facts["assign_bits"] = facts.describe(
        items, found.problem, limits, solution, solver=solver, points=options.points, time_limit=options.time_limit,
        about=about,
    )  # fmt: skip
    context.assignment = change(assignment, items, solution.choice)
    if solution.status == "time limit":
        context.note("assign_bits", f"the time limit ended the search: at most {solution.gap:.2%} from the optimum")
    return graph


def monotone(scores: NDArray, bits: Sequence[int] | None = None) -> NDArray[np.float64]:
    """Fewer bits never lose less: the largest score of all wider options, [K]. Noise of probes says otherwise at times.

    bits: of the options, where some have equally many. Options of as many bits bind each other in nothing, and only
    the best of a width binds narrower ones. Source: Sony's MCT.
    """
    scores = np.asarray(scores, np.float64)
    widths = np.arange(scores.size) if bits is None else np.asarray(bits)
    best = {int(w): float(scores[widths == w].min()) for w in widths}
    least = {w: max([best[v] for v in best if v > w], default=-np.inf) for w in best}
    return np.array([max(score, least[int(w)]) for score, w in zip(scores, widths, strict=True)])


def _items(graph: Graph, assignment: Assignment, options: Options, context: Context) -> list[Item]:
    target = context.capabilities
    offered = []
    for what, given, has in (
        ("weights", options.widths, target.weight_bits if target else WIDTHS),
        ("activations", options.activation_widths if options.activations else (), target.activation_bits if target
         else WIDTHS),
    ):  # fmt: skip
        wrong = [bits for bits in given if bits not in WIDTHS]
        found = tuple(bits for bits in given if bits in has)
        if wrong or (given and not found):
            hint = f"Choose from 2 to 8; the target offers {', '.join(map(str, has))}."
            raise RecipeError(f"{what} cannot have {wrong or list(given)} bits.", where="assign_bits", hint=hint)
        offered.append(found)
    formats = [parse_format(token) for token in options.minifloats]
    if wrong_tokens := [fmt.token for fmt in formats if not isinstance(fmt, Minifloat) or not fmt.signed]:
        hint = "They look like e2m1."
        raise RecipeError(f"`{wrong_tokens[0]}` is no minifloat for weights.", where="assign_bits", hint=hint)
    if target:
        check_minifloats(target, "weights", (("", fmt) for fmt in formats), "assign_bits")
    apart = bool(target and target.formats_cost)
    return find_items(graph, assignment, offered[0], offered[1], [fmt.token for fmt in formats], apart)


def _check(options: Options) -> dict[str, Any]:
    """Budgets by name. Raises RecipeError."""
    for what, given, known in (
        ("score", options.score, SCORES), ("solver", options.solver, (*facts.SOLVERS, "bisection")),
        ("pairs", options.pairs, PAIRS), *(("score", name, SCORES) for name in options.compare),
    ):  # fmt: skip
        if given not in known:
            raise RecipeError(f"`{given}` is no {what}.", where="assign_bits", hint=f"Known: {', '.join(known)}.")
    check_executor(options.executor)
    asked = {name: getattr(options, f"budget_{name}") for name in BUDGETS}
    budgets = {name: value for name, value in asked.items() if value is not None}
    if options.solver == "bisection":
        if budgets or options.max_loss <= 0:
            hint = "Give `max_loss`, or choose another solver for a budget."
            raise RecipeError("bisection takes a loss and no budget.", where="assign_bits", hint=hint)
    elif not budgets:
        hint = 'Set budget_size (for example "180KiB" or "0.5x"), or another of the budgets.'
        raise RecipeError("it needs a budget.", where="assign_bits", hint=hint)
    return budgets


def _problem(
    graph: Graph,
    items: list[Item],
    assignment: Assignment,
    context: Context,
    budgets: Mapping[str, Any],
    options: Options,
) -> tuple[Problem, dict[str, float]]:
    """The problem with all costs and no scores, and the budgets as numbers. Raises BudgetError where nothing fits:
    before anything is measured."""
    asked = budgets.keys() - ADDED
    linear, crossed = costs(graph, items, assignment, context.cost if asked else None)
    names = [item.name for item in items]
    problem = Problem([np.zeros(len(item.bits)) for item in items], linear, {}, {}, crossed, names)
    if asked and context.whole is not None:
        problem = with_fixed(problem, items, context.whole)
    limits = {name: facts.parse_budget(name, value, problem, items) for name, value in budgets.items()}
    problem = dataclasses.replace(problem, budgets=limits)
    if limits:
        solve_linear(problem, time_limit=options.time_limit)
    return problem, limits


def _solve(one: Study, problem: Problem, options: Options) -> Answer:
    """The choice of the score, or what loses least of several choices, measured."""

    def scored(name: str) -> Problem:
        rows = zip(SCORES[name](one), one.items, strict=True)
        return dataclasses.replace(problem, scores=[monotone(row, item.bits) for row, item in rows])

    mine = scored(options.score)
    if options.solver == "pairwise":
        pairs = PAIRS[options.pairs](one)
        if options.project and not options.pairs.startswith("gauss_newton"):
            projected, pairs = project_psd(mine.scores, pairs)
            mine = dataclasses.replace(mine, scores=projected)
        mine = dataclasses.replace(mine, pairs=pairs)
    if options.solver == "bisection":
        return Answer(mine, _bisect(one, mine, options.max_loss), options.score)
    answers = [Answer(mine, facts.run_solver(mine, options.solver, time_limit=options.time_limit), options.score)]
    for name in options.compare:
        other = scored(name)
        answers.append(Answer(other, facts.run_solver(other, options.solver, time_limit=options.time_limit), name))
    if len(answers) == 1 and options.rounds == 0:
        return answers[0]
    choices = {one.score: one.solution.choice for one in answers}
    choice, measured = refine(one.probes, one.items, mine, choices, options.rounds, options.time_limit)
    for answer in answers:
        if answer.solution.choice == choice:
            return dataclasses.replace(answer, measured=measured)
    score, bound = mine.score(choice, linear=not mine.pairs), answers[0].solution.bound
    status = "refined" if measured["rounds"] else "measured"
    return Answer(mine, Solution(choice, score, mine.cost(choice), bound, np.inf, status), options.score, measured)


def _bisect(one: Study, problem: Problem, max_loss: float) -> Solution:
    free = [i for i, item in enumerate(one.items) if not item.pinned]

    def whole(part: tuple[int, ...]) -> list[int]:
        choice = [0] * len(one.items)
        for i, k in zip(free, part, strict=True):
            choice[i] = k
        return choice

    found, _ = solve_bisection(
        [problem.scores[i] for i in free], lambda part: -one.probes.evaluate(whole(part)), -max_loss
    )
    choice = tuple(whole(found))
    return Solution(choice, problem.score(choice), problem.cost(choice), -np.inf, np.inf, "bisection")


def _given(
    items: list[Item], assignment: Assignment, choice: tuple[str, ...]
) -> tuple[list[Item], list[int]]:
    """Items and options that the user names."""
    by_name = {item.name: item for item in items if not item.pinned}
    chosen: dict[str, int] = {}
    for text in choice:
        name, _, label = str(text).rpartition("=")
        item = by_name.get(name)
        if item is None or label not in item.labels:
            options = f"It can have {', '.join(item.labels)} bits." if item else "No free item has that name."
            raise RecipeError(f"`{text}` cannot be chosen.", where="assign_bits.choice", hint=options)
        chosen[name] = item.labels.index(label)
    taken = [by_name[name] for name in chosen]
    return taken, [chosen[item.name] for item in taken]
