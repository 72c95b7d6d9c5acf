"""ONNX's own node tests: quantize each, compare the oracle with the float operator, count.

    python -m benchmarks.onnx_backend [--precisions w8a8,w8a16] [--json FILE]

Every case that ships with the onnx package. Exit code 1 when one fails: an error that is not ours, or codes further
from the float operator than scales and stated errors allow.
"""

from __future__ import annotations

import sys
from collections import Counter
from typing import Any

from benchmarks.assets import arguments, write_json
from qcompiler.cli.console import table
from tests.onnx_backend.cases import ask, cases


def main() -> int:
    """Print the counts by operator, and every failure."""
    given = arguments(__doc__, precisions={"default": "w8a8,w8a16"})
    rows: list[dict[str, Any]] = []
    for precision in given.precisions.split(","):
        for name, model, inputs in cases():
            outcome = ask(name, model, inputs, precision)
            rows.append({"precision": precision, "case": name, "operator": outcome.operator, "outcome": outcome.kind,
                         "why": outcome.why})  # fmt: skip
    write_json(given.json, rows)
    kinds = ("passed", "refused", "failed")
    operators = Counter((row["precision"], row["operator"], row["outcome"]) for row in rows)
    lines = []
    for precision in given.precisions.split(","):
        for operator in sorted({row["operator"] for row in rows}):
            counts = [operators[precision, operator, kind] for kind in kinds]
            if counts[0] or counts[2]:
                lines.append([precision, operator, *counts])
        total = [sum(row["outcome"] == kind and row["precision"] == precision for row in rows) for kind in kinds]
        lines.append([precision, "all cases, refused operators too", *total])
    print(table(["precision", "operator", *kinds], lines))
    for row in rows:
        if row["outcome"] == "failed":
            print(f"{row['precision']} {row['case']}: {row['why']}")
    return int(any(row["outcome"] == "failed" for row in rows))


if __name__ == "__main__":
    sys.exit(main())
