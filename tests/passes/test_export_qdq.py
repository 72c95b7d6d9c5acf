"""All spellings of a QDQ graph give the same outputs in onnxruntime, bit for bit, and read back as the same."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from qcompiler.calibrate.data import load_samples
from qcompiler.context import Context
from qcompiler.errors import RecipeError
from qcompiler.execute.ort import Session
from qcompiler.graph import qdq
from qcompiler.graph.model import Graph
from qcompiler.passes import decide, export_qdq, insert_qdq, set_ranges

TEXT = """<ir_version: 13, opset_import: ["": 21]>
g (float[1,3,8,8] x, float[4,3,3,3] w, float[4] b, float[4,5] v) => (float[1,8,8,5] y) {
  [c] h = Conv <pads = [1,1,1,1]> (x, w, b)
  [r] a = Relu(h)
  [t] t = Transpose <perm = [0,2,3,1]> (a)
  [m] y = MatMul(t, v)
}"""


def quantized(precision: str) -> tuple[Graph, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = {"w": (4, 3, 3, 3), "b": (4,), "v": (4, 5)}
    graph = Graph.parse(TEXT, **{k: rng.standard_normal(s).astype(np.float32) for k, s in shapes.items()})
    x = rng.standard_normal((4, 3, 8, 8)).astype(np.float32)
    context = Context(samples=load_samples({"x": x}, graph))
    decide.run(graph, decide.Options(precision=precision, keep_first_last=False), context)
    set_ranges.run(graph, set_ranges.Options(), context)
    return insert_qdq.run(graph, insert_qdq.Options(), context), x


def contents(graph: Graph) -> dict[str, tuple]:
    found = {}
    for node in graph.nodes():
        read = qdq.quantizer_of(graph, node.outputs[0]) if qdq.is_quantizer(node) else None
        if read is not None:
            codes = None if read.codes is None else read.codes.tolist()
            found[node.outputs[0].name] = (read.params.format, read.params.scale.tolist(), read.params.axis, codes)
    return found


@pytest.fixture(autouse=True)
def cache(monkeypatch):
    monkeypatch.setenv("QCOMPILER_CACHE", "off")


@pytest.mark.parametrize("precision", ["w8a8", "w4a8", "w4a4", "w3a5", "w2a2", "w8a16"])
@pytest.mark.parametrize("form", [("qcdq", False), ("standard", False), ("standard", True), ("functions", False)])
def test_forms_agree(precision: str, form: tuple[str, bool]):
    graph, x = quantized(precision)
    other = export_qdq.run(graph.clone(), export_qdq.Options(form=form[0], two_bit=form[1]), Context())
    onnx.checker.check_model(other.to_proto(), full_check=True)
    for sample in x:
        np.testing.assert_array_equal(other.run(x=sample[None]), graph.run(x=sample[None]))
    assert contents(other) == contents(graph)
    assert [value.name for value in other.outputs] == ["y"]
    back = export_qdq.run(other, export_qdq.Options(form="qcdq"), Context())
    np.testing.assert_array_equal(back.run(x=x[:1]), graph.run(x=x[:1]))


def test_standard_form_has_packed_types():
    for precision, two_bit, want in (("w4a4", False, "INT4"), ("w2a2", True, "INT2"), ("w2a2", False, "INT8")):
        graph, _ = quantized(precision)
        export_qdq.run(graph, export_qdq.Options(two_bit=two_bit, packed_activations=True), Context())
        types = {value.dtype for value in graph.ir.initializers.values()}
        assert {getattr(ir.DataType, want), getattr(ir.DataType, f"U{want}")} <= types
        assert graph.opset == (25 if want == "INT2" else 21)


def test_standard_form_loads_with_all_optimizations():
    graph, x = quantized("w4a4")
    before = graph.run(x=x[:1])
    export_qdq.run(graph, export_qdq.Options(), Context())
    types = {value.dtype for value in graph.ir.initializers.values()}
    assert ir.DataType.INT4 in types and ir.DataType.UINT4 not in types
    np.testing.assert_allclose(Session(graph, optimize=True).run({"x": x[:1]})[0], before, rtol=0.2, atol=0.2)


def test_functions_form_has_one_node_a_quantizer():
    graph, _ = quantized("w3a5")
    before = len(contents(graph))
    export_qdq.run(graph, export_qdq.Options(form="functions"), Context())
    assert len(graph.nodes("FakeQuantize")) == before
    assert not graph.nodes("QuantizeLinear")
    assert len(graph.to_proto().functions) == 1


def test_unknown_form():
    with pytest.raises(RecipeError, match="qcdq, standard, functions"):
        export_qdq.run(quantized("w8a8")[0], export_qdq.Options(form="qonnx"), Context())
