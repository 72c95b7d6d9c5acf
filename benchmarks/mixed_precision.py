"""Mixed precision at the size of uniform weights: the integer program against uniform, random and greedy assignments.

    python -m benchmarks.mixed_precision [--only PARTS] [--bits 4,3] [--methods NAMES] [--random 20] [--seeds 3]
                                         [--samples 512] [--limit N] [--executor processes] [--json FILE]

The budget is the packed weights of a uniform assignment (first and last layer 8 bits), activations have 8 bits, and all
assignments go through the same passes: those of the recipe auto below 8 bits, with solve_weights. Every seed calibrates
on another draw. Accuracy is that of the QDQ file on the first `--limit` test samples, `kl` the divergence of its
predictions from the float model's there, which tells apart what accuracy cannot. Exit code 1 when the first method is
below uniform, below the best of the random ones, or below greedy in mean accuracy by more than NOISE.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

import qcompiler
from benchmarks.assets import Case, arguments, cases, machine, write_json
from qcompiler.calibrate.data import load_samples
from qcompiler.choose import choose_passes, facts_of
from qcompiler.cli.console import table
from qcompiler.evaluate import runner
from qcompiler.graph.io import load_graph
from qcompiler.passes.mixed_precision import facts, losses
from qcompiler.recipe import Recipe, load_recipe

NETWORKS = "resnet20_cifar10_jpeg,mobilenetv2_cifar10_jpeg"
NOISE = 0.001
METHODS: dict[str, dict[str, Any]] = {
    "ilp gauss_newton, solved": {"score": "gauss_newton", "final_solver": True},
    "ilp swap, solved, 4 rounds": {"score": "swap", "final_solver": True, "rounds": 4},
    "ilp gauss_newton, rounded": {"score": "gauss_newton"},
    "ilp swap, solved": {"score": "swap", "final_solver": True},
    "pairwise gauss_newton, solved": {"solver": "pairwise", "final_solver": True, "time_limit": 30.0},
    "ilp hessian": {"score": "hessian"},
    "ilp fisher": {"score": "fisher"},
    "greedy local": {"score": "local", "solver": "greedy"},
}
"""Name -> options of assign_bits. The first is what the others are compared with."""


class Bench:
    """One network with one draw of calibration samples."""

    def __init__(self, case: Case, seed: int, samples: int, limit: int | None) -> None:
        self.case = dataclasses.replace(case, draw=(seed, samples))
        graph = load_graph(str(case.model), shapes=case.shapes)
        self.recipe, _ = choose_passes(load_recipe("auto"), facts_of(graph, 4, 8))
        self.test = load_samples(case.feed("test"), graph, None, limit)
        self.exact = self.outputs(graph)

    def outputs(self, graph: Any) -> np.ndarray:
        """First outputs over the test samples."""
        run = runner(graph)
        with ThreadPoolExecutor(2) as pool:
            return np.concatenate([np.atleast_1d(found[0]) for found in pool.map(run, self.test)])

    def row(self, method: str, precision: str, options: dict[str, Any] | None) -> tuple[dict[str, Any], dict[str, Any]]:
        """Quantize and measure; options: of assign_bits, None to leave it out. Returns the row and the pass's facts."""
        recipe = self.recipe if options is None else with_assignment(self.recipe, options)
        start = time.perf_counter()
        result = qcompiler.quantize(
            str(self.case.model), self.case.feed("calib"), recipe, shapes=self.case.shapes,
            options={"precision": precision},
        )  # fmt: skip
        seconds = time.perf_counter() - start
        found = self.outputs(result.qdq_graph)
        divergence = losses.loss_of(losses.Loss("kl", ()), self.exact[:, None], found[:, None])
        document = result.context.facts.get("assign_bits", {})
        row = {
            "network": self.case.name, "method": method, "accuracy": self.case.score(found, self.exact),
            "float": self.case.score(self.exact, self.exact), "kl": divergence, "seconds": seconds,
            "search_s": result.seconds.get("assign_bits", 0.0), "status": document.get("status", ""),
            "size": document.get("total", {}).get("size"),
        }  # fmt: skip
        return row, document


def with_assignment(recipe: Recipe, options: dict[str, Any]) -> Recipe:
    """The recipe with assign_bits behind decide."""
    passes = list(recipe.passes)
    passes.insert(passes.index("decide") + 1, "assign_bits")
    given = {**recipe.options, "assign_bits": {"points": 0, **options}}
    return dataclasses.replace(recipe, name="mixed", passes=tuple(passes), options=given)


def random_choice(document: dict[str, Any], budget: float, rng: np.random.Generator) -> tuple[str, ...]:
    """A random assignment that fits the budget and leaves nothing unused: random widths, then random steps."""
    items, problem = facts.problem_of(document)
    problem = facts.with_budgets(problem, {"size": budget})
    free = [i for i, item in enumerate(items) if not item.pinned]
    choice = [int(rng.integers(len(item.bits))) for item in items]
    while not problem.fits(choice):
        i = int(rng.choice([i for i in free if choice[i] > 0]))
        choice[i] -= 1
    for i in rng.permutation(free):
        while choice[i] + 1 < len(items[i].bits):
            choice[i] += 1
            if not problem.fits(choice):
                choice[i] -= 1
                break
    return tuple(f"{items[i].name}={items[i].bits[choice[i]]}" for i in free)


def compare(case: Case, bits: int, seed: int, given: Any, methods: list[str]) -> list[dict[str, Any]]:
    """All methods on one network at the size of `bits` uniform bits."""
    bench = Bench(case, seed, given.samples, given.limit)
    rows = [bench.row(f"uniform w{bits}", f"w{bits}a8", None)[0]]
    probe = {"executor": given.executor}
    # What uniform weights cost: of the curve's uniform points, by a search that needs no data.
    _, document = bench.row("", "w8a8", {"score": "pushdown", "budget_size": "1x"})
    budget = next(one["total"]["size"] for one in document["uniform"] if one["bits"] == bits)
    rows[0]["size"] = budget
    for name in methods:
        rows.append(bench.row(name, "w8a8", {**METHODS[name], **probe, "budget_size": budget})[0])
        print(*line(bits, rows[-1]), file=sys.stderr, flush=True)
    rng = np.random.default_rng(seed)
    for i in range(given.random):
        choice = random_choice(document, budget, rng)
        rows.append(bench.row(f"random {i}", "w8a8", {"choice": choice})[0])
        print(*line(bits, rows[-1]), file=sys.stderr, flush=True)
    return [{"bits": bits, "seed": seed, "samples": bench.test.count, "budget": budget, **row} for row in rows]


def line(bits: int, row: dict[str, Any]) -> list[Any]:
    """A row of the table."""
    size = "" if row["size"] is None else f"{row['size'] / 1024:.1f}"
    return [row["network"], bits, row["method"], size, f"{row['float']:.4f}", f"{row['accuracy']:.4f}",
            f"{row['kl']:.5f}", f"{row['search_s']:.0f}", f"{row['seconds']:.0f}", row["status"]]  # fmt: skip


HEADERS = ["network", "bits", "method", "KiB", "float", "accuracy", "kl", "search s", "s", ""]


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means over the seeds by method; the random ones as the best of each seed, and as their mean."""
    grouped: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if not row["method"].startswith("random"):
            grouped.setdefault(row["method"], []).append(row)
    seeds = sorted({row["seed"] for row in rows})
    drawn = [[r for r in rows if r["seed"] == seed and r["method"].startswith("random")] for seed in seeds]
    if all(drawn):
        grouped["best random"] = [max(some, key=lambda r: (r["accuracy"], -r["kl"])) for some in drawn]
        grouped["mean random"] = [row for some in drawn for row in some]
    keys = ("float", "accuracy", "kl", "seconds", "search_s")
    return [
        {**some[0], "method": name, **{key: float(np.mean([row[key] for row in some])) for key in keys}}
        for name, some in grouped.items()
    ]


def met(found: list[dict[str, Any]], first: str) -> bool:
    """Whether the first method is nowhere below what it must not be below."""
    by_name = {row["method"]: row["accuracy"] for row in found}
    others = [name for name in by_name if name.startswith("uniform") or name in ("best random", "greedy local")]
    return all(by_name[first] >= by_name[name] - NOISE for name in others)


def main() -> int:
    """Print the table."""
    given = arguments(
        __doc__, bits={"default": "4,3"}, methods={"default": ""}, random={"type": int, "default": 20},
        seeds={"type": int, "default": 3}, samples={"type": int, "default": 512},
        limit={"type": int, "default": 2000}, executor={"default": "serial"},
    )  # fmt: skip
    methods = [name for name in METHODS if not given.methods or any(p in name for p in given.methods.split(";"))]
    rows, table_rows, good = [], [], True
    for case in cases(given.only or NETWORKS):
        for bits in map(int, given.bits.split(",")):
            mine = [row for seed in range(given.seeds) for row in compare(case, bits, seed, given, methods)]
            found = summary(mine)
            rows += [*found, *mine]
            table_rows += [line(bits, row) for row in found]
            good = good and met(found, methods[0])
            write_json(given.json, rows)
    print(f"{given.seeds} seeds; {machine()}\n" + table(HEADERS, table_rows))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
