"""What each stage promises is checked, and the error names the node."""

from __future__ import annotations

import numpy as np
import pytest

from qcompiler.errors import ModelError
from qcompiler.graph import stages
from qcompiler.graph.model import Graph, set_attributes
from qcompiler.graph.stages import Stage
from qcompiler.ops import OPERATORS
from tests.quantized import float_graph, integer, quantize

BODY = "h = Conv (x, w) a = Relu(h) s = Sigmoid(a) y = Add(a, s)"


def float_form() -> Graph:
    return float_graph("float[1,2,6,6] x => float[1,4,4,4] y", BODY, w=np.ones((4, 2, 3, 3), np.float32))


def forms() -> dict[Stage, Graph]:
    qdq = quantize(float_form())
    return {Stage.FLOAT: float_form(), Stage.QDQ: qdq, Stage.INTEGER: integer(qdq)}


@pytest.mark.parametrize("stage", Stage)
def test_each_form_passes_its_own_check(stage):
    stages.check(forms()[stage], stage)


@pytest.mark.parametrize(("form", "stage", "word"), [
    (Stage.QDQ, Stage.FLOAT, "QuantizeLinear `x/quantize` quantizes in a float graph"),
    (Stage.INTEGER, Stage.FLOAT, "in a float graph"),
    (Stage.INTEGER, Stage.QDQ, "integer operator among quantizers"),
    (Stage.FLOAT, Stage.INTEGER, "has no integer oracle"),
    (Stage.QDQ, Stage.INTEGER, "without metadata qcompiler.format"),
])  # fmt: skip
def test_another_stage_is_refused(form, stage, word):
    with pytest.raises(ModelError, match=word):
        stages.check(forms()[form], stage)


@pytest.mark.parametrize("scale", [0.0, -1.0, np.inf, np.nan])
@pytest.mark.parametrize("stage", [Stage.QDQ, Stage.INTEGER])
def test_scales_are_positive_and_finite(stage, scale):
    graph = forms()[stage]
    graph.set_const(graph.nodes("QuantizeLinear")[0].inputs[1], np.float32(scale))
    with pytest.raises(ModelError, match="not positive and finite"):
        stages.check(graph, stage)


def test_bias_has_the_scale_of_the_accumulator():
    graph = forms()[Stage.QDQ]
    (conv,) = graph.nodes("Conv")
    scale = conv.inputs[2].producer().inputs[1]
    graph.set_const(scale, graph.const(scale) * np.float32(1.01))
    with pytest.raises(ModelError, match=r"Conv .* s_x \* s_w"):
        stages.check(graph, Stage.QDQ)


def test_zero_point_is_a_code():
    graph = quantize(float_form(), precision="w8a4", inner_bits=4)
    node = next(n for n in graph.nodes("DequantizeLinear") if n.metadata_props["qcompiler.format"] == "uint4")
    graph.set_const(node.inputs[2], np.uint8(16))
    with pytest.raises(ModelError, match="no code of uint4"):
        stages.check(graph, Stage.QDQ)


@pytest.mark.parametrize(("key", "value", "word"), [
    ("qcompiler.scale", None, "without metadata qcompiler.scale"),
    ("qcompiler.scale", "much", "cannot be read"),
    ("qcompiler.scale", "nan", "not positive and finite"),
    ("qcompiler.format", "float8", "cannot be read"),
    ("qcompiler.format", "uint16", "stored as uint16"),
    ("qcompiler.zero_point", "256", "no code of uint8"),
])  # fmt: skip
def test_metadata_is_checked(key, value, word):
    graph = forms()[Stage.INTEGER]
    metadata = graph.nodes("Conv")[0].outputs[0].metadata_props
    if value is None:
        del metadata[key]
    else:
        metadata[key] = value
    with pytest.raises(ModelError, match=word):
        stages.check(graph, Stage.INTEGER)


def test_float_inside_an_integer_graph_is_refused():
    graph = forms()[Stage.INTEGER]
    (node,) = graph.nodes("Add", domain="qcompiler")
    set_attributes(node, format=None)
    node.op_type, node.domain = "Erf", ""
    with pytest.raises(ModelError, match="Erf .* has no integer oracle"):
        stages.check(graph, Stage.INTEGER)


def test_operator_keys_are_names_in_the_table():
    assert all(operator.key == key for key, operator in OPERATORS.items())
    assert {"qcompiler::Conv", "Reshape"} <= set(OPERATORS)
