"""What both examples measure of a bundle: exactness, latency beside onnxruntime, sizes; and how they print it."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
Document = dict[str, Any]


def study(
    output: Path,
    model: Path,
    data: Callable[[], tuple[np.ndarray, np.ndarray]],
    *,
    verified: int,
    seconds: float,
    options: Any = None,
) -> Document:
    """Compile for this CPU and measure: outputs of the float network as `float`, of the bundle as `quantized`, and
    all that is not accuracy.

    data: float32 [lines, 3, 48, width] to calibrate on and to measure on. Raises QCompilerError.
    """
    import qcompiler
    from qcompiler.calibrate.data import load_samples
    from qcompiler.evaluate import predict, runner, take, verify
    from qcompiler.graph.io import load_graph
    from qcompiler.latency import measure, peer_calls

    start = time.perf_counter()
    calibration, lines = data()
    rendered = time.perf_counter()
    shapes = {"x": (1, *calibration.shape[1:])}
    bundle = qcompiler.compile(
        str(model), target="cpu", calibration={"x": calibration}, output=output, overwrite=True,
        shapes=shapes, options=options,
    )  # fmt: skip
    compiled = time.perf_counter()
    float_graph = load_graph(model, shapes=shapes)
    qdq, integer, session = bundle.qdq_graph(), bundle.integer_graph(), bundle.load()
    samples = load_samples({"x": lines}, float_graph)
    exact = verify(
        runner(integer), [session.run, bundle.load(threads=2).run], ["1 thread", "2 threads"], take(samples, verified)
    )
    sample = next(iter(samples))
    contenders = [
        ("qcompiler", "int8", lambda: session.run(sample)),
        *peer_calls(["onnxruntime"], float_graph, qdq, sample, 1),
    ]
    size = bundle.manifest["size"]
    return {
        "bundle": str(output),
        "float": predict(runner(float_graph), samples),
        "quantized": predict(session.run, samples),
        "size": {
            "float_bytes": bundle.report()["size"]["float_bytes"],
            "weight_bytes": size["weight_bytes"],
            "arena_bytes": size["arena_bytes"],
        },
        "level": session.level,
        "latency": [row.document() for row in measure(contenders, seconds=seconds)],
        "verification": exact.document(),
        "report": str(output / "report.html"),
        "seconds": {
            "render": round(rendered - start, 2),
            "compile": round(compiled - rendered, 2),
            "measure": round(time.perf_counter() - compiled, 2),
        },
    }


def summary(title: str, accuracy: str, found: Document) -> str:
    """The document as a few aligned lines."""
    size, exact, seconds = found["size"], found["verification"], found["seconds"]
    by = {(row["runtime"], row["precision"]): row for row in found["latency"]}
    ours, float32, int8 = by["qcompiler", "int8"], by["onnxruntime", "float32"], by["onnxruntime", "int8"]
    state = "bit-exact" if exact["bit_exact"] else f"NOT BIT-EXACT: {exact['mismatches']} mismatches"
    sizes = f"float {_kib(size['float_bytes'])} -> int8 {_kib(size['weight_bytes'])}"
    rows = [
        ("accuracy", accuracy),
        ("size", f"{sizes}; working memory {_kib(size['arena_bytes'])}"),
        ("latency", f"{ours['median_ms']:.3f} ms on one thread ({found['level']})"),
        ("", f"{_ratio(float32, ours)} the speed of onnxruntime float32 ({float32['median_ms']:.3f} ms)"),
        ("", f"{_ratio(int8, ours)} the speed of onnxruntime int8 ({int8['median_ms']:.3f} ms)"),
        ("integer", f"{state} with the numpy oracle on {exact['samples']} lines, with 1 and 2 threads"),
        ("bundle", os.path.relpath(found["bundle"])),
        ("report", os.path.relpath(found["report"])),
        ("time", ", ".join(f"{stage} {s:.1f} s" for stage, s in seconds.items())),
    ]
    return "\n".join([title, *(f"  {name:9} {text}" for name, text in rows)])


def _ratio(peer: Document, ours: Document) -> str:
    return f"{peer['median_ms'] / ours['median_ms']:.2f}x"


def _kib(count: int) -> str:
    return f"{count / 1024:.0f} KiB"


def command(name: str, about: str, run: Callable[[Path, Path], Document], show: Callable[[Document], str]) -> int:
    """Run an example; exit code 0, 1 without a model or when not bit-exact, or that of the error."""
    parser = argparse.ArgumentParser(description=about.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of the summary")
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "ocr" / f"{name}.cpu", help="the bundle")
    arguments = parser.parse_args()
    from examples.ocr.model import DownloadError, fetch
    from qcompiler.errors import QCompilerError

    try:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        found = run(arguments.output, fetch(name))
    except DownloadError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except QCompilerError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(json.dumps(found, indent=1) if arguments.json else show(found))
    return 0 if found["verification"]["bit_exact"] else 1
