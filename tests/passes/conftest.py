"""What tests of float passes share: a model from text, and the claim that its outputs do not change."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from qcompiler.context import Context
from qcompiler.execute.ort import Session
from qcompiler.graph.io import load_graph
from qcompiler.graph.model import Graph


@pytest.fixture(scope="session")
def make() -> Callable[..., Graph]:
    """make(body, header, **constants): a loaded Graph; `header` as `float[1,3] x => float[1,3] y`."""

    def build(header: str, body: str, opset: int = 21, **constants: Any) -> Graph:
        inputs, outputs = header.split("=>")
        declared = [f"{_type(array)} {name}" for name, array in constants.items()]
        text = f'<ir_version: 10, opset_import: ["": {opset}]> g ({", ".join([inputs, *declared])}) => ({outputs}) {{'
        return load_graph(Graph.parse(text + body + "}", **constants).model)

    def _type(array: Any) -> str:
        kind = {"f": "float", "i": "int64", "b": "bool"}[np.asarray(array).dtype.kind]
        return f"{kind}[{','.join(map(str, np.shape(array)))}]" if np.ndim(array) else kind

    return build


@pytest.fixture(scope="session")
def unchanged() -> Callable[..., tuple[Graph, Context]]:
    """unchanged(graph, *passes): run them on a copy; outputs on random inputs must stay within 1e-5 of the largest."""

    def check(graph: Graph, *passes: ModuleType, seed: int = 0, options: Any = None) -> tuple[Graph, Context]:
        rng = np.random.default_rng(seed)
        inputs = {}
        for value in graph.inputs:
            shape = graph.shape(value)
            array = rng.standard_normal(shape) * 3 if value.dtype == ir.DataType.FLOAT else rng.integers(0, 8, shape)
            inputs[str(value.name)] = array.astype(value.dtype.numpy())  # type: ignore[union-attr]
        before, context, after = Session(graph).run(inputs), Context(), graph.clone()
        for module in passes:
            context.source = module.__name__.rsplit(".", 1)[-1]
            after = module.run(after, options or module.Options(), context)
        assert [v.name for v in after.outputs] == [v.name for v in graph.outputs]
        assert [graph.shape(v) for v in after.outputs] == [graph.shape(v) for v in graph.outputs]
        for a, b in zip(before, Session(after).run(inputs), strict=True):
            np.testing.assert_allclose(b, a, rtol=0, atol=1e-5 * max(float(np.abs(a).max()), 1e-30))
        for node in after.nodes():  # later passes read shapes
            for value in node.outputs:
                if value.name:
                    after.shape(value)
        return after, context

    return check
