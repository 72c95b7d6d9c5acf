"""The oracle executor: values, memory, errors, and real networks against their QDQ file in onnxruntime."""

from __future__ import annotations

import numpy as np
import pytest

from qcompiler.calibrate.data import load_samples
from qcompiler.context import Context
from qcompiler.errors import CalibrationError, ModelError
from qcompiler.execute.oracle import Oracle
from qcompiler.execute.ort import Session
from qcompiler.graph.io import load_graph
from qcompiler.graph.model import Graph
from qcompiler.pipeline import run_pipeline
from qcompiler.recipe import load_recipe
from tests.quantized import float_graph, integer, quantize

BODY = "h = Conv (x, w) a = Relu(h) m = GlobalAveragePool(a) y = Flatten(m)"


def small() -> Graph:
    w = np.random.default_rng(0).standard_normal((4, 2, 3, 3)).astype(np.float32)
    return integer(quantize(float_graph("float[1,2,6,6] x => float[1,4] y", BODY, w=w)))


def test_run_all_has_every_value_and_run_the_outputs():
    graph = small()
    x = np.random.default_rng(1).standard_normal((1, 2, 6, 6)).astype(np.float32)
    oracle = Oracle(graph)
    values = oracle.run_all({"x": x})
    assert {str(v.name) for node in graph.nodes() for v in node.outputs} <= set(values)
    (y,) = oracle.run({"x": x})
    np.testing.assert_array_equal(y, values["y"])
    for node in graph.nodes():
        for value in node.outputs:
            assert values[value.name].shape == graph.shape(value)
            assert values[value.name].dtype == value.dtype.numpy()


def test_missing_input_is_named():
    with pytest.raises(CalibrationError, match="`x` is missing"):
        Oracle(small()).run({})


def test_node_without_oracle_is_named():
    graph = float_graph("float[1,4] x => float[1,4] y", "y = Erf(x)")
    with pytest.raises(ModelError, match="Erf has no oracle"):
        Oracle(graph)


def agreement(path, name: str, x_calib: np.ndarray, x_test: np.ndarray, **options) -> float:
    """Share of samples for which the oracle and the QDQ graph in onnxruntime choose the same class."""
    graph = load_graph(path, shapes={name: (1, *x_test.shape[1:])})
    context = Context(samples=load_samples({name: x_calib}, graph))
    done = run_pipeline(graph, load_recipe("default").override(options), context)
    session, oracle = Session(done.qdq_graph), Oracle(done.integer_graph)
    same = 0
    for i in range(len(x_test)):
        x = {name: x_test[i : i + 1]}
        same += int(session.run(x)[0].argmax() == oracle.run(x)[0].argmax())
    return same / len(x_test)


@pytest.fixture(autouse=True)
def cache(monkeypatch):
    monkeypatch.setenv("QCOMPILER_CACHE", "off")


@pytest.mark.parametrize("precision", ["w8a8", "w4a8"])
def test_digits_agree_with_the_qdq_file(digits, precision):
    calib, test = digits.data["x_calib"], digits.data["x_test"]
    assert agreement(digits.cnn, "x", calib, test, precision=precision) >= 0.995


def test_resnet20_agrees_with_the_qdq_file(assets):
    with np.load(assets / "data" / "cifar10_jpeg.npz") as data:
        calib, test = data["x_calib"][:32], data["x_test"][:300]
    mean, std = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
    calib, test = (((x.astype(np.float32) / 255 - mean) / std).transpose(0, 3, 1, 2) for x in (calib, test))
    assert agreement(assets / "models" / "resnet20_cifar10_jpeg.onnx", "input", calib, test) >= 0.995
