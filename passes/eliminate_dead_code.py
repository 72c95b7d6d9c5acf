"""Remove nodes, initializers and functions that reach no output."""

from __future__ import annotations

from dataclasses import dataclass

from qcompiler.context import Context
from qcompiler.graph.model import Graph
from qcompiler.graph.stages import Stage

STAGE = (Stage.FLOAT, Stage.FLOAT)


@dataclass(frozen=True, kw_only=True)
class Options:
    """None."""


def run(graph: Graph, options: Options, context: Context) -> Graph:
    """The same outputs from fewer nodes."""
    graph.sweep()
    used = {(node.domain, node.op_type) for node in graph.nodes()}
    used |= {(node.domain, node.op_type) for function in graph.model.functions.values() for node in function}
    for key in [key for key in graph.model.functions if key[:2] not in used]:
        del graph.model.functions[key]
    return graph
