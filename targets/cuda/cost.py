"""Latency of the cuda target by a small formula; bytes of weights and arena are exact.

A launch takes the largest of what its bytes, its products and its blocks take, and a share that is always there (what a
graph spends between kernels, and what a kernel does before and after). Products run at the card's rate only where there
are blocks for all of its processors.

Tiled products are priced by block: the larger of two times. One is that of waves: blocks that fit the card at once wait
for their copies, tile after tile of the inner dimension. The other is that of a processor's work: what a block costs at
all, requantization of its outputs, and for every tile the largest of copies that are issued, bytes that arrive, and
products. Constants are fitted to times of networks and kernels by `benchmarks.gpu_costs`, and ship as data with device
and date.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any

from qcompiler.cost import Cost, Widths, Work, bops, value_bytes
from qcompiler.errors import QCompilerError, RecipeError
from qcompiler.graph.model import Graph
from qcompiler.targets.cuda.build import plan
from qcompiler.targets.cuda.emit import launches
from qcompiler.targets.shared.program import Program
from qcompiler.targets.shared.sample import Sample, SampleCost

SHIPPED = Path(__file__).with_name("costs")
"""Tables by name of the card, NAME.json."""
DEFAULT = "h100"
SCHEMA = 2
MEET = 1.2
"""Microseconds that blocks with parts of the same sums take to meet. Not measured: two rounds to the second-level cache
and a fence, as tile.py has them."""
KINDS = {
    "product": "tensor", "batchedproduct": "tensor", "attention": "attention", "depthwise": "direct",
    "directconv": "direct", "directproduct": "direct", "directpool": "direct", "normalize": "rows", "softmax": "rows",
}  # fmt: skip
"""Kernels by name -> which constants they have; all others: map."""


@dataclass(frozen=True)
class Table:
    """Constants of a card.

    fixed: microseconds of a launch, by kind; rates: products a microsecond of all processors, by kind, of tiles by
    `mma` and `wgmma`; bytes_rate: bytes a microsecond of memory, fetch_rate: of the second-level cache, by all
    processors. Of tiles, microseconds: step, of a block from one tile of the inner dimension to the next, however
    small; block, output and copy, of a processor for a block, an output and a copy to shared memory. group: of a
    processor for a block of any other kernel. inference: of a graph beside its kernels.
    """

    device: str
    date: str
    level: str
    processors: int
    fixed: Mapping[str, float]
    rates: Mapping[str, float]
    bytes_rate: float
    fetch_rate: float
    step: float
    block: float
    output: float
    copy: float
    group: float
    inference: float
    error: float
    """Mean relative deviation from times of networks that the fit did not see."""

    @classmethod
    def read(cls, path: Path) -> Table:
        """Raises RecipeError for what is no table."""
        try:
            document = json.loads(path.read_text())
            if document.pop("schema") != SCHEMA:
                raise ValueError("another schema")
            return cls(**document)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise RecipeError(
                f"{path} is no table of a card's costs: {error}.",
                where="option table",
                hint="Make one from a card's measurements: python -m benchmarks.gpu_costs.",
            ) from error

    @property
    def origin(self) -> str:
        """Device, date, how good."""
        return f"{self.device}, {self.date} (deviation {100 * self.error:.0f} %)"

    def microseconds(self, launch: Mapping[str, Any]) -> float:
        """Of one launch, as emit.py lists them."""
        kind = kind_of(launch["kernel"])
        memory = launch["bytes"] / self.bytes_rate
        if "tiled" in launch:
            return self.fixed[kind] + max(memory, self._tiled(prod(launch["grid"]), launch["tiled"]))
        share = min(1.0, prod(launch["grid"]) / self.processors)
        products = launch["macs"] / (self.rates[kind] * share) if kind in self.rates else 0.0
        rounds = -(-prod(launch["grid"]) // self.processors) * self.group
        return self.fixed[kind] + max(memory, launch["bytes"] / (self.fetch_rate * share), products, rounds)

    def _tiled(self, blocks: int, tiled: Mapping[str, Any]) -> float:
        """tiled: what `Product.tiled` says."""
        one = self.processors
        rate = self.rates["wgmma" if tiled["wgmma"] else "mma"] / one
        moved, multiplied = tiled["bytes"] * one / self.fetch_rate, tiled["macs"] / rate
        work = self.block + self.output * tiled["outputs"]
        work += tiled["steps"] * max(self.copy * tiled["copies"], moved, multiplied)
        waves = -(-blocks // (one * tiled["resident"]))
        found = max(waves * self.step * tiled["steps"], -(-blocks // one) * work)
        if tiled["parts"] > 1:
            found += MEET + 4 * (1 + tiled["parts"]) * tiled["outputs"] * one / self.fetch_rate
        return found


def kind_of(kernel: str) -> str:
    """Which constants a kernel has."""
    return KINDS.get(kernel.split("_")[1], "map")


class CudaCost(SampleCost):
    """A cost model (qcompiler/cost.py) of one card. resources: `bops`, `launches`."""

    def __init__(self, table: Table, arithmetic: str = "float") -> None:
        self.table, self.arithmetic = table, arithmetic
        super().__init__()

    @property
    def origin(self) -> str:
        """Device and date of the measurement."""
        return self.table.origin

    def _plan(self, graph: Graph) -> Program:
        return plan(graph, self.table.level, lambda stage, done, total: None)

    def _priced(self, work: Work, widths: Widths) -> Cost:
        sample = Sample(self.arithmetic)
        name = sample.add(work, widths)
        program = self._plan(sample.graph)
        own = [(call, launch) for call, launch in zip(program.calls, launches(program), strict=True)
               if call.node == name]  # fmt: skip
        microseconds = sum(self.table.microseconds(launch) for _, launch in own)
        if work.kind == "move" and work.op_type != "Resize":
            microseconds /= 2  # the sample does it twice
        # Lines of zero points are the same for all nodes.
        constants = {a.buffer.index: a.buffer.bytes for call, _ in own for a in call.arguments
                     if a.buffer.kind == "constant" and not a.buffer.name.endswith(("/line", "/zeros"))}  # fmt: skip
        size = sum(-(-count // 64) * 64 for count in constants.values())
        found = {"bops": bops(work, widths), "launches": len(own)}
        return Cost(microseconds / 1e3, size, value_bytes(work, widths), found)

    def whole(self, graph: Graph) -> Cost:
        """Of an INTEGER graph: latency of one inference on the card, bytes of the weights file, of the arena."""
        program = self._plan(graph)
        microseconds = self.table.inference + sum(map(self.table.microseconds, launches(program)))
        found = {"launches": len(program.calls), "unpriced": 0}
        return Cost(microseconds / 1e3, len(program.constants.blob()), program.arena_bytes, found)

    def nodes(self, graph: Graph) -> dict[str, float]:
        """Node of an INTEGER graph -> milliseconds; nodes that are done with others are not there."""
        program = self._plan(graph)
        found: Counter[str] = Counter()
        for call, launch in zip(program.calls, launches(program), strict=True):
            found[call.node] += self.table.microseconds(launch) / 1e3  # type: ignore[assignment]
        return dict(found)


def cost_model(table: Path | None = None, arithmetic: str = "float") -> tuple[CudaCost, str]:
    """The model, and a note for the report. table: a file, by default that of the reference card. Raises RecipeError,
    QCompilerError where there is none."""
    path = table or SHIPPED / f"{DEFAULT}.json"
    if table is None and not path.is_file():
        raise QCompilerError(
            "there are no constants of a card.",
            where="target `cuda`",
            hint="Make a table: python -m benchmarks.gpu_costs MEASURED.json OUT.json; it is the option `table`.",
        )
    found = _read(str(path), path.stat().st_mtime_ns if path.is_file() else 0)
    return CudaCost(found, arithmetic), f"latency estimated for {found.origin}; another card needs a table of its own"


@lru_cache(maxsize=8)
def _read(path: str, changed: int) -> Table:
    return Table.read(Path(path))
