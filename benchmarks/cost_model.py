"""How well the cost model of the cpu target predicts whole networks: predicted and measured latency.

    python -m benchmarks.cost_model [--only PARTS] [--threads 1] [--seconds 2.0] [--precisions w8a8,w4a8]
        [--cpu LEVEL] [--table FILE] [--json FILE]

`whole` is the price of the integer graph, `additive` the sum over the nodes of the float graph at the same widths (what
a search adds up) and the runtime's own share. `measured` is the median of many inferences in interleaved rounds: both
precisions of a network run side by side, so load from elsewhere hits them alike. Exit code 1 when a prediction for the
whole is off by more than 10 % of the measured time and by more than 5 us.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.assets import Case, arguments, machine, networks, write_json
from benchmarks.bundles import build, quantize
from qcompiler.cli.console import table
from qcompiler.cost import additive
from qcompiler.latency import measure
from qcompiler.targets.cpu.cost import CpuCost, cost_model

ALLOWED, ABSOLUTE = 0.10, 0.005
"""Share, and milliseconds."""


def rows(case: Case, model: CpuCost, precisions: list[str], threads: int, seconds: float) -> list[dict[str, Any]]:
    """One row a precision."""
    found, contenders = [], []
    with tempfile.TemporaryDirectory() as folder:
        sample = {name: array[:1] for name, array in case.feed("test").items()}
        for precision in precisions:
            result = quantize(case, precision)
            assert result.integer_graph is not None and result.context.float_graph is not None
            assert result.context.assignment is not None
            whole = model.whole(result.integer_graph)
            parts = additive(model, result.context.float_graph, result.context.assignment)
            bundle = build(result, Path(folder) / precision, model.table.level)
            session = bundle.load(threads=threads)
            contenders.append(("qcompiler", precision, lambda session=session: session.run(sample)))
            found.append(
                {
                    "network": case.name,
                    "precision": precision,
                    "threads": threads,
                    "whole_ms": whole.latency,
                    "additive_ms": parts.latency + model.table.inference_ns / 1e6,
                    "unpriced": int(whole.resources["unpriced"]),
                    "additive_unpriced": int(parts.resources.get("unpriced", 0)),
                    "weight_bytes": whole.weight_bytes,
                    "additive_weight_bytes": parts.weight_bytes,
                    "exact_bytes": whole.weight_bytes == bundle.manifest["cpu"]["variants"][0]["weight_bytes"],
                }
            )
        for row, latency in zip(found, measure(contenders, seconds=seconds, rounds=40), strict=True):
            row |= {"measured_ms": latency.median_ms, "min_ms": latency.min_ms}
            row["error"] = row["whole_ms"] / latency.median_ms - 1
            row["additive_error"] = row["additive_ms"] / latency.median_ms - 1
    return found


def main() -> int:
    """Print the table."""
    given = arguments(
        __doc__,
        threads={"type": int, "default": 1},
        seconds={"type": float, "default": 2.0},
        precisions={"default": "w8a8,w4a8"},
        cpu={"default": None, "help": "instruction set; default: this machine's"},
        table={"type": Path, "default": None, "help": "a table of calibrate-costs"},
    )
    model, note = cost_model(given.cpu, given.threads, given.table)
    found: list[dict[str, Any]] = []
    for case in networks(given.only):
        found += rows(case, model, given.precisions.split(","), given.threads, given.seconds)
        write_json(given.json, found)
    keys = ("measured_ms", "whole_ms", "additive_ms")
    lines = [
        [r["network"], r["precision"], *(f"{r[key]:.4f}" for key in keys), f"{100 * r['error']:+.1f} %",
         f"{100 * r['additive_error']:+.1f} %", f"{r['unpriced']}/{r['additive_unpriced']}", r["weight_bytes"],
         r["additive_weight_bytes"]]
        for r in found
    ]  # fmt: skip
    headers = ["network", "precision", "measured ms", "whole ms", "additive ms", "error", "additive error", "unpriced",
               "weight bytes", "additive bytes"]  # fmt: skip
    print(machine() + "\n" + note + "\n" + table(headers, lines))
    bad = [r for r in found if abs(r["error"]) > ALLOWED and abs(r["whole_ms"] - r["measured_ms"]) > ABSOLUTE]
    print(f"{len(found) - len(bad)} of {len(found)} within {ALLOWED:.0%}")
    return int(bool(bad) or not all(r["exact_bytes"] for r in found))


if __name__ == "__main__":
    sys.exit(main())
