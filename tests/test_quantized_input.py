"""Models that come quantized keep their scales: QDQ, QOperator, QCDQ, QONNX, integer, dynamic; against onnxruntime."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from qcompiler.driver import compile, quantize
from qcompiler.errors import CalibrationError, UnsupportedError
from qcompiler.execute.oracle import Oracle
from qcompiler.execute.ort import Session
from qcompiler.graph.io import load_graph

FORMS = ("qcdq", "standard", "functions")


class Reader:
    """Calibration data as onnxruntime's quantizer wants it."""

    def __init__(self, name: str, data: np.ndarray) -> None:
        self.items = iter([{name: one[None]} for one in data])

    def get_next(self):
        return next(self.items, None)


@pytest.fixture(scope="module")
def files(digits, tmp_path_factory):
    """The digits networks as onnxruntime quantizes them."""
    from onnxruntime import quantization as ortq

    logging.getLogger().setLevel(logging.ERROR)
    folder = tmp_path_factory.mktemp("quantized")
    made = {}
    static = onnx.load(digits.cnn)
    for value in (*static.graph.input, *static.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    onnx.save(static, folder / "float.onnx")
    for name, form, channels, types in (
        ("qdq", "QDQ", True, ("QUInt8", "QInt8")),
        ("qdq_tensor", "QDQ", False, ("QInt8", "QInt8")),
        ("qdq_affine", "QDQ", False, ("QUInt8", "QUInt8")),
        ("qoperator", "QOperator", True, ("QUInt8", "QInt8")),
    ):
        made[name] = folder / f"{name}.onnx"
        ortq.quantize_static(
            folder / "float.onnx", made[name], Reader("x", digits.data["x_calib"][:32]),
            quant_format=ortq.QuantFormat[form], per_channel=channels,
            activation_type=ortq.QuantType[types[0]], weight_type=ortq.QuantType[types[1]],
        )  # fmt: skip
    made["dynamic"] = folder / "dynamic.onnx"
    ortq.quantize_dynamic(digits.vit, made["dynamic"], weight_type=ortq.QuantType.QInt8)
    return made


def reference(path: Path) -> Session:
    return Session(path.read_bytes())


@pytest.mark.parametrize("name", ["qdq", "qdq_tensor", "qdq_affine"])
def test_a_loaded_qdq_file_means_what_onnxruntime_makes_of_it(files, digits, name):
    graph = load_graph(files[name])
    assert not graph.nodes("QuantizeLinear", "DequantizeLinear") and graph.nodes("FakeQuantize")
    given, lifted = reference(files[name]), Session(graph)
    for x in digits.data["x_test"][:8]:
        np.testing.assert_array_equal(lifted.run({"x": x[None]})[0], given.run({"x": x[None]})[0])


@pytest.mark.parametrize("name", ["qdq", "qdq_tensor", "qdq_affine", "qoperator"])
def test_scales_stay_and_decisions_agree_without_calibration_data(files, digits, name):
    result = quantize(files[name], {"x": digits.data["x_calib"][:16]} if name == "qoperator" else None)
    told = {np.float32(s) for s in scales_in(files[name])}
    found = {np.float32(v.metadata_props["qcompiler.scale"]) for v in result.integer_graph.values()
             if "," not in v.metadata_props.get("qcompiler.scale", ",") and v.producer() is not None}  # fmt: skip
    assert len(found) > 10 and len(found - told) == (name == "qoperator")  # it leaves two values float, of one range
    oracle, given = Oracle(result.integer_graph), reference(files[name])
    x = digits.data["x_test"][:60]
    got = np.concatenate([oracle.run({"x": one[None]})[0] for one in x])
    want = np.concatenate([given.run({"x": one[None]})[0] for one in x])
    step = float(result.integer_graph.nodes("DequantizeLinear")[0].inputs[1].const_value.numpy())
    assert (got.argmax(1) == want.argmax(1)).mean() >= 0.98
    assert np.abs(got - want).max() <= 5.5 * step  # codes that rounding moved, over twelve layers
    assert np.abs(got - want).mean() <= step


def scales_in(path: Path) -> list[float]:
    graph = onnx.load(path).graph
    return [
        float(numpy_helper.to_array(t).reshape(-1)[0]) for t in graph.initializer if t.data_type == TensorProto.FLOAT
    ]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("precision", ["w8a8", "w4a8", "w5a6"])
def test_our_own_files_come_back_to_the_same_integer_graph(digits, tmp_path, form, precision):
    first = quantize(
        digits.cnn, {"x": digits.data["x_calib"][:16]}, "minmax", dims={"N": 1}, options={"precision": precision}
    )
    first.save(tmp_path / "q.onnx", form)
    again = quantize(tmp_path / "q.onnx")
    a, b = Oracle(first.integer_graph), Oracle(again.integer_graph)
    for x in digits.data["x_test"][:4]:
        np.testing.assert_array_equal(a.run({"x": x[None]})[0], b.run({"x": x[None]})[0])
    tokens = [sorted(v.metadata_props.get("qcompiler.format", "") for v in g.integer_graph.ir.initializers.values())
              for g in (first, again)]  # fmt: skip
    assert tokens[0] == tokens[1]


def test_a_quantized_file_compiles_to_a_bit_exact_bundle(files, tmp_path):
    bundle = compile(files["qdq"], "cpu", output=tmp_path / "b")
    assert bundle.report()["verification"]["bit_exact"]
    assert any("own quantizers" in note["text"] for note in bundle.report()["notes"])


def test_dynamic_quantization_is_undone_and_said(files, digits):
    graph = load_graph(files["dynamic"], dims={"N": 2})
    assert graph.notes and all("dynamically" in text for _, text in graph.notes)
    assert not {node.op_type for node in graph.nodes()} & {"DynamicQuantizeLinear", "MatMulInteger", "FakeQuantize"}
    x = digits.data["x_test"][:2]
    want, exact = reference(files["dynamic"]).run({"x": x})[0], load_graph(digits.vit, dims={"N": 2}).run(x=x)
    assert np.abs(graph.run(x=x) - want).max() < 0.1 * np.abs(want).max()
    # Only weights are rounded now: nearer to float than the dynamically quantized model.
    assert np.abs(graph.run(x=x) - exact).max() <= np.abs(want - exact).max()
    with pytest.raises(CalibrationError):
        quantize(files["dynamic"], dims={"N": 1})


# -- single spellings ------------------------------------------------------------------------------------------


def model(nodes, inputs, outputs, constants, domains=("",)):
    """A ModelProto from NodeProtos; inputs and outputs are (name, shape, type)."""

    def declared(values):
        return [helper.make_tensor_value_info(name, kind, shape) for name, shape, kind in values]

    initializers = [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "g", declared(inputs), declared(outputs), initializers)
    versions = {"": 17}
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid(d, versions.get(d, 1)) for d in domains], ir_version=10
    )


F, U8, I8 = TensorProto.FLOAT, np.uint8, np.int8
NUMBERS = {"s": np.float32(0.1), "z": U8(10), "t": np.float32(0.25), "u": U8(3), "v": np.float32(0.05), "i": I8(0)}


def test_codes_that_move_are_values_that_move():
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("MaxPool", ["q"], ["m"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Transpose", ["m"], ["t1"], perm=[0, 2, 3, 1]),
        helper.make_node("Concat", ["t1", "t1"], ["c"], axis=3),
        helper.make_node("DequantizeLinear", ["c", "s", "z"], ["y"]),
    ]
    proto = model(nodes, [("x", (1, 2, 4, 4), F)], [("y", (1, 2, 2, 4), F)], NUMBERS)
    x = np.random.default_rng(0).standard_normal((1, 2, 4, 4)).astype("f") * 5
    graph = load_graph(proto)
    np.testing.assert_array_equal(graph.run(x=x), Session(proto.SerializeToString()).run({"x": x})[0])
    integer = quantize(proto).integer_graph
    np.testing.assert_array_equal(Oracle(integer).run({"x": x})[0], graph.run(x=x))
    assert [node.op_type for node in integer.nodes()][0] == "QuantizeLinear"


def _qlinear(rng, op_type, extra=(), **attributes):
    constants = {**NUMBERS, **dict(extra)}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node(op_type, ["q", "s", "z", *dict(extra), "t", "u"], ["r"], domain="com.microsoft", **attributes),
        helper.make_node("DequantizeLinear", ["r", "t", "u"], ["y"]),
    ]
    return nodes, constants


GEMM = {"w": I8([[1, -2, 30, 4]] * 5), "v": np.float32(0.05), "o": I8(0), "b": np.int32([1, 9, -7, 0, 3])}


@pytest.mark.parametrize(
    ("op_type", "attributes", "extra", "out"),
    [
        ("QLinearAdd", {}, {"w": U8([[1, 2, 200, 255]]), "v": np.float32(0.05), "o": U8(100)}, (3, 4)),
        ("QLinearMul", {}, {"w": U8([[1, 2, 200, 255]]), "v": np.float32(0.05), "o": U8(100)}, (3, 4)),
        ("QLinearSigmoid", {}, {}, (3, 4)),
        ("QLinearLeakyRelu", {"alpha": 0.25}, {}, (3, 4)),
        ("QGemm", {"transB": 1}, GEMM, (3, 5)),
    ],
)  # fmt: skip
def test_operators_of_onnxruntime(op_type, attributes, extra, out):
    rng = np.random.default_rng(1)
    nodes, constants = _qlinear(rng, op_type, extra, **attributes)
    proto = model(nodes, [("x", (3, 4), F)], [("y", out, F)], constants, ("", "com.microsoft"))
    x = rng.standard_normal((3, 4)).astype("f") * 4
    want = Session(proto.SerializeToString()).run({"x": x})[0]
    graph = load_graph(proto)
    assert np.abs(graph.run(x=x) - want).max() <= 0.2501  # one code of the output
    assert np.abs(Oracle(quantize(proto).integer_graph).run({"x": x})[0] - want).max() <= 0.2501
    assert "com.microsoft" not in graph.model.opset_imports


@pytest.mark.parametrize("name", ["MatMulInteger", "ConvInteger"])
def test_integer_products_with_a_cast_and_a_scale(name):
    rng = np.random.default_rng(2)
    conv = name == "ConvInteger"
    shape, out = ((1, 3, 5, 5), (1, 4, 3, 3)) if conv else ((3, 6), (3, 5))
    w = rng.integers(-100, 100, (4, 3, 3, 3) if conv else (6, 5)).astype(np.int8)
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node(name, ["q", "w", "z"], ["a"]),
        helper.make_node("Cast", ["a"], ["f"], to=F),
        helper.make_node("Mul", ["f", "k"], ["p"]),
        helper.make_node("QuantizeLinear", ["p", "t", "u"], ["r"]),
        helper.make_node("DequantizeLinear", ["r", "t", "u"], ["y"]),
    ]
    constants = {**NUMBERS, "w": w, "k": np.float32(0.1 * 0.01)}
    proto = model(nodes, [("x", shape, F)], [("y", out, F)], constants)
    x = rng.standard_normal(shape).astype("f") * 4
    want = Session(proto.SerializeToString()).run({"x": x})[0]
    integer = quantize(proto).integer_graph
    assert np.abs(load_graph(proto).run(x=x) - want).max() <= 0.2501
    assert np.abs(Oracle(integer).run({"x": x})[0] - want).max() <= 0.2501
    (product,) = integer.nodes("Conv", "MatMul")
    np.testing.assert_array_equal(np.unique(integer.const(product.inputs[1])), np.unique(w))


def quant(name, x, scale, zero, bits, output, **attributes):
    attributes = {"signed": 1, "narrow": 0, "rounding_mode": "ROUND", **attributes}
    return helper.make_node(
        "Quant", [x, scale, zero, bits], [output], name, domain="qonnx.custom_op.general", **attributes
    )


QONNX = {
    "b4": np.float32(4), "b3": np.float32(3), "b24": np.float32(24), "nil": np.float32(0), "s": np.float32(0.2),
    "ws": np.float32([[0.05], [0.1]]).reshape(2, 1, 1, 1), "os": np.float32(0.3), "bs": np.float32(0.001),
    "w": np.random.default_rng(5).standard_normal((2, 3, 3, 3)).astype("f") * 0.2, "b": np.float32([0.1234, -0.05]),
}  # fmt: skip


def qonnx_model(**changed):
    nodes = [
        quant("in", "x", "s", "nil", "b4", "xq", signed=0),
        quant("weight", "w", "ws", "nil", "b3", "wq", narrow=1),
        quant("bias", "b", "bs", "nil", "b24", "bq"),
        helper.make_node("Conv", ["xq", "wq", "bq"], ["c"]),
        helper.make_node("Relu", ["c"], ["r"]),
        quant("out", "r", "os", "nil", "b4", "y", signed=0, **changed),
    ]
    io = [("x", (1, 3, 6, 6), F)], [("y", (1, 2, 4, 4), F)]
    return model(nodes, *io, QONNX, ("", "qonnx.custom_op.general"))


def test_qonnx_means_what_its_definition_says():
    def q(x, s, low, high):
        return np.clip(np.rint(x / s), low, high) * s

    x = np.random.default_rng(6).standard_normal((1, 3, 6, 6)).astype("f") * 2
    w, b = q(QONNX["w"], QONNX["ws"], -3, 3), np.rint(QONNX["b"] / 0.001) * 0.001
    xq = q(x, 0.2, 0, 15).astype("f")
    windows = np.lib.stride_tricks.sliding_window_view(xq, (3, 3), (2, 3))
    y = np.einsum("ncyxij,mcij->nmyx", windows, w) + b.reshape(1, 2, 1, 1)
    want = q(np.maximum(y, 0), 0.3, 0, 15)
    proto = qonnx_model()
    np.testing.assert_allclose(load_graph(proto).run(x=x), want, rtol=1e-5, atol=1e-6)
    result = quantize(proto)
    conv = result.integer_graph.nodes("Conv")[0]
    assert [conv.inputs[i].metadata_props["qcompiler.format"] for i in (0, 1)] == ["uint4", "int3n"]
    assert np.abs(Oracle(result.integer_graph).run({"x": x})[0] - want).max() <= 0.3001


@pytest.mark.parametrize(
    ("proto", "reason"),
    [
        (lambda: qonnx_model(rounding_mode="FLOOR"), "rounds an activation with mode FLOOR"),
        (lambda: dequantized_twice(), "another scale"),
        (lambda: per_channel_activation(), "scale for every channel of an activation"),
        (lambda: sum_of_codes(), "computes with codes"),
    ],
)
def test_what_has_no_reading_is_refused_by_name(proto, reason):
    with pytest.raises(UnsupportedError, match=reason):
        load_graph(proto())


def dequantized_twice():
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "t", "z"], ["y"]),
    ]
    return model(nodes, [("x", (1, 4), F)], [("y", (1, 4), F)], NUMBERS)


def per_channel_activation():
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], axis=1),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], axis=1),
    ]
    constants = {"s": np.float32([0.1, 0.2]), "z": U8([0, 0])}
    return model(nodes, [("x", (1, 2), F)], [("y", (1, 2), F)], constants)


def sum_of_codes():
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("Add", ["q", "q"], ["d"]),
        helper.make_node("DequantizeLinear", ["d", "s", "z"], ["y"]),
    ]
    return model(nodes, [("x", (1, 4), F)], [("y", (1, 4), F)], NUMBERS)


def test_values_without_a_quantizer_are_calibrated_or_refused():
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        helper.make_node("Sigmoid", ["d"], ["g"]),
        helper.make_node("Add", ["g", "d"], ["y"]),
    ]
    proto = model(nodes, [("x", (1, 4), F)], [("y", (1, 4), F)], NUMBERS)
    with pytest.raises(CalibrationError, match="2 values lack a quantizer"):
        quantize(proto)
    result = quantize(proto, {"x": np.random.default_rng(0).standard_normal((16, 4)).astype("f")})
    quantizers = result.integer_graph.nodes("QuantizeLinear")
    assert [result.integer_graph.const(node.inputs[1]) for node in quantizers] == [NUMBERS["s"]]


@pytest.mark.parametrize("block", [0, 2])
def test_packed_and_blocked_constants(block):
    codes = ir.tensor(np.array([[1, -8, 7, 3], [0, 2, -1, 5]], np.int8))
    scale = np.float32([[0.5, 0.25], [1, 2]]) if block else np.float32([0.5, 2])
    nodes = [
        helper.make_node(
            "DequantizeLinear", ["w", "ws"], ["d"], axis=1 if block else 0, **({"block_size": 2} if block else {})
        ),
        helper.make_node("Add", ["x", "d"], ["y"]),
    ]
    proto = model(nodes, [("x", (2, 4), F)], [("y", (2, 4), F)], {"ws": scale})
    proto.opset_import[0].version = 21
    proto.graph.initializer.append(helper.make_tensor("w", TensorProto.INT4, (2, 4), codes.numpy()))
    x = np.ones((2, 4), "f")
    want = Session(proto.SerializeToString()).run({"x": x})[0]
    np.testing.assert_array_equal(load_graph(proto).run(x=x), want)


def test_real_quantized_networks(assets):
    """Scales as given; the QDQ graph means the given file."""
    graph = load_graph(assets / "graphs" / "mobilenetv2_qdq_static.onnx", dims={"batch": 1})
    x = np.random.default_rng(0).random((1, 3, 224, 224), np.float32) * 2
    want = reference(assets / "graphs" / "mobilenetv2_qdq_static.onnx").run({"input": x})[0]
    np.testing.assert_array_equal(graph.run(input=x), want)
    for name, dims, count in (("mobilenetv2_qdq_static", {"batch": 1}, 67), ("espcn_nn_resize_qonnx", {}, 7)):
        result = quantize(assets / "graphs" / f"{name}.onnx", dims=dims)
        assert len(result.integer_graph.nodes()) == count
        assert not [note for note in result.context.notes if "left the grid" in note.text]
