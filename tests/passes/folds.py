"""Small transformers' graphs that tests of folding passes share, and their calibration data."""

from __future__ import annotations

from typing import Any

import numpy as np

from qcompiler.calibrate.data import load_samples
from qcompiler.context import Context
from qcompiler.graph.model import Graph
from qcompiler.passes import canonicalize, recognize_norms

C = 8
HEADER = "float[1,6,8] x => float[1,6,5] y"
QKV = "float[1,6,8] x => float[1,6,4] q, float[1,6,4] k, float[1,6,5] v"
NORM = "n = LayerNormalization<axis = -1>(x, gamma, beta)"
RMS = "s = Mul(x, x)  m = ReduceMean(s, last)  e = Add(m, eps)  r = Sqrt(e)  d = Div(x, r)  n = Mul(d, gamma)"


def constants(seed: int = 0, **more: Any) -> dict[str, Any]:
    """gamma and beta whose channels differ by two orders of magnitude, and what `more` names as a shape."""
    rng = np.random.default_rng(seed)
    made: dict[str, Any] = {
        "gamma": (rng.standard_normal(C) * 10 ** rng.uniform(-1, 1, C)).astype(np.float32),
        "beta": (rng.standard_normal(C) * 10 ** rng.uniform(-1, 1, C)).astype(np.float32),
    }
    for name, shape in more.items():
        made[name] = rng.standard_normal(shape).astype(np.float32) if isinstance(shape, tuple) else shape
    return made


def rms_constants(seed: int = 0, **more: Any) -> dict[str, Any]:
    """As `constants`, for RMS."""
    made = constants(seed, **more)
    del made["beta"]
    return {**made, "last": np.array([-1]), "eps": np.float32(1e-5)}


def prepared(graph: Graph) -> Graph:
    """With whole normalizations."""
    context = Context()
    for module in (canonicalize, recognize_norms):
        graph = module.run(graph, module.Options(), context)
    return graph


def calibrated(graph: Graph, count: int = 16, seed: int = 3) -> Context:
    """A context with random samples for the input x."""
    shape = graph.shape(graph.inputs[0])
    data = np.random.default_rng(seed).standard_normal((count, *shape[1:])).astype(np.float32)
    return Context(samples=load_samples({"x": data}, graph), seed=seed)


def close(after: Any, before: Any, tolerance: float = 1e-5) -> None:
    """Outputs agree relative to the largest."""
    for a, b in zip(np.atleast_1d(after), np.atleast_1d(before), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.abs(b).max())
