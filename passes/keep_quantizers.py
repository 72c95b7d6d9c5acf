"""Let the quantizers that a model came with decide as far as they reach; a float model stays as it is.

Loading spells every given quantizer as `qcompiler::FakeQuantize`. Then

1. other readers of a value that is quantized for one reader read it quantized too: it has one integer form (but a
   quantizer behind a quantizer is for its own readers alone);
2. behind a quantizer, what moves values (MaxPool, Reshape, Transpose, Slice, Concat of equal parameters, nearest
   Resize, zero Pad, ...) and Relu leave values on the same grid: they get the same quantizer, unless one follows.

Values that still lack a quantizer are calibrated like those of a float model. Rule 2 is bit-identical, rule 1 rounds
what other readers see.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from qcompiler.context import Context
from qcompiler.formats import QuantParams
from qcompiler.graph.analysis import moves_only
from qcompiler.graph.functions import FAKE_QUANTIZE, MINIFLOAT_QUANTIZE
from qcompiler.graph.model import DOMAIN, Graph, attribute
from qcompiler.graph.qdq import read_quantizer, write_fake_quantize
from qcompiler.graph.stages import Stage

STAGE = (Stage.FLOAT, Stage.FLOAT)


@dataclass(frozen=True, kw_only=True)
class Options:
    """None."""


def run(graph: Graph, options: Options, context: Context) -> Graph:
    """The graph with quantizers wherever given ones settle the matter."""
    if not any(_is_given(node) for node in graph.ir):
        return graph
    _share(graph)
    for node in graph.nodes():
        _spread(graph, node)
    return graph


def _is_given(node: ir.Node | None) -> bool:
    return node is not None and node.op_type in (FAKE_QUANTIZE, MINIFLOAT_QUANTIZE) and node.domain == DOMAIN


def _share(graph: Graph) -> None:
    """Rule 1."""
    for node in graph.nodes():
        if not _is_given(node):
            continue
        value = node.inputs[0]
        assert value is not None
        if value.is_initializer() or _is_given(value.producer()):
            continue  # a constant, or the second quantizer of a value: others read it behind the first
        others = [use for use in value.uses() if not _is_given(use.node)]
        first = next(use.node for use in graph_order(graph, value) if _is_given(use.node))
        for use in others if node is first else ():
            use.node.replace_input_with(use.idx, node.outputs[0])
    order = {node: i for i, node in enumerate(graph.ir)}
    if any(order[use.node] < i for node, i in order.items() for v in node.outputs for use in v.uses()):
        graph.ir.sort()


def graph_order(graph: Graph, value: ir.Value) -> list[Any]:
    """Readers of a value in the order of their names, so that results do not depend on memory."""
    return sorted(value.uses(), key=lambda use: (use.node.name or "", use.node.outputs[0].name or ""))


def _spread(graph: Graph, node: ir.Node) -> None:
    """Rule 2."""
    params = _kept(graph, node)
    if params is None:
        return
    for value in node.outputs:
        users = [use.node for use in value.uses()]
        if not value.name or any(_is_given(user) for user in users) or (not users and not value.is_graph_output()):
            continue
        following = next((n for n in node.successors() if n.graph is not None), None)
        fake = write_fake_quantize(graph, value, params, name=f"{value.name}", before=following or node)
        made = fake.producer()
        assert made is not None
        graph.ir.remove(made)
        graph.ir.insert_after(node, made)
        for use in [use for use in value.uses() if use.node is not made]:
            use.node.replace_input_with(use.idx, fake)
        if value.is_graph_output():
            name = value.name
            value.name = graph.fresh_name(f"{name}_exact")
            fake.name = name
            for i, output in enumerate(graph.ir.outputs):
                if output is value:
                    graph.ir.outputs[i] = fake


def _kept(graph: Graph, node: ir.Node) -> QuantParams | None:
    """Parameters on whose grid the outputs of `node` lie because its inputs do."""
    if node.domain or not (moves_only(node) or node.op_type in ("Relu", "Concat")):
        return None
    data = list(node.inputs) if node.op_type == "Concat" else [node.inputs[0]]
    makers = [value.producer() if value is not None else None for value in data]
    if not makers or not all(_is_given(maker) for maker in makers):
        return None
    found = [read_quantizer(graph, maker).params for maker in makers if maker is not None]
    if any(params != found[0] for params in found):
        return None
    if node.op_type == "Pad" and attribute(node, "mode", "constant") == "constant":
        given = node.inputs[2] if len(node.inputs) > 2 else None
        constant = graph.const(given)
        if given is not None and (constant is None or constant.any()):
            return None
    return found[0]
