"""Run an INTEGER graph with the numpy oracles: the meaning of every target, to the last bit.

Nodes of float islands (graph/islands.py) have no such meaning: onnxruntime's float32 kernel of the operator stands for
them, one node at a time. What depends on them is compared within a tolerance, for which `run` can shake the codes that
leave an island.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qcompiler.errors import CalibrationError, ModelError
from qcompiler.execute.ort import Session
from qcompiler.formats import parse_format
from qcompiler.graph.islands import is_island, single_node
from qcompiler.graph.model import Graph, attributes, operator_key
from qcompiler.graph.qdq import FORMAT_KEY
from qcompiler.ops import OPERATORS


class Oracle:
    """An INTEGER graph ready to run. Raises ModelError for a node without an oracle."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.input_names = [str(value.name) for value in graph.inputs]
        self.output_names = [str(value.name) for value in graph.outputs]
        self._constants = {
            str(name): value.const_value.numpy() for name, value in graph.ir.initializers.items() if value.const_value
        }
        self._steps: list[tuple[ir.Node, Any, dict[str, Any]]] = []
        for node in graph.nodes():
            if is_island(node):
                self._steps.append((node, _FloatNode(graph, node), {}))
                continue
            key = operator_key(node)
            if key not in OPERATORS:
                raise ModelError(f"node `{node.name}`: {key} has no oracle.", where=graph.path)
            values = attributes(node)
            if node.op_type == "QuantizeLinear":
                values["format"] = node.outputs[0].metadata_props[FORMAT_KEY]
            self._steps.append((node, OPERATORS[key].oracle, values))
        last: dict[str, int] = {}
        for i, (node, _, _) in enumerate(self._steps):
            last.update({str(value.name): i for value in node.inputs if value is not None})
        keep = set(self.output_names)
        self._dead: list[list[str]] = [[] for _ in self._steps]
        for name, i in last.items():
            if name not in keep and name not in self._constants:
                self._dead[i].append(name)

    def run(self, inputs: Mapping[str, NDArray], shake: np.random.Generator | None = None) -> list[NDArray]:
        """Float32 outputs for float32 inputs by name.

        shake: every code that leaves a float island is moved by -1, 0 or 1 at random.
        """
        values = self._run(inputs, free=True, shake=shake)
        return [values[name] for name in self.output_names]

    def run_all(self, inputs: Mapping[str, NDArray]) -> dict[str, NDArray]:
        """Every value by name, for comparison layer by layer."""
        return self._run(inputs, free=False)

    def _run(
        self, inputs: Mapping[str, NDArray], *, free: bool, shake: np.random.Generator | None = None
    ) -> dict[str, NDArray]:
        missing = set(self.input_names) - inputs.keys()
        if missing:
            raise CalibrationError(f"input `{min(missing)}` is missing.", where=self.graph.path)
        values: dict[str, NDArray] = {name: np.asarray(inputs[name]) for name in self.input_names}
        for i, (node, oracle, attrs) in enumerate(self._steps):
            arguments = [self._value(values, value) for value in node.inputs]
            for value, array in zip(node.outputs, oracle(arguments, attrs), strict=False):
                values[str(value.name)] = array
            if shake is not None and node.op_type == "QuantizeLinear" and is_island(node.inputs[0].producer()):  # type: ignore[union-attr]
                name, fmt = str(node.outputs[0].name), parse_format(attrs["format"])
                moved = values[name].astype(np.int64) + shake.integers(-1, 2, values[name].shape)
                values[name] = np.clip(moved, fmt.min, fmt.max).astype(fmt.storage)
            if free:
                for name in self._dead[i]:
                    values.pop(name, None)
        return values

    def _value(self, values: Mapping[str, NDArray], value: ir.Value | None) -> NDArray | None:
        if value is None or value.name == "":
            return None
        name = str(value.name)
        return values[name] if name in values else self._constants[name]


class _FloatNode:
    """One float node in onnxruntime, as an oracle: node(inputs, attributes) -> outputs."""

    def __init__(self, graph: Graph, node: ir.Node) -> None:
        self._session = Session(single_node(graph, node, constants=False))

    def __call__(self, inputs: list[NDArray | None], attributes: dict[str, Any]) -> list[NDArray]:
        given = {f"input{i}": array for i, array in enumerate(inputs) if array is not None}
        return self._session.run({name: given[name] for name in self._session.input_names})
