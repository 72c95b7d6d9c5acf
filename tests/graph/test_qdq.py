"""Quantizers as nodes: what is written means what the numpy quantizer means, and reads back as it was."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcompiler.errors import UnsupportedError
from qcompiler.formats import Int, QuantParams
from qcompiler.graph.model import Graph
from qcompiler.graph.qdq import quantizer_of, read_bias, write_bias, write_constant, write_quantizer
from qcompiler.quantizer import fake_quantize, quantize

TEXT = """<ir_version: 10, opset_import: ["": 21]>
g (float[1,256] x, float[256,3] w) => (float[1,3] y) { y = MatMul(x, w) }"""
FORMATS = [Int(b, s, n) for b in (2, 3, 4, 5, 6, 7, 8, 16) for s in (False, True) for n in (False, True) if s or not n]
W = np.random.default_rng(1).standard_normal((256, 3)).astype(np.float32)


def fresh() -> Graph:
    return Graph.parse(TEXT, w=W)


@pytest.mark.parametrize("fmt", [f for f in FORMATS if not (f.bits == 16 and f.narrow)], ids=str)
@given(seed=st.integers(0, 2**32 - 1))
def test_activation_means_fake_quantize_and_reads_back(fmt: Int, seed: int):
    rng = np.random.default_rng(seed)
    scale = np.float32(2.0 ** rng.uniform(-10, 3))
    params = QuantParams(fmt, scale, rng.integers(fmt.min, fmt.max + 1))
    graph = fresh()
    out = write_quantizer(graph, graph.value("x"), params, name="x")
    graph.nodes("MatMul")[0].replace_input_with(0, out)
    graph.ir.outputs.append(out)
    onnx.checker.check_model(graph.to_proto(), full_check=True)
    x = (rng.standard_normal((1, 256)) * scale * 2.0**fmt.bits).astype(np.float32)
    np.testing.assert_array_equal(graph.run(x=x)[1], fake_quantize(x, params))
    read = quantizer_of(graph, out)
    assert (read.params, read.source.name, read.codes) == (params, "x", None)


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
@pytest.mark.parametrize("axis", [None, 0, 1])
def test_constant_means_fake_quantize_and_reads_back(fmt: Int, axis: int | None):
    rng = np.random.default_rng(fmt.bits)
    shape = () if axis is None else W.shape[axis]
    scale = rng.uniform(0.1, 1, shape).astype(np.float32)
    params = QuantParams(fmt, scale, rng.integers(fmt.min, fmt.max + 1, shape), axis)
    graph = fresh()
    out = write_constant(graph, graph.value("w"), params)
    graph.nodes("MatMul")[0].replace_input_with(1, out)
    graph.ir.outputs.append(out)
    graph.sweep()
    onnx.checker.check_model(graph.to_proto(), full_check=True)
    np.testing.assert_array_equal(graph.run(x=np.zeros((1, 256), np.float32))[1], fake_quantize(W, params))
    read = quantizer_of(graph, out)
    assert read.params == params
    np.testing.assert_array_equal(read.codes, quantize(W, params))
    assert read.codes.dtype == fmt.storage


def test_files_of_other_tools_are_read_by_their_types_and_clips():
    graph = Graph.parse(
        """<ir_version: 10, opset_import: ["": 21]>
        g (float[1,4] x, float s, uint8 z, uint8 low, uint8 high) => (float[1,4] y)
        { q = QuantizeLinear(x, s, z)  c = Clip(q, low, high)  y = DequantizeLinear(c, s, z) }""",
        s=np.float32(0.5), z=np.uint8(3), low=np.uint8(0), high=np.uint8(15),
    )  # fmt: skip
    read = quantizer_of(graph, graph.outputs[0])
    assert read.params == QuantParams(Int(4, signed=False), np.float32(0.5), 3)


def test_bias_is_rounded_to_int32_or_refused():
    graph = fresh()
    scale = np.float32([0.5, 0.25, 2.0])
    node = graph.nodes("MatMul")[0]
    value = write_bias(graph, np.float32([1.3, -1.0, 3.0]), scale, before=node, name="b")
    codes, got = read_bias(graph, value.producer())
    np.testing.assert_array_equal(codes, [3, -4, 2])  # ties go to even
    np.testing.assert_array_equal(got, scale)
    assert quantizer_of(graph, value) is None
    assert write_bias(graph, np.float32([1e9, 0, 0]), np.float32([1e-3, 1, 1]), before=node, name="c") is None


def test_formats_without_a_spelling_are_refused():
    graph = fresh()
    with pytest.raises(UnsupportedError, match="uint12"):
        write_quantizer(graph, graph.value("x"), QuantParams(Int(12, signed=False), 1.0), name="x")
