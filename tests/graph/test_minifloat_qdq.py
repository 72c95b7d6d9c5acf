"""Minifloats in QDQ files: onnxruntime runs every spelling with the bits of the quantizer; what is written is read."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from qcompiler.context import Context
from qcompiler.errors import ModelError, UnsupportedError
from qcompiler.formats import Minifloat, QuantParams, parse_format
from qcompiler.graph import qdq
from qcompiler.graph.io import load_graph
from qcompiler.graph.model import Graph
from qcompiler.graph.stages import Stage, check
from qcompiler.passes import export_qdq
from qcompiler.quantizer import dequantize, fake_quantize, quantize
from tests.test_minifloat import FORMATS


def activation(params: QuantParams, count: int) -> Graph:
    text = '<ir_version: 10, opset_import: ["": 21]> g (float[1,N] x) => (float[1,N] y) { y = Identity(x) }'
    graph = Graph.parse(text.replace("N", str(count)))
    made = qdq.write_quantizer(graph, graph.inputs[0], params, name="x")
    graph.nodes("Identity")[0].replace_input_with(0, made)
    return graph


def constant(params: QuantParams, weight: np.ndarray) -> Graph:
    shape = ",".join(map(str, weight.shape))
    head = '<ir_version: 10, opset_import: ["": 21]>'
    text = f"{head} g (float[1] x, float[{shape}] w) => (float[{shape}] y) {{ y = Add(x, w) }}"
    graph = Graph.parse(text, w=weight)
    w = graph.value("w")
    made = qdq.write_constant(graph, w, params)
    graph.nodes("Add")[0].replace_input_with(1, made)
    graph.sweep()
    return graph


def every_input(fmt: Minifloat, scale: np.float32) -> np.ndarray:
    """All codes, all midpoints, their neighbours, and numbers far outside."""
    levels = fmt.decode(fmt.codes()).astype(np.float64)
    x = np.concatenate([levels, (levels[1:] + levels[:-1]) / 2, [0.0, -0.0, 1e30, -1e30]]).astype(np.float32) * scale
    return np.concatenate([x, np.nextafter(x, np.float32(9e9)), np.nextafter(x, np.float32(-9e9))])


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
@pytest.mark.parametrize("scale", [2.0**-7, 0.3717])
def test_activations_in_onnxruntime(fmt: Minifloat, scale: float):
    params = QuantParams(fmt, np.float32(scale))
    x = every_input(fmt, params.scale)
    graph = activation(params, len(x))
    check(graph, Stage.QDQ)
    for form in ("qcdq", "standard", "functions"):
        spelled = export_qdq.run(graph.clone(), export_qdq.Options(form=form), Context())
        np.testing.assert_array_equal(spelled.run(x=x[None])[0], fake_quantize(x, params))
        (node,) = [node for node in spelled.nodes() if qdq.is_quantizer(node)]
        read = qdq.read_quantizer(spelled, node)
        assert read.params == params and read.codes is None and read.source.name == "x"


@pytest.mark.parametrize("fmt", [fmt for fmt in FORMATS if fmt.signed], ids=str)
@pytest.mark.parametrize("axis", [None, 0, 1])
def test_constants_in_onnxruntime(fmt: Minifloat, axis: int | None):
    rng = np.random.default_rng(3)
    shape = (5, 8)
    scale = np.float32(0.07) if axis is None else rng.uniform(0.01, 1, shape[axis]).astype(np.float32)
    params = QuantParams(fmt, scale, axis=axis)
    spread = params.scale if axis is None else params.scale.reshape([-1 if i == axis else 1 for i in range(2)])
    weight = (rng.normal(0, 0.4, shape) * fmt.largest * spread).astype(np.float32)
    if fmt.special == "none" and (fmt.exponent == 5 or fmt.token == "e4m3"):
        with pytest.raises(UnsupportedError, match=f"{fmt.token}.*w"):
            constant(params, weight)
        return
    graph = constant(params, weight)
    check(graph, Stage.QDQ)
    expected = fake_quantize(weight, params)
    for form in ("qcdq", "standard", "functions"):
        spelled = export_qdq.run(graph.clone(), export_qdq.Options(form=form), Context())
        np.testing.assert_array_equal(spelled.run(x=np.zeros(1, np.float32)), expected)
        (node,) = [node for node in spelled.nodes() if qdq.is_quantizer(node)]
        read = qdq.read_quantizer(spelled, node)
        assert read.params == params
        np.testing.assert_array_equal(read.codes, quantize(weight, params))
    loaded = load_graph(graph.model)  # as a model that came with its quantizers
    np.testing.assert_array_equal(loaded.run(x=np.zeros(1, np.float32)), expected)


def test_new_codes_and_scales():
    """What passes write: levels, and numbers of ONNX's own types."""
    rng = np.random.default_rng(4)
    weight = rng.normal(0, 1, (5, 8)).astype(np.float32)
    for token in ("e2m1", "e3m2", "float8e4m3fn"):
        fmt = parse_format(token)
        graph = constant(QuantParams(fmt, np.full(5, 1 / fmt.largest, np.float32), axis=0), weight)
        (node,) = graph.nodes("DequantizeLinear")
        params = QuantParams(fmt, (rng.uniform(0.5, 2, 5) / fmt.largest).astype(np.float32), axis=0)
        codes = rng.choice(fmt.codes(), weight.shape).astype(np.uint8)
        qdq.set_constant(graph, node, params, codes)
        np.testing.assert_array_equal(graph.run(x=np.zeros(1, np.float32)), dequantize(codes, params))
        qdq.set_constant(graph, node, QuantParams(fmt, params.scale * 3, axis=0))
        read = qdq.read_quantizer(graph, node)
        np.testing.assert_array_equal(read.params.scale, params.scale * 3)
        np.testing.assert_array_equal(read.codes, codes)


def test_float4_is_written_and_read():
    """onnxruntime has no kernel for it, so this compares what the file says."""
    rng, fmt = np.random.default_rng(5), Minifloat(2, 1)
    params = QuantParams(fmt, rng.uniform(0.01, 1, 5).astype(np.float32), axis=0)
    weight = rng.normal(0, 3, (5, 8)).astype(np.float32)
    graph = export_qdq.run(constant(params, weight), export_qdq.Options(float4=True), Context())
    (node,) = graph.nodes("DequantizeLinear")
    assert node.inputs[0].dtype == ir.DataType.FLOAT4E2M1 and graph.opset >= 23
    stored = graph.const(node.inputs[0])
    assert stored.dtype == ml_dtypes.float4_e2m1fn
    file = ir.from_proto(ir.to_proto(graph.model))
    (node,) = [node for node in file.graph if node.op_type == "DequantizeLinear"]
    again = file.graph.initializers[node.inputs[0].name].const_value.numpy().astype(np.float32)
    scale = file.graph.initializers[node.inputs[1].name].const_value.numpy()
    np.testing.assert_array_equal(again * scale[:, None], fake_quantize(weight, params))
    read = qdq.read_quantizer(graph, graph.nodes("DequantizeLinear")[0])
    assert read.params == params
    np.testing.assert_array_equal(read.codes, quantize(weight, params))


def test_what_is_no_number_of_the_format_is_refused():
    graph = constant(QuantParams(Minifloat(2, 1), np.float32(0.1)), np.ones((2, 2), np.float32))
    (node,) = graph.nodes("DequantizeLinear")
    graph.set_input_const(node, 0, np.array([[5, 1], [1, 1]], np.int8))  # 4 and 6 are levels, 5 is none
    with pytest.raises(ModelError, match="no number of e2m1"):
        qdq.read_quantizer(graph, node)
    graph = constant(QuantParams(parse_format("float8e4m3fn"), np.float32(0.1)), np.ones((2, 2), np.float32))
    (node,) = graph.nodes("DequantizeLinear")
    graph.set_input_const(node, 0, np.full((2, 2), np.nan).astype(ml_dtypes.float8_e4m3fn))
    with pytest.raises(ModelError, match="no number of float8e4m3fn"):
        qdq.read_quantizer(graph, node)


@pytest.mark.parametrize("token", ["float8e4m3fn", "float8e5m2"])
def test_float8_of_other_tools_is_lifted(token: str):
    """Without our metadata: types say the format, and quantizers become functions with the same bits."""
    params = QuantParams(parse_format(token), np.float32(0.0317))
    x = every_input(params.format, params.scale)
    graph = activation(params, len(x))
    for node in graph.nodes():
        node.metadata_props.clear()
    loaded = load_graph(graph.to_proto())
    assert [node.op_type for node in loaded.nodes()] == ["MinifloatQuantize"]
    assert qdq.read_quantizer(loaded, loaded.nodes("MinifloatQuantize")[0]).params == params
    np.testing.assert_array_equal(loaded.run(x=x[None]), graph.run(x=x[None]))
