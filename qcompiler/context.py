"""What a pass is given beside the graph."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnx_ir as ir

    from qcompiler.assignment import Assignment
    from qcompiler.calibrate.data import Samples
    from qcompiler.calibrate.statistics import Statistics
    from qcompiler.cost import Cost, CostModel
    from qcompiler.graph.model import Graph
    from qcompiler.target import Capabilities


@dataclass(frozen=True)
class Note:
    """One remark for the report: which pass, about which node or value, what."""

    source: str
    where: str
    text: str


def _silent(stage: str, done: int, total: int) -> None:
    pass


@dataclass
class Context:
    """Capabilities of the target, calibration samples and statistics, seed, progress and notes."""

    capabilities: Capabilities | None = None
    samples: Samples | None = None
    statistics: Statistics | None = None
    assignment: Assignment | None = None
    """Decisions about formats and ranges, until insert_qdq writes them into the graph."""
    float_graph: Graph | None = None
    """The float graph that the QDQ graph came from, for passes that compare with it."""
    seed: int = 0
    progress: Callable[[str, int, int], None] = _silent
    """progress(stage, done, total); total 0 when unknown."""
    notes: list[Note] = field(default_factory=list)
    source: str = ""
    """Name of the pass that runs; set by the pipeline."""
    cost: CostModel | None = None
    """What choices of widths cost on the target; None: bytes and bit operations alone are known."""
    whole: Callable[[tuple[str, ...]], Cost] | None = None
    """Cost of the network as it will be built with a choice of bits (`assign_bits.choice`): all kernels, the true
    arena, code where it counts."""
    facts: dict[str, Any] = field(default_factory=dict)
    """JSON-able measurements that passes leave for the report."""

    def note(self, where: ir.Node | ir.Value | str, text: str) -> None:
        """Leave a remark for the report."""
        name = where if isinstance(where, str) else (where.name or "")
        self.notes.append(Note(self.source, name, text))
