"""Fit the estimates of targets/c/rates.json: code and stack to arm-none-eabi-gcc, instructions to the emulator.

    python -m benchmarks.mcu_rates

Compiles the kernels of the conformance suite and of the networks in benchmarks/mcu.py, and prints how far the estimate
is from the measurement for each network. Run it after kernels changed.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.assets import networks
from benchmarks.bundles import quantize
from benchmarks.mcu import NETWORKS, counted
from qcompiler.bundle import Bundle, manifest_of
from qcompiler.cli.console import table
from qcompiler.graph.model import Graph
from qcompiler.targets.c import footprint, instructions
from qcompiler.targets.c.build import build
from qcompiler.targets.c.emit import HELPERS
from tests.conformance.suite import build_suite
from tests.mcu.boards import build_plugin

CALLED = re.compile(r"qc_(dot|column|planes|taps|row|window)_\w*(u8|s8|x1|x4|3x3)$")
"""Functions of targets/c/templates that kernels call."""


def graphs() -> Iterator[tuple[str, Graph]]:
    """Name and INTEGER graph."""
    yield "suite", build_suite("fixed").graph
    for case in networks(NETWORKS):
        graph = quantize(case, "w8a8", "fixed").integer_graph
        assert graph is not None
        yield case.name, graph


def sizes_of(output: Path) -> dict[str, int]:
    """Function -> bytes of code in an object file."""
    nm = [footprint.COMPILER.removesuffix("gcc") + "nm", "-S", str(output)]
    listing = subprocess.run(nm, capture_output=True, text=True, check=True).stdout
    rows = (line.split() for line in listing.splitlines())
    return {row[3]: int(row[1], 16) for row in rows if len(row) == 4 and row[2].lower() == "t"}


def function_sizes() -> dict[str, int]:
    """Bytes of each function of targets/c/templates that kernels call."""
    folder = Path(footprint.__file__).with_name("templates")
    with tempfile.TemporaryDirectory() as name:
        text, output = Path(name) / "f.c", Path(name) / "f.o"
        text.write_text("".join(f'#include "{header}"\n' for header in HELPERS))
        command = [footprint.COMPILER, *footprint.FLAGS, "-fkeep-inline-functions", "-fkeep-static-functions"]
        command += [f"-I{folder}"]
        subprocess.run([*command, "-c", str(text), "-o", str(output)], check=True, cwd=name)
        found = sizes_of(output)
    return {function: size for function, size in sorted(found.items()) if CALLED.match(function)}


def measured(folder: Path, name: str) -> tuple[dict[str, int], dict[str, int]]:
    """Function -> bytes of code, and of stack, of kernels and of qc_NAME_run."""
    code: dict[str, int] = {}
    stack: dict[str, int] = {}
    for file in (f"{name}_kernels.c", f"{name}.c"):
        output = folder / f"{file}.o"
        command = [footprint.COMPILER, *footprint.FLAGS, "-c", str(folder / "src" / file), "-o", str(output)]
        subprocess.run(command, check=True, cwd=folder / "src")
        stack |= footprint.frames(output.with_suffix(".su"))
        code |= sizes_of(output)
    return code, stack


def fit(rows: list[dict[str, int]], sizes: list[int], power: float = 0.75) -> dict[str, float]:
    """Non-negative rates of least error, weighted by size^-power so that small kernels count as well."""
    from scipy.optimize import nnls

    names = list(rows[0])
    counts = np.array([[row[name] for name in names] for row in rows], float)
    wanted = np.array(sizes, float)
    weights = 1 / np.maximum(wanted, 100) ** power
    found: NDArray = nnls(counts * weights[:, None], wanted * weights)[0]
    return {name: round(float(rate), 3) for name, rate in zip(names, found, strict=True) if rate}


def count(bundle: Bundle, graph: Graph, plugin: Path, found: dict[str, list[tuple[dict[str, int], int]]]) -> None:
    """Add (features, instructions) of every call by kind of kernel."""
    nodes = {str(node.name): node for node in graph.nodes()}
    kinds = {call["kernel"]: call["kernel"].split("_")[2] for call in bundle.manifest["c"]["calls"]}
    calls = bundle.manifest["c"]["calls"]
    for call, (_, spent) in zip(calls, counted(bundle, plugin, bundle.path, "-Os"), strict=True):
        if call["node"] in nodes:
            row = (instructions.features(graph, nodes[call["node"]]), spent)
            found.setdefault(kinds[call["kernel"]], []).append(row)


def fit_instructions(found: dict[str, list[tuple[dict[str, int], int]]]) -> dict[str, dict[str, float]]:
    """Rates by kind of kernel, and of those that are on no network."""
    rates = {kind: fit([row for row, _ in rows], [spent for _, spent in rows], 1.0) for kind, rows in found.items()}
    simple = [row for kind, rows in found.items() if kind in ("add", "scalarpool", "reduce") for row in rows]
    return rates | {instructions.OTHER: fit([row for row, _ in simple], [spent for _, spent in simple], 1.0)}


def helper(source: str) -> int:
    """Bytes that a function pulls in beside itself."""
    with tempfile.TemporaryDirectory() as name:
        text, image = Path(name) / "f.c", Path(name) / "f"
        text.write_text(source)
        command = [footprint.COMPILER, *footprint.FLAGS, "-nostartfiles", "-Wl,-e,f,-u,f,--gc-sections", str(text)]
        subprocess.run([*command, "-o", str(image)], check=True, cwd=name)
        size = [footprint.COMPILER.removesuffix("gcc") + "size", str(image)]
        return int(subprocess.run(size, capture_output=True, text=True, check=True).stdout.split()[6])


def main() -> int:
    """Write the rates, print the table."""
    features: list[dict[str, int]] = []
    sizes: list[int] = []
    frames: list[int] = []
    runs: list[tuple[int, int, int, int]] = []
    found: list[tuple[str, Any, Any]] = []
    spent: dict[str, list[tuple[dict[str, int], int]]] = {}
    library = tempfile.TemporaryDirectory()
    functions = function_sizes()
    plugin = build_plugin(Path(library.name) / "count.so")
    for name, graph in graphs():
        with tempfile.TemporaryDirectory() as work:
            folder = Path(work)
            lowered = build(graph, {"prefix": "net"}, lambda stage, done, total: None)
            for path, data in lowered.files.items():
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                (folder / path).write_bytes(data)
            code, stack = measured(folder, "net")
            kernels = (folder / "src" / "net_kernels.c").read_text()
            calls = [call["arguments"] for call in lowered.manifest["calls"]]
            for kernel, text in footprint.split_kernels(kernels).items():
                features.append(footprint.features(text))
                inlined = (size for f, size in functions.items() if f not in code and re.search(rf"\b{f}\(", text))
                sizes.append(max(code[kernel] - sum(inlined), 1))
                frames.append(stack[kernel])
            runs.append((len(calls), sum(calls), code["qc_net_run"], stack["qc_net_run"]))
            size = (lowered.sizes["arena_bytes"], lowered.sizes["weight_bytes"])
            exact = footprint.measure(folder, ("net.c", "net_kernels.c"), "net", *size)
            found.append((name, exact, (kernels, calls, *size)))
            if name != "suite":
                manifest = manifest_of("c", "fixed", graph, lowered.files, lowered.manifest, lowered.sizes)
                count(Bundle(folder, manifest), graph, plugin, spent)
    call = fit([{"call": n, "argument": a} for n, a, _, _ in runs], [c for _, _, c, _ in runs])
    version = subprocess.run([footprint.COMPILER, "-dumpversion"], capture_output=True, text=True, check=True).stdout
    rates = {
        "origin": f"{footprint.COMPILER} {version.strip()} {' '.join(footprint.FLAGS[:3])}, {date.today().isoformat()}",
        "code": fit(features, sizes),
        "stack": fit(features, frames),
        "call": call.get("call", 0.0),
        "argument": call.get("argument", 0.0),
        "run": float(np.median([s for *_, s in runs])),
        "instructions": fit_instructions(spent),
        "functions": functions,
        "helpers": {
            "softmax": helper("long long f(long long a, long long b) { return a / b; }"),
            "fill": helper(
                "void *memset(void *, int, unsigned); void f(char *p, int n) { memset(p, 1, (unsigned)n); }"
            ),
        },
    }
    path = Path(footprint.__file__).with_name("rates.json")
    path.write_text(json.dumps(rates, indent=1) + "\n")
    lines = []
    for name, exact, arguments in found:
        guess = footprint.estimate(*arguments, footprint.Rates.read())
        lines.append(
            [name, exact.code, guess.code, f"{guess.flash / exact.flash - 1:+.1%}", exact.stack, guess.stack,
             f"{guess.ram / exact.ram - 1:+.1%}"]
        )  # fmt: skip
    print(table(["network", "code", "estimated", "flash off", "stack", "estimated", "RAM off"], lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
