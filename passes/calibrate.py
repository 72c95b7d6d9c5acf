"""Collect statistics of every float value that will be quantized, in one pass over the calibration data.

Later passes ask for the same statistics and find them in the context; a pass that changes the float graph after this
one makes them stale, and they are collected again.
"""

from __future__ import annotations

from dataclasses import dataclass

from qcompiler.assignment import activations
from qcompiler.calibrate.statistics import require
from qcompiler.context import Context
from qcompiler.graph.model import Graph
from qcompiler.graph.stages import Stage

STAGE = (Stage.FLOAT, Stage.FLOAT)
AFTER = {"smoothquant": "statistics are of the folded network"}


@dataclass(frozen=True, kw_only=True)
class Options:
    pass


def run(graph: Graph, options: Options, context: Context) -> Graph:
    """Leave statistics in the context. Raises CalibrationError without data or on bad samples."""
    require(graph, activations(graph), context)
    return graph
