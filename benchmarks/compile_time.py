"""Seconds and peak memory of `qcompile` with the default recipe, each in a process of its own.

    python -m benchmarks.compile_time [--only PARTS] [--json FILE]

Wall-clock seconds of the whole command on two cores, and the peak resident set of the process (the C compiler that
links is smaller). Exit code 1 when a limit is passed.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.assets import ROOT, Case, arguments, machine, networks, write_json
from qcompiler.cli.console import table

LIMITS = {"resnet20_cifar10_jpeg": 40.0, "mobilenet_v2_100_224 (ImageNet)": 240.0}
"""Network -> seconds."""
MEMORY_LIMIT = 2.5 * (1 << 30)


def row(case: Case) -> dict[str, Any]:
    """Compile once."""
    with tempfile.TemporaryDirectory() as folder:
        data, output, log = Path(folder) / "calibration.npz", Path(folder) / "bundle", Path(folder) / "out.json"
        np.savez(data, **case.feed("calib"))
        shapes = [f"{name}={','.join(map(str, shape))}" for name, shape in case.shapes.items()]
        command = [sys.executable, "-m", "qcompiler", str(case.model), "-o", str(output), "--calib", str(data)]
        command += [*(part for shape in shapes for part in ("--shape", shape)), "--json", "--quiet"]
        start = time.perf_counter()
        with log.open("wb") as out:
            redirect = [(os.POSIX_SPAWN_DUP2, out.fileno(), 1)]
            environment = {**os.environ, "PYTHONPATH": str(ROOT)}
            child = os.posix_spawn(command[0], command, environment, file_actions=redirect)
            _, status, usage = os.wait4(child, 0)
        seconds = time.perf_counter() - start
        document = json.loads(log.read_text() or "{}")
    if status:
        raise SystemExit(f"{case.name}: {document.get('error', f'status {status}')}")
    return {
        "network": case.name, "samples": len(case.calibration), "seconds": round(seconds, 1),
        "limit": LIMITS.get(case.name), "peak_bytes": usage.ru_maxrss * 1024, "stages": document["seconds"],
        "met": seconds <= LIMITS.get(case.name, np.inf) and usage.ru_maxrss * 1024 <= MEMORY_LIMIT,
    }  # fmt: skip


def main() -> int:
    """Print the table."""
    given = arguments(__doc__)
    rows = []
    for case in networks(given.only or ",".join(LIMITS)):
        rows.append(row(case))
        write_json(given.json, rows)
    lines = []
    for one in rows:
        longest = sorted(one["stages"].items(), key=lambda item: -item[1])[:3]
        state, peak = "ok" if one["met"] else "MISSED", f"{one['peak_bytes'] / (1 << 20):.0f} MiB"
        stages = ", ".join(f"{stage} {s:.1f}" for stage, s in longest)
        lines.append([one["network"], one["samples"], one["seconds"], one["limit"] or "-", peak, stages, state])
    headers = ["network", "samples", "seconds", "limit", "peak", "longest stages", ""]
    print(f"{machine()}; memory limit 2560 MiB\n" + table(headers, lines))
    return 0 if all(one["met"] for one in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
