"""Statistics over a graph: right values, cached by content, errors that name sample and value."""

from __future__ import annotations

import numpy as np
import pytest

from qcompiler.calibrate import statistics
from qcompiler.calibrate.data import load_samples
from qcompiler.calibrate.statistics import observe, require
from qcompiler.context import Context
from qcompiler.errors import CalibrationError
from qcompiler.graph.model import Graph

TEXT = """<ir_version: 10, opset_import: ["": 21]>
g (float[1,4] x, float[4] w) => (float[1,4] y) { h = Mul(x, w)  e = Exp(h)  y = Add(e, x) }"""
X = np.random.default_rng(0).standard_normal((9, 4)).astype(np.float32)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("QCOMPILER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def graph() -> Graph:
    return Graph.parse(TEXT, w=np.float32([1, 2, 3, 4]))


def test_values_are_those_of_the_graph():
    g = graph()
    found = observe(g, load_samples({"x": X}, g), ["x", "h", "e", "y"], Context())
    h = X * np.float32([1, 2, 3, 4])
    for name, want in (("x", X), ("h", h), ("e", np.exp(h))):
        np.testing.assert_allclose([found[name].minimum, found[name].maximum], [want.min(), want.max()], rtol=1e-6)
        assert found[name].total == want.size
    assert g.outputs[0].name == "y" and len(g.outputs) == 1  # the graph itself did not change


def test_cache_is_used_and_keyed_by_content(cache, monkeypatch):
    g = graph()
    first = require(g, ["h", "e"], Context(samples=load_samples({"x": X}, g)))
    assert len(list(cache.glob("*.npz"))) == 1
    monkeypatch.setattr(statistics, "observe", lambda *_: pytest.fail("measured although it is cached"))
    again = require(g, ["h", "e"], Context(samples=load_samples({"x": X}, g)))
    for name in ("h", "e"):
        np.testing.assert_array_equal(first[name].counts, again[name].counts)
        assert vars(first[name]).keys() == vars(again[name]).keys()
        for key in ("start", "exponent", "minimum", "maximum", "total", "zeros"):
            assert getattr(first[name], key) == getattr(again[name], key)
    with pytest.raises(pytest.fail.Exception):
        require(g, ["h", "e"], Context(samples=load_samples({"x": X + 1}, g)))
    g.set_const(g.value("w"), np.ones(4, np.float32))
    with pytest.raises(pytest.fail.Exception):
        require(g, ["h", "e"], Context(samples=load_samples({"x": X}, g)))


def test_a_damaged_cache_is_measured_again(cache):
    g = graph()
    first = require(g, ["h"], Context(samples=load_samples({"x": X}, g)))
    file = next(cache.glob("*.npz"))
    file.write_bytes(file.read_bytes()[:50])
    again = require(g, ["h"], Context(samples=load_samples({"x": X}, g)))
    np.testing.assert_array_equal(first["h"].counts, again["h"].counts)


def test_stale_statistics_are_not_used():
    g = graph()
    context = Context(samples=load_samples({"x": X}, g))
    before = require(g, ["h"], context)["h"].maximum
    g.set_const(g.value("w"), np.float32([10, 20, 30, 40]))
    assert require(g, ["h"], context)["h"].maximum == pytest.approx(10 * before)


def test_no_data_and_overflow_are_named():
    g = graph()
    with pytest.raises(CalibrationError, match="--calib"):
        require(g, ["h"], Context())
    x = X.copy()
    x[4] = 1000
    with pytest.raises(CalibrationError, match="sample 4: `e` becomes NaN or infinite"):
        require(g, ["e"], Context(samples=load_samples({"x": x}, g)))
