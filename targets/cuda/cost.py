"""Latency of the cuda target by a small formula; bytes of weights and arena are exact.

A launch takes the larger of what its bytes and its products take, and a share that is always there (what a graph spends
between kernels, and what a kernel does before and after). Products run at the card's rate only where there are blocks
for all of its processors. Constants are fitted to times of networks by `benchmarks.gpu_costs`, and ship as data with
device and date.
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
SCHEMA = 1
KINDS = {
    "product": "tensor", "batchedproduct": "tensor", "attention": "tensor", "depthwise": "direct",
    "directconv": "direct", "directproduct": "direct", "directpool": "direct", "normalize": "rows", "softmax": "rows",
}  # fmt: skip
"""Kernels by name -> which constants they have; all others: map."""


@dataclass(frozen=True)
class Table:
    """Constants of a card. fixed: microseconds of a launch, by kind; rates: products a microsecond of all processors,
    by kind; bytes_rate: bytes a microsecond of memory, fetch_rate: of the second-level cache, by all processors;
    inference: microseconds of a graph beside its kernels."""

    device: str
    date: str
    level: str
    processors: int
    fixed: Mapping[str, float]
    rates: Mapping[str, float]
    bytes_rate: float
    fetch_rate: float
    inference: float
    error: float
    """Mean relative deviation from the times that it was fitted to."""

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
        share = min(1.0, prod(launch["grid"]) / self.processors)
        products = launch["macs"] / (self.rates[kind] * share) if kind in self.rates else 0.0
        fetches = launch.get("fetched", launch["bytes"]) / (self.fetch_rate * share)
        return self.fixed[kind] + max(launch["bytes"] / self.bytes_rate, fetches, products)


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
        constants = {a.buffer.index: a.buffer.bytes for call, _ in own for a in call.arguments
                     if a.buffer.kind == "constant"}  # fmt: skip
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
