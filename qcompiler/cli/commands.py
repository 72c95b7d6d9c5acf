"""What the commands do, once their options are parsed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from qcompiler import evaluate, latency
from qcompiler.bundle import Bundle
from qcompiler.calibrate.data import Samples, load_samples
from qcompiler.calibrate.preprocess import Preprocess
from qcompiler.cli.app import TOO_SLOW
from qcompiler.cli.console import Console, table
from qcompiler.driver import bundle_runner
from qcompiler.errors import CalibrationError, RecipeError
from qcompiler.execute.oracle import Oracle
from qcompiler.graph.io import load_graph
from qcompiler.graph.model import Graph
from qcompiler.graph.qdq import strip_quantizers
from qcompiler.minifloat import families
from qcompiler.targets import NAMES, get_target
from qcompiler.tolerance import Tolerance


def island_line(island: Mapping[str, Any]) -> str:
    """A float island in a line."""
    return ", ".join(f"{node['operator']} `{node['name']}` {node['reason']}" for node in island["nodes"])


def pair_of(rows: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """Median milliseconds of ours and of onnxruntime float32."""
    by = {(row["runtime"], row["precision"]): row["median_ms"] for row in rows}
    ours = next(ms for (name, _), ms in by.items() if name == "qcompiler")
    return ours, by["onnxruntime", "float32"]


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
    samples = read_samples(data, graph, preprocess, limit)
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
    samples = read_samples(data, graph, preprocess, limit)
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
        ours, peer = pair_of(rows)
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
        *(f"float island: {island_line(island)}" for island in found["islands"]),
        table([*keys[:-2], "MACs", "reason"], [[row[key] for key in keys] for row in found["nodes"]]),
    ]
    text = "\n".join(lines)
    console.result(found, text)
    return 0


def read_samples(data: str, graph: Graph, preprocess: Mapping[str, Any] | None, limit: int | None) -> Samples:
    """Data that the user names. Raises CalibrationError."""
    return load_samples(data, graph, Preprocess.parse(preprocess) if preprocess else None, limit)
