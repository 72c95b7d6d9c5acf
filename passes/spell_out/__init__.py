"""Write operators that have no integer form of their own as others that have one.

Movement (bit-identical): SpaceToDepth, Tile, Compress, ReverseSequence, GatherElements, GatherND, ScatterElements and
ScatterND with constant indices.
Reductions: ReduceL1, L2, SumSquare, LogSum, LogSumExp, Prod (up to 16 factors), LogSoftmax, Hardmax, CumSum (a product
with a triangle of ones), Mean of several, LpNormalization over other axes or with p = 1, MeanVarianceNormalization.
Windows: LRN (a product with a band of ones), LpPool, GlobalLpPool; convolutions and pools of three spatial dimensions
(slices of depth as channels: one accumulator, as exact as in two dimensions).
Choices: Max and Min of several, Clip between activations, Trilu, a Where that masks the input of a Softmax.
Einsum as Transpose, Reshape and MatMul; Attention and RotaryEmbedding (operator set 23) as products and Softmax.

Values in between that need it get 16 bits (qcompiler/widths.py). Float output is equal up to the order of float32 sums.
What a rule cannot do stays as it is; `check_support` then says so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import onnx_ir as ir

from qcompiler.context import Context
from qcompiler.graph.model import Graph
from qcompiler.graph.stages import Stage
from qcompiler.passes.spell_out import attention, choices, einsum, movement, reductions, windows
from qcompiler.passes.spell_out.build import Build

STAGE = (Stage.FLOAT, Stage.FLOAT)
RULES: dict[str, Callable[[Graph, ir.Node, Build], ir.Value | None]] = {
    **movement.RULES,
    **reductions.RULES,
    **windows.RULES,
    **choices.RULES,
    **attention.RULES,
    "Einsum": einsum.write,
}
"""Operator -> what its output becomes, None where it stays."""
SEVERAL = ("Attention",)
"""Operators whose rules see to their other outputs."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """None."""


def run(graph: Graph, options: Options, context: Context) -> Graph:
    """The same function without these operators."""
    again = True
    while again:  # what one rule writes may be for another
        again = False
        for node in graph.nodes(*RULES):
            several = any(value.uses() or value.is_graph_output() for value in node.outputs[1:])
            if node.domain or several and node.op_type not in SEVERAL:
                continue
            new = RULES[node.op_type](graph, node, Build(graph, node))
            if new is not None:
                graph.bypass(node, new)
                again = True
    graph.sweep()
    return graph
