"""Models larger than one protobuf message: external data is mapped, never read as one piece."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from qcompiler.driver import quantize
from qcompiler.errors import ModelError
from qcompiler.execute.oracle import Oracle
from qcompiler.graph import model as model_module
from qcompiler.graph.io import load_graph

ROOT = Path(__file__).resolve().parent.parent.parent
ROWS, COLUMNS = 1 << 15, 20 << 10


def network(opset: int) -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"]),
        helper.make_node("Relu", ["m"], ["r"]),
        helper.make_node("MatMul", ["r", "v"], ["y"]),
    ]
    tensors = [
        onnx.numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name)
        for name, shape in (("w", (40, 60)), ("v", (60, 30)))
    ]
    io = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", (1, 40)), ("y", (1, 30)))]
    graph = helper.make_graph(nodes, "g", io[:1], io[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


@pytest.mark.parametrize("opset", [13, 21])
def test_a_large_model_gives_what_a_small_one_does(tmp_path, monkeypatch, opset):
    onnx.save_model(
        network(opset), tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0
    )
    x = {"x": np.random.default_rng(1).standard_normal((8, 40)).astype(np.float32)}
    small = quantize(network(opset), x)
    monkeypatch.setattr(model_module, "LARGE", 1000)
    graph = load_graph(tmp_path / "m.onnx")
    assert type(graph.value("w").const_value).__name__ == "ExternalTensor" and graph.is_large()
    np.testing.assert_array_equal(graph.run(x=x["x"][:1]), small.float_graph.run(x=x["x"][:1]))
    large = quantize(tmp_path / "m.onnx", x)
    assert large.float_graph.fingerprint() == small.float_graph.fingerprint()
    one = {"x": x["x"][:1]}
    np.testing.assert_array_equal(Oracle(large.integer_graph).run(one)[0], Oracle(small.integer_graph).run(one)[0])


def test_a_file_that_is_too_short_is_an_error(tmp_path):
    onnx.save_model(network(21), tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    data = (tmp_path / "m.data").read_bytes()
    (tmp_path / "m.data").write_bytes(data[:-5])
    with pytest.raises(ModelError, match="external data cannot be read.*ends at"):
        load_graph(tmp_path / "m.onnx")


CODE = """
import resource, sys
from qcompiler.graph.io import load_graph
load_graph(sys.argv[2])  # imports, and what they take
soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
resource.setrlimit(resource.RLIMIT_DATA, (1 << 30, hard))  # of private memory; mapped files do not count
graph = load_graph(sys.argv[1])
assert graph.is_large() and graph.shape(graph.outputs[0])[0] == 1
"""


def test_more_than_two_gigabytes_load_in_bounded_memory(tmp_path):
    """A sparse file of 2.5 GiB as weight, with less private memory allowed than it has."""
    weight = onnx.TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[ROWS, COLUMNS])
    weight.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "w.data"), ("offset", "0"), ("length", str(4 * ROWS * COLUMNS))):
        weight.external_data.add(key=key, value=value)
    io = [helper.make_tensor_value_info(n, TensorProto.FLOAT, (1, s)) for n, s in (("x", ROWS), ("y", COLUMNS))]
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", io[:1], io[1:], [weight])
    (tmp_path / "big.onnx").write_bytes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    )
    with open(tmp_path / "w.data", "wb") as file:
        file.truncate(4 * ROWS * COLUMNS)
    assert 4 * ROWS * COLUMNS > 1 << 31
    small = tmp_path / "small.onnx"
    onnx.save_model(network(17), small)
    command = [sys.executable, "-c", CODE, str(tmp_path / "big.onnx"), str(small)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
