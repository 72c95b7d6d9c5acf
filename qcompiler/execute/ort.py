"""Run a graph in onnxruntime. The only file that imports it."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcompiler.errors import ModelError
from qcompiler.graph.model import Graph


class Session:
    """A graph loaded in onnxruntime's CPU provider.

    By default without graph optimizations, so that a QDQ graph means exactly what its nodes say.
    """

    def __init__(self, graph: Graph | bytes, *, threads: int = 1, optimize: bool = False) -> None:
        import onnxruntime as ort

        self._where = "model" if isinstance(graph, bytes) else graph.path
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4
        level = ort.GraphOptimizationLevel
        options.graph_optimization_level = level.ORT_ENABLE_ALL if optimize else level.ORT_DISABLE_ALL
        try:
            self._session = self._open(ort, graph, options)
        except Exception as error:  # onnxruntime raises many types, all derived from Exception alone
            raise ModelError(f"onnxruntime cannot load it: {error}", where=self._where) from error
        self.input_names = [value.name for value in self._session.get_inputs()]
        self.output_names = [value.name for value in self._session.get_outputs()]

    @staticmethod
    def _open(ort: Any, graph: Graph | bytes, options: Any) -> Any:
        providers = ["CPUExecutionProvider"]
        if isinstance(graph, bytes) or not graph.is_large():
            data = graph if isinstance(graph, bytes) else graph.to_proto().SerializeToString()
            return ort.InferenceSession(data, options, providers=providers)
        with tempfile.TemporaryDirectory(prefix="qcompiler-") as folder:  # more than one protobuf message holds
            path = Path(folder) / "model.onnx"
            graph.save(path)
            return ort.InferenceSession(path, options, providers=providers)

    def run(self, inputs: Mapping[str, NDArray], outputs: Sequence[str] | None = None) -> list[NDArray]:
        """Outputs for inputs by name."""
        try:
            return [np.asarray(array) for array in self._session.run(outputs, dict(inputs))]
        except Exception as error:  # as above: all kinds, derived from Exception alone
            text = " ".join(str(error).split())
            raise ModelError(f"onnxruntime cannot run it on these inputs: {text}", where=self._where) from error
