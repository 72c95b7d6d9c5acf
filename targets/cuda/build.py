"""Integer graph -> CUDA text, cubins, weights and the list of launches."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from qcompiler.errors import UnsupportedError
from qcompiler.graph.model import Graph
from qcompiler.graph.state import state_pairs
from qcompiler.target import Lowered
from qcompiler.targets.cuda.cubin import FIRST_TENSOR, HOPPER, architectures, compile_cubins, made_by_nvcc
from qcompiler.targets.cuda.emit import TEMPLATES, arrange, cuda_source, launches
from qcompiler.targets.cuda.lower import rules_for
from qcompiler.targets.cuda.machine import LEVELS, OLD
from qcompiler.targets.shared.boundary import check_states, strip_boundary
from qcompiler.targets.shared.lower import check_operators, lower
from qcompiler.targets.shared.program import Program

Progress = Callable[[str, int, int], None]
_RUNTIME = Path(__file__).resolve().parent.parent.parent / "runtime"
LOADERS = ("loader.py", "cuda_loader.py", "cuda_arrays.py", "cuda_driver.py")
"""Files of runtime/ that a bundle has."""
_LARGEST = 65535
"""Blocks of a grid in its second and third dimension."""


def check(options: Mapping[str, Any]) -> None:
    """Raise RecipeError for values of options that `build` cannot use, UnsupportedError where nvcc is asked for and
    not found."""
    architectures(options.get("arch"))


def plan(graph: Graph, level: str, progress: Progress) -> Program:
    """The program of an INTEGER graph, every call with its launch. Raises UnsupportedError."""
    if pairs := state_pairs(graph):  # state stays codes between two steps
        graph = strip_boundary(graph, {*pairs, *pairs.values()})
        check_states(graph, pairs)
    program = lower(graph, LEVELS[level], progress, rules=rules_for(graph, LEVELS[level]))
    arrange(program)
    for call in program.calls:
        if max(call.launch.grid[1:]) > _LARGEST:
            raise UnsupportedError(
                f"node `{call.node}` needs {max(call.launch.grid[1:])} blocks in a dimension that has {_LARGEST}.",
                where="target `cuda`",
                hint="Compile for a smaller batch or a smaller image.",
            )
    return program


def _levels(archs: Sequence[int], asked: str | None) -> dict[str, list[str]]:
    """Level -> architectures of its cubins. Without tensor cores there may be none: nvcc 13 has no such cards."""
    if asked == "none":
        return {"sm_75": [], "sm_90a": []}
    old = [f"sm_{arch}" for arch in archs if arch < FIRST_TENSOR]
    levels = {OLD: made_by_nvcc(old)} if old else {}
    common = [f"sm_{arch}" for arch in archs if arch >= FIRST_TENSOR and arch != HOPPER]
    levels |= {"sm_75": common} if common else {}
    return levels | ({"sm_90a": ["sm_90a"]} if HOPPER in archs else {})


def build(graph: Graph, options: dict[str, Any], progress: Progress) -> Lowered:
    """For each level of kernels its text, launches, weights and cubins in a folder; and the loader.

    Raises UnsupportedError for operators without a lowering, and where nvcc fails.
    """
    levels = _levels(architectures(options.get("arch")), options.get("arch"))
    check_operators(graph, "cuda")
    programs = {level: plan(graph, level, progress) for level in levels}
    texts = {level: cuda_source(program) for level, program in programs.items()}
    header = (TEMPLATES / "qc_device.h").read_text()
    jobs = [(level, arch) for level, archs in levels.items() for arch in archs]
    progress("generate code", 0, 1 + len(jobs))
    cubins = compile_cubins(
        header,
        [(texts[level], arch) for level, arch in jobs],
        lambda done, total: progress("generate code", done, 1 + total),
    )
    progress("generate code", 1 + len(jobs), 1 + len(jobs))
    made = {job: cubin for job, cubin in zip(jobs, cubins, strict=False)}
    files = {name: (_RUNTIME / name).read_bytes() for name in LOADERS}
    files["src/qc_device.h"] = header.encode()
    variants = []
    for level, program in programs.items():
        own = {arch: cubin for (of, arch), cubin in made.items() if of == level}
        weights = program.constants.blob()
        files |= {
            f"{level}/kernels.cu": texts[level].encode(),
            f"{level}/launches.json": _lines(launches(program)),
            f"{level}/weights.bin": weights,
            **{f"{level}/{arch}.cubin": cubin.data for arch, cubin in own.items()},
        }
        sizes = {
            "weight_bytes": len(weights),
            "arena_bytes": program.arena_bytes,
            "arena_lower_bound": program.arena_bound,
            "code_bytes": len(max(own.items())[1].data) if own else len(texts[level]),
        }
        variants.append(
            {
                "level": level,
                "arch": int(level[3:5]),
                "only": level.endswith("a"),
                "launches": f"{level}/launches.json",
                "source": f"{level}/kernels.cu",
                "weights": f"{level}/weights.bin",
                "cubins": {arch: f"{level}/{arch}.cubin" for arch in own},
                "kernels": len({call.kernel for call in program.calls}),
                "calls": len(program.calls),
                "counter_bytes": counter_bytes(program),
                **sizes,
            }
        )
    spilled = {
        arch: sorted(n for n, used in cubin.usage.items() if used["spilled"]) for (_, arch), cubin in made.items()
    }
    manifest = {"headers": ["src/qc_device.h"], "variants": variants}
    return Lowered(files, manifest, sizes, {"cuda": {"spills": spilled}} if made else {})


def counter_bytes(program: Program) -> int:
    """Of the counters of kernels whose sums have parts, which a loader sets to 0 once."""
    buffers = (argument.buffer for call in program.calls for argument in call.arguments)
    return max((buffer.bytes for buffer in buffers if buffer.kind == "counters"), default=0)


def _lines(rows: list[dict[str, Any]]) -> bytes:
    """JSON with a row a line."""
    return ("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n").encode()
