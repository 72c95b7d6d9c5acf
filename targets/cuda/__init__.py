"""The cuda target: CUDA text, cubins and a CUDA graph of launches, with the oracle's bits.

What is where: build.py ties all together. lower.py has the rules that differ from the shared lowering's, tir/ the
kernels they use (product.py: tensor cores; direct.py: a thread an element), tile.py which tile; grid.py binds shared
kernels to threads. emit.py prints, cubin.py runs nvcc, emulate.py runs bundles without a card. templates/ has device
functions and the emulator.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from qcompiler.cost import CostModel
from qcompiler.target import Target
from qcompiler.targets.cuda.build import build, check
from qcompiler.targets.cuda.capabilities import CAPABILITIES


def _host(path: Path, manifest: Mapping[str, Any]) -> Callable[[Mapping[str, NDArray]], list[NDArray]]:
    from qcompiler.targets.cuda.emulate import EmulatedSession

    return EmulatedSession(path, manifest).run


def _cost(options: Mapping[str, Any]) -> tuple[CostModel, str]:
    from qcompiler.targets.cuda.cost import cost_model

    table = options.get("table")
    return cost_model(Path(table) if table else None, str(options.get("arithmetic") or "float"))


TARGET = Target(
    "cuda",
    CAPABILITIES,
    build,
    options={
        "arch": "architectures to make cubins for where nvcc is found: all (default: from sm_75 on), none, or such as "
        "sm_61,sm_80",
    },
    check=check,
    cost=_cost,
    runtime=False,
    host=_host,
)
