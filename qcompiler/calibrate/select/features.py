"""What is remembered of each sample of a pool: a few hundred numbers, from one pass of the float model.

The values looked at are what products with weights read, at most LAYERS of them, evenly spread over the network.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qcompiler.assignment import WEIGHTED, is_float, weight_of
from qcompiler.calibrate.data import Samples
from qcompiler.calibrate.statistics import with_outputs
from qcompiler.errors import CalibrationError
from qcompiler.execute.ort import Session
from qcompiler.graph.model import Graph

LAYERS = 16
DIMENSIONS = 64
"""Of the random projection of all layers' means together (COLA)."""
SMALL = 8
"""Of the random projection of one layer's activations, whose second moments are kept."""


@dataclass(frozen=True, eq=False)
class Features:
    """Of n samples, in the order of the pool.

    embedding: float32 [n, 64]; the mean activation of each layer, of length 1, projected. norm: float64 [n], root mean
    square of the activations, each layer against the pool's. maxima: float32 [n, channels], largest |x| of each
    channel; layers: how many of them each layer has. moments: float32 [n, layers * 36], second moments of projected
    activations, each layer against the pool's trace. scores: the first output, float32 [n, K], if that is one row of
    at most 4096 numbers; None otherwise.
    """

    embedding: NDArray[np.float32]
    norm: NDArray[np.float64]
    maxima: NDArray[np.float32]
    layers: tuple[int, ...]
    moments: NDArray[np.float32]
    scores: NDArray[np.float32] | None


def watched(graph: Graph) -> list[tuple[ir.Value, int]]:
    """Values and their channel axes: inputs of products with weights, else the float outputs."""
    found: dict[ir.Value, int] = {}
    for node in graph.nodes(*WEIGHTED):
        value = node.inputs[0]
        if value is not None and weight_of(graph, node) is not None and graph.const(value) is None and is_float(value):
            found.setdefault(value, 1 if "Conv" in node.op_type else -1)
    every = list(found.items()) or [(v, -1) for v in graph.outputs if is_float(v) and len(graph.shape(v))]
    if len(every) > LAYERS:
        every = [every[i] for i in np.linspace(0, len(every) - 1, LAYERS).round().astype(int)]
    return every


def collect(pool: Samples, graph: Graph, seed: int, progress: Callable[[str, int, int], None]) -> Features:
    """Features of all samples. Raises CalibrationError for values that become NaN or infinite."""
    values = watched(graph)
    names = [str(value.name) for value, _ in values]
    output = graph.outputs[0]
    inputs = {str(value.name) for value in graph.inputs}
    computed = [name for name in dict.fromkeys([*names, str(output.name)]) if name not in inputs]
    session = Session(with_outputs(graph, computed))
    rng = np.random.default_rng(seed)
    wide = [rng.standard_normal((graph.shape(v)[axis], DIMENSIONS)) / 8 for v, axis in values]
    small = [rng.standard_normal((graph.shape(v)[axis], SMALL)) for v, axis in values]
    upper = np.triu_indices(SMALL)
    rows: dict[str, list[NDArray]] = {key: [] for key in ("embedding", "square", "maxima", "moments", "scores")}
    total = pool.count or 0
    for index, sample in enumerate(pool):
        known = dict(sample)
        known.update(zip(computed, session.run({n: sample[n] for n in session.input_names}, computed), strict=True))
        embedding, squares, maxima, moments = np.zeros(DIMENSIONS), [], [], []
        for (_, axis), name, project, narrow in zip(values, names, wide, small, strict=True):
            array = known[name]
            flat = np.moveaxis(array, axis, -1).reshape(-1, array.shape[axis]).astype(np.float64)
            square = np.square(flat).mean()
            if not np.isfinite(square):
                raise CalibrationError(f"`{name}` becomes NaN or infinite.", where=f"{pool.source}, sample {index}")
            mean = flat.mean(axis=0)
            embedding += mean / max(float(np.linalg.norm(mean)), 1e-30) @ project
            squares.append(square)
            maxima.append(np.abs(flat).max(axis=0))
            projected = flat @ narrow
            moments.append((projected.T @ projected / len(projected))[upper])
        for key, found in (("embedding", embedding), ("square", squares), ("maxima", np.concatenate(maxima)),
                           ("moments", np.stack(moments))):  # fmt: skip
            rows[key].append(np.asarray(found, np.float64 if key == "square" else np.float32))
        scores = known[str(output.name)]
        if scores.dtype.kind == "f" and scores.size <= 4096 and scores.size == scores.shape[-1]:
            rows["scores"].append(scores.reshape(-1).astype(np.float32))
        progress("select", index + 1, total)
    square = np.stack(rows["square"])
    stacked = np.stack(rows["moments"]).astype(np.float64)  # [n, layers, 36]
    trace = stacked.mean(axis=0)[:, upper[0] == upper[1]].sum(axis=1)
    # Off-diagonal numbers stand for two cells of the symmetric matrix, so that sums of squares are Frobenius norms.
    stacked *= np.where(upper[0] == upper[1], 1.0, np.sqrt(2.0)) / np.maximum(trace, 1e-30)[:, None]
    return Features(
        np.stack(rows["embedding"]),
        np.sqrt((square / np.maximum(square.mean(axis=0), 1e-30)).mean(axis=1)),
        np.stack(rows["maxima"]),
        tuple(len(project) for project in wide),
        stacked.reshape(len(stacked), -1).astype(np.float32),
        np.stack(rows["scores"]) if len(rows["scores"]) == len(square) else None,
    )
