"""Constants of the cuda target's cost model, fitted to what `benchmarks.gpu` measured on a card.

    python -m benchmarks.gpu_costs MEASURED.json OUT.json --date 2026-11-27

The fit sees latencies of networks (CUDA graphs, kernels one after the other), and times of the products that
`benchmarks.gpu` runs by themselves. It does not see times of a network's kernels alone: launched one by one, those are
the host's.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from benchmarks.gpu_section import NAMED
from qcompiler.targets.cuda.cost import SCHEMA, Table

PROCESSORS = {"H100 80GB HBM3": 132, "H200": 132, "A100": 108}
PARAMETERS = {
    "fixed.tensor": (2.0, 0.5, 10), "fixed.attention": (2.5, 0.5, 10), "fixed.direct": (2.0, 0.5, 10),
    "fixed.rows": (2.0, 0.5, 10), "fixed.map": (1.5, 0.5, 10),
    "rates.attention": (2e7, 1e6, 1e9), "rates.direct": (2e7, 1e6, 1e9),
    "rates.mma": (4e8, 1e7, 2e9), "rates.wgmma": (7e8, 1e7, 2e9),
    "bytes_rate": (2.7e6, 5e5, 5e6), "fetch_rate": (6e6, 1e6, 3e7),
    "step": (0.2, 0.02, 2), "block": (0.2, 0.01, 3), "output": (1e-4, 1e-6, 1e-2), "copy": (5e-4, 1e-6, 1e-1),
    "group": (0.05, 0.001, 1),
    "inference": (5.0, 0.5, 20),
}  # fmt: skip
"""Constant of a table -> (what the fit begins with, lowest, highest), in microseconds and per microsecond."""
LEANING = 0.03
"""How much a constant that the times say nothing about leans towards where the fit began: residual of a factor of e."""

Launches = Sequence[Mapping[str, Any]]


def table_of(values: Sequence[float], **facts: Any) -> Table:
    """Parameters of the fit as a table."""
    found: dict[str, Any] = {"fixed": {}, "rates": {}, "level": "sm_90a", **facts}
    for name, value in zip(PARAMETERS, values, strict=True):
        group, _, kind = name.partition(".")
        if kind:
            found[group][kind] = float(f"{value:.4g}")
        else:
            found[group] = float(f"{value:.4g}")
    return Table(**found)


def fit(
    networks: Mapping[str, tuple[Launches, float]],
    device: str,
    date: str,
    kernels: Sequence[tuple[Mapping[str, Any], float]] = (),
) -> Table:
    """networks: name -> (launches, microseconds); kernels: (launch, microseconds) of such as ran alone, many in a row.

    Logarithms of ratios, robustly; `error` is the mean deviation from the times of these networks.
    """
    processors = next((n for name, n in PROCESSORS.items() if name in device), 132)
    facts = {"device": device, "date": date, "processors": processors}
    starts = np.log([start for start, _, _ in PARAMETERS.values()])
    bounds = [np.log([limits[i] for limits in PARAMETERS.values()]) for i in (1, 2)]

    def ratios(logs: NDArray) -> NDArray[np.float64]:
        table = table_of(np.exp(logs), error=0.0, **facts)
        return np.array([np.log(network_us(table, launches) / measured) for launches, measured in networks.values()])

    def residuals(logs: NDArray) -> NDArray[np.float64]:
        table = table_of(np.exp(logs), error=0.0, **facts)
        alone = [np.log(table.microseconds(launch) / measured) for launch, measured in kernels]
        return np.concatenate([ratios(logs), np.array(alone) / 2, LEANING * (logs - starts)])

    found = least_squares(residuals, starts, bounds=bounds, loss="soft_l1", f_scale=0.1, diff_step=1e-3)
    error = float(np.abs(np.expm1(ratios(found.x))).mean())
    return table_of(np.exp(found.x), error=round(error, 3), **facts)


def network_us(table: Table, launches: Launches) -> float:
    """Microseconds of an inference."""
    return table.inference + sum(map(table.microseconds, launches))


def left_out(networks: Mapping[str, tuple[Launches, float]], *given: Any) -> dict[str, float]:
    """Name -> microseconds by a table that was fitted without this network (at any batch and precision)."""
    found = {}
    for name, (launches, _) in networks.items():
        others = {other: row for other, row in networks.items() if other.split("-b")[0] != name.split("-b")[0]}
        found[name] = network_us(fit(others, *given), launches)
    return found


def main() -> None:
    """Write the table, print what it says of the networks that it was fitted to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("measured", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--date", required=True)
    given = parser.parse_args()
    document = json.loads(given.measured.read_text())
    networks = {row["name"]: (row["launches"], row.get("late_us", row["graph_us"])) for row in document["bundles"]
                if "launches" in row and NAMED.match(row["name"])}  # fmt: skip
    kernels = [(row["launch"], row["us"]) for row in document["kernels"] if "launch" in row]
    device = next(str(row["card"]) for row in document["bundles"])
    table = fit(networks, device, given.date, kernels)
    without = left_out(networks, device, given.date, kernels)
    unseen = float(np.mean([abs(without[name] / measured - 1) for name, (_, measured) in networks.items()]))
    given.output.parent.mkdir(parents=True, exist_ok=True)
    document = {"schema": SCHEMA, **vars(replace(table, error=round(unseen, 3)))}
    given.output.write_text(json.dumps(document, indent=1) + "\n")
    for name, (launches, measured) in networks.items():
        own, other = network_us(table, launches), without[name]
        print(f"{name:36} {measured:7.1f} us measured, {own:7.1f} ({own / measured - 1:+.0%}) by the table, "
              f"{other:7.1f} ({other / measured - 1:+.0%}) by one fitted without this network")  # fmt: skip
    print(f"mean deviation {table.error:.1%}; of networks left out, which is the table's `error`, {unseen:.1%}")


if __name__ == "__main__":
    main()
