"""What a change of the network loses: how far its outputs go from the float network's, and the quadratic form of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qcompiler import assignment as decisions
from qcompiler.errors import CalibrationError, RecipeError
from qcompiler.graph.model import Graph


@dataclass(frozen=True)
class Loss:
    """How outputs are compared with the float network's. kind: `kl` of the predictions that logits in the last axis
    make, or `mse`, relative to the mean square of the float outputs. values: names of the values that are looked at."""

    kind: str
    values: tuple[str, ...]


def find_loss(graph: Graph, kind: str = "auto") -> Loss:
    """kind: kl, mse, or auto: kl where the first output is made by a Softmax or is [1, C] with C > 1 and the only one.

    Raises RecipeError for another kind.
    """
    if kind not in ("auto", "kl", "mse"):
        raise RecipeError(f"`{kind}` is no loss.", where="loss", hint="Choose auto, kl or mse.")
    output = graph.outputs[0]
    maker, source = output.producer(), output
    softmax = maker is not None and maker.op_type in ("Softmax", "LogSoftmax") and maker.inputs[0] is not None
    if softmax:
        source = maker.inputs[0]  # type: ignore[union-attr, assignment]
    shape = graph.shape(source)
    classes = len(shape) == 2 and shape[0] == 1 and shape[1] > 1 and len(graph.outputs) == 1
    if kind == "kl" or kind == "auto" and (softmax or classes):
        return Loss("kl", (str(source.name),))
    return Loss("mse", tuple(str(v.name) for v in graph.outputs if decisions.is_float(v)))


def loss_of(loss: Loss, exact: NDArray, found: NDArray) -> float:
    """Mean over samples and rows; both [n, rows, C]. kl: in nats. mse: error over signal."""
    if not np.isfinite(found).all():
        raise CalibrationError("the network becomes NaN or infinite with one item quantized.", where="sensitivity")
    if loss.kind == "mse":
        error = (found.astype(np.float64) - exact) ** 2
        return float(error.mean() / max(float((exact.astype(np.float64) ** 2).mean()), 1e-300))
    log_p, log_q = _log_softmax(exact), _log_softmax(found)
    return float((np.exp(log_p) * (log_p - log_q)).sum(-1).mean())


def features(loss: Loss, exact: NDArray, found: NDArray) -> NDArray[np.float64]:
    """A vector f, so that loss ~ 1/2 |f|^2 to second order in found - exact, and f adds up where errors do.

    kl: sqrt(p) (d - p . d), since d^T (diag p - p p^T) d is the Gauss-Newton form; mse: sqrt(2 / signal) d.
    """
    difference = found.astype(np.float64) - exact
    if loss.kind == "mse":
        signal = max(float((exact.astype(np.float64) ** 2).sum()), 1e-300)
        return np.asarray(difference * np.sqrt(2 / signal)).reshape(-1)
    p = np.exp(_log_softmax(exact))
    centred = difference - (p * difference).sum(-1, keepdims=True)
    return np.asarray(np.sqrt(p) * centred / np.sqrt(exact.shape[0] * exact.shape[1])).reshape(-1)


def _log_softmax(z: NDArray) -> NDArray[np.float64]:
    z = z.astype(np.float64)
    z = z - z.max(-1, keepdims=True)
    return np.asarray(z - np.log(np.exp(z).sum(-1, keepdims=True)))
