"""Compute a normalization twice where products with weights read it beside others: n -> n for the others, n' for them.

Networks that normalize behind the residual Add (BERT, Swin v2) add the normalized value again, so that no factor of a
channel can be folded into it (qcompiler/graph/folding.py). A second LayerNormalization or RMSNormalization with the
same input and constants, which products alone read, lifts that for the price of a normalization: smoothquant, awq and
repq then treat n', which gets a quantizer of its own. Outputs are bit-identical.

Run it before `decide`. Source: ours, in place of the compensating Mul and Sub on the other readers' edge.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from qcompiler.context import Context
from qcompiler.graph.folding import find_sites
from qcompiler.graph.model import Graph, attributes
from qcompiler.graph.stages import Stage
from qcompiler.graph.trace import trace

STAGE = (Stage.FLOAT, Stage.FLOAT)


@dataclass(frozen=True, kw_only=True)
class Options:
    """None."""


def run(graph: Graph, options: Options, context: Context) -> Graph:
    """The same function; every second normalization is noted."""
    count = 0
    for node, _ in find_sites(graph)[1]:
        value = node.outputs[0]
        products = [sink.node for sink in trace(graph, value, -1).sinks if sink.node.inputs[0] is value]
        others = [use for use in value.uses() if use.node not in products]
        if not products or not (others or value.is_graph_output()):
            continue
        second = _copy(graph, node)
        for product in products:
            product.replace_input_with(0, second.outputs[0])
        if not _is_site(graph, second):  # its own constants forbid it: nothing is won
            for product in products:
                product.replace_input_with(0, value)
            graph.remove(second)
            continue
        context.note(node, f"computed twice: {len(products)} products read `{second.outputs[0].name}`")
        count += 1
    context.facts["split_norms"] = {"normalizations": count}
    return graph


def _copy(graph: Graph, node: ir.Node) -> ir.Node:
    name, value = node.name or node.op_type, node.outputs[0]
    return graph.add_node(
        node.op_type, list(node.inputs), attributes(node), after=node, domain=node.domain, name=f"{name}/products",
        outputs=[f"{value.name}_products"], like=value,
    )  # fmt: skip


def _is_site(graph: Graph, node: ir.Node) -> bool:
    return any(site.node is node for site in find_sites(graph)[0])
