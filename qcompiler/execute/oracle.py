"""Run an INTEGER graph with the numpy oracles: the meaning of every target, to the last bit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qcompiler.errors import CalibrationError, ModelError
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

    def run(self, inputs: Mapping[str, NDArray]) -> list[NDArray]:
        """Float32 outputs for float32 inputs by name."""
        values = self._run(inputs, free=True)
        return [values[name] for name in self.output_names]

    def run_all(self, inputs: Mapping[str, NDArray]) -> dict[str, NDArray]:
        """Every value by name, for comparison layer by layer."""
        return self._run(inputs, free=False)

    def _run(self, inputs: Mapping[str, NDArray], *, free: bool) -> dict[str, NDArray]:
        missing = set(self.input_names) - inputs.keys()
        if missing:
            raise CalibrationError(f"input `{min(missing)}` is missing.", where=self.graph.path)
        values: dict[str, NDArray] = {name: np.asarray(inputs[name]) for name in self.input_names}
        for i, (node, oracle, attrs) in enumerate(self._steps):
            arguments = [self._value(values, value) for value in node.inputs]
            for value, array in zip(node.outputs, oracle(arguments, attrs), strict=False):
                values[str(value.name)] = array
            if free:
                for name in self._dead[i]:
                    values.pop(name, None)
        return values

    def _value(self, values: Mapping[str, NDArray], value: ir.Value | None) -> NDArray | None:
        if value is None or value.name == "":
            return None
        name = str(value.name)
        return values[name] if name in values else self._constants[name]
