"""Blocks: the pieces in which learning passes reconstruct a network, one after another.

A value is a cut if every path from the input to the output goes through it (it dominates the output). What lies between
two cuts is a region with a single entry and a single exit: a residual block, half a transformer block, or, in a chain,
one operator. Blocks are regions, with these rules:

1. a region without a weight (activation, quantizer, pool) belongs to the block before it; LayerNormalization, and
   what follows it, to the block after;
2. a depthwise convolution belongs with the pointwise ones around it (an inverted residual without its shortcut);
3. a region with more than `limit` weights (a U-Net between the ends of its longest shortcut) is cut inside: its
   branches are regions from the same entry to the node in which they meet. Only then has a block several inputs.

What does not depend on the main input (the embedding of a time step, a mask) goes first. The main input is the one that
gives the most blocks, or else on which most depends.

Sources: Li et al. 2021, BRECQ, section 3.2 (blocks as units of reconstruction); Johnson, Pearson, Pingali 1994, The
Program Structure Tree (single-entry single-exit regions).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import networkx as nx
import onnx_ir as ir

from qcompiler.graph import qdq
from qcompiler.graph.analysis import dataflow
from qcompiler.graph.model import Graph, attribute

LIMIT = 6
"""Weights of the largest blocks in use: attention has four, and a residual block with squeeze-and-excitation five."""
NORMS = ("LayerNormalization", "RMSNormalization")
"""Normalizations that open a block; the others stand behind a convolution."""
Vertex = tuple[str, Any]


@dataclass(frozen=True, eq=False)
class Block:
    """Some nodes in topological order; names of the computed values (or graph inputs) that they read from outside, and
    of those that something outside reads, graph outputs included."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: tuple[ir.Node, ...]


def blocks(graph: Graph, *, limit: int = LIMIT) -> list[Block]:
    """All nodes of a FLOAT or QDQ graph, each in one block; a block reads only blocks before it."""
    nodes = graph.nodes()
    groups = _groups(graph, limit) if nodes else []
    return [_block(graph, [nodes[i] for i in sorted(group)]) for group in groups]


def has_weight(graph: Graph, node: ir.Node) -> bool:
    """Whether `node` is a product with a constant, quantized or not."""
    if node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul") or node.domain:
        return False
    return any(_is_constant(graph, value) for value in node.inputs[:2])


def _is_constant(graph: Graph, value: ir.Value | None) -> bool:
    if graph.const(value) is not None:
        return True
    maker = value.producer() if value is not None else None
    return qdq.is_quantizer(maker) and graph.const(maker.inputs[0]) is not None  # type: ignore[union-attr]


def _groups(graph: Graph, limit: int) -> list[list[int]]:
    """Indices of nodes, block by block."""
    nodes = graph.nodes()
    flow = dataflow(graph)
    constants: list[Vertex] = [("value", name) for name in graph.ir.initializers]
    constants += [
        ("value", node.outputs[0].name)
        for node in nodes
        if qdq.is_quantizer(node) and _is_constant(graph, node.outputs[0])
    ]
    flow.remove_nodes_from(constants)
    weights = {i for i, node in enumerate(nodes) if has_weight(graph, node)}
    sink = max((("value", v.name) for v in graph.outputs), key=lambda vertex: len(nx.ancestors(flow, vertex)))
    before = nx.ancestors(flow, sink)
    best: list[list[int]] = []
    below: set[Vertex] = set()
    for value in graph.inputs:
        source = ("value", value.name)
        if source not in before:
            continue
        inside = (nx.descendants(flow, source) & before) | {source, sink}
        found = _merged(nodes, weights, _regions(flow.subgraph(inside), source, sink, weights, limit))
        after = nx.descendants(flow, source)
        if (len(found), len(after)) > (len(best), len(below)):
            best, below = found, after
    found = _with_depthwise(nodes, weights, best)
    return _with_rest(nodes, weights, found or [[]], {i for kind, i in below if kind == "node"})


def _cuts(flow: nx.DiGraph, source: Vertex, sink: Vertex) -> list[Vertex]:
    """The values that all paths from source to sink go through, both ends included, in order."""
    above = nx.immediate_dominators(flow, source)
    chain = [sink]
    while chain[-1] != source:
        chain.append(above[chain[-1]])
    return [vertex for vertex in reversed(chain) if vertex[0] == "value" or vertex == sink]


def _regions(flow: nx.DiGraph, source: Vertex, sink: Vertex, weights: set[int], limit: int) -> Iterable[list[int]]:
    """Nodes of the regions between source and sink, in order; of sink too, if it is a node."""
    for entry, exit_ in pairwise(_cuts(flow, source, sink)):
        between = nx.descendants(flow, entry) & nx.ancestors(flow, exit_)
        join = exit_ if exit_[0] == "node" else next(iter(flow.predecessors(exit_)))
        body = between - {join}
        members = sorted(i for kind, i in body if kind == "node")
        parts = list(nx.weakly_connected_components(flow.subgraph(body)))
        stuck = exit_ == sink and sink[0] == "node" and entry == source and len(parts) == 1
        if len(weights.intersection(members)) <= limit or stuck:
            yield [*members, join[1]]
            continue
        for part in sorted(parts, key=lambda vertices: min(i for kind, i in vertices if kind == "node")):
            branch = nx.DiGraph(flow.subgraph(part | {entry, join}))
            branch.remove_edges_from([(entry, join)])  # a shortcut is no way through this branch
            for region in _regions(branch, entry, join, weights, limit):
                rest = [i for i in region if i != join[1]]
                if rest:
                    yield rest
        yield [join[1]]


def _merged(nodes: list[ir.Node], weights: set[int], regions: Iterable[list[int]]) -> list[list[int]]:
    """Rule 1."""
    found: list[list[int]] = []
    waiting: list[int] = []
    for region in regions:
        if weights.intersection(region):
            found.append(waiting + region)
            waiting = []
        elif waiting or not found or any(nodes[i].op_type in NORMS for i in region):
            waiting = waiting + region
        else:
            found[-1] = found[-1] + region
    if waiting and found:
        found[-1] = found[-1] + waiting
    return found or ([waiting] if waiting else [])


def _with_depthwise(nodes: list[ir.Node], weights: set[int], groups: list[list[int]]) -> list[list[int]]:
    """Rule 2."""
    found: list[list[int]] = []
    taken, kinds = False, [_kind(nodes, weights.intersection(group)) for group in groups]
    for i, group in enumerate(groups):
        pair = (kinds[i - 1] if i else "", kinds[i])
        joins = pair == ("depthwise", "pointwise") or (pair == ("pointwise", "depthwise") and not taken)
        if joins:
            found[-1] = found[-1] + group
        else:
            found.append(group)
        taken = joins
    return found


def _kind(nodes: list[ir.Node], weights: set[int]) -> str:
    convolutions = [nodes[i] for i in weights if nodes[i].op_type == "Conv"]
    if len(weights) != 1 or not convolutions:
        return "other"
    node = convolutions[0]
    if attribute(node, "group", 1) > 1:
        return "depthwise"
    shape = node.inputs[1].shape if node.inputs[1] is not None else None
    kernel = attribute(node, "kernel_shape") or (list(shape)[2:] if shape is not None else [])
    return "pointwise" if all(k == 1 for k in kernel) else "other"


def _with_rest(nodes: list[ir.Node], weights: set[int], groups: list[list[int]], below: set[int]) -> list[list[int]]:
    """Nodes off the main path: what does not depend on the main input goes first, what only leads to other outputs
    behind what it reads, the quantizer of a constant with its reader."""
    place = {i: g for g, group in enumerate(groups) for i in group}
    index = {node: i for i, node in enumerate(nodes)}
    for i, node in enumerate(nodes):
        if i in below and i not in place:
            read = [index[m] for v in node.inputs if v is not None and (m := v.producer()) is not None]
            place[i] = max((place[j] for j in read if j in place), default=0)
    first: list[int] = []
    for i in reversed(range(len(nodes))):
        if i in place:
            continue
        readers = [index[use.node] for value in nodes[i].outputs for use in value.uses()]
        if qdq.is_quantizer(nodes[i]) and nodes[i].inputs[0].is_initializer() and readers:  # type: ignore[union-attr]
            place[i] = min(place.get(j, -1) for j in readers)
        else:
            place[i] = -1
        if place[i] == -1:
            first.append(i)
    alone = bool(weights.intersection(first))
    found: list[list[int]] = [[] for _ in range(len(groups) + 1)]
    for i, g in sorted(place.items()):
        found[(g + 1) if g >= 0 else 0 if alone else 1].append(i)
    return [group for group in found if group]


def _block(graph: Graph, nodes: list[ir.Node]) -> Block:
    members = set(nodes)
    inputs: dict[str, None] = {}
    outputs: dict[str, None] = {}
    for node in nodes:
        for value in node.inputs:
            if value is not None and value.name and value.producer() not in members and not _is_constant(graph, value):
                inputs[value.name] = None
        for value in node.outputs:
            if not value.name or _is_constant(graph, value):
                continue
            if value.is_graph_output() or any(use.node not in members for use in value.uses()):
                outputs[value.name] = None
    return Block(tuple(inputs), tuple(outputs), tuple(nodes))
