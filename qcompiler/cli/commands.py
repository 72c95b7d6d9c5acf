"""What the commands do, once their options are parsed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from qcompiler import evaluate, latency
from qcompiler.bundle import Bundle
from qcompiler.calibrate.data import Samples, load_samples
from qcompiler.calibrate.preprocess import Preprocess
from qcompiler.cli.app import GOAL_MISSED, TOO_SLOW
from qcompiler.cli.console import Console, size, table
from qcompiler.driver import bundle_runner, compile
from qcompiler.errors import CalibrationError, RecipeError
from qcompiler.execute.oracle import Oracle
from qcompiler.graph.io import load_graph
from qcompiler.graph.model import Graph
from qcompiler.graph.qdq import strip_quantizers
from qcompiler.minifloat import families
from qcompiler.targets import NAMES, get_target
from qcompiler.tolerance import Tolerance


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
    exam = _exam(request) if request.max_drop is not None else None
    overrides: dict[str, Any] = {}
    if request.precision:
        overrides["precision"] = request.precision
    if request.nonlinear:
        overrides["check_support.nonlinear"] = request.nonlinear
    if request.exclude:
        overrides["exclude"] = list(request.exclude)
    bundle = compile(
        request.model,
        request.target,
        request.calib,
        request.recipe,
        output=request.output,
        overwrite=request.overwrite,
        target_options=request.target_options,
        bench=request.bench or request.require_speedup,
        progress=console.progress,
        shapes=request.shapes,
        dims=request.dims,
        constants=request.constants,
        state=request.state,
        position=request.position,
        preprocess=request.preprocess,
        samples=request.samples,
        select=request.select,
        arithmetic=request.arithmetic,
        options=overrides,
        budget=request.budget,
        seed=request.seed,
        qdq_form=request.qdq_form,
    )
    report = bundle.report()
    code, goals = _goals(request, exam, bundle, report)
    document = {**report, "goals": goals, "exit_code": code}
    console.result(document, _summary(report, goals))
    return code


@dataclass(frozen=True)
class _Exam:
    """What --max-drop measures with, read before any work is done."""

    graph: Graph
    samples: Samples
    labels: NDArray | None


def _exam(request: CompileRequest) -> _Exam:
    """Raises RecipeError, CalibrationError, ModelError for what would fail after the compilation."""
    if request.eval_data is None:
        raise RecipeError("needs data to measure on.", where="--max-drop", hint="Pass --eval-data and --labels.")
    evaluate.check_metric(request.metric)
    if request.labels is None and request.metric in evaluate.METRICS and request.metric != "top1":
        raise RecipeError(f"metric {request.metric} needs references.", where="--max-drop", hint="Pass --labels.")
    graph = load_graph(request.model, shapes=request.shapes, dims=request.dims, constants=request.constants)
    samples = _samples(request.eval_data, graph, request.preprocess, None)
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
    fits = (report.get("fit") or {}).get("verdict") != "TOO BIG"
    code = 0 if fits and all(goal["met"] for goal in goals) else GOAL_MISSED
    if request.require_speedup:
        ours, peer = _pair(report["latency"])
        goals.append({"goal": "faster than onnxruntime float32", "value": peer / ours, "met": ours <= peer})
        if ours > peer and code == 0:
            code = TOO_SLOW
    return code, goals


def _drop(metric: str, exam: _Exam, bundle: Bundle) -> float:
    """How much the metric falls, in points for shares; for mse the rise. Without labels the float model is right."""
    runs = (evaluate.runner(exam.graph), bundle_runner(bundle))
    outputs = [evaluate.predict(run, exam.samples) for run in runs]
    labels = outputs[0] if exam.labels is None and metric == "top1" else exam.labels
    values = [evaluate.metric(metric, found, labels) for found in outputs]
    drop = values[0] - values[1]
    if metric == "top1":
        return 100 * drop
    return -drop if metric == "mse" else drop


def _pair(rows: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """Median milliseconds of ours and of onnxruntime float32."""
    by = {(row["runtime"], row["precision"]): row["median_ms"] for row in rows}
    ours = next(ms for (name, _), ms in by.items() if name == "qcompiler")
    return ours, by["onnxruntime", "float32"]


def _summary(report: Mapping[str, Any], goals: Sequence[Mapping[str, Any]]) -> str:
    quality, sizes = report["quality"], report["size"]
    agreement = f", top-1 agreement {quality['top1_agreement']:.1%}" if "top1_agreement" in quality else ""
    held = "held-out " if quality.get("held_out") else ""
    lines = [
        f"{report['verdict']}",
        f"  bundle   {report['bundle']}",
        f"  quality  SQNR {quality['sqnr_db']:.1f} dB against float on {quality['samples']} {held}samples{agreement}",
        f"  size     weights {size(sizes['weight_bytes'])} (float {size(sizes['float_bytes'])}), arena "
        f"{size(sizes['arena_bytes'])}",
        *(f"  island   {_island(island)}" for island in report["islands"]),
        f"  time     {sum(report['seconds'].values()):.1f} s",
    ]
    if report.get("fit"):
        lines.extend(_fit_lines(report["fit"]))
    for row in report.get("latency", []):
        lines.append(f"  latency  {row['runtime']} {row['precision']}: {row['median_ms']:.3f} ms")
    for goal in goals:
        lines.append(f"  goal     {goal['goal']}: {goal['value']:.3g}, {'met' if goal['met'] else 'MISSED'}")
    lines.append(f"  report   {Path(report['bundle']) / 'report.html'}")
    return "\n".join(lines)


def _island(island: Mapping[str, Any]) -> str:
    return ", ".join(f"{node['operator']} `{node['name']}` {node['reason']}" for node in island["nodes"])


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


def run_verify(
    path: Path,
    data: str,
    limit: int | None,
    threads: Sequence[int],
    preprocess: Mapping[str, Any] | None,
    console: Console,
) -> int:
    """Target against oracle."""
    bundle = Bundle.open(path)
    graph = bundle.integer_graph()
    samples = _samples(data, graph, preprocess, limit)
    total = len(samples)
    runs = [bundle_runner(bundle, threads=count) for count in threads]
    names = [f"{count} thread{'s' * (count > 1)}" for count in threads]
    oracle = Oracle(graph)
    found = evaluate.verify(
        oracle.run, runs, names, samples, lambda i: console.progress("verify", i, total), Tolerance(oracle)
    )
    if not found.samples:
        raise CalibrationError("there are no samples.", where=data)
    console.result(found.document(), f"{path}: {found.verdict()} on {found.samples} samples ({', '.join(names)})")
    return 0 if found.passed else 1


def run_eval(
    source: Path,
    data: str,
    labels: str | None,
    metric: str,
    against: Path | None,
    limit: int | None,
    threads: int,
    shapes: Mapping[str, Sequence[int]],
    dims: Mapping[str, int],
    constants: Mapping[str, float],
    preprocess: Mapping[str, Any] | None,
    console: Console,
) -> int:
    """One metric of one model."""
    opened: Graph | Bundle
    if source.is_dir():
        opened = Bundle.open(source)
        graph = opened.integer_graph()
    else:
        opened = graph = load_graph(source, shapes=shapes, dims=dims, constants=constants, lifted=False)
    samples = _samples(data, graph, preprocess, limit)
    total = len(samples)
    open_runner = bundle_runner if isinstance(opened, Bundle) else evaluate.runner
    run = open_runner(opened, threads=threads)  # type: ignore[arg-type]
    outputs = evaluate.predict(run, samples, lambda i: console.progress("evaluate", i, total))
    reference: NDArray | None = None
    if against is not None:
        peer = load_graph(against, shapes=shapes, dims=dims, constants=constants, lifted=False)
        run = evaluate.runner(peer, threads=threads)
        reference = evaluate.predict(run, samples, lambda i: console.progress("reference", i, total))
    elif labels is not None:
        reference = evaluate.load_labels(labels, data)
    value = evaluate.metric(metric, outputs, reference)
    document = {"metric": metric, "value": value, "samples": len(outputs)}
    console.result(document, f"{source}: {metric} {value:.6g} on {len(outputs)} samples")
    return 0


def run_bench(
    path: Path, peers: Sequence[str], threads: int, seconds: float, require_speedup: bool, console: Console
) -> int:
    """Latency beside peers."""
    bundle = Bundle.open(path)
    qdq = bundle.qdq_graph()
    sample = next(iter(load_samples("random", qdq, None, 1)))
    session = bundle.load(threads=threads)
    precision = bundle.report().get("precision", "int8") if (path / "report.json").is_file() else "int8"
    names = list(dict.fromkeys([*peers, "onnxruntime"] if require_speedup else peers))
    contenders = [
        ("qcompiler", precision, lambda: session.run(sample)),
        *latency.peer_calls(names, strip_quantizers(qdq.clone()), qdq, sample, threads),
    ]
    rows = [row.document() for row in latency.measure(contenders, seconds=seconds)]
    best = rows[0]["median_ms"]
    lines = [(r["runtime"], r["precision"], r["median_ms"], r["min_ms"], f"{r['median_ms'] / best:.2f}x") for r in rows]
    text = table(["runtime", "precision", "median ms", "min ms", "ratio"], lines)
    console.result({"threads": threads, "results": rows}, text)
    if require_speedup:
        ours, peer = _pair(rows)
        return 0 if ours <= peer else TOO_SLOW
    return 0


def run_targets(console: Console) -> int:
    """Capabilities of every target."""
    rows = []
    for name in NAMES:
        can = get_target(name).capabilities
        rows.append(
            {
                "target": name,
                "weight_bits": list(can.weight_bits),
                "activation_bits": list(can.activation_bits),
                "weight_minifloats": list(can.weight_minifloats),
                "activation_minifloats": list(can.activation_minifloats),
                "arithmetic": list(can.arithmetic),
                "float_islands": can.refuses_float is not None,
                "options": get_target(name).options,
            }
        )
    text = table(
        ["target", "weight bits", "activation bits", "minifloats", "arithmetic"],
        [
            [
                row["target"],
                *(" ".join(map(str, row[key])) for key in ("weight_bits", "activation_bits")),  # type: ignore[call-overload]
                families(get_target(str(row["target"])).capabilities.weight_minifloats),
                " ".join(row["arithmetic"]),  # type: ignore[arg-type]
            ]
            for row in rows
        ],
    )
    console.result({"targets": rows}, text)
    return 0


def run_calibrate_costs(target: str, options: Mapping[str, Any], output: Path | None, console: Console) -> int:
    """Measure, and write the table."""
    measure = get_target(target).calibrate
    if measure is None:
        raise RecipeError(
            "its costs need no measurement.", where=f"target `{target}`", hint="Leave out --target, or choose cpu."
        )
    if options["classes"] and output is None:
        raise RecipeError("a table of some classes is not kept.", where="--classes", hint="Name a file with --output.")
    if not 0 < options["scale"] <= 4:
        raise RecipeError(f"{options['scale']:g} is no share of the samples.", where="--scale", hint="Above 0, to 4.")
    if output is not None and not output.resolve().parent.is_dir():
        raise RecipeError("there is no such folder.", where=str(output.parent), hint="Make it first.")
    found = measure(options, console.progress)
    path = output or found.kept
    if path is None:
        raise RecipeError("there is no cache to keep the table in.", where="QCOMPILER_CACHE", hint="Give --output.")
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    part.write_text(found.text, encoding="utf-8")
    part.replace(path)
    document = {"table": str(path), "origin": found.origin, "kernels": dict(found.rows)}
    console.result(document, f"{path}: {found.origin}\n" + table(["kernel", "samples"], found.rows))
    return 0


def run_inspect(
    model: Path,
    shapes: Mapping[str, Sequence[int]],
    dims: Mapping[str, int],
    constants: Mapping[str, float],
    console: Console,
    nonlinear: str = "integer",
) -> int:
    """What a model contains."""
    from qcompiler.inspect import inspect_graph

    found = inspect_graph(load_graph(model, shapes=shapes, dims=dims, constants=constants), nonlinear=nonlinear)
    keys = ["name", "operator", "becomes", "format", "weights", "macs", "reason"]
    kinds = ", ".join(f"{count} {kind}" for kind, count in found["kinds"].items())
    lines = [
        f"{model}: {len(found['nodes'])} nodes ({kinds}), {found['macs'] / 1e6:.2f} M MACs, "
        f"{found['parameters']} parameters",
        f"weights {found['weight_bytes'] / 1024:.0f} KiB, activations at most "
        f"{found['activation_peak_bytes'] / 1024:.0f} KiB",
        *(f"{note['where']}: {note['text']}" for note in found["notes"]),
        *(f"float island: {_island(island)}" for island in found["islands"]),
        table([*keys[:-2], "MACs", "reason"], [[row[key] for key in keys] for row in found["nodes"]]),
    ]
    text = "\n".join(lines)
    console.result(found, text)
    return 0


def _samples(data: str, graph: Graph, preprocess: Mapping[str, Any] | None, limit: int | None) -> Samples:
    return load_samples(data, graph, Preprocess.parse(preprocess) if preprocess else None, limit)
