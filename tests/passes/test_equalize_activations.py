"""Equalizing linear values: the function stays, their channels get one range, everything else is left alone."""

from __future__ import annotations

import numpy as np
import pytest

from qcompiler.calibrate.data import load_samples
from qcompiler.calibrate.statistics import with_outputs
from qcompiler.context import Context
from qcompiler.errors import CalibrationError
from qcompiler.execute.ort import Session
from qcompiler.graph.model import Graph
from qcompiler.passes.equalize_activations import Options, linear_groups, run

TEXT = """<ir_version: 10, opset_import: ["": 21]>
g (float[1,4,5,5] x, float[6,4,1,1] w0, float[6] b0, float[8,6,1,1] w1, float[6,8,1,1] w2, float[3,6,1,1] w3)
  => (float[1,3,5,5] y) {
    first = Conv(x, w0, b0)
    wide = Conv(first, w1)
    active = Relu(wide)
    narrow = Conv(active, w2)
    sum = Add(first, narrow)
    y = Conv(sum, w3)
}"""


def inverted_residual() -> tuple[Graph, Context, np.ndarray]:
    rng = np.random.default_rng(4)
    spread = np.array([0.1, 1, 10, 0.3, 30, 2])[:, None, None, None]
    constants = {
        "w0": rng.normal(size=(6, 4, 1, 1)) * spread,
        "b0": rng.normal(size=6) * spread[:, 0, 0, 0],
        "w1": rng.normal(size=(8, 6, 1, 1)),
        "w2": rng.normal(size=(6, 8, 1, 1)) * spread,
        "w3": rng.normal(size=(3, 6, 1, 1)),
    }
    graph = Graph.parse(TEXT, **{name: array.astype(np.float32) for name, array in constants.items()})
    for name, channels in (("first", 6), ("wide", 8), ("active", 8), ("narrow", 6), ("sum", 6)):
        value = graph.value(name)
        value.shape, value.type = type(graph.outputs[0].shape)((1, channels, 5, 5)), graph.outputs[0].type
    data = rng.normal(size=(8, 4, 5, 5)).astype(np.float32)
    return graph, Context(samples=load_samples({"x": data}, graph)), data[:1]


def spread_of(graph: Graph, name: str, x: np.ndarray) -> float:
    """Largest channel range over the smallest."""
    (array,) = Session(with_outputs(graph, [name])).run({"x": x}, [name])
    reach = np.abs(array).max(axis=(0, 2, 3))
    return float(reach.max() / reach.min())


def test_the_function_stays_and_ranges_meet() -> None:
    graph, context, x = inverted_residual()
    before, uneven = graph.run(x=x), spread_of(graph, "sum", x)
    graph = run(graph, Options(strength=1.0), context)
    after = graph.run(x=x)
    assert np.abs(after - before).max() <= 1e-5 * np.abs(before).max()
    assert spread_of(graph, "sum", x) < uneven / 10


def test_values_that_a_residual_ties_are_one_group() -> None:
    graph, _, _ = inverted_residual()
    assert [[value.name for value in group] for group in linear_groups(graph)] == [["first", "narrow", "sum"]]


def test_a_value_between_two_layers_is_a_group_of_its_own() -> None:
    text = """<ir_version: 10, opset_import: ["": 21]>
    g (float[1,4,5,5] x, float[6,4,1,1] a, float[3,6,1,1] b) => (float[1,3,5,5] y) { h = Conv(x, a)  y = Conv(h, b) }"""
    graph = Graph.parse(text, a=np.ones((6, 4, 1, 1), np.float32), b=np.ones((3, 6, 1, 1), np.float32))
    value = graph.value("h")
    value.shape, value.type = type(graph.outputs[0].shape)((1, 6, 5, 5)), graph.outputs[0].type
    assert [[v.name for v in group] for group in linear_groups(graph)] == [["h"]]


def test_values_behind_an_activation_are_left_alone() -> None:
    graph, context, _ = inverted_residual()
    columns = graph.const(graph.value("w2"))
    rows = graph.const(graph.value("w2")).copy()
    run(graph, Options(), context)
    scaled = graph.const(graph.value("w2"))
    # w2 writes a linear value (rows change) and reads an activation (the ratios within a row do not).
    np.testing.assert_allclose(scaled[:, :1] * rows, rows[:, :1] * scaled, rtol=1e-4)
    assert not np.array_equal(scaled, columns)


def test_strength_zero_changes_nothing() -> None:
    graph, context, x = inverted_residual()
    before = graph.run(x=x)
    np.testing.assert_array_equal(run(graph, Options(strength=0.0), context).run(x=x), before)


def test_it_needs_samples() -> None:
    graph, _, _ = inverted_residual()
    with pytest.raises(CalibrationError, match="calibration data"):
        run(graph, Options(), Context())
