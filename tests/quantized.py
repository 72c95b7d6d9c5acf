"""Float text -> QDQ graph with random weights, and the comparison of its two meanings: onnxruntime and the oracle."""

from __future__ import annotations

from typing import Any

import numpy as np

from qcompiler.calibrate.data import load_samples
from qcompiler.calibrate.statistics import with_outputs
from qcompiler.context import Context
from qcompiler.execute.oracle import Oracle
from qcompiler.execute.ort import Session
from qcompiler.graph.io import load_graph
from qcompiler.graph.model import Graph
from qcompiler.passes import canonicalize, decide, insert_qdq, integerize, set_ranges


def float_graph(header: str, body: str, **constants: Any) -> Graph:
    """A loaded graph; `header` as `float[1,3] x => float[1,3] y`."""
    inputs, outputs = header.split("=>")
    declared = [f"{_type(array)} {name}" for name, array in constants.items()]
    head = '<ir_version: 10, opset_import: ["": 21, "qcompiler": 1]>'
    text = f"{head} g ({', '.join([inputs, *declared])}) => ({outputs}) {{ {body} }}"
    return load_graph(Graph.parse(text, **constants).model)


def _type(array: Any) -> str:
    kind = {"f": "float", "i": "int64", "b": "bool"}[np.asarray(array).dtype.kind]
    return f"{kind}[{','.join(map(str, np.shape(array)))}]" if np.ndim(array) else kind


def quantize(graph: Graph, *, seed: int = 0, canonical: bool = False, **options: Any) -> Graph:
    """Its QDQ form, calibrated on eight random samples; `options` are those of the pass `decide`."""
    samples = {value.name: random_input(graph, value.name, seed + 1, 8) for value in graph.inputs}
    graph = graph.clone()
    context = Context(samples=load_samples(samples, graph))
    if canonical:
        graph = canonicalize.run(graph, canonicalize.Options(), context)
    graph = decide.run(graph, decide.Options(**options), context)
    graph = set_ranges.run(graph, set_ranges.Options(), context)
    return insert_qdq.run(graph, insert_qdq.Options(), context)


def random_input(graph: Graph, name: str, seed: int, count: int = 1) -> np.ndarray:
    """Normal float32 samples."""
    shape = graph.shape(graph.value(name))
    return np.random.default_rng(seed).standard_normal((count * shape[0], *shape[1:])).astype(np.float32)


def integer(qdq_graph: Graph, arithmetic: str = "float") -> Graph:
    """Its INTEGER form."""
    return integerize.run(qdq_graph, integerize.Options(arithmetic=arithmetic), Context())


def differences(qdq_graph: Graph, integer_graph: Graph, *, samples: int = 4, seed: int = 5) -> tuple[int, float]:
    """Largest difference of output codes between onnxruntime on the QDQ graph and the oracle, and the share of codes
    that differ."""
    sources = [value.producer().inputs[0].name for value in qdq_graph.outputs]
    session, oracle = Session(with_outputs(qdq_graph, sources)), Oracle(integer_graph)
    worst, differing, total = 0, 0, 0
    for i in range(samples):
        x = {value.name: random_input(qdq_graph, value.name, seed + i) for value in qdq_graph.inputs}
        values = oracle.run_all(x)
        for value, want in zip(integer_graph.outputs, session.run(x, sources), strict=True):
            got = values[value.producer().inputs[0].name]
            gap = np.abs(got.astype(np.int64) - want.astype(np.int64))
            assert got.shape == want.shape
            worst, differing, total = max(worst, int(gap.max())), differing + int((gap > 0).sum()), total + gap.size
    return worst, differing / total
