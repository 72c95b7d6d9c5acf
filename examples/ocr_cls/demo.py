"""The main job on a production model: PP-OCR's text-line orientation classifier, compiled for this CPU.

    python -m examples.ocr_cls.demo [--json] [--output DIR]

Renders 128 text lines to calibrate on and 400 others to measure on, compiles at 8 bits with the Python API, and
prints what was lost and what was won. The first run downloads the model from PyPI (15 MB).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parents[2]
CALIBRATION, TEST = 128, 400
CALIBRATION_SEED, TEST_SEED = 1, 2
VERIFIED = 100


def run(output: Path, model: Path, *, seconds: float = 1.0, options: Any = None) -> dict[str, Any]:
    """Compile, measure, and return the figures as a JSON-able document. Raises QCompilerError."""
    import qcompiler
    from examples.ocr_cls.lines import dataset
    from qcompiler.calibrate.data import load_samples
    from qcompiler.evaluate import metric, predict, runner, sqnr, take, verify
    from qcompiler.graph.io import load_graph
    from qcompiler.latency import measure, peer_calls

    start = time.perf_counter()
    shapes = {"x": (1, 3, 48, 192)}
    calibration, _ = dataset(CALIBRATION, CALIBRATION_SEED)
    lines, labels = dataset(TEST, TEST_SEED)
    rendered = time.perf_counter()
    bundle = qcompiler.compile(
        str(model), target="cpu", calibration={"x": calibration}, output=output, overwrite=True,
        shapes=shapes, options=options,
    )  # fmt: skip
    compiled = time.perf_counter()

    float_graph = load_graph(model, shapes=shapes)
    qdq, integer, session = bundle.qdq_graph(), bundle.integer_graph(), bundle.load()
    samples = load_samples({"x": lines}, float_graph)
    want, got = predict(runner(float_graph), samples), predict(session.run, samples)
    exact = verify(
        runner(integer), [session.run, bundle.load(threads=2).run], ["1 thread", "2 threads"], take(samples, VERIFIED)
    )
    sample = next(iter(samples))
    contenders = [
        ("qcompiler", "int8", lambda: session.run(sample)),
        *peer_calls(["onnxruntime"], float_graph, qdq, sample, 1),
    ]
    latency = [row.document() for row in measure(contenders, seconds=seconds)]
    size = bundle.manifest["size"]
    return {
        "model": "PP-OCR mobile v2.0 cls",
        "bundle": str(output),
        "accuracy": {
            "samples": TEST,
            "float": metric("top1", want, labels),
            "quantized": metric("top1", got, labels),
            "agreement": float((want.argmax(1) == got.argmax(1)).mean()),
            "sqnr_db": round(sqnr(want, got), 2),
        },
        "size": {
            "float_bytes": bundle.report()["size"]["float_bytes"],
            "weight_bytes": size["weight_bytes"],
            "arena_bytes": size["arena_bytes"],
        },
        "level": session.level,
        "latency": latency,
        "verification": exact.document(),
        "report": str(output / "report.html"),
        "seconds": {
            "render": round(rendered - start, 2),
            "compile": round(compiled - rendered, 2),
            "measure": round(time.perf_counter() - compiled, 2),
        },
    }


def summary(found: dict[str, Any]) -> str:
    """The document as a few aligned lines."""
    accuracy, size, exact, seconds = found["accuracy"], found["size"], found["verification"], found["seconds"]
    by = {(row["runtime"], row["precision"]): row for row in found["latency"]}
    ours, float32, int8 = by["qcompiler", "int8"], by["onnxruntime", "float32"], by["onnxruntime", "int8"]
    loss = 100 * (accuracy["float"] - accuracy["quantized"])
    change = f"{abs(loss):.2f} points {'lost' if loss > 0 else 'won'}" if loss else "nothing lost"
    state = "bit-exact" if exact["bit_exact"] else f"NOT BIT-EXACT: {exact['mismatches']} mismatches"
    share = f"float {accuracy['float']:.2%} -> int8 {accuracy['quantized']:.2%}"
    sizes = f"float {_kib(size['float_bytes'])} -> int8 {_kib(size['weight_bytes'])}"
    rows = [
        ("accuracy", f"{share} ({change}) on {accuracy['samples']} lines"),
        ("size", f"{sizes}; working memory {_kib(size['arena_bytes'])}"),
        ("latency", f"{ours['median_ms']:.3f} ms on one thread ({found['level']})"),
        ("", f"{_ratio(float32, ours)} the speed of onnxruntime float32 ({float32['median_ms']:.3f} ms)"),
        ("", f"{_ratio(int8, ours)} the speed of onnxruntime int8 ({int8['median_ms']:.3f} ms)"),
        ("integer", f"{state} with the numpy oracle on {exact['samples']} lines, with 1 and 2 threads"),
        ("bundle", os.path.relpath(found["bundle"])),
        ("report", os.path.relpath(found["report"])),
        ("time", ", ".join(f"{stage} {s:.1f} s" for stage, s in seconds.items())),
    ]
    return "\n".join([f"{found['model']}: is a text line upside down?", *(f"  {name:9} {text}" for name, text in rows)])


def _ratio(peer: dict[str, Any], ours: dict[str, Any]) -> str:
    return f"{peer['median_ms'] / ours['median_ms']:.2f}x"


def _kib(count: int) -> str:
    return f"{count / 1024:.0f} KiB"


def main() -> int:
    """Run the demo; exit code 0, 1 without a model or when not bit-exact, or that of the error."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of the summary")
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "ocr_cls" / "cls.cpu", help="the bundle")
    arguments = parser.parse_args()
    from examples.ocr_cls.model import DownloadError, fetch
    from qcompiler.errors import QCompilerError

    try:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        found = run(arguments.output, fetch())
    except DownloadError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except QCompilerError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(json.dumps(found, indent=1) if arguments.json else summary(found))
    return 0 if found["verification"]["bit_exact"] else 1


if __name__ == "__main__":
    sys.exit(main())
