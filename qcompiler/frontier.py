"""Several bundles along the curve of loss over cost, and the cheapest one that is good enough.

The sensitivities are measured once; each point of the curve is then a recipe with its bits given, compiled like any
other (weights are solved anew for it), and measured as it is.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from qcompiler.budget import OPTION, with_packing
from qcompiler.bundle import Bundle
from qcompiler.driver import compile, find_target, quantize
from qcompiler.errors import BundleError, RecipeError
from qcompiler.passes.mixed_precision import facts
from qcompiler.passes.mixed_precision.problem import SLACK
from qcompiler.plan import BUDGET_BASE
from qcompiler.report.frontier import render_frontier

DEFAULT = {"size": "1x"}
"""What the curve is over without a budget."""
BUILDING = ("target_options", "qdq_form", "bench")
"""Options of `compile` that `quantize` does not have, or has for its costs alone."""
DOCUMENT, PAGE = "pareto.json", "pareto.html"
SEARCHED = 12
"""Points of the curve that `cheapest` looks among."""
Measure = Callable[[Bundle], Mapping[str, float]]


def curve(
    model: Any, target: Any, calibration: Any, recipe: Any = None, *, points: int, **quantization: Any
) -> tuple[list[dict[str, Any]], str]:
    """The facts of assign_bits at each point, from cheap to dear, and the name of the cost that they are spread over.

    quantization: as of `qcompiler.quantize`; the first budget that widths change names the cost and ends the curve,
    others hold for all points. Raises RecipeError where the curve has fewer than two.
    """
    budget = dict(quantization.pop("budget", None) or DEFAULT)
    options = {**(quantization.pop("options", None) or {}), "assign_bits.points": points}
    found = quantize(
        model, calibration, recipe, target=target, options=options, budget=budget, until=OPTION, **quantization
    )
    solved = found.context.facts[OPTION]
    name = solved["curve_over"]
    limit = solved["budgets"][name]
    costs = [one["total"][name] for one in solved["curve"] if one["total"][name] <= limit * (1 + SLACK)]
    if len(costs) < 2:
        hint = "Raise the budget, or offer more widths."
        raise RecipeError(f"the curve over {name} has {len(costs)} point.", where="pareto", hint=hint)
    return [facts.resolve(solved, {**solved["budgets"], name: cost}) for cost in costs], name


def sweep(
    model: Any,
    target: Any = "cpu",
    calibration: Any = None,
    recipe: Any = None,
    *,
    points: int,
    output: str | Path,
    overwrite: bool = False,
    measure: Measure | None = None,
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
    **options: Any,
) -> dict[str, Any]:
    """Write a bundle a point into the folder `output`, and pareto.json and pareto.html beside them.

    points: of the curve, at least 2; points that are no better than a cheaper one are left out. measure: further
    figures of a bundle, by name. options: as of `qcompiler.compile`. Returns the content of pareto.json. Every bundle
    is whole or not there; pareto.json comes last. Raises QCompilerError.
    """
    if points < 2:
        raise RecipeError(f"{points} points are no curve.", where="pareto", hint="Ask for 2 or more.")
    folder = Path(output)
    if folder.exists() and not (folder.is_dir() and (overwrite or not any(folder.iterdir()))):
        raise BundleError("exists already.", where=str(folder), hint="Choose another --output, or pass --overwrite.")
    building = _taken(options, BUILDING, target)
    found, name = curve(
        model, target, calibration, recipe, points=points, progress=progress,
        target_options=building["target_options"], **options,
    )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for i, solved in enumerate(found):
        progress("points", i, len(found))
        path = folder / f"{i + 1:02d}-{name}-{amount(solved['total'][name])}"
        bundle = compile(
            model, target, calibration, recipe, output=path, overwrite=overwrite, progress=progress,
            **_with_choice(options, solved), **building,
        )  # fmt: skip
        rows.append({"bundle": path.name, **_row(bundle, solved), **(measure(bundle) if measure else {})})
    progress("points", len(found), len(found))
    document = {"cost": name, "rows": rows, OPTION: found[-1]}
    (folder / PAGE).write_text(render_frontier(document), encoding="utf-8")
    (folder / DOCUMENT).write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return document


def cheapest(
    model: Any,
    target: Any = "cpu",
    calibration: Any = None,
    recipe: Any = None,
    *,
    good: Callable[[Bundle], bool],
    output: str | Path,
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
    **options: Any,
) -> tuple[Bundle, bool]:
    """The cheapest bundle on the curve that is `good`, by bisection, and whether there is one; else the dearest.

    good: taken to hold for all dearer points where it holds for one. options: as of `qcompiler.compile`. Raises
    QCompilerError.
    """
    building = _taken(options, (*BUILDING, "overwrite"), target)
    found, _ = curve(
        model, target, calibration, recipe, points=SEARCHED, progress=progress,
        target_options=building["target_options"], **options,
    )  # fmt: skip
    last: tuple[int, Bundle] | None = None

    def build(index: int) -> Bundle:
        nonlocal last
        if last is None or last[0] != index:
            how = {**building, "overwrite": building.get("overwrite", False) or last is not None}
            made = compile(
                model, target, calibration, recipe, output=output, progress=progress,
                **_with_choice(options, found[index]), **how,
            )  # fmt: skip
            last = (index, made)
        return last[1]

    low, high = -1, len(found)  # found[high] is good, found[low] is not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if good(build(middle)) else (middle, high)
    return build(min(high, len(found) - 1)), high < len(found)


def amount(cost: float) -> str:
    """A cost in few characters."""
    return f"{cost:.0f}" if cost >= 1000 else f"{cost:.4g}"


def _taken(options: dict[str, Any], keys: Sequence[str], target: Any) -> dict[str, Any]:
    """What is about building, taken out of `options`; weights are packed for all points if the budget wants that."""
    building = {key: options.pop(key) for key in keys if key in options}
    budget = options.get("budget") or DEFAULT
    packed = with_packing(building.get("target_options"), budget, find_target(target))
    return {**building, "target_options": packed}


def _with_choice(options: Mapping[str, Any], solved: Mapping[str, Any]) -> dict[str, Any]:
    """Options of `compile` for the bits that these facts chose."""
    given = dict(options.get("options") or {})
    if given.get("precision") in (None, "auto"):
        given["precision"] = BUDGET_BASE
    given[f"{OPTION}.choice"] = facts.choice_of(solved)
    return {**options, "budget": None, "options": given, "facts": {OPTION: solved}}


def _row(bundle: Bundle, solved: Mapping[str, Any]) -> dict[str, Any]:
    report = bundle.report()
    return {
        "cost": solved["total"], "score": solved["score"], "quality": report["quality"], "size": report["size"],
        "precision": report["precision"],
        **({"fit": {k: report["fit"][k] for k in ("flash_bytes", "ram_bytes")}} if report.get("fit") else {}),
        **({"latency": report["latency"]} if report["latency"] else {}),
    }  # fmt: skip
