"""`qcompile resolve`: other bits from the scores that a bundle's report holds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from qcompiler.bundle import Bundle
from qcompiler.cli.console import Console, table
from qcompiler.errors import BundleError
from qcompiler.passes.mixed_precision import facts
from qcompiler.recipe import load_recipe


def run_resolve(path: Path, budgets: Mapping[str, str], output: Path | None, console: Console) -> int:
    """Solve, print the bits, and write the recipe if asked for. Raises BundleError, RecipeError, BudgetError."""
    report = Bundle.open(path).report()
    scores = report.get("facts", {}).get("assign_bits")
    if not scores:
        raise BundleError(
            "its report holds no scores.", where=str(path), hint="Compile with --budget, as --budget size=180KiB."
        )
    found = facts.resolve(scores, budgets)
    if output is not None:
        plan = load_recipe(path / "recipe.toml").override({"assign_bits.choice": list(facts.choice_of(found))})
        output.write_text(plan.to_toml(), encoding="utf-8")
    rows = [
        [item["name"], item["kind"], old["chosen"], item["chosen"]]
        for item, old in zip(found["items"], scores["items"], strict=True)
        if not item["pinned"]
    ]
    total = ", ".join(f"{name} {value:g}" for name, value in found["total"].items() if ":" not in name)
    told = f"{found['status']}: score {found['score']:.4g}, gap {found['gap'] or 0:.2%}; {total}"
    where = "" if output is None else f"\nrecipe   {output}: qcompile MODEL --recipe {output} --calib DATA"
    console.result(found, table(["item", "kind", "bits before", "bits"], rows) + f"\n{told}{where}")
    return 0
