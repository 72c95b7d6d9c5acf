"""Statistics that weigh every element by how much the network's output cares for it: the diagonal Fisher information.

To second order, errors e of a value's elements cost sum g^2 e^2 / 2 of the output's divergence, g the gradient of the
log likelihood (qcompiler.execute.torch.fisher). Here g^2 of each element of each sample is summed up beside its value,
so that a range can be searched for the least sum of g^2 (x - x^)^2. Needs torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from qcompiler.assignment import WEIGHTED
from qcompiler.calibrate.observers import Histogram
from qcompiler.context import Context
from qcompiler.errors import CalibrationError
from qcompiler.graph.model import Graph

Loss = Literal["kl", "mse"]
BATCH = 8


def loss_of(graph: Graph) -> Loss:
    """`kl` for classifiers: the first output is a Softmax, or the only one, [1, N], made by a layer with weights and at
    most half as large as the inputs, which are float. Else `mse`."""
    output = graph.outputs[0]
    node = output.producer()
    if node is not None and node.op_type in ("Softmax", "LogSoftmax"):
        return "kl"
    if node is not None and node.op_type == "Add":
        makers = [value.producer() for value in node.inputs if value is not None]
        node = next((maker for maker in makers if maker is not None), node)
    shape = graph.shape(output)
    floats = all(value.dtype is None or value.dtype.is_floating_point() for value in graph.inputs)
    few = len(shape) == 2 and 2 <= shape[1] <= sum(int(np.prod(graph.shape(value))) for value in graph.inputs) / 2
    made = node is not None and node.op_type in WEIGHTED
    return "kl" if made and floats and few and len(graph.outputs) == 1 else "mse"


def fisher_histograms(
    graph: Graph,
    samples: Iterable[Mapping[str, NDArray]],
    names: Sequence[str],
    loss: Loss,
    limit: int,
    context: Context,
) -> dict[str, Histogram]:
    """Histograms of float values (not constants) whose bins hold sums of squared gradients; the first `limit` samples.

    Deterministic: samples in order, labels drawn with the context's seed. Raises CalibrationError without samples or
    for a gradient that is not finite, UnsupportedError without torch or for an operator that it has no rule for.
    """
    from qcompiler.execute.torch import value_gradients

    histograms = {name: Histogram.weighted() for name in names}
    done = 0
    stream = islice(samples, limit)
    for chunk in value_gradients(graph, stream, names, loss, batch=BATCH, seed=context.seed):
        for name, (values, squares) in chunk.items():
            if not np.isfinite(squares).all():
                raise CalibrationError(f"the gradient of `{name}` is NaN or infinite.", where=graph.path)
            histograms[name].add(np.broadcast_to(values, squares.shape), squares)
        done = min(done + BATCH, limit)
        context.progress("gradients", done, limit)
    if not done:
        raise CalibrationError("there are no samples.", where=graph.path)
    return histograms


def weight_importance(
    graph: Graph,
    samples: Iterable[Mapping[str, NDArray]],
    names: Sequence[str],
    loss: Loss,
    limit: int,
    context: Context,
) -> dict[str, NDArray[np.float64]]:
    """Mean squared gradient of every element of float constants, float64 of their shapes; the first `limit` samples."""
    from qcompiler.execute.torch import weight_gradients

    found = weight_gradients(graph, samples, names, loss, limit=limit, seed=context.seed)
    for name, array in found.items():
        if not np.isfinite(array).all():
            raise CalibrationError(f"the gradient of `{name}` is NaN or infinite.", where=graph.path)
    return found
