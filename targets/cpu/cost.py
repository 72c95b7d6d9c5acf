"""Latency of the cpu target from measured kernel times (table.py); bytes of weights and arena are exact.

A node alone is priced by lowering a sample of its work (targets/shared/sample.py) and adding up what its kernels take:
conversions of storage between neighbours of different widths, and borders that its window needs, count as its own;
epilogues (bias, clip, requantization) are part of its kernel. A whole graph is lowered as it will be built, and
operands that do not stay in a core's own cache from one use to the next cost more.
"""

from __future__ import annotations

import platform
from collections import Counter
from functools import lru_cache
from pathlib import Path

from qcompiler.calibrate.statistics import cache_directory
from qcompiler.cost import Cost, Widths, Work, bops, value_bytes
from qcompiler.errors import QCompilerError
from qcompiler.graph.islands import is_island
from qcompiler.graph.model import Graph
from qcompiler.targets.cpu.isa import LEVELS, host_level
from qcompiler.targets.cpu.loads import load_of
from qcompiler.targets.cpu.locality import far_bytes
from qcompiler.targets.cpu.table import Table
from qcompiler.targets.shared.lower import lower
from qcompiler.targets.shared.program import Program
from qcompiler.targets.shared.sample import Sample, SampleCost

SHIPPED = Path(__file__).with_name("costs")
"""Tables of the reference machine, LEVEL-THREADS.json."""


class CpuCost(SampleCost):
    """A cost model (qcompiler/cost.py) of one instruction set and number of threads.

    resources: `bops`; `unpriced`: nodes without a price (float islands, operators without a sample), which do not
    depend on widths and count as nothing.
    """

    def __init__(self, table: Table, arithmetic: str = "float") -> None:
        self.table = table
        self.machine = LEVELS[table.level]
        self.arithmetic = arithmetic
        super().__init__()

    @property
    def origin(self) -> str:
        """Device and date of the measurement."""
        return self.table.origin

    def _priced(self, work: Work, widths: Widths) -> Cost:
        """Raises UnsupportedError for kernels that the table lacks."""
        sample = Sample(self.arithmetic)
        name = sample.add(work, widths)
        program = lower(sample.graph, self.machine)
        indices = {a.buffer.index: a.buffer.bytes for call in program.calls if call.node == name for a in call.arguments
                   if a.buffer.kind == "constant"}  # fmt: skip
        own = [call for call in program.calls if call.node == name or type(call.spec).__name__ == "Fill"]
        nanoseconds = sum(self.table.nanoseconds(load_of(call, self.machine), name) for call in own)
        if work.kind == "move" and work.op_type != "Resize":
            nanoseconds /= 2  # the sample does it twice
        size = sum(-(-count // 64) * 64 for count in indices.values())
        return Cost(nanoseconds / 1e6, size, value_bytes(work, widths), {"bops": bops(work, widths)})

    def whole(self, graph: Graph) -> Cost:
        """Of an INTEGER graph: latency of one inference, bytes of the weights file, of the arena."""
        program = lower(graph, self.machine)
        nanoseconds, unpriced = self.kernels(program)
        blob = len(program.constants.blob())
        latency = (sum(nanoseconds) + self.table.inference_ns) / 1e6
        return Cost(latency, blob, program.arena_bytes, {"unpriced": unpriced})

    def kernels(self, program: Program) -> tuple[list[float], int]:
        """Nanoseconds of every call, and how many nodes have none: float islands, kernels that were not measured."""
        islands = {str(node.name) for node in program.graph.nodes() if is_island(node)}
        found, unpriced = [], set()
        for call, far in zip(program.calls, far_bytes(program, self.table.near_bytes), strict=True):
            load = load_of(call, self.machine)
            if call.node in islands or not self.table.knows(load):
                unpriced.add(call.node)
                found.append(0.0)
            else:
                found.append(self.table.nanoseconds(load, call.node) + far * self.table.far_ns)
        return found, len(unpriced)

    def nodes(self, graph: Graph) -> dict[str, float]:
        """Node of an INTEGER graph -> milliseconds."""
        program = lower(graph, self.machine)
        found: Counter[str] = Counter()
        for call, ns in zip(program.calls, self.kernels(program)[0], strict=True):
            found[call.node] += ns / 1e6  # type: ignore[assignment]
        return dict(found)


def table_name(level: str, threads: int) -> str:
    """File name of a table."""
    return f"{level}-{threads}.json"


def own_table(level: str, threads: int) -> Path | None:
    """Where `qcompile calibrate-costs` keeps this machine's table; None where there is no cache."""
    directory = cache_directory()
    return directory / "costs" / "cpu" / table_name(level, threads) if directory is not None else None


def cost_model(
    level: str | None = None, threads: int = 1, table: Path | None = None, arithmetic: str = "float"
) -> tuple[CpuCost, str]:
    """The model, and a note for the report. table: a file; by default this machine's own, else the shipped one, with a
    note that names the machine (of one thread, if there is none for as many, which the note says too). level: by
    default this machine's. Raises RecipeError, UnsupportedError, QCompilerError where there is no table."""
    if table is not None:
        found = _read(str(table), table.stat().st_mtime_ns if table.is_file() else 0)
        return CpuCost(found, arithmetic), f"latency from {found.origin} ({table})"
    level = level or host_level()
    own = own_table(level, threads)
    if own is not None and own.is_file():
        found = _read(str(own), own.stat().st_mtime_ns)
        return CpuCost(found, arithmetic), f"latency from this machine's table: {found.origin}"
    shipped = SHIPPED / table_name(level, threads)
    if not shipped.is_file():
        shipped = SHIPPED / table_name(level, 1)
    if not shipped.is_file():
        raise QCompilerError(
            f"there is no table of kernel times for {level} and {threads} threads.",
            where="target `cpu`",
            hint=f"Make one: qcompile calibrate-costs --cpu {level} --threads {threads}.",
        )
    found = _read(str(shipped), 0)
    note = f"latency from the table of another machine ({found.origin}); `qcompile calibrate-costs` measures this one"
    if found.threads != threads:
        note += f". Its figures are of {found.threads} thread{'s' * (found.threads > 1)}, not of {threads}"
    return CpuCost(found, arithmetic), note


@lru_cache(maxsize=8)
def _read(path: str, changed: int) -> Table:
    return Table.read(Path(path))


def device() -> str:
    """The processor's name."""
    info = Path("/proc/cpuinfo")
    for line in info.read_text().splitlines() if info.is_file() else ():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()
