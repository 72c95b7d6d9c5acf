"""`qcompile MODEL`: one bundle, the cheapest that is good enough, or several along the curve."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from qcompiler import evaluate
from qcompiler.bundle import Bundle
from qcompiler.calibrate.data import Samples
from qcompiler.cli.app import GOAL_MISSED, TOO_SLOW
from qcompiler.cli.commands import island_line, pair_of, read_samples
from qcompiler.cli.console import Console, size, table
from qcompiler.driver import bundle_runner, compile
from qcompiler.errors import RecipeError
from qcompiler.frontier import PAGE, cheapest, sweep
from qcompiler.graph.io import load_graph
from qcompiler.graph.model import Graph


@dataclass(frozen=True, kw_only=True)
class CompileRequest:
    """The options of `compile`."""

    model: Path
    target: str
    output: Path | None
    calib: str | None
    recipe: str | None
    precision: str | None
    budget: Mapping[str, str]
    energy_table: Path | None
    pareto: int | None
    nonlinear: str | None
    exclude: tuple[str, ...]
    arithmetic: str | None
    samples: int | None
    select: str | None
    target_options: Mapping[str, Any]
    qdq_form: str
    seed: int
    overwrite: bool
    bench: bool
    require_speedup: bool
    min_sqnr: float | None
    max_drop: float | None
    eval_data: str | None
    labels: str | None
    metric: str
    shapes: Mapping[str, Sequence[int]]
    dims: Mapping[str, int]
    constants: Mapping[str, float]
    state: Mapping[str, str] | str | None
    position: str | None
    preprocess: Mapping[str, Any] | None


def run_compile(request: CompileRequest, console: Console) -> int:
    """Compile; exit code 0, 4 (goal missed) or 5 (slower than float)."""
    _check(request)
    measured = request.max_drop is not None or (request.pareto is not None and request.eval_data is not None)
    exam = _exam(request) if measured else None
    if request.pareto is not None:
        return _run_pareto(request, exam, console)
    if request.precision == "auto" and not request.budget and exam is not None and request.max_drop is not None:
        limit, metric, data = request.max_drop, request.metric, exam
        bundle, _ = cheapest(
            request.model, request.target, request.calib, request.recipe, output=_output(request),
            good=lambda one: _drop(metric, data, one) <= limit, **_building(request, console),
        )  # fmt: skip
    else:
        bundle = compile(
            request.model, request.target, request.calib, request.recipe, output=request.output,
            **_building(request, console),
        )  # fmt: skip
    report = bundle.report()
    code, goals = _goals(request, exam, bundle, report)
    document = {**report, "goals": goals, "exit_code": code}
    console.result(document, _summary(report, goals))
    return code


def _check(request: CompileRequest) -> None:
    """Raises RecipeError for options that contradict each other."""
    if request.pareto is not None and (request.min_sqnr is not None or request.max_drop is not None):
        hint = "Leave out --min-sqnr and --max-drop: the table shows what each point reaches."
        raise RecipeError("goals are for one bundle.", where="--pareto", hint=hint)
    if request.pareto is not None and request.require_speedup:
        raise RecipeError("is for one bundle.", where="--require-speedup", hint="Leave out --pareto.")


def _output(request: CompileRequest) -> Path:
    return request.output if request.output is not None else Path(f"{request.model.stem}.{request.target}")


def _run_pareto(request: CompileRequest, exam: _Exam | None, console: Console) -> int:
    """A folder of bundles along the curve."""
    def measure(bundle: Bundle) -> dict[str, float]:
        return {} if exam is None else {"drop": _drop(request.metric, exam, bundle)}

    found = sweep(
        request.model, request.target, request.calib, request.recipe, points=request.pareto or 0,
        output=_output(request), measure=measure, **_building(request, console),
    )  # fmt: skip
    name = found["cost"]
    rows = [
        [row["bundle"], row["cost"][name], row["quality"]["sqnr_db"],
         *([row["quality"]["top1_agreement"]] if "top1_agreement" in row["quality"] else []),
         *([row["drop"]] if exam is not None else []), row["precision"]]
        for row in found["rows"]
    ]  # fmt: skip
    agreement = ["agreement"] if len(rows[0]) > 4 + (exam is not None) else []
    head = ["bundle", name, "SQNR dB", *agreement, *([f"{request.metric} drop"] if exam is not None else []), "bits"]
    page = _output(request) / PAGE
    console.result({"output": str(_output(request)), **found}, table(head, rows) + f"\npicture  {page}")
    return 0


def _building(request: CompileRequest, console: Console) -> dict[str, Any]:
    """Options of `compile` that the command line gives."""
    overrides: dict[str, Any] = {}
    if request.precision:
        overrides["precision"] = request.precision
    if request.nonlinear:
        overrides["check_support.nonlinear"] = request.nonlinear
    if request.exclude:
        overrides["exclude"] = list(request.exclude)
    return {
        "overwrite": request.overwrite, "target_options": request.target_options, "progress": console.progress,
        "bench": request.bench or request.require_speedup, "shapes": request.shapes, "dims": request.dims,
        "constants": request.constants, "state": request.state, "position": request.position,
        "preprocess": request.preprocess, "samples": request.samples, "select": request.select,
        "arithmetic": request.arithmetic, "options": overrides, "budget": request.budget, "seed": request.seed,
        "qdq_form": request.qdq_form, "energy_table": request.energy_table,
    }  # fmt: skip


@dataclass(frozen=True)
class _Exam:
    """What --max-drop measures with, read before any work is done."""

    graph: Graph
    samples: Samples
    labels: NDArray | None

    @cached_property
    def reference(self) -> NDArray:
        """First outputs of the float model."""
        return evaluate.predict(evaluate.runner(self.graph), self.samples)


def _exam(request: CompileRequest) -> _Exam:
    """Raises RecipeError, CalibrationError, ModelError for what would fail after the compilation."""
    if request.eval_data is None:
        raise RecipeError("needs data to measure on.", where="--max-drop", hint="Pass --eval-data and --labels.")
    evaluate.check_metric(request.metric)
    if request.labels is None and request.metric in evaluate.METRICS and request.metric != "top1":
        raise RecipeError(f"metric {request.metric} needs references.", where="--max-drop", hint="Pass --labels.")
    graph = load_graph(request.model, shapes=request.shapes, dims=request.dims, constants=request.constants)
    samples = read_samples(request.eval_data, graph, request.preprocess, None)
    next(iter(samples))
    labels = evaluate.load_labels(request.labels, request.eval_data) if request.labels else None
    return _Exam(graph, samples, labels)


def _goals(
    request: CompileRequest, exam: _Exam | None, bundle: Bundle, report: Mapping[str, Any]
) -> tuple[int, list[dict[str, Any]]]:
    goals: list[dict[str, Any]] = []
    if request.min_sqnr is not None:
        value = report["quality"]["sqnr_db"]
        goals.append({"goal": f"SQNR >= {request.min_sqnr} dB", "value": value, "met": value >= request.min_sqnr})
    if exam is not None and request.max_drop is not None:
        drop = _drop(request.metric, exam, bundle)
        goals.append(
            {"goal": f"{request.metric} loss <= {request.max_drop}", "value": drop, "met": drop <= request.max_drop}
        )
    fits = all((report.get(bill) or {}).get("verdict") != "TOO BIG" for bill in ("fit", "circuit"))
    code = 0 if fits and all(goal["met"] for goal in goals) else GOAL_MISSED
    if request.require_speedup:
        ours, peer = pair_of(report["latency"])
        goals.append({"goal": "faster than onnxruntime float32", "value": peer / ours, "met": ours <= peer})
        if ours > peer and code == 0:
            code = TOO_SLOW
    return code, goals


def _drop(metric: str, exam: _Exam, bundle: Bundle) -> float:
    """How much the metric falls, in points for shares; for mse the rise. Without labels the float model is right."""
    outputs = [exam.reference, evaluate.predict(bundle_runner(bundle), exam.samples)]
    labels = outputs[0] if exam.labels is None and metric == "top1" else exam.labels
    values = [evaluate.metric(metric, found, labels) for found in outputs]
    drop = values[0] - values[1]
    if metric == "top1":
        return 100 * drop
    return -drop if metric == "mse" else drop


def _summary(report: Mapping[str, Any], goals: Sequence[Mapping[str, Any]]) -> str:
    quality, sizes = report["quality"], report["size"]
    agreement = f", top-1 agreement {quality['top1_agreement']:.1%}" if "top1_agreement" in quality else ""
    held = "held-out " if quality.get("held_out") else ""
    lines = [
        f"{report['verdict']}",
        f"  bundle   {report['bundle']}",
        f"  quality  SQNR {quality['sqnr_db']:.1f} dB against float on {quality['samples']} {held}samples{agreement}",
        f"  size     weights {size(sizes['weight_bytes'])}, {size(sizes['stored_bytes'])} as stored (float "
        f"{size(sizes['float_bytes'])}), arena "
        f"{size(sizes['arena_bytes'])}",
        *(f"  island   {island_line(island)}" for island in report["islands"]),
        f"  time     {sum(report['seconds'].values()):.1f} s",
    ]
    if report.get("fit"):
        lines.extend(_fit_lines(report["fit"]))
    if report.get("circuit"):
        lines.extend(_circuit_lines(report["circuit"]))
    for row in report.get("latency", []):
        lines.append(f"  latency  {row['runtime']} {row['precision']}: {row['median_ms']:.3f} ms")
    for goal in goals:
        lines.append(f"  goal     {goal['goal']}: {goal['value']:.3g}, {'met' if goal['met'] else 'MISSED'}")
    lines.append(f"  report   {Path(report['bundle']) / 'report.html'}")
    return "\n".join(lines)


def _fit_lines(fit: Mapping[str, Any]) -> list[str]:
    """What a microcontroller has to hold, and whether it can."""
    limits = fit["limits"]

    def of(name: str) -> str:
        return f" of {size(limits[name])}" if name in limits else ""

    lines = [
        f"  firmware flash {size(fit['flash_bytes'])}{of('flash')} ({size(fit['code_bytes'])} code), RAM "
        f"{size(fit['ram_bytes'])}{of('ram')} ({size(fit['stack_bytes'])} stack), {fit['how']} for {fit['core']}",
        f"           about {fit['instructions'] / 1e6:.2f} M instructions an inference",
    ]
    lines += [f"  fits     {fit['verdict']}"] if fit["verdict"] else []
    return lines + [f"           {advice}" for advice in fit["advice"]]


def _circuit_lines(circuit: Mapping[str, Any]) -> list[str]:
    """What a circuit takes of its part, and whether the part has it."""
    names = {"lut": "LUTs", "ff": "registers", "bram": "18-Kbit block RAMs", "dsp": "multiplier blocks"}
    used = ", ".join(f"{circuit[key]} of {circuit['limits'][key]} {name}" for key, name in names.items())
    lines = [
        f"  circuit  {used} ({circuit['how']}, {circuit['part']})",
        f"           {circuit['cycles']} cycles an image: {circuit['fps']:.0f} images a second at "
        f"{circuit['clock_mhz']:.0f} MHz, latency {circuit['latency_ms']:.3f} ms",
        f"  fits     {circuit['verdict']}",
    ]
    if counted := circuit.get("counted"):
        told = ", ".join(f"{counted[key]} {name} ({_error(circuit[key], counted[key])})" for key, name in names.items())
        lines.insert(1, f"           yosys: {told}")
    return lines + [f"           {advice}" for advice in circuit["advice"]]


def _error(estimate: int, count: int) -> str:
    """How far an estimate is from a count."""
    return f"{estimate / count - 1:+.1%}" if count else f"{estimate:+d}"
