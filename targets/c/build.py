"""Integer graph -> C99 sources."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from qcompiler.errors import RecipeError
from qcompiler.graph.model import Graph
from qcompiler.graph.state import state_pairs
from qcompiler.target import Lowered
from qcompiler.targets.c import footprint
from qcompiler.targets.c.advice import Ways
from qcompiler.targets.c.emit import HELPERS, Sources, facts
from qcompiler.targets.c.fit import judge, limits_of, peak
from qcompiler.targets.c.header import header
from qcompiler.targets.c.machine import PACKED, SCALAR
from qcompiler.targets.c.mcus import CHOICES, GENERIC, Mcu, mcu_of
from qcompiler.targets.c.modules import module_files
from qcompiler.targets.c.objects import OBJECTS, code_bytes
from qcompiler.targets.c.project import Project
from qcompiler.targets.c.selftest import VECTORS, answers, selftest
from qcompiler.targets.c.state import state_bytes
from qcompiler.targets.c.weights import assembler
from qcompiler.targets.shared.boundary import check_states, strip_boundary
from qcompiler.targets.shared.codegen import compile_objects
from qcompiler.targets.shared.lower import check_operators, lower
from qcompiler.targets.shared.machine import Machine
from qcompiler.targets.shared.program import Program
from qcompiler.targets.shared.stream import least_memory

Progress = Callable[[str, int, int], None]
TEMPLATES = Path(__file__).resolve().parent / "templates"


def quiet(stage: str, done: int, total: int) -> None:
    """Progress that nobody sees."""


def check(options: Mapping[str, Any]) -> None:
    """Raise RecipeError for values of options that `build` cannot use."""
    prefix = options.get("prefix", "model")
    if not re.fullmatch(r"(?!qc_)[a-z][a-z0-9_]*", prefix):  # qc_ is in front of it anyway, and of our own headers
        raise RecipeError(
            f"`{prefix}` is no C identifier in lower case, or begins with qc_.",
            where="option prefix",
            hint="For example kws or person_detector.",
        )
    limits_of(options)
    if not str(options.get("vectors", VECTORS)).isdigit():
        raise RecipeError(f"`{options['vectors']}` is no count.", where="option vectors")
    if options.get("arena", "static") not in ("static", "caller"):
        raise RecipeError(f"`{options['arena']}` is neither static nor caller.", where="option arena")
    if options.get("weights", "header") not in ("header", "bin"):
        raise RecipeError(f"`{options['weights']}` is neither header nor bin.", where="option weights")
    if options.get("states", "inside") not in ("inside", "shown"):
        raise RecipeError(f"`{options['states']}` is neither inside nor shown.", where="option states")
    goal = options.get("optimize_for", "latency")
    if goal not in ("latency", "memory"):
        raise RecipeError(f"`{goal}` is neither latency nor memory.", where="option optimize_for")
    if goal == "memory" and options.get("object") is not None and OBJECTS[options["object"]].borders:
        raise RecipeError(
            "kernels with vectors keep whole images.",
            where="option optimize_for",
            hint="Leave out --object or --optimize-for.",
        )
    if options.get("pack") and options.get("object") is not None:
        raise RecipeError(
            "kernels in an object read a byte a weight.", where="option pack", hint="Leave out --object or --pack."
        )
    mcu = options.get("mcu", GENERIC)
    if mcu not in CHOICES:
        raise RecipeError(f"`{mcu}` is no core.", where="option mcu", hint=f"Choose from {', '.join(CHOICES)}.")
    core = options.get("object")
    if core is not None and mcu not in (GENERIC, core):
        raise RecipeError(
            f"the object is for `{core}` and the project for `{mcu}`.", where="option mcu", hint="Leave out --mcu."
        )
    if core is not None and core not in OBJECTS:
        raise RecipeError(
            f"there is no object for `{core}`.", where="--object", hint=f"Choose from {', '.join(OBJECTS)}."
        )
    if core is not None and limits_of(options):
        raise RecipeError(
            "the stack of an object is not known, so it cannot be held against limits.",
            where="--object",
            hint="Leave out --flash and --ram, or --object.",
        )


def build(graph: Graph, options: dict[str, Any], progress: Progress) -> Lowered:
    """Sources under `src/`, a self-test and project files; with option `object` the kernels are an object file.

    Raises UnsupportedError for operators without a lowering.
    """
    check(options)
    check_operators(graph, "c")
    stripped = strip_boundary(graph)
    states = state_pairs(graph) if options.get("states", "inside") == "inside" else {}
    check_states(stripped, states)
    core = options.get("object")
    machine = OBJECTS[core] if core else PACKED if options.get("pack") else SCALAR
    in_bands = options.get("optimize_for") == "memory"
    program = plan(stripped, machine, states, in_bands, progress)
    progress("generate code", 0, 1)
    sources = Sources(
        stripped,
        program,
        options.get("prefix", "model"),
        options.get("arena") == "caller",
        options.get("weights") == "bin",
    )
    mcu = mcu_of(core or options.get("mcu"))
    project = Project(sources, mcu, core)
    name, vectors = sources.name, int(options.get("vectors", VECTORS))
    float_header, float_source = sources.float_wrappers()
    kernel_object = compile_objects(program.kernels(), program.machine.llvm) if core else b""
    weight_bytes = sources.constant_bytes()
    kernels = sources.kernels()
    arguments = [len(call.arguments) for call in program.calls]
    # What stands in files must not depend on tools of this machine, so it is the estimate.
    kept = state_bytes(sources.states)
    guess = footprint.estimate(kernels, arguments, program.arena_bytes, weight_bytes, footprint.Rates.read(), kept)
    sizes = {
        "weight_bytes": weight_bytes,
        "arena_bytes": program.arena_bytes,
        "arena_lower_bound": program.arena_bound,
        "code_bytes": code_bytes(kernel_object) if core else guess.code,
        **({"state_bytes": kept} if sources.states else {}),
        **({} if core else {"stack_bytes": guess.stack}),
    }
    texts = {
        f"src/{name}.h": header(sources),
        "src/qc_tensor.h": (TEMPLATES / "qc_tensor.h").read_text(),
        f"src/{name}.c": sources.model(),
        f"src/{name}_kernels.h": sources.kernels_header(),
        f"src/{name}_float.h": float_header,
        f"src/{name}_float.c": float_source,
        "test/selftest.c": selftest(sources, answers(stripped, vectors, program.states)),
        "README.md": project.readme(sizes),
        **project.files(),
        **module_files(project),
    }
    if not core:
        texts |= {
            f"src/{name}_kernels.c": kernels,
            **{f"src/{name}": (TEMPLATES / name).read_text() for name in ("qc_dsp.h", *HELPERS)},
        }
    if sources.blob:
        texts[f"src/{name}_weights.S"] = assembler(name)
    files = {path: text.encode() for path, text in texts.items()}
    if sources.blob:
        files[f"src/{name}_weights.bin"] = sources.blob.data
    entry = {**facts(sources), "mcu": mcu.name if mcu else GENERIC}
    if core:
        files[f"src/{name}_kernels.o"] = kernel_object
        progress("generate code", 1, 1)
        entry |= {
            "files": [file for file in sources.files() if file != f"{name}_kernels.c"],
            "object": {"core": core, "file": f"{name}_kernels.o"},
        }
        return Lowered(files, entry, sizes)
    progress("generate code", 1, 1)
    size = _measured(files, sources, weight_bytes, mcu) or guess
    fit = judge(size, program, limits_of(options), _ways(stripped, options, states))
    return Lowered(files, entry, sizes, {"fit": fit})


def plan(
    graph: Graph, machine: Machine, states: Mapping[str, str], in_bands: bool = False, progress: Progress = quiet
) -> Program:
    """The program of a graph without its boundary. in_bands: in the order that needs least memory."""
    if not in_bands:
        return lower(graph, machine, progress, states=states)
    return least_memory(
        graph,
        lambda chains: lower(graph, machine, progress, chains, states),
        lambda program: peak(program)[0],
    )


def _ways(graph: Graph, options: Mapping[str, Any], states: Mapping[str, str]) -> Ways:
    """What options that are not in use would take; lowers once more when it is asked."""
    machine = PACKED if options.get("pack") else SCALAR

    return Ways(
        None if options.get("optimize_for") == "memory" else lambda: plan(graph, machine, states, True).arena_bytes,
        None if options.get("pack") else lambda: lower(graph, PACKED, states=states).constant_bytes(),
    )


def _measured(
    files: Mapping[str, bytes], sources: Sources, weight_bytes: int, mcu: Mcu | None
) -> footprint.Footprint | None:
    with tempfile.TemporaryDirectory(prefix="qcompiler-") as work:
        folder = Path(work)
        (folder / "src").mkdir()
        for path, data in files.items():
            if path.startswith("src/"):
                (folder / path).write_bytes(data)
        return footprint.measure(
            folder,
            facts(sources)["files"],
            sources.name,
            sources.program.arena_bytes,
            weight_bytes,
            mcu,
            state_bytes(sources.states),
        )
