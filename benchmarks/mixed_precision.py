"""Mixed precision at the size of uniform weights: the integer program against uniform, random and greedy assignments.

    python -m benchmarks.mixed_precision [--only PARTS] [--bits 4,3] [--methods NAMES] [--random 20] [--draws 0,1,2]
                                         [--samples 512] [--limit N] [--workers processes:8] [--json FILE]

The budget is the packed weights of a uniform assignment (first and last layer 8 bits), activations have 8 bits, and all
assignments go through the same passes: those of the recipe auto below 8 bits, with solve_weights. Every draw calibrates
on other samples. Accuracy is that of the QDQ file on the first `--limit` test samples, `kl` the divergence of its
predictions from the float model's there, which tells apart what accuracy cannot. Exit code 1 when the first method is
below uniform, below the best of the random ones, or below greedy in mean accuracy by more than NOISE.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

import qcompiler
from benchmarks.assets import Case, arguments, cases, machine, write_json
from qcompiler.calibrate.data import load_samples
from qcompiler.choose import choose_passes, facts_of
from qcompiler.cli.console import table
from qcompiler.evaluate import runner
from qcompiler.execute.prefix import workers
from qcompiler.execute.tasks import run_tasks
from qcompiler.graph.io import load_graph
from qcompiler.passes.mixed_precision import facts, losses
from qcompiler.passes.mixed_precision.whole import named
from qcompiler.recipe import Recipe, load_recipe

NETWORKS = "resnet20_cifar10_jpeg,mobilenetv2_cifar10_jpeg"
NOISE = 0.001
METHODS: dict[str, dict[str, Any]] = {
    "product": {"score": "swap", "compare": ("gauss_newton",), "final_solver": True},
    "ilp swap, solved": {"score": "swap", "final_solver": True},
    "ilp gauss_newton, solved": {"score": "gauss_newton", "final_solver": True},
    "ilp gauss_newton, rounded": {"score": "gauss_newton"},
    "pairwise gauss_newton, solved": {"solver": "pairwise", "final_solver": True, "time_limit": 30.0},
    "pairwise signed, solved": {
        "solver": "pairwise", "pairs": "gauss_newton_signed", "final_solver": True, "time_limit": 30.0,
    },
    "ilp hessian": {"score": "hessian"},
    "combined": {"score": "combined"},
    "ilp fisher": {"score": "fisher"},
    "greedy local": {"score": "local", "solver": "greedy"},
}
"""Name -> options of assign_bits. The first is what --budget does, and what the others are compared with."""


class Bench:
    """One network with one draw of calibration samples."""

    def __init__(self, case: Case, seed: int, samples: int, limit: int | None) -> None:
        self.case, self.seed = dataclasses.replace(case, draw=(seed, samples)), seed
        graph = load_graph(str(case.model), shapes=case.shapes)
        self.recipe, _ = choose_passes(load_recipe("auto"), facts_of(graph, 4, 8))
        self.test = load_samples(case.feed("test"), graph, None, limit)
        self.exact = self.outputs(graph)

    def outputs(self, graph: Any) -> np.ndarray:
        """First outputs over the test samples."""
        run = runner(graph)
        with ThreadPoolExecutor(workers()) as pool:
            return np.concatenate([np.atleast_1d(found[0]) for found in pool.map(run, self.test)])

    def search(self) -> dict[str, Any]:
        """The facts of a search that needs no data: items, sizes, uniform assignments."""
        recipe = with_assignment(self.recipe, {"score": "pushdown", "budget_size": "1x"})
        passes = recipe.passes[: recipe.passes.index("assign_bits") + 1]
        result = qcompiler.quantize(
            str(self.case.model), self.case.feed("calib"), dataclasses.replace(recipe, passes=passes),
            shapes=self.case.shapes, options={"precision": "w8a8"},
        )  # fmt: skip
        return dict(result.context.facts["assign_bits"])

    def row(self, task: Task) -> dict[str, Any]:
        """Quantize and measure."""
        recipe = self.recipe if task.options is None else with_assignment(self.recipe, task.options)
        start = time.perf_counter()
        result = qcompiler.quantize(
            str(self.case.model), self.case.feed("calib"), recipe, shapes=self.case.shapes,
            options={"precision": task.precision},
        )  # fmt: skip
        seconds = time.perf_counter() - start
        found = self.outputs(result.qdq_graph)
        divergence = losses.loss_of(losses.Loss("kl", ()), self.exact[:, None], found[:, None])
        document = result.context.facts.get("assign_bits", {})
        return {
            "network": self.case.name, "bits": task.bits, "seed": self.seed, "method": task.method,
            "samples": self.test.count, "accuracy": self.case.score(found, self.exact),
            "float": self.case.score(self.exact, self.exact), "kl": divergence, "seconds": seconds,
            "search_s": result.seconds.get("assign_bits", 0.0), "status": document.get("status", ""),
            "score": document.get("score_name", ""), "size": task.size,
            "chosen": {i["name"]: i["chosen"] for i in document.get("items", ()) if i["kind"] == "weight"},
        }  # fmt: skip


@dataclass(frozen=True)
class Task:
    """One row of one bench. options: of assign_bits, None to leave it out."""

    network: str
    seed: int
    bits: float
    method: str
    precision: str
    options: dict[str, Any] | None
    size: float


def make(payload: dict[str, Any]) -> Callable[[Any], Any]:
    """The worker: benches are set up once each. A task is a Task, or (network, seed) for `search`."""
    benches: dict[tuple[str, int], Bench] = {}

    def do(task: Any) -> Any:
        name, seed = task if isinstance(task, tuple) else (task.network, task.seed)
        if (name, seed) not in benches:
            case = next(one for one in cases(name) if one.name == name)
            benches[name, seed] = Bench(case, seed, payload["samples"], payload["limit"])
        return benches[name, seed].search() if isinstance(task, tuple) else benches[name, seed].row(task)

    return do


def with_assignment(recipe: Recipe, options: dict[str, Any]) -> Recipe:
    """The recipe with assign_bits behind decide."""
    passes = list(recipe.passes)
    passes.insert(passes.index("decide") + 1, "assign_bits")
    given = {**recipe.options, "assign_bits": {"points": 0, **options}}
    return dataclasses.replace(recipe, name="mixed", passes=tuple(passes), options=given)


def random_choice(document: dict[str, Any], budget: float, rng: np.random.Generator) -> tuple[str, ...]:
    """A random assignment that fits the budget and leaves nothing unused: random widths, then random steps."""
    items, problem = facts.problem_of(document)
    problem = dataclasses.replace(problem, budgets={"size": budget})
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
    return named(items, choice)


def tasks_of(
    network: str, seed: int, bits: float, document: dict[str, Any], methods: list[str], count: int
) -> list[Task]:
    """Uniform, methods and random assignments at the size of `bits` uniform bits, which need not be whole."""
    sizes = {one["bits"]: one["total"]["size"] for one in document["uniform"]}
    budget = float(np.interp(bits, sorted(sizes), [sizes[key] for key in sorted(sizes)]))
    found = [] if bits % 1 else [Task(network, seed, bits, f"uniform w{bits:g}", f"w{bits:g}a8", None, budget)]
    found += [
        Task(network, seed, bits, name, "w8a8", {**METHODS[name], "budget_size": budget}, budget) for name in methods
    ]
    rng = np.random.default_rng(seed)
    found += [
        Task(network, seed, bits, f"random {i}", "w8a8", {"choice": random_choice(document, budget, rng)}, budget)
        for i in range(count)
    ]
    return found


def line(row: dict[str, Any]) -> list[Any]:
    """A row of the table."""
    return [row["network"], f"{row['bits']:g}", row["method"], f"{row['size'] / 1024:.1f}", f"{row['float']:.4f}",
            f"{row['accuracy']:.4f}", f"{row['kl']:.5f}", f"{row['search_s']:.0f}", f"{row['seconds']:.0f}",
            row["status"]]  # fmt: skip


HEADERS = ["network", "bits", "method", "KiB", "float", "accuracy", "kl", "search s", "s", ""]


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means over the seeds by method; the random ones as the best of each seed that has any, and as their mean."""
    grouped: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if not row["method"].startswith("random"):
            grouped.setdefault(row["method"], []).append(row)
    seeds = sorted({row["seed"] for row in rows})
    drawn = [[r for r in rows if r["seed"] == seed and r["method"].startswith("random")] for seed in seeds]
    drawn = [some for some in drawn if some]
    if drawn:
        grouped["best random"] = [max(some, key=lambda r: (r["accuracy"], -r["kl"])) for some in drawn]
        grouped["mean random"] = [row for some in drawn for row in some]
    keys = ("float", "accuracy", "kl", "seconds", "search_s")
    found = []
    for name, some in grouped.items():
        means = {key: float(np.mean([row[key] for row in some])) for key in keys}
        found.append({**some[0], "method": name, "rows": len(some), **means})
    return found


def compact(rows: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[Any]]]:
    """Headers and lines for the page of results: a line a network and size, a column a method."""
    groups: dict[tuple[str, float], list[dict[str, Any]]] = {}
    for row in rows:
        if "rows" not in row:  # else a mean
            groups.setdefault((row["network"], row["bits"]), []).append(row)
    found = {key: {one["method"]: one for one in summary(some)} for key, some in sorted(groups.items())}
    columns = list(dict.fromkeys("uniform" if name.startswith("uniform") else name for one in found.values()
                                 for name in one))  # fmt: skip
    lines = []
    for (network, bits), means in found.items():
        any_one = next(iter(means.values()))
        line = [network, f"{bits:g}", any_one["samples"], f"{any_one['float']:.4f}"]
        for column in columns:
            one = means.get(f"uniform w{bits:g}" if column == "uniform" else column)
            line.append("" if one is None else f"{one['accuracy']:.4f}, {one['kl']:.5f} ({one['rows']})")
        lines.append(line)
    return ["network", "mean bits", "samples", "float", *columns], lines


def met(found: list[dict[str, Any]], first: str) -> bool:
    """Whether the first method is nowhere below what it must not be below."""
    by_name = {row["method"]: row["accuracy"] for row in found}
    others = [name for name in by_name if name.startswith("uniform") or name in ("best random", "greedy local")]
    return all(by_name[first] >= by_name[name] - NOISE for name in others)


def main() -> int:
    """Print the table."""
    given = arguments(
        __doc__, bits={"default": "4,3"}, methods={"default": ""}, random={"type": int, "default": 20},
        draws={"default": "0,1,2"}, samples={"type": int, "default": 512},
        limit={"type": int, "default": 2000}, workers={"default": "serial"},
        unordered={"action": "store_true", "help": "with as many workers as rows: probes are not shared"},
    )  # fmt: skip
    methods = [name for name in METHODS if not given.methods or name in given.methods.split(";")]
    names, payload = [case.name for case in cases(given.only or NETWORKS)], vars(given)
    sets = [(name, int(seed)) for seed in given.draws.split(",") for name in names]
    documents = dict(run_tasks(make, payload, sets, given.workers))
    tasks = [
        task for i, one in enumerate(sets) for bits in map(float, given.bits.split(","))
        for task in tasks_of(*one, bits, documents[i], methods, given.random)
    ]  # fmt: skip
    # One method of each network and draw first: its probes then serve the others.
    served = {(task.network, task.seed): task for task in reversed(tasks) if task.method == methods[0]}
    first = [] if given.unordered else list(served.values())
    rows: list[dict[str, Any]] = []
    for part in (first, [task for task in tasks if task not in first]):
        for _, row in run_tasks(make, payload, part, given.workers):
            rows.append(row)
            print(*line(row), file=sys.stderr, flush=True)
            write_json(given.json, rows)
    groups = [[r for r in rows if (r["network"], r["bits"]) == key]
              for key in dict.fromkeys((task.network, task.bits) for task in tasks)]  # fmt: skip
    means = [summary(group) for group in groups]
    write_json(given.json, [*(row for found in means for row in found), *rows])
    print(f"draws {given.draws}; {machine()}\n" + table(HEADERS, [line(row) for found in means for row in found]))
    return 0 if all(met(found, methods[0]) for found in means) else 1


if __name__ == "__main__":
    sys.exit(main())
