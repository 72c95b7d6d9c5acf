"""Inspection agrees with what compilation would do."""

from __future__ import annotations

from qcompiler.graph.io import load_graph
from qcompiler.graph.model import Graph
from qcompiler.inspect import inspect_graph


def test_the_digits_network_is_all_integer(digits):
    found = inspect_graph(load_graph(digits.cnn, dims={"N": 1}))
    assert found["inputs"] == [{"name": "x", "shape": [1, 1, 8, 8]}]
    assert found["outputs"] == [{"name": "logits", "shape": [1, 10]}]
    assert found["integer_nodes"] == len(found["nodes"]) > 20
    assert {row["becomes"] for row in found["nodes"]} <= {"integer", "table", "movement"}
    assert "BatchNormalization" not in {row["operator"] for row in found["nodes"]}
    convolutions = [row for row in found["nodes"] if row["operator"] == "Conv"]
    assert all(row["macs"] > 0 for row in convolutions) and found["macs"] == sum(row["macs"] for row in found["nodes"])
    # The first: 3x3 on one channel, 16 outputs, 8x8 pixels.
    assert convolutions[0]["macs"] == 9 * 16 * 64


def test_what_has_no_integer_form_is_said_with_a_reason():
    text = """<ir_version: 10, opset_import: ["": 21]>
    g (float[1,4,6,6] x, float[1,4,6,6] z) => (float[1,4,6,6] y)
    { [bad] a = Bernoulli (x)  [good] b = Relu (a)  [dynamic] y = MatMul (b, z) }"""
    graph = load_graph(Graph.parse(text).model)
    rows = {row["name"]: row for row in inspect_graph(graph)["nodes"]}
    assert rows["bad"]["becomes"] == "unsupported" and rows["bad"]["reason"]
    assert rows["dynamic"]["becomes"] == "integer"
    assert rows["good"]["becomes"] != "unsupported"
    assert graph.nodes("Bernoulli") and len(graph.nodes()) == 3  # the model itself stays as it is


def test_formats_kinds_and_peak_are_those_of_the_recipe(digits):
    graph = load_graph(digits.vit, dims={"N": 1})
    found = inspect_graph(graph)
    kinds = {row["operator"]: row["becomes"] for row in found["nodes"]}
    assert kinds["LayerNormalization"] == kinds["Softmax"] == "algorithm" and kinds["Gelu"] == "table"
    assert found["kinds"]["algorithm"] == 2 * 2 + 1 + 2 and sum(found["kinds"].values()) == len(found["nodes"])
    assert {row["weights"] for row in found["nodes"] if row["operator"] == "Gemm"} == {"int8n"}
    assert found["integer_macs"] == found["macs"]
    narrow = inspect_graph(graph, "w4a8")
    assert narrow["weight_bytes"] < 0.7 * found["weight_bytes"]


def test_the_peak_is_what_is_alive_at_once():
    text = """<ir_version: 10, opset_import: ["": 21]>
    g (float[1,100] x) => (float[1,100] y) { a = Sigmoid (x)  b = Tanh (a)  c = Sigmoid (b)  y = Add (c, a) }"""
    # At Tanh and at the second Sigmoid: a, b and c.
    assert inspect_graph(load_graph(Graph.parse(text).model))["activation_peak_bytes"] == 300
