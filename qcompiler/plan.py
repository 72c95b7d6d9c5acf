"""What is going to be done: which recipe serves the options, and which samples are kept for measuring."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from qcompiler.calibrate.data import Samples
from qcompiler.choose import AUTO
from qcompiler.errors import RecipeError, UnsupportedError
from qcompiler.precision import check_minifloats, parse_formats, parse_precision
from qcompiler.recipe import DECIDE, Recipe, load_recipe, pass_module
from qcompiler.target import Target

QUALITY_SAMPLES = 32
"""At most so many samples tell the quality in the report."""
SEARCH = {"score": "swap", "compare": ("gauss_newton",), "final_solver": True}
"""How --budget measures sensitivity: options of assign_bits."""
LEAST_BITS = 2
"""Of weights, where a budget chooses them: what `auto` prepares for."""
BUDGET_BASE = "w8a8"
"""Widths that the integer program starts from, where a budget chooses them."""


def with_budget(options: Mapping[str, Any] | None, budget: Mapping[str, Any] | None) -> dict[str, Any]:
    """Options of a recipe for a budget (name -> number or text, see passes/assign_bits.py). Raises RecipeError."""
    known = pass_module("assign_bits").BUDGETS
    found = dict(options or {})
    automatic = found.get("precision") == "auto"
    if not budget:
        if automatic and "assign_bits.choice" not in found:
            hint = "Pass a budget, as --budget size=180KiB."
            raise RecipeError("`auto` needs to know what is to be kept to.", where="precision", hint=hint)
        return found
    for name, value in budget.items():
        if name not in known:
            raise RecipeError(f"there is no budget `{name}`.", where="budget", hint=f"Known: {', '.join(known)}.")
        found[f"assign_bits.budget_{name}"] = value
    if automatic or found.get("precision") is None:
        found["precision"] = BUDGET_BASE
    return found


def recipe_for(recipe: str | Path | Recipe | None, options: Mapping[str, Any] | None) -> Recipe:
    if recipe is not None:
        return load_recipe(recipe)
    if any(key.startswith("assign_bits.") for key in options or {}):
        return load_recipe(AUTO)
    default = load_recipe("default")
    precision = default.override(options or {}).options_of(DECIDE).precision
    return load_recipe(AUTO) if min(parse_precision(precision)) < 8 else default


def with_search(plan: Recipe) -> Recipe:
    """The recipe with how --budget searches, where it does not say itself."""
    given = plan.options.get("assign_bits", {})
    return plan.override({f"assign_bits.{key}": value for key, value in SEARCH.items() if key not in given})


def check_precision(plan: Recipe, target: Target | None) -> tuple[int, int] | None:
    """Say before calibration what `decide` would say after it; the bits of weights and activations.

    target: None where nothing is lowered, so that any precision will do.
    """
    if DECIDE not in plan.passes:
        return None
    formats = parse_formats(plan.options_of(DECIDE).precision)
    bits = (formats[0].bits, formats[1].bits)
    for what, fmt in zip(("weights", "activations"), formats, strict=True):
        where = "precision" if target is None else f"target `{target.name}`"
        check_minifloats(None if target is None else target.capabilities, what, [("", fmt)], where)
    if target is None:
        return bits
    can = target.capabilities
    for what, wanted, offered in zip(
        ("weights", "activations"), bits, (can.weight_bits, can.activation_bits), strict=True
    ):
        if wanted not in offered:
            raise UnsupportedError(
                f"it has no {wanted}-bit {what}.",
                where=f"target `{target.name}`",
                hint=f"It has {', '.join(map(str, offered))} bits; choose another --precision.",
            )
    return bits


def hold_out(samples: Samples) -> tuple[Samples, Samples | None]:
    """Samples to calibrate on, and those that are kept for measuring: an eighth, at most QUALITY_SAMPLES; none where
    there are fewer than 16."""
    total = len(samples)
    count = min(QUALITY_SAMPLES, total // 8) if total >= 16 else 0
    if not count:
        return samples, None
    edge = total - count

    def part(start: int, end: int) -> Samples:
        digest = None if samples.digest is None else f"{samples.digest}[{start}:{end}]"
        return Samples(samples.source, lambda: islice(iter(samples), start, end), digest, end - start)

    return part(0, edge), part(edge, total)
