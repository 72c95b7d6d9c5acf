"""eliminate_dead_code."""

from __future__ import annotations

import numpy as np

from qcompiler.graph.functions import define
from qcompiler.passes import eliminate_dead_code


def test_what_reaches_no_output_goes(make, unchanged):
    graph = make("float[2,3] x => float[2,3] y", "y = Relu(x)", w=np.ones(3, np.float32))
    dead = graph.add_node("Sigmoid", [graph.inputs[0]], like=graph.outputs[0])
    graph.add_node("Neg", [dead.outputs[0]], like=graph.outputs[0])
    define(graph, "Swish")
    after, _ = unchanged(graph, eliminate_dead_code)
    assert [node.op_type for node in after.nodes()] == ["Relu"]
    assert not after.ir.initializers and not after.model.functions


def test_outputs_that_nothing_reads_inside_stay(make, unchanged):
    graph = make("float[2,3] x => float[2,3] y, float[2,3] z", "y = Relu(x)  z = Neg(y)")
    assert len(unchanged(graph, eliminate_dead_code)[0].nodes()) == 2
