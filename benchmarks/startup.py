"""How long it takes to start: import, `qcompile --help`, and loading a bundle; medians over fresh processes.

    python -m benchmarks.startup [--runs 11] [--json FILE]

The bundle is one of the committed digits CNN, loaded with its own loader.py: numpy and ctypes only. Exit code 1 when a
limit is passed.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.assets import ROOT, arguments, machine, networks, write_json
from benchmarks.bundles import build, quantize
from qcompiler.cli.console import table

IMPORT = "import time; start = time.perf_counter(); import qcompiler; print(time.perf_counter() - start)"
LOAD = (
    "import sys, time; sys.path.insert(0, sys.argv[1]); import loader; "
    "start = time.perf_counter(); loader.load(sys.argv[2]); print(time.perf_counter() - start)"
)


def inside(code: str, *more: str) -> float:
    """Seconds that `code` prints, in a fresh process."""
    command = [sys.executable, "-c", code, *more]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return float(subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout)


def whole(*more: str) -> float:
    """Wall-clock seconds of `python -m qcompiler ...`."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "qcompiler", *more], capture_output=True, check=True, cwd=ROOT)
    return time.perf_counter() - start


def main() -> int:
    """Print the table."""
    given = arguments(__doc__, runs={"type": int, "default": 11})
    (case,) = networks("digits cnn")
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder) / "bundle"
        build(quantize(case), bundle)
        loader = Path(folder) / "loader.py"
        loader.write_bytes((ROOT / "runtime" / "loader.py").read_bytes())
        measured = {
            "import qcompiler": (0.3, lambda: inside(IMPORT)),
            "qcompile --help": (0.5, lambda: whole("--help")),
            "load a bundle": (0.1, lambda: inside(LOAD, folder, str(bundle))),
        }
        rows: list[dict[str, Any]] = []
        for name, (limit, call) in measured.items():
            times = [call() for _ in range(given.runs)]
            row = {"what": name, "median_s": median(times), "min_s": min(times), "limit_s": limit}
            rows.append(row | {"met": median(times) <= limit})
    write_json(given.json, rows)
    lines = []
    for r in rows:
        state = "ok" if r["met"] else "MISSED"
        lines.append([r["what"], f"{r['median_s']:.3f}", f"{r['min_s']:.3f}", r["limit_s"], state])
    print(machine() + "\n" + table(["what", "median s", "min s", "limit s", ""], lines))
    return 0 if all(one["met"] for one in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
