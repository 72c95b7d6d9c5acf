"""Two compiles of one model in two processes with different hash seeds: every file but the report is the same.

    python -m benchmarks.determinism [--only PARTS] [--json FILE]

Exit code 1 when any file differs.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.assets import ROOT, Case, arguments, networks, write_json
from qcompiler.cli.console import table

NETWORKS = "digits cnn,resnet20_cifar10_jpeg,PP-OCR cls"
REPORT = ("report.json", "report.html")
"""Tell of one run: paths, seconds, latencies."""


def contents(folder: Path) -> dict[str, bytes]:
    """Files of a bundle but the report, by relative path."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in REPORT)
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def differences(first: Path, second: Path) -> list[str]:
    """Names of files that differ or are missing in one."""
    a, b = contents(first), contents(second)
    return sorted(name for name in a.keys() | b.keys() if a.get(name) != b.get(name))


def row(case: Case) -> dict[str, Any]:
    """Compile twice, compare."""
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "calibration.npz"
        np.savez(data, **{name: array[:64] for name, array in case.feed("calib").items()})
        shapes = [f"{name}={','.join(map(str, shape))}" for name, shape in case.shapes.items()]
        outputs = [Path(folder) / name for name in ("first", "second")]
        for seed, output in enumerate(outputs):
            command = [sys.executable, "-m", "qcompiler", str(case.model), "-o", str(output), "--calib", str(data)]
            command += [*(part for shape in shapes for part in ("--shape", shape)), "--cpu", "all", "--quiet"]
            environment = {**os.environ, "PYTHONHASHSEED": str(seed), "PYTHONPATH": str(ROOT)}
            subprocess.run(command, check=True, capture_output=True, env=environment)
        found = differences(*outputs)
        return {"network": case.name, "files": len(contents(outputs[0])), "differing": found, "met": not found}


def main() -> int:
    """Print the table."""
    given = arguments(__doc__)
    rows = [row(case) for case in networks(given.only or NETWORKS)]
    write_json(given.json, rows)
    state = {True: "ok", False: "MISSED"}
    lines = [[r["network"], r["files"], ", ".join(r["differing"]) or "none", state[r["met"]]] for r in rows]
    print(table(["network", "files", "differing", ""], lines))
    return 0 if all(one["met"] for one in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
