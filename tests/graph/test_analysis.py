"""Dataflow and shared quantization parameters."""

from __future__ import annotations

import networkx as nx
import onnx

from qcompiler.graph.analysis import dataflow, shared_groups, ties
from qcompiler.graph.io import load_graph

TEXT = """<ir_version: 10, opset_import: ["": 21]>
g (float[1,4,8,8] x) => (float[1,12,4,4] y, float[1,4,8,8] z) {
    a = Relu(x)
    b = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(a)
    c = AveragePool<kernel_shape = [2, 2], strides = [2, 2]>(x)
    d = Sigmoid(c)
    y = Concat<axis = 1>(b, c, d)
    z = Neg(x) }"""


def test_dataflow_is_bipartite_and_acyclic():
    graph = load_graph(onnx.parser.parse_model(TEXT))
    flow = dataflow(graph)
    assert nx.is_directed_acyclic_graph(flow) and nx.is_bipartite(flow)
    assert {name for kind, name in nx.ancestors(flow, ("value", "y")) if kind == "value"} == {"x", "a", "b", "c", "d"}
    assert {kind for kind, _ in flow.successors(("value", "x"))} == {"node"}


def test_groups_join_moves_and_concat():
    graph = load_graph(onnx.parser.parse_model(TEXT))
    # c has another reader: it can be requantized for the Concat alone
    assert shared_groups(graph, ties(graph)) == [{"a", "b", "d", "y"}]
    assert shared_groups(graph, ties(graph, concat_single_reader=False)) == [{"a", "b", "c", "d", "y"}]


def test_resize_ties_only_when_nearest():
    text = """<ir_version: 10, opset_import: ["": 21]>
    g (float[1,1,2,2] x) => (float[1,1,4,4] y) {{ s = Constant<value = float[4] {{1.0, 1.0, 2.0, 2.0}}>()
      y = Resize<mode = "{}">(x, , s) }}"""
    for mode, groups in (("nearest", [{"x", "y"}]), ("linear", [])):
        graph = load_graph(onnx.parser.parse_model(text.format(mode)))
        assert shared_groups(graph, ties(graph)) == groups


def test_given_ties_are_enough():
    graph = load_graph(onnx.parser.parse_model(TEXT))
    assert shared_groups(graph, [("z", "x"), ("d", "c"), ("c", "b"), ("y", "y")]) == [{"x", "z"}, {"b", "c", "d"}]
