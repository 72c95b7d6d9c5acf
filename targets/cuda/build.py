"""Integer graph -> CUDA text, cubins, weights and the list of launches."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from qcompiler.errors import UnsupportedError
from qcompiler.graph.model import Graph
from qcompiler.graph.state import state_pairs
from qcompiler.target import Lowered
from qcompiler.targets.cuda.cubin import LEAST, Cubin, architectures, compile_cubins
from qcompiler.targets.cuda.emit import arrange, launches, sources
from qcompiler.targets.cuda.lower import CUDA_RULES
from qcompiler.targets.cuda.machine import THREAD
from qcompiler.targets.shared.boundary import check_states, strip_boundary
from qcompiler.targets.shared.lower import check_operators, lower
from qcompiler.targets.shared.program import Program

Progress = Callable[[str, int, int], None]
_RUNTIME = Path(__file__).resolve().parent.parent.parent / "runtime"
_LARGEST = 65535
"""Blocks of a grid in its second and third dimension."""


def check(options: Mapping[str, Any]) -> None:
    """Raise RecipeError for values of options that `build` cannot use, UnsupportedError where nvcc is asked for and
    not found."""
    architectures(options.get("arch"))


def plan(graph: Graph, progress: Progress) -> Program:
    """The program of an INTEGER graph, every call with its launch. Raises UnsupportedError."""
    check_operators(graph, "cuda")
    if pairs := state_pairs(graph):  # state stays codes between two steps
        graph = strip_boundary(graph, {*pairs, *pairs.values()})
        check_states(graph, pairs)
    program = lower(graph, THREAD, progress, rules=CUDA_RULES)
    arrange(program)
    for call in program.calls:
        if max(call.launch.grid[1:]) > _LARGEST:
            raise UnsupportedError(
                f"node `{call.node}` needs {max(call.launch.grid[1:])} blocks in a dimension that has {_LARGEST}.",
                where="target `cuda`",
                hint="Compile for a smaller batch or a smaller image.",
            )
    return program


def build(graph: Graph, options: dict[str, Any], progress: Progress) -> Lowered:
    """Files under `src/`, cubins under `cubin/`, `weights.bin`, `launches.json` and the loader.

    Raises UnsupportedError for operators without a lowering, and where nvcc fails.
    """
    archs = architectures(options.get("arch"))
    program = plan(graph, progress)
    progress("generate code", 0, 1 + len(archs))
    texts = sources(program)
    cubins = compile_cubins(
        {Path(name).name: text for name, text in texts.items()},
        archs,
        lambda done, total: progress("generate code", done, 1 + total),
    )
    progress("generate code", 1 + len(archs), 1 + len(archs))
    weights = program.constants.blob()
    files = {
        **{name: text.encode() for name, text in texts.items()},
        **{f"cubin/sm_{arch}.cubin": cubin.data for arch, cubin in cubins.items()},
        "weights.bin": weights,
        "launches.json": _lines(launches(program)),
        **{name: (_RUNTIME / name).read_bytes() for name in ("loader.py", "cuda_loader.py", "cuda_driver.py")},
    }
    newest = cubins[max(cubins)] if cubins else None
    sizes = {
        "weight_bytes": len(weights),
        "arena_bytes": program.arena_bytes,
        "arena_lower_bound": program.arena_bound,
        "code_bytes": len(newest.data) if newest else len(texts["src/kernels.cu"]),
    }
    manifest = {
        "launches": "launches.json",
        "weights": "weights.bin",
        "source": "src/kernels.cu",
        "headers": [name for name in texts if name != "src/kernels.cu"],
        "cubins": {str(arch): f"cubin/sm_{arch}.cubin" for arch in cubins},
        "least_arch": LEAST,
        "kernels": len({call.kernel for call in program.calls}),
        "calls": len(program.calls),
        "weight_bytes": len(weights),
        "arena_bytes": program.arena_bytes,
    }
    return Lowered(files, manifest, sizes, _facts(cubins))


def _facts(cubins: Mapping[int, Cubin]) -> dict[str, Any]:
    """For the report: registers and spills by architecture."""
    spilled = {
        f"sm_{arch}": sorted(name for name, usage in cubin.usage.items() if usage["spilled"])
        for arch, cubin in cubins.items()
    }
    return {"cuda": {"spills": spilled}} if cubins else {}


def _lines(rows: list[dict[str, Any]]) -> bytes:
    """JSON with a row a line."""
    return ("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n").encode()
