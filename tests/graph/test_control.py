"""Loops, Scans and Ifs become straight lines; inputs become constants; narrow floats become float32."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from qcompiler.errors import RecipeError, UnsupportedError
from qcompiler.execute.ort import Session
from qcompiler.graph.io import load_graph

F = TensorProto.FLOAT


def info(name, shape=None, kind=F):
    return helper.make_tensor_value_info(name, kind, shape)


def constant(name, array):
    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(np.asarray(array)))


def proto(nodes, inputs, outputs, constants=None, opset=17):
    tensors = [numpy_helper.from_array(np.asarray(array), name) for name, array in (constants or {}).items()]
    graph = helper.make_graph(nodes, "g", inputs, outputs, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def loop(trip, condition=True, goes_on=None):
    """h <- relu(h w) + i, with w from outside and each h stacked."""
    body = helper.make_graph(
        [
            goes_on or helper.make_node("Identity", ["c"], ["go"]),
            helper.make_node("MatMul", ["h", "w"], ["m"]),
            helper.make_node("Relu", ["m"], ["r"]),
            helper.make_node("Cast", ["i"], ["f"], to=F),
            helper.make_node("Add", ["r", "f"], ["n"]),
            helper.make_node("Mul", ["n", "two"], ["seen"]),
        ],
        "body", [info("i", [], TensorProto.INT64), info("c", [], TensorProto.BOOL), info("h", [1, 3])],
        [info("go", [], TensorProto.BOOL), info("n", [1, 3]), info("seen", [1, 3])],
        [numpy_helper.from_array(np.float32(2), "two")],
    )  # fmt: skip
    nodes = [helper.make_node("Loop", ["trip", "start", "x"], ["y", "all"], "turns", body=body)]
    w = np.random.default_rng(0).standard_normal((3, 3)).astype("f")
    constants = {"w": w, "start": np.array(condition)}
    inputs = [info("x", [1, 3])]
    if trip is None:
        inputs.append(info("trip", [], TensorProto.INT64))
    else:
        constants["trip"] = np.array(trip)
    return proto(nodes, inputs, [info("y"), info("all")], constants)


def same(model, **inputs):
    graph = load_graph(model)
    want = Session(model.SerializeToString()).run(inputs)
    got = graph.run(**inputs)
    for a, b in zip(got if isinstance(got, list) else [got], want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    return graph


@pytest.mark.parametrize("goes_on", [None, constant("go", True)])
@pytest.mark.parametrize("trip", [1, 4])
def test_loops_with_constant_trip_counts(trip, goes_on):
    graph = same(loop(trip, goes_on=goes_on), x=np.float32([[0.5, -1, 2]]))
    assert not graph.nodes("Loop") and len(graph.nodes("MatMul")) == trip


def test_a_loop_inside_a_loop_and_an_if_on_the_turn():
    def branch(name, op_type):
        nodes = [helper.make_node(op_type, ["h"], [name])]
        return helper.make_graph(nodes, name, [], [info(name, [1, 3])])

    inner = helper.make_graph(
        [helper.make_node("Identity", ["d"], ["gone"]), helper.make_node("Tanh", ["k"], ["l"])],
        "inner", [info("j", [], TensorProto.INT64), info("d", [], TensorProto.BOOL), info("k", [1, 3])],
        [info("gone", [], TensorProto.BOOL), info("l", [1, 3])],
    )  # fmt: skip
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["c"], ["go"]),
            helper.make_node("Equal", ["i", "zero"], ["first"]),
            helper.make_node("If", ["first"], ["p"], then_branch=branch("a", "Relu"), else_branch=branch("b", "Neg")),
            helper.make_node("Loop", ["two", "", "p"], ["n"], body=inner),
        ],
        "body", [info("i", [], TensorProto.INT64), info("c", [], TensorProto.BOOL), info("h", [1, 3])],
        [info("go", [], TensorProto.BOOL), info("n", [1, 3])],
    )  # fmt: skip
    nodes = [helper.make_node("Loop", ["trip", "", "x"], ["y"], body=body)]
    constants = {"trip": np.array(3), "two": np.array(2), "zero": np.array(0)}
    graph = same(proto(nodes, [info("x", [1, 3])], [info("y")], constants), x=np.float32([[0.5, -1, 2]]))
    kinds = [node.op_type for node in graph.nodes()]
    assert kinds == ["Relu", "Tanh", "Tanh", "Neg", "Tanh", "Tanh", "Neg", "Tanh", "Tanh"]


@pytest.mark.parametrize(("axis", "backwards"), [(0, 0), (1, 0), (0, 1)])
def test_scans(axis, backwards):
    body = helper.make_graph(
        [helper.make_node("Add", ["s", "e"], ["n"]), helper.make_node("Identity", ["n"], ["o"])],
        "body", [info("s", [2]), info("e", [2])], [info("n", [2]), info("o", [2])],
    )  # fmt: skip
    nodes = [
        helper.make_node("Scan", ["x0", "x"], ["last", "all"], body=body, num_scan_inputs=1, scan_input_axes=[axis],
                         scan_input_directions=[backwards], scan_output_axes=[axis], scan_output_directions=[backwards])
    ]  # fmt: skip
    shape = (3, 2) if axis == 0 else (2, 3)
    model = proto(nodes, [info("x0", [2]), info("x", shape)], [info("last", [2]), info("all", shape)])
    graph = same(model, x0=np.float32([1, 2]), x=np.random.default_rng(1).standard_normal(shape).astype("f"))
    assert not graph.nodes("Scan")


def test_what_depends_on_data_is_refused_with_the_reason():
    model = loop(None)
    with pytest.raises(UnsupportedError, match="Loop.*turns.*depends on data.*--constant"):
        load_graph(model)
    graph = load_graph(model, constants={"trip": 2})
    assert not graph.nodes("Loop") and [value.name for value in graph.inputs] == ["x"]


def test_constants_must_fit_an_input():
    for constants, reason in (
        ({"nothing": 1}, "no input `nothing`; it has `trip`, `x`"),
        ({"trip": 1.5}, "is no int64"),
    ):
        with pytest.raises(RecipeError, match=reason):
            load_graph(loop(None), constants=constants)


@pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE])
def test_narrow_and_double_models_become_float32(kind):
    rng = np.random.default_rng(0)
    w = helper.make_tensor("w", kind, [3, 4], rng.standard_normal(12).tolist())
    exact = numpy_helper.to_array(w).astype(np.float32)
    nodes = [
        helper.make_node("Cast", ["x"], ["c"], to=kind),
        helper.make_node("MatMul", ["c", "w"], ["m"]),
        constant("half", np.float32(0.5)),
        helper.make_node("Cast", ["half"], ["h"], to=kind),
        helper.make_node("Mul", ["m", "h"], ["p"]),
        helper.make_node("Cast", ["p"], ["y"], to=F),
    ]
    model = proto(nodes, [info("x", [2, 3])], [info("y", [2, 4])])
    model.graph.initializer.append(w)
    graph = load_graph(model)
    assert "computes in" in graph.notes[0][1]
    assert {str(value.dtype) for value in graph.values()} == {"FLOAT"}
    x = rng.standard_normal((2, 3)).astype("f")
    np.testing.assert_allclose(graph.run(x=x), x @ exact * np.float32(0.5), rtol=1e-6)
    (weight,) = [graph.const(v) for v in graph.ir.initializers.values() if v.name == "w"]
    np.testing.assert_array_equal(weight, exact)


def test_inputs_and_outputs_of_a_half_model_are_float32():
    w = numpy_helper.from_array(np.float16([[1, 2], [3, 4.5]]), "w")
    model = proto([helper.make_node("MatMul", ["x", "w"], ["y"])],
                  [info("x", [1, 2], TensorProto.FLOAT16)], [info("y", [1, 2], TensorProto.FLOAT16)])  # fmt: skip
    model.graph.initializer.append(w)
    graph = load_graph(onnx.ModelProto.FromString(model.SerializeToString()))
    np.testing.assert_array_equal(graph.run(x=np.float32([[1, 1]])), [[4, 6.5]])
    assert [where for where, text in graph.notes if "float32 now" in text] == ["x", "y"]
