"""Budgets on the real cost of real targets: what is predicted, what is built, what it loses.

    python -m benchmarks.budgets [--parts latency,firmware,reduction,scaling] [--only PARTS] [--limit N]
                                 [--samples 128] [--json FILE]

latency    a budget of 0.75x on the cpu target against the network's own uniform W8A8: both bundles side by side in one
           run, on the instruction sets of `--cpu` (native and x86-64-v3)
firmware   flash and RAM 25 % below the uniform W8A8 image, on the c target: by plan, and of the linked image where
           arm-none-eabi-gcc is found; accuracy of the image, run on this machine
reduction  the fewest bit operations (weights and activations) that keep 99.9 % of the float metric, and 99 %, beside 16
           bits everywhere: what Schaefer et al. 2023 report of latency
scaling    seconds of the whole search, and of the same probes in one and two processes, each on so many samples

Exit code 1 when a budget does not hold.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import qcompiler
from benchmarks.assets import Case, arguments, cases, machine, write_json
from qcompiler.bundle import Bundle
from qcompiler.calibrate.data import load_samples
from qcompiler.choose import choose_passes, facts_of
from qcompiler.cli.console import table
from qcompiler.context import Context
from qcompiler.driver import Result, bundle_runner
from qcompiler.evaluate import Runner, runner
from qcompiler.latency import measure
from qcompiler.passes.mixed_precision.candidates import find_items
from qcompiler.passes.mixed_precision.facts import choice_of, resolve
from qcompiler.passes.mixed_precision.sensitivity import study, swap_loss
from qcompiler.pipeline import run_pipeline
from qcompiler.recipe import load_recipe
from qcompiler.targets import get_target

NETWORKS = {
    "latency": "resnet20_cifar10_jpeg,mobilenet_v2_100_224",
    "firmware": "mlperf_tiny_vww,mobilenetv2_cifar10_jpeg",
    "reduction": "resnet20_cifar10_jpeg,mobilenetv2_cifar10_jpeg,mlperf_tiny_resnet8,MiniLM",
    "scaling": "resnet20_cifar10_jpeg,mobilenetv2_cifar10_jpeg",
}
LEVELS = ("native", "x86-64-v3")
SHARE = 0.75
WIDTHS = (2, 3, 4, 5, 6, 8)
KEPT = (0.999, 0.99)
LONGEST = 68
"""Characters of a cell."""
DRAWN = 512
"""Calibration samples, where there are as many."""


class Trial:
    """One network: bundles of it in a temporary folder, and the metric over its test samples."""

    def __init__(self, case: Case, folder: Path, limit: int | None) -> None:
        self.case, self.folder, self.limit = dataclasses.replace(case, draw=(0, DRAWN)), folder, limit
        self.graph = qcompiler.load_graph(str(case.model), shapes=case.shapes)
        self.test = load_samples(case.feed("test"), self.graph, None, limit)
        self.exact = self.outputs(runner(self.graph))
        self.float = case.score(self.exact, self.exact)

    def outputs(self, run: Runner) -> np.ndarray:
        """First outputs over the test samples."""
        return np.concatenate([np.atleast_1d(run(sample)[0]) for sample in self.test])

    def lost(self, run: Runner) -> float:
        """How much the metric falls."""
        value = self.case.score(self.outputs(run), self.exact)
        return value - self.float if self.case.rises else self.float - value

    def compile(self, name: str, target: str, **more: Any) -> Bundle:
        """A bundle."""
        return qcompiler.compile(
            str(self.case.model), target, self.case.feed("calib"), shapes=self.case.shapes,
            output=self.folder / f"{self.case.name.split()[0]}-{name}", overwrite=True, **more,
        )  # fmt: skip

    def quantize(self, **more: Any) -> Result:
        """Graphs alone."""
        return qcompiler.quantize(str(self.case.model), self.case.feed("calib"), shapes=self.case.shapes, **more)


def latency(trial: Trial, given: Any) -> list[dict[str, Any]]:
    """A row an instruction set."""
    rows = []
    for level in given.cpu.split(","):
        options = {"target_options": {"cpu": level}}
        wide = trial.compile(f"{level}-w8a8", "cpu", options={"precision": "w8a8"}, **options)
        row = {"part": "latency", "network": trial.case.name, "level": level, "float": trial.float}
        try:
            fast = trial.compile(f"{level}-budget", "cpu", budget={"latency": f"{SHARE}x"}, **options)
        except qcompiler.QCompilerError as error:
            rows.append({**row, "refused": str(error)})
            continue
        sessions = [("w8a8", wide.load()), ("budget", fast.load())]
        sample = next(iter(trial.test))
        calls = [(name, "", partial(one.run, sample)) for name, one in sessions]
        found = measure(calls, seconds=3.0, rounds=40)
        facts = fast.report()["facts"]["assign_bits"]
        before, after = (one.median_ms for one in found)
        widest = facts["budgets"]["latency"] / SHARE
        rows.append({
            **row, "w8a8_ms": before, "ms": after, "faster": 1 - after / before,
            "predicted_faster": 1 - facts["total"]["latency"] / widest, "loss_w8a8": trial.lost(bundle_runner(wide)),
            "loss": trial.lost(bundle_runner(fast)), "precision": fast.report()["precision"],
        })  # fmt: skip
    return rows


def firmware(trial: Trial, given: Any) -> list[dict[str, Any]]:
    """One row: budgets in bytes, and what was built."""
    wide = trial.compile("w8a8", "c", options={"precision": "w8a8"}).report()["fit"]
    budget = {name: int(SHARE * wide[f"{name}_bytes"]) for name in ("flash", "ram")}
    bundle = trial.compile("budget", "c", budget=budget, target_options={"optimize_for": "memory"})
    before = trial.lost(runner(trial.quantize(target="c", options={"precision": "w8a8"}).qdq_graph))
    fit = bundle.report()["fit"]
    return [{
        "part": "firmware", "network": trial.case.name,
        "flash_w8a8": wide["flash_bytes"], "ram_w8a8": wide["ram_bytes"],
        "flash": fit["flash_bytes"], "ram": fit["ram_bytes"], "how": fit["how"], "float": trial.float,
        "holds": all(fit[f"{name}_bytes"] <= limit for name, limit in budget.items()),
        "loss_w8a8": before, "loss": trial.lost(bundle_runner(bundle)), "precision": bundle.report()["precision"],
    }]  # fmt: skip


def reduction(trial: Trial, given: Any) -> list[dict[str, Any]]:
    """The curve over bit operations, evaluated from cheap to dear."""
    options = {
        "assign_bits.activations": True, "assign_bits.activation_widths": (3, 4, 5, 6, 8), "assign_bits.widths": WIDTHS,
        "assign_bits.points": 10, "assign_bits.score": "gauss_newton", "assign_bits.compare": (),
        "assign_bits.samples": given.samples,
    }  # fmt: skip
    first = trial.quantize(budget={"bops": "1x"}, options=options)
    facts = first.context.facts["assign_bits"]
    wide = 16 * 16 / (8 * 8) * next(one["total"]["bops"] for one in facts["uniform"] if one["bits"] == 8)
    rows, missing = [], list(KEPT)
    for point in facts["curve"]:
        solved = resolve(facts, {"bops": point["total"]["bops"]})
        chosen = {**options, "precision": "w8a8", "assign_bits.choice": choice_of(solved)}
        lost = trial.lost(runner(trial.quantize(options=chosen).qdq_graph))
        for kept in [one for one in missing if trial.float - lost >= one * trial.float]:
            missing.remove(kept)
            total = solved["total"]["bops"]
            rows.append({
                "part": "reduction", "network": trial.case.name, "kept": kept, "float": trial.float, "loss": lost,
                "bops_share_of_16": total / wide, "bops_share_of_8": 4 * total / wide,
            })  # fmt: skip
    return rows


def scaling(trial: Trial, given: Any) -> list[dict[str, Any]]:
    """Seconds of the whole search with an empty cache, and of its probes alone, by executor."""
    rows: list[dict[str, Any]] = []
    chosen = []
    for executor in ("processes:1", "processes:2", *given.scheduler.split()):
        with tempfile.TemporaryDirectory() as cache:
            os.environ["QCOMPILER_CACHE"] = cache
            start = time.perf_counter()
            found = trial.quantize(budget={"size": "0.5x"}, options={"assign_bits.executor": executor})
            seconds = time.perf_counter() - start
        with tempfile.TemporaryDirectory() as cache:
            os.environ["QCOMPILER_CACHE"] = cache
            probed, count = probes(trial, executor, given.samples)
        facts = found.context.facts["assign_bits"]
        chosen.append([item["chosen"] for item in facts["items"]])
        rows.append({
            "part": "scaling", "network": trial.case.name, "executor": executor, "seconds": seconds,
            "search_s": found.seconds["assign_bits"], "probes": count, "samples": given.samples, "probes_s": probed,
            "times": rows[0]["probes_s"] / probed if rows else 1.0, "same": chosen[-1] == chosen[0],
        })  # fmt: skip
    return rows


def probes(trial: Trial, executor: str, samples: int) -> tuple[float, int]:
    """Seconds and number of the probes of a search, weights rounded."""
    recipe = load_recipe("auto")
    context = Context(capabilities=get_target("cpu").capabilities,
                      samples=load_samples(trial.case.feed("calib"), trial.graph))  # fmt: skip
    plan = choose_passes(recipe, facts_of(trial.graph, 8, 8))[0].override({"precision": "w8a8"})
    graph = run_pipeline(trial.graph, plan.only(plan.passes[: plan.passes.index("decide") + 1]), context).float_graph
    assert context.assignment is not None
    items = find_items(graph, context.assignment, WIDTHS)
    one = study(graph, context.assignment, items, context, samples=samples, executor=executor)
    start = time.perf_counter()
    swap_loss(one)
    return time.perf_counter() - start, one.probes.ran


PARTS: dict[str, Callable[[Trial, Any], list[dict[str, Any]]]] = {
    "latency": latency, "firmware": firmware, "reduction": reduction, "scaling": scaling,
}  # fmt: skip


def good(row: dict[str, Any]) -> bool:
    """Whether what the row is about holds."""
    return bool(row.get("holds", True) and row.get("same", True))


def show(rows: Sequence[dict[str, Any]], draw: Callable[[list[str], list[list[Any]]], str] = table) -> str:
    """One table a part, by `draw` from headers and lines."""
    texts = []
    for part in PARTS:
        mine = [{k: v for k, v in row.items() if k != "part"} for row in rows if row["part"] == part]
        if mine:
            keys = list(dict.fromkeys(key for row in mine for key in row))
            lines = [[_cell(row.get(key, "")) for key in keys] for row in mine]
            texts.append(f"{part}\n\n" + draw(keys, lines))
    return "\n\n".join(texts)


def _cell(value: Any) -> Any:
    if isinstance(value, str) and len(value) > LONGEST:
        return f"{value[:LONGEST]} ..."
    return f"{value:.4g}" if isinstance(value, float) else value


def main() -> int:
    """Print the tables."""
    given = arguments(
        __doc__, parts={"default": ",".join(PARTS)}, cpu={"default": ",".join(LEVELS)},
        limit={"type": int, "default": 1000}, samples={"type": int, "default": 128, "help": "of a probe"},
        scheduler={"default": "", "help": "address of a Dask scheduler, too"},
    )  # fmt: skip
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for part in given.parts.split(","):
            for case in cases(NETWORKS[part]):
                if given.only and not any(name in case.name for name in given.only.split(",")):
                    continue
                rows += PARTS[part](Trial(case, Path(folder), given.limit), given)
                print(rows[-1], file=sys.stderr, flush=True)
                write_json(given.json, rows)
    print(f"{machine()}\n{show(rows)}")
    return 0 if all(good(row) for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
