"""Accuracy of the default recipe on full test splits: float, the bundle, and the QDQ file in onnxruntime.

    python -m benchmarks.accuracy [--only PARTS] [--precision w8a8] [--recipe default] [--limit N] [--json FILE]

Calibrates on the calibration arrays alone. The bundle runs on this CPU, the QDQ file in onnxruntime with optimizations
off; `same` is how often their decisions agree, and `peer` how often those of onnxruntime with and without optimizations
do: how far float32 rounding alone carries. `goal` holds for W8A8. Exit code 1 when a goal is missed.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.assets import Case, arguments, cases, machine, write_json
from benchmarks.bundles import build, quantize
from qcompiler.calibrate.data import load_samples
from qcompiler.cli.console import table
from qcompiler.evaluate import metric, predict, runner, sqnr
from qcompiler.execute.ort import Session

AGREEMENT = 0.995
"""Least share of equal decisions between bundle and QDQ file."""


def row(case: Case, precision: str, recipe: str, limit: int | None) -> dict[str, Any]:
    """One case, measured."""
    start = time.perf_counter()
    result = quantize(case, precision, recipe=recipe)
    with tempfile.TemporaryDirectory() as folder:
        run = runner(build(result, Path(folder) / "bundle"))
        seconds = time.perf_counter() - start
        samples = load_samples(case.feed("test"), result.float_graph, None, limit)
        float_outputs = predict(runner(result.float_graph), samples)
        ours = predict(run, samples)
    qdq = predict(runner(result.qdq_graph), samples)
    values = [case.score(outputs, float_outputs) for outputs in (float_outputs, ours, qdq)]
    loss = values[1] - values[0] if case.rises else values[0] - values[1]
    kind, bound = case.goal if precision == "w8a8" else ("none", 0.0)
    decides = case.metric in ("top1", "agreement")
    same = metric("top1", ours, qdq.reshape(len(qdq), -1)) if decides else None
    peer = None
    if decides:
        optimized = predict(Session(result.qdq_graph, optimize=True).run, samples)
        peer = metric("top1", optimized, qdq.reshape(len(qdq), -1))
    good = {"none": True, "loss": loss <= bound + 1e-9, "least": values[1] >= bound, "most": values[1] <= bound}[kind]
    return {
        "network": case.name, "metric": case.metric, "samples": len(ours), "precision": precision,
        "float": values[0], "bundle": values[1], "qdq": values[2], "loss": loss,
        "goal": {"none": "", "loss": f"loss <= {bound}", "least": f">= {bound}", "most": f"<= {bound}"}[kind],
        "same": same, "peer": peer, "same_sqnr_db": round(sqnr(qdq, ours), 1), "seconds": round(seconds, 1),
        "facts": result.context.facts, "goal_met": good,
    }  # fmt: skip


def state(one: dict[str, Any]) -> str:
    """What is missed, if anything."""
    if not one["goal_met"]:
        return "LOSS"
    return "ok" if one["same"] is None or one["same"] >= AGREEMENT else "SAME < 99.5 %"


def line(one: dict[str, Any]) -> list[Any]:
    """A row of the table."""
    shares = ["-" if one[key] is None else f"{one[key]:.2%}" for key in ("same", "peer")]
    values = [f"{one[key]:.4f}" for key in ("float", "bundle", "qdq", "loss")]
    return [one["network"], one["metric"], one["samples"], *values, one["goal"], *shares, state(one)]


HEADERS = ["network", "metric", "samples", "float", "bundle", "qdq", "loss", "goal", "same", "peer", ""]


def main() -> int:
    """Print the table."""
    given = arguments(
        __doc__, precision={"default": "w8a8"}, recipe={"default": "default"}, limit={"type": int, "default": None}
    )
    rows = []
    for case in cases(given.only):
        rows.append(row(case, given.precision, given.recipe, given.limit))
        print(*line(rows[-1]), file=sys.stderr, flush=True)
        write_json(given.json, rows)
    print(f"{given.precision}, recipe {given.recipe}; {machine()}\n" + table(HEADERS, [line(one) for one in rows]))
    return 0 if all(state(one) == "ok" for one in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
