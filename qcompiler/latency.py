"""Latency side by side: our bundle, onnxruntime and OpenVINO on the same float and QDQ graphs, interleaved."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcompiler.errors import RecipeError
from qcompiler.graph.model import Graph

PEERS = ("onnxruntime", "openvino")


@dataclass(frozen=True)
class Latency:
    """Wall-clock milliseconds of one inference."""

    runtime: str
    precision: str
    median_ms: float
    min_ms: float

    def document(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


Contender = tuple[str, str, Callable[[], object]]
"""Runtime, precision, a call that does one inference."""


def measure(contenders: Sequence[Contender], *, seconds: float = 2.0, rounds: int = 20) -> list[Latency]:
    """Interleaved rounds: every contender runs a few inferences, then the next, so that noise hits all alike."""
    counts = []
    for _, _, call in contenders:
        call()
        start = time.perf_counter()
        call()
        once = max(time.perf_counter() - start, 1e-6)
        counts.append(max(1, min(200, int(seconds / rounds / once))))
    times: list[list[float]] = [[] for _ in contenders]
    for _ in range(rounds):
        for (_, _, call), count, kept in zip(contenders, counts, times, strict=True):
            call()
            for _ in range(count):
                start = time.perf_counter()
                call()
                kept.append((time.perf_counter() - start) * 1e3)
    return [
        Latency(name, precision, median(kept), min(kept))
        for (name, precision, _), kept in zip(contenders, times, strict=True)
    ]


def onnxruntime_call(graph: Graph, sample: Mapping[str, NDArray], threads: int) -> Callable[[], list[NDArray]]:
    """One inference in onnxruntime with all its optimizations."""
    from qcompiler.execute.ort import Session

    session = Session(graph, threads=threads, optimize=True)
    return lambda: session.run(sample)


def openvino_call(graph: Graph, sample: Mapping[str, NDArray], threads: int) -> Callable[[], list[NDArray]]:
    """One inference in OpenVINO, latency mode. Raises RecipeError when it is not installed."""
    try:
        import openvino as ov
    except ImportError as error:
        raise RecipeError(
            "openvino is not installed.", where="--against openvino", hint="pip install openvino, or leave it out."
        ) from error
    core = ov.Core()
    model = core.read_model(graph.to_proto().SerializeToString())
    options = {
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
        "NUM_STREAMS": 1,
    }
    request = core.compile_model(model, "CPU", options).create_infer_request()
    inputs = {name: np.ascontiguousarray(array) for name, array in sample.items()}

    def call() -> list[NDArray]:
        request.infer(inputs, share_inputs=True)
        return [np.array(request.get_output_tensor(i).data) for i in range(len(graph.outputs))]

    return call


def peer_calls(
    names: Sequence[str],
    float_graph: Graph | None,
    qdq_graph: Graph | None,
    sample: Mapping[str, NDArray],
    threads: int,
) -> list[Contender]:
    """Float and int8 contenders of each named peer. Raises RecipeError for an unknown name."""
    makers = {"onnxruntime": onnxruntime_call, "openvino": openvino_call}
    found: list[Contender] = []
    for name in names:
        if name not in makers:
            raise RecipeError(f"`{name}` is no peer.", where="--against", hint=f"Choose from {', '.join(PEERS)}.")
        for precision, graph in (("float32", float_graph), ("int8", qdq_graph)):
            if graph is not None:
                found.append((name, precision, makers[name](graph, sample, threads)))
    return found
