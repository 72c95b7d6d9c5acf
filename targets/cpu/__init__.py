"""The cpu target: x86-64 shared libraries, one for each instruction set."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from qcompiler.cost import CostModel
from qcompiler.target import Measured, Target
from qcompiler.targets.cpu.build import build, check, cost_level
from qcompiler.targets.cpu.capabilities import CAPABILITIES


def _cost(options: Mapping[str, Any]) -> tuple[CostModel, str]:
    from qcompiler.targets.cpu.cost import cost_model

    table, threads = options.get("table"), int(options.get("threads") or 1)
    level = cost_level(options.get("cpu"))
    return cost_model(level, threads, Path(table) if table else None, options.get("arithmetic") or "float")


def _calibrate(options: Mapping[str, Any], progress: Callable[[str, int, int], None]) -> Measured:
    from qcompiler.targets.cpu.calibrate import calibrate
    from qcompiler.targets.cpu.cost import device, own_table

    level, threads = cost_level(options.get("cpu")), int(options.get("threads") or 1)
    table = calibrate(
        level,
        threads,
        tuple(options.get("classes") or ()),
        device=device(),
        scale=float(options.get("scale") or 1.0),
        progress=progress,
    )
    rows = [(kernel, len(found)) for kernel, found in sorted(table.kernels.items())]
    # A table of some classes alone would hide the shipped one.
    return Measured(table.text(), None if options.get("classes") else own_table(level, threads), table.origin, rows)


TARGET = Target(
    "cpu",
    CAPABILITIES,
    build,
    check=check,
    cost=_cost,
    calibrate=_calibrate,
    options={"cpu": "instruction sets to build for: native (default), all, or names separated by commas"},
)
