"""Graph theory over a model: dataflow, and values that must share quantization parameters."""

from __future__ import annotations

from collections.abc import Iterable

import networkx as nx
import onnx_ir as ir

from qcompiler.graph.model import Graph, attribute

MOVES = frozenset({
    "MaxPool", "Reshape", "Transpose", "Slice", "Split", "Pad", "Flatten", "Squeeze", "Unsqueeze", "Identity",
    "Dropout", "DepthToSpace", "SpaceToDepth", "Expand", "Tile", "Gather", "GlobalMaxPool", "ReduceMax",
    "ReduceMin", "TopK",
})  # fmt: skip
"""Operators whose outputs hold values of their first input and nothing new (Pad: nor what it pads with)."""


def dataflow(graph: Graph) -> nx.DiGraph:
    """Nodes and values as one bipartite graph.

    Vertices are `("node", i)` with the i-th node in topological order as attribute `node`, and `("value", name)` with
    the value as attribute `value`. Edges go from a value to its readers and from a node to its outputs. Absent
    optional inputs and outputs have no vertex.
    """
    flow = nx.DiGraph()
    for value in graph.values():
        flow.add_node(("value", value.name), value=value)
    for i, node in enumerate(graph.nodes()):
        flow.add_node(("node", i), node=node)
        flow.add_edges_from((("value", value.name), ("node", i)) for value in node.inputs if value is not None)
        flow.add_edges_from((("node", i), ("value", value.name)) for value in node.outputs if value.name)
    return flow


def ties(graph: Graph, *, concat_single_reader: bool = True) -> list[tuple[str, str]]:
    """Pairs of value names that must have the same scale and zero point.

    Operators that only move values tie their outputs to their first input; nearest Resize as well; Concat ties its
    output to each input (with `concat_single_reader`, only to inputs that nothing else reads: the others can be
    requantized for it alone).
    """
    found: list[tuple[str, str]] = []
    for node in graph.nodes():
        if node.op_type == "CacheWrite":  # our own: a cache with one entry replaced
            found += [(str(value.name), str(node.outputs[0].name)) for value in node.inputs[:2] if value is not None]
        if node.domain:
            continue
        if node.op_type == "Concat":
            output = node.outputs[0].name
            for value in node.inputs:
                if value is None or graph.const(value) is not None:
                    continue
                if not concat_single_reader or graph.sole_user(value) is node:
                    found.append((str(value.name), str(output)))
        elif moves_only(node) and node.inputs[0] is not None and graph.const(node.inputs[0]) is None:
            found += [(str(node.inputs[0].name), str(value.name)) for value in node.outputs if value.name]
    return found


def by_depth(graph: Graph, nodes: Iterable[ir.Node]) -> list[list[ir.Node]]:
    """These nodes by how many of them lie before each: those of one list do not read each other."""
    chosen = set(nodes)
    depth: dict[ir.Value, int] = {}
    levels: dict[int, list[ir.Node]] = {}
    for node in graph.nodes():
        at = max((depth.get(value, 0) for value in node.inputs if value is not None), default=0)
        if node in chosen:
            levels.setdefault(at, []).append(node)
            at += 1
        depth.update(dict.fromkeys(node.outputs, at))
    return [levels[key] for key in sorted(levels)]


def moves_only(node: ir.Node) -> bool:
    """Whether the first output holds nothing but values of the first input."""
    if node.domain:
        return False
    if node.op_type == "Resize":
        return attribute(node, "mode", "nearest") == "nearest"
    if node.op_type == "MaxPool" and len(node.outputs) > 1 and node.outputs[1].name and node.outputs[1].uses():
        return False  # indices are no values
    return node.op_type in MOVES


def shared_groups(graph: Graph, ties: Iterable[tuple[str, str]]) -> list[set[str]]:
    """Connected components of `ties`: sets of two or more value names, in the order the graph defines them."""
    links = nx.Graph()
    links.add_edges_from((a, b) for a, b in ties if a != b)
    order = {str(value.name): i for i, value in enumerate(graph.values())}
    return sorted(
        (set(group) for group in nx.connected_components(links)), key=lambda g: min(order.get(n, 0) for n in g)
    )
