"""Integer graph -> shared libraries and weights, one pair for every instruction set asked for."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from qcompiler.errors import RecipeError, UnsupportedError
from qcompiler.graph.islands import is_island
from qcompiler.graph.model import Graph
from qcompiler.graph.state import state_pairs
from qcompiler.target import Lowered
from qcompiler.targets.cpu.emit import entry_source
from qcompiler.targets.cpu.isa import LEVELS, host_level
from qcompiler.targets.shared.boundary import check_states, strip_boundary
from qcompiler.targets.shared.codegen import compile_objects
from qcompiler.targets.shared.compiler import find_compiler
from qcompiler.targets.shared.lower import check_operators, lower
from qcompiler.targets.shared.program import Program

_RUNTIME = Path(__file__).resolve().parent.parent.parent / "runtime" / "c"
_FLAGS = ["-std=c11", "-O2", "-fPIC", "-shared", "-pthread", "-fno-ident", "-Wl,--build-id=none", "-Wl,-s"]


def build(graph: Graph, options: dict[str, Any], progress: Callable[[str, int, int], None]) -> Lowered:
    """Files `lib/LEVEL.so` and `lib/LEVEL.weights` of each level in options["cpu"] (default: this machine's).

    Raises UnsupportedError for operators without a lowering and when no C compiler is found.
    """
    levels = _levels(options.get("cpu"))
    check_operators(graph, "cpu", floats=True)
    if pairs := state_pairs(graph):  # state stays codes between two steps
        graph = strip_boundary(graph, {*pairs, *pairs.values()})
        check_states(graph, pairs)
    compiler = c_compiler()
    files: dict[str, bytes] = {}
    variants = []
    sizes: dict[str, int] = {}
    for level in levels:
        machine = LEVELS[level]
        program = lower(graph, machine, progress)
        progress("generate code", 0, 1)
        library = link(program, entry_source(program), compiler)
        progress("generate code", 1, 1)
        files[f"lib/{level}.so"] = library
        files[f"lib/{level}.weights"] = program.constants.blob()
        # The report speaks of the last, fastest level.
        sizes = {
            "weight_bytes": len(files[f"lib/{level}.weights"]),
            "arena_bytes": program.arena_bytes,
            "arena_lower_bound": program.arena_bound,
            "code_bytes": len(library),
        }
        variants.append(
            {
                "level": level,
                "cpu_flags": list(machine.cpu_flags),
                "library": f"lib/{level}.so",
                "weights": f"lib/{level}.weights",
                **sizes,
            }
        )
    return Lowered(files, {"variants": variants}, sizes)


def check(options: Mapping[str, Any]) -> None:
    """Raise RecipeError for unknown instruction sets, UnsupportedError where this machine lacks what `build` needs."""
    _levels(options.get("cpu"))
    c_compiler()


def _levels(asked: str | None) -> list[str]:
    if not asked or asked == "native":
        return [host_level()]
    names = list(LEVELS) if asked == "all" else [name.strip() for name in asked.split(",")]
    for name in names:
        if name not in LEVELS:
            raise RecipeError(
                f"`{name}` is no instruction set of the cpu target.",
                where="--cpu",
                hint=f"Choose from {', '.join(LEVELS)}, `native` or `all`.",
            )
    return [name for name in LEVELS if name in names]


def cost_level(asked: str | None) -> str:
    """The instruction set that costs are about: the fastest of those asked for. Raises RecipeError."""
    return _levels(asked)[-1]


def c_compiler() -> str:
    """The C compiler of this machine. Raises UnsupportedError where there is none."""
    if found := find_compiler():
        return found
    raise UnsupportedError(
        "no C compiler was found to link the bundle's library.",
        where="target `cpu`",
        hint="Install one (`apt install gcc`), or name it in the environment variable CC.",
    )


def link(program: Program, entry: str, compiler: str) -> bytes:
    """The shared library of a program's kernels with this C entry. Raises UnsupportedError where the compiler fails."""
    with tempfile.TemporaryDirectory(prefix="qcompiler-") as folder:
        work = Path(folder)
        (work / "kernels.o").write_bytes(compile_objects(program.kernels(), program.machine.llvm))
        (work / "entry.c").write_text(entry)
        for source in ("qc_runtime.c", "qc_runtime.h"):
            shutil.copy(_RUNTIME / source, work / source)
        command = [compiler, *_FLAGS, "-o", "model.so", "entry.c", "qc_runtime.c", "kernels.o"]
        if any(is_island(node) for node in program.graph.nodes()):
            command.append("-lm")  # exp and its like; nothing integer needs it
        done = subprocess.run(command, cwd=work, capture_output=True, text=True, check=False)
        if done.returncode:
            raise UnsupportedError(
                f"the C compiler `{compiler}` failed: {done.stderr.strip()[:500]}",
                where="target `cpu`",
                hint="Check that it compiles C11 with pthreads, or name another in CC.",
            )
        return (work / "model.so").read_bytes()
