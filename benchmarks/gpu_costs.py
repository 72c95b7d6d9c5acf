"""Constants of the cuda target's cost model, fitted to what `benchmarks.gpu` measured on a card.

    python -m benchmarks.gpu_costs MEASURED.json OUT.json --date 2026-11-27

Latencies of networks (CUDA graphs) are all that the fit sees: times of kernels alone, launched one by one, are those of
the host.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from qcompiler.targets.cuda.cost import SCHEMA, Table

PROCESSORS = {"H100 80GB HBM3": 132, "H200": 132, "A100": 108}
FIXED, RATED = ("tensor", "direct", "rows", "map"), ("tensor", "direct")
START = (2.5, 2.5, 2.0, 2.0, 3e8, 1e7, 2.5e6, 4e6, 3.0)
"""Microseconds a launch by kind, products a microsecond by kind, bytes a microsecond of memory and of the second-level
cache, microseconds an inference."""
LOW = (0.3, 0.3, 0.3, 0.3, 1e6, 1e5, 5e5, 5e5, 0.01)
HIGH = (20.0, 20.0, 20.0, 20.0, 1e9, 1e8, 4e6, 1e7, 20.0)


def table_of(values: NDArray, **facts: Any) -> Table:
    """Parameters of the fit as a table."""
    given = [float(v) for v in values]
    fixed, rates = dict(zip(FIXED, given[:4], strict=True)), dict(zip(RATED, given[4:6], strict=True))
    rest = {"bytes_rate": given[6], "fetch_rate": given[7], "inference": given[8], "level": "sm_90a"}
    return Table(fixed=fixed, rates=rates, **rest, **facts)


def fit(networks: Mapping[str, tuple[list[dict[str, Any]], float]], device: str, date: str) -> Table:
    """networks: name -> (launches, microseconds)."""
    processors = next((n for name, n in PROCESSORS.items() if name in device), 132)
    facts = {"device": device, "date": date, "processors": processors}

    def ratios(logs: NDArray) -> NDArray[np.float64]:
        table = table_of(np.exp(logs), error=0.0, **facts)
        return np.array([np.log((table.inference + sum(map(table.microseconds, launches))) / measured)
                         for launches, measured in networks.values()])  # fmt: skip

    found = least_squares(ratios, np.log(START), bounds=(np.log(LOW), np.log(HIGH)), loss="soft_l1", f_scale=0.1)
    logs = np.log([float(f"{v:.4g}") for v in np.exp(found.x)])
    error = float(np.abs(np.expm1(ratios(logs))).mean())
    return table_of(np.array([float(f"{v:.4g}") for v in np.exp(logs)]), error=round(error, 3), **facts)


def main() -> None:
    """Write the table, print what it says of the networks that it was fitted to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("measured", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--date", required=True)
    given = parser.parse_args()
    document = json.loads(given.measured.read_text())
    networks = {row["name"]: (row["launches"], row["graph_us"]) for row in document["bundles"] if "launches" in row}
    device = next(str(row["card"]) for row in document["bundles"])
    table = fit(networks, device, given.date)
    given.output.parent.mkdir(parents=True, exist_ok=True)
    given.output.write_text(json.dumps({"schema": SCHEMA, **vars(table)}, indent=1) + "\n")
    for name, (launches, measured) in networks.items():
        estimated = table.inference + sum(map(table.microseconds, launches))
        print(f"{name:40} {measured:8.1f} us measured, {estimated:8.1f} us by the table")
    print(f"mean deviation {100 * table.error:.1f} %")


if __name__ == "__main__":
    main()
