"""Uniform and logarithmic attention and activations at few bits: accuracy, error and latency on this CPU.

    python -m benchmarks.logarithms [--only vit] [--precision w4a4] [--limit 300] [--json FILE]

Every row is the default recipe with other options of the pass `logarithms`. `error` is the squared error of the outputs
against float, relative to their energy; the bundle runs one inference on one thread (median of 50).
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

import qcompiler
from benchmarks.assets import Case, arguments, cases, machine, write_json
from benchmarks.bundles import build
from qcompiler.calibrate.data import load_samples
from qcompiler.cli.console import table
from qcompiler.evaluate import predict, runner

VARIANTS: dict[str, dict[str, str]] = {
    "uniform": {},
    "softmax log2": {"logarithms.softmax": "log2"},
    "softmax logsqrt2": {"logarithms.softmax": "logsqrt2"},
    "softmax adalog": {"logarithms.softmax": "adalog"},
    "gelu adalog": {"logarithms.gelu": "adalog"},
    "both adalog": {"logarithms.softmax": "adalog", "logarithms.gelu": "adalog"},
}
HEADERS = ["network", "formats", "samples", "float", "bundle", "error", "us", "seconds"]


def row(case: Case, name: str, precision: str, limit: int) -> dict[str, Any]:
    """One variant of one case, measured."""
    start = time.perf_counter()
    options = {"precision": precision, **VARIANTS[name]}
    result = qcompiler.quantize(str(case.model), case.feed("calib"), shapes=case.shapes, options=options)
    seconds = time.perf_counter() - start
    samples = list(load_samples(case.feed("test"), result.float_graph, None, limit))
    with tempfile.TemporaryDirectory() as folder:
        bundle = build(result, Path(folder) / "bundle")
        ours = predict(runner(bundle), samples)
        with bundle.load(threads=1) as session:
            times = []
            for _ in range(60):
                begin = time.perf_counter()
                session.run(samples[0])
                times.append(time.perf_counter() - begin)
    wanted = predict(runner(result.float_graph), samples)
    error = float(np.square(ours - wanted, dtype=np.float64).sum() / np.square(wanted, dtype=np.float64).sum())
    labels = case.labels
    assert labels is not None
    scores = [float((outputs.argmax(-1) == labels[: len(outputs)]).mean()) for outputs in (wanted, ours)]
    return {
        "network": case.name, "formats": name, "precision": precision, "samples": len(ours), "float": scores[0],
        "bundle": scores[1], "error": error, "us": median(times[10:]) * 1e6, "seconds": seconds,
        "found": result.context.facts.get("logarithms", {}),
    }  # fmt: skip


def line(one: dict[str, Any]) -> list[Any]:
    """A row of the table."""
    values = [f"{one['float']:.4f}", f"{one['bundle']:.4f}", f"{one['error']:.4f}", f"{one['us']:.0f}"]
    return [one["network"], one["formats"], one["samples"], *values, f"{one['seconds']:.1f}"]


def main() -> int:
    """Print the table."""
    given = arguments(__doc__, precision={"default": "w4a4"}, limit={"type": int, "default": 300})
    rows = []
    for case in cases(given.only or "vit"):
        for name in VARIANTS:
            rows.append(row(case, name, given.precision, given.limit))
            print(*line(rows[-1]), file=sys.stderr, flush=True)
            write_json(given.json, rows)
    print(f"{given.precision}; {machine()}\n" + table(HEADERS, [line(one) for one in rows]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
