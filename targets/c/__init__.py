"""The c target: freestanding C99 sources for microcontrollers, with the oracle's bits and no float.

What is where: build.py ties all together. Cores: machine.py (of the kernels in C), objects.py (of kernels as objects),
mcus.py (compilers and flags). Sources: emit.py with header.py, state.py, text.py (TVM's), weights.py, selftest.py,
templates/. Projects: project.py, modules.py. Sizes: footprint.py, instructions.py and rates.json, judged by fit.py with
advice.py; cost.py for searches.
host.py runs a bundle here. Kernels are not here: they are those of targets/shared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from qcompiler.cost import CostModel
from qcompiler.target import Target
from qcompiler.targets.c.build import build, check
from qcompiler.targets.c.capabilities import CAPABILITIES
from qcompiler.targets.c.mcus import CHOICES
from qcompiler.targets.c.objects import OBJECTS


def _host(path: Path, manifest: Mapping[str, Any]) -> Callable[[Mapping[str, NDArray]], list[NDArray]]:
    from qcompiler.targets.c.host import HostSession

    return HostSession(path, manifest).run


def _cost(options: Mapping[str, Any]) -> tuple[CostModel, str]:
    from qcompiler.targets.c.cost import CCost

    model = CCost(bool(options.get("pack")), options.get("optimize_for") == "memory")
    return model, f"flash, RAM and instructions by plan; code and instructions estimated from {model.origin}"


TARGET = Target(
    "c",
    CAPABILITIES,
    build,
    options={
        "prefix": "name of the model in the sources: qc_PREFIX_run; default: model",
        "arena": "static (default) or caller (the arena is passed to qc_PREFIX_run)",
        "states": "what --state keeps: inside (default) or shown, as inputs and outputs of qc_PREFIX_run",
        "flash": "limit of code and constants, as 256KiB: the report says whether it fits",
        "ram": "limit of arena and stack, as 64KiB",
        "weights": "header (default: C arrays) or bin (a file of bytes in a section of its own, for external flash)",
        "mcu": f"core of project files and measured sizes: {', '.join(CHOICES)} (default)",
        "object": f"kernels as an object file for this core instead of C text: {', '.join(OBJECTS)}",
        "pack": "keep weights of 2 to 4 bits packed in flash",
        "optimize_for": "latency (default) or memory (chains of convolutions band by band: a smaller arena)",
        "vectors": "samples of the self-test; default: 4",
    },
    check=check,
    cost=_cost,
    runtime=False,
    host=_host,
)
