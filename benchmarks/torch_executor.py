"""Speed of the torch executor: all samples at once, by torch.func.vmap of one sample, and sample by sample.

    python -m benchmarks.torch_executor --only resnet20_cifar10_jpeg,vit_hybrid --threads 1 --samples 32
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.assets import arguments, networks, write_json

REPEATS = 5


def measure(run: Callable[[Any], Any], x: Any) -> tuple[float, float]:
    """Samples per second forward, and forward with backward: the best of some runs."""
    import torch

    best = [float("inf")] * 2
    for _ in range(REPEATS):
        start = time.perf_counter()
        with torch.no_grad():
            run(x)
        middle = time.perf_counter()
        run(x).square().mean().backward()
        best = [min(best[0], middle - start), min(best[1], time.perf_counter() - middle)]
    return len(x) / best[0], len(x) / best[1]


def main() -> None:
    """Print a row a network."""
    import torch

    from qcompiler.execute.torch import TorchGraph
    from qcompiler.graph.io import load_graph

    given = arguments(__doc__, threads={"type": int, "default": 1}, samples={"type": int, "default": 32})
    torch.set_num_threads(given.threads)
    rows = []
    for case in networks(given.only):
        if len(case.inputs) > 1:
            continue
        module = TorchGraph(load_graph(case.model, shapes=case.shapes))
        for name in module.constants:
            module.parameter(name)
        x = torch.from_numpy(np.ascontiguousarray(case.calibration[: given.samples, None]))

        def together(x: Any, module: Any = module) -> Any:
            return module({module.inputs[0]: x})[module.outputs[0]]

        def by_vmap(x: Any) -> Any:
            return torch.func.vmap(lambda one: together(one[None])[0])(x)  # noqa: B023

        def one_by_one(x: Any) -> Any:
            return torch.cat([together(one[None]) for one in x])  # noqa: B023

        row: dict[str, Any] = {"network": case.name}
        for name, run in (("together", together), ("vmap", by_vmap), ("one by one", one_by_one)):
            forward, both = measure(run, x)
            row[name] = [round(forward, 1), round(both, 1)]
        rows.append(row)
        print(row, file=sys.stdout, flush=True)
    write_json(Path(given.json) if given.json else None, rows)


if __name__ == "__main__":
    main()
