"""Reading models: every promise of load_graph, and every way a file can be broken."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from qcompiler.errors import ModelError, QCompilerError, RecipeError, UnsupportedError
from qcompiler.execute.ort import Session
from qcompiler.graph.io import OPSET, load_graph, read_model
from qcompiler.graph.model import Graph


def tiny(opset: int = 21, *, dims=("N", 3), nodes=None, weights=None, outputs=("y",)) -> onnx.ModelProto:
    """x [N,3] @ w [3,4] -> h, Relu -> y."""
    if weights is None:
        weights = {"w": np.arange(12, dtype=np.float32).reshape(3, 4) - 5}
    matmul, act = helper.make_node("MatMul", ["x", "w"], ["h"], "mm"), helper.make_node("Relu", ["h"], ["y"], "act")
    nodes = nodes or [matmul, act]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(dims))],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=7)


@pytest.mark.parametrize("opset", range(7, 26))
def test_every_operator_set_loads_and_computes_the_same(opset):
    x = np.random.default_rng(0).standard_normal((2, 3)).astype(np.float32)
    graph = load_graph(tiny(opset), dims={"N": 2})
    assert graph.opset == max(opset, OPSET)
    w = graph.const(graph.value("w"))
    try:
        session = Session(graph)
    except ModelError as error:
        if "till opset" not in str(error):
            raise
        pytest.skip("this onnxruntime does not know the operator set yet (the pin for Python 3.10)")
    np.testing.assert_allclose(session.run({"x": x})[0], np.maximum(x @ w, 0), rtol=1e-6)


def test_other_operator_sets_are_refused():
    with pytest.raises(UnsupportedError, match="operator set 6; 7 to 25"):
        load_graph(tiny(6), dims={"N": 1})


def test_newer_operator_sets_are_read_where_nothing_changed():
    x = np.ones((1, 3), np.float32)
    np.testing.assert_array_equal(
        load_graph(tiny(28), dims={"N": 1}).run(x=x), load_graph(tiny(), dims={"N": 1}).run(x=x)
    )
    changed = tiny(28)
    changed.graph.node[0].op_type = "Celu"
    del changed.graph.node[0].input[1:]
    with pytest.raises(UnsupportedError, match=r"operator set 28 \(Celu changed since\)"):
        load_graph(changed, dims={"N": 1})


def test_sources_may_be_path_proto_or_ir_and_are_left_alone(tmp_path):
    proto = tiny(dims=(2, 3))
    onnx.save(proto, tmp_path / "m.onnx")
    model = ir.from_proto(proto)
    text, count = proto.SerializeToString(), len(model.graph.initializers)
    graphs = [load_graph(source) for source in (tmp_path / "m.onnx", str(tmp_path / "m.onnx"), proto, model)]
    assert len({graph.fingerprint() for graph in graphs}) == 1
    assert proto.SerializeToString() == text and len(model.graph.initializers) == count


def test_external_data_is_read_and_missing_data_is_an_error(tmp_path):
    weights = {"w": np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)}
    onnx.save_model(
        tiny(dims=(2, 3), weights=weights),
        tmp_path / "m.onnx",
        save_as_external_data=True,
        location="m.data",
        size_threshold=0,
    )
    graph = load_graph(tmp_path / "m.onnx")
    np.testing.assert_array_equal(graph.const(graph.value("w")), weights["w"])
    (tmp_path / "m.data").unlink()
    with pytest.raises(ModelError, match="external data"):
        load_graph(tmp_path / "m.onnx")


def test_unsorted_nodes_listed_initializers_and_constants_become_the_normal_form():
    proto = tiny(dims=(2, 3))
    proto.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [3, 4]))
    constant = helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(np.float32(2)))
    scale = helper.make_node("Mul", ["y", "c"], ["z"], doc_string="remark")
    nodes = [scale, *proto.graph.node, constant]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    proto.graph.output[0].name = "z"
    graph = load_graph(proto)
    assert [node.op_type for node in graph.nodes()] == ["MatMul", "Relu", "Mul"]
    assert [value.name for value in graph.ir.inputs] == ["x"] and graph.const(graph.value("c")) == 2
    assert not any(node.doc_string for node in graph.nodes())


def test_functions_are_inlined_except_our_own_and_metadata_stays():
    body = [helper.make_node("Relu", ["a"], ["b"])]
    proto = tiny(dims=(2, 3), nodes=[helper.make_node("F", ["x"], ["t"], domain="theirs"),
                                     helper.make_node("G", ["t"], ["y"], domain="qcompiler")])  # fmt: skip
    for domain, name in (("theirs", "F"), ("qcompiler", "G")):
        imports = [helper.make_opsetid("", 21)]
        proto.functions.append(helper.make_function(domain, name, ["a"], ["b"], body, imports))
        proto.opset_import.append(helper.make_opsetid(domain, 1))
    helper.set_model_props(proto, {"author": "somebody"})
    proto.ir_version = 10
    graph = load_graph(proto)
    assert [(node.domain, node.op_type) for node in graph.nodes()] == [("", "Relu"), ("qcompiler", "G")]
    assert graph.model.metadata_props["author"] == "somebody"


def test_metadata_survives_conversion():
    proto = tiny(11, dims=(2, 3))
    helper.set_model_props(proto, {"author": "somebody"})
    assert load_graph(proto).model.metadata_props["author"] == "somebody"


def test_shape_arithmetic_and_constant_of_shape_are_folded():
    text = """<ir_version: 8, opset_import: ["": 17]>
    g (float[N,3,4] x) => (float[a,b] y) {
        s = Shape(x)  zero = Constant<value = int64 {0}>()  n = Gather(s, zero)
        axes = Constant<value = int64[1] {0}>()  nn = Unsqueeze(n, axes)
        rest = Constant<value = int64[1] {-1}>()  target = Concat<axis = 0>(nn, rest)
        flat = Reshape(x, target)
        shape = Constant<value = int64[2] {1, 12}>()
        ones = ConstantOfShape<value = float[1] {1.0}>(shape)
        y = Add(flat, ones) }"""
    graph = load_graph(onnx.parser.parse_model(text), dims={"N": 5})
    assert [node.op_type for node in graph.nodes()] == ["Reshape", "Add"]
    assert graph.shape(graph.outputs[0]) == (5, 12)


def test_a_missing_dimension_is_listed_with_an_example():
    with pytest.raises(ModelError, match=r"`x` \[N,3\].*--dim N=1") as caught:
        load_graph(tiny())
    assert caught.value.exit_code == 2
    with pytest.raises(ModelError, match=r"`x` \[\?,3\].*--shape x=1,3"):
        load_graph(tiny(dims=(None, 3)))


def test_shapes_and_dims_that_do_not_fit_are_errors_with_the_right_names():
    with pytest.raises(RecipeError, match="no dimension `batch`; it has `N`"):
        load_graph(tiny(), dims={"batch": 1})
    with pytest.raises(RecipeError, match="no input `z`; it has `x`"):
        load_graph(tiny(), shapes={"z": [1, 3]})
    with pytest.raises(RecipeError, match="contradicts the model, which has"):
        load_graph(tiny(), shapes={"x": [1, 4]})
    with pytest.raises(RecipeError, match="contradicts"):
        load_graph(tiny(), shapes={"x": [1, 3, 1]})
    with pytest.raises(RecipeError, match="not positive"):
        load_graph(tiny(), dims={"N": 0})


def test_missing_files_folders_and_other_files_are_errors(tmp_path):
    for path, data in (("missing.onnx", None), ("text.onnx", b"hello, this is text"), ("empty.onnx", b"")):
        if data is not None:
            (tmp_path / path).write_bytes(data)
        for read in (load_graph, read_model):
            with pytest.raises(ModelError, match=path):
                read(tmp_path / path)
    with pytest.raises(ModelError, match="folder"):
        load_graph(tmp_path)


def test_truncation_at_any_byte_is_an_error(tmp_path):
    whole = tiny(dims=(2, 3)).SerializeToString()
    path = tmp_path / "cut.onnx"
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(ModelError):
            load_graph(path)


def test_truncating_a_real_model_is_an_error(assets, tmp_path):
    whole = (assets / "models" / "resnet20_cifar10.onnx").read_bytes()
    path = tmp_path / "cut.onnx"
    for size in range(1, len(whole) - 64, 16384):
        path.write_bytes(whole[:size])
        with pytest.raises(ModelError):
            read_model(path)


def test_flipped_bytes_never_escape_the_error_tree(tmp_path):
    whole = bytearray(tiny(dims=(2, 3)).SerializeToString())
    rng = np.random.default_rng(0)
    path, refused = tmp_path / "flipped.onnx", 0
    for _ in range(150):
        damaged = bytearray(whole)
        damaged[rng.integers(len(whole))] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        try:
            load_graph(path)
        except QCompilerError:
            refused += 1
    assert refused > 30


def test_undefined_values_name_file_node_and_value(tmp_path):
    proto = tiny(dims=(2, 3), weights={})
    onnx.save(proto, tmp_path / "holes.onnx")
    with pytest.raises(ModelError, match=r"holes\.onnx: node `mm` reads `w`, which no node or initializer defines"):
        read_model(tmp_path / "holes.onnx")
    with pytest.raises(ModelError, match="output `q` is not defined"):
        load_graph(tiny(dims=(2, 3), outputs=("q",)))
    with pytest.raises(ModelError, match="no outputs"):
        load_graph(tiny(dims=(2, 3), outputs=()))


def test_cycles_and_double_definitions_are_errors():
    circle = [helper.make_node("Add", ["x", "b"], ["a"], "one"), helper.make_node("Relu", ["a"], ["b"], "two")]
    with pytest.raises(ModelError, match="`one`, `two`|`two`, `one`"):
        load_graph(tiny(dims=(2, 3), nodes=circle, outputs=("b",)))
    twice = [helper.make_node("Relu", ["x"], ["y"]), helper.make_node("Abs", ["x"], ["y"])]
    with pytest.raises(ModelError, match="`y` is defined twice"):
        load_graph(tiny(dims=(2, 3), nodes=twice))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_named(bad):
    w = np.ones((3, 4), np.float32)
    w[1, 2] = bad
    with pytest.raises(ModelError, match="initializer `w` holds 1 values that are NaN or infinite"):
        load_graph(tiny(dims=(2, 3), weights={"w": w}))


def test_data_dependent_shapes_name_the_node():
    nodes = [helper.make_node("NonZero", ["x"], ["i"], "search"), helper.make_node("Cast", ["i"], ["y"], "c", to=1)]
    with pytest.raises(ModelError, match="`i`, made by the NonZero node `search`.*depends on data"):
        load_graph(tiny(dims=(2, 3), nodes=nodes))


def test_foreign_domains_are_refused(assets):
    with pytest.raises(UnsupportedError, match="ai.onnx.ml::TreeEnsembleClassifier"):
        load_graph(assets / "graphs" / "tract_xgboost_tree.onnx")


GRAPHS = {
    "espcn_nn_resize_float": {}, "light_shufflenet": {}, "light_squeezenet": {}, "onnx2c_helloworld": {"N": 2},
    "onnx2c_mnist_cntk": {}, "onnx2c_mnist_pytorch": {}, "onnx2c_nodes_out_of_order": {}, "qonnx_residual_block": {},
    "st_mobilenet_v2_128_05": {"unk__150": 2}, "torch_raw_resnet20": {"N": 2}, "ultraface_rfb_320": {},
    "torchscript_vit_small": {"N": 2}, "mobilenetv2_qdq_static": {"batch": 1}, "tract_keras_tf2": {"unk__6": 3},
    "tract_bidi_lstm": {"batch": 2, "length": 5},
}  # fmt: skip


@pytest.mark.parametrize("name", GRAPHS)
def test_real_graphs_compute_what_they_did(assets, name):
    path = assets / "graphs" / f"{name}.onnx"
    graph = load_graph(path, dims=GRAPHS[name])
    assert not graph.nodes("Constant", "Shape", "ConstantOfShape", "If", "Identity")
    rng = np.random.default_rng(0)
    inputs = {
        str(v.name): (rng.standard_normal(graph.shape(v)) if v.dtype == ir.DataType.FLOAT
                      else rng.integers(0, 9, graph.shape(v))).astype(v.dtype.numpy())
        for v in graph.inputs
    }  # fmt: skip
    narrow = {name: array.astype(np.uint8) if name == "input" and array.dtype.kind == "i" else array
              for name, array in inputs.items()}  # fmt: skip
    before, after = Session(path.read_bytes()).run(narrow), Session(graph).run(inputs)
    for a, b in zip(before, after, strict=True):
        np.testing.assert_allclose(b, a, rtol=0, atol=1e-5 * max(np.abs(a).max(), 1e-30))


def test_parse_and_load_agree():
    proto = tiny(dims=(2, 3))
    x = np.ones((2, 3), np.float32)
    np.testing.assert_array_equal(load_graph(proto).run(x=x), Graph(ir.from_proto(proto)).run(x=x))
