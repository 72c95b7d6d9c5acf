"""Mean and variance of every channel of a float graph's values, from its BatchNormalizations alone: without data.

A value that a BatchNormalization made is taken as normal, N(beta, gamma^2) by channel (`qcompiler.graph.normal`).
Behind a Relu or a Clip to [a, b] it is the clipped normal: with A = (a - mu) / sigma, B = (b - mu) / sigma, Phi and phi
the distribution and density of N(0, 1),

    E[x]   = a Phi(A) + b (1 - Phi(B)) + mu (Phi(B) - Phi(A)) + sigma (phi(A) - phi(B))
    E[x^2] = a^2 Phi(A) + b^2 (1 - Phi(B)) + (mu^2 + sigma^2) (Phi(B) - Phi(A))
             + sigma ((mu + a) phi(A) - (mu + b) phi(B))

which for a = 0, b = infinity is E[x] = sigma phi(-mu / sigma) + mu (1 - Phi(-mu / sigma)). A sum of two known values is
taken as normal with the sum of their variances, as if they were independent. Averages keep the mean; what they do to
the variance is unknown. Moving data keeps what belongs to a channel. The zeros of padding are not counted.

Source: Nagel et al. 2019, Data-Free Quantization Through Weight Equalization and Bias Correction, section 4.2.1 and
appendix C.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qcompiler.assignment import clip_bounds
from qcompiler.graph.model import Graph, attribute
from qcompiler.graph.normal import normal_of

SMALLEST = 1e-12
"""Deviation from which on a channel is more than a constant."""


@dataclass(frozen=True, eq=False)
class Expected:
    """mean: float64 [C], along axis 1; variance: float64 [C], or None where only the mean is known."""

    mean: NDArray[np.float64]
    variance: NDArray[np.float64] | None


def expected(graph: Graph) -> dict[str, Expected]:
    """Value name -> what its BatchNormalizations say, for the values of a FLOAT graph of which they say something."""
    found: dict[str, Expected] = {}
    for node in graph.nodes():
        if not node.outputs or not node.outputs[0].name:
            continue
        output = node.outputs[0]
        normal = normal_of(output)
        if normal is not None:
            one: Expected | None = Expected(normal[0], normal[1] ** 2)
        else:
            rule = _RULES.get(node.op_type) if node.domain in ("", "ai.onnx") else None
            one = rule(graph, node, found) if rule is not None else None
        if one is not None and output.shape is not None and len(output.shape) > 1 and output.shape[1] == len(one.mean):
            found[str(output.name)] = one
    return found


def product_mean(node: ir.Node, weight: NDArray, mean: NDArray) -> NDArray[np.float64]:
    """Mean of W x by output channel, float64 [M], for inputs whose channels have these means everywhere.

    node: Conv, ConvTranspose, Gemm or MatMul; weight: as the node has it; mean: [C] of the input's channels (the last
    axis of Gemm and MatMul). Edges, where a window meets padding, count like the rest.
    """
    w, mean = weight.astype(np.float64), np.asarray(mean, np.float64)
    if node.op_type in ("Gemm", "MatMul"):
        product = mean @ (w.T if attribute(node, "transB", 0) else w)
        return np.asarray(product * attribute(node, "alpha", 1.0))
    groups = attribute(node, "group", 1)
    taps = w.reshape(*w.shape[:2], -1).sum(axis=2)
    each = mean.reshape(groups, -1)
    if node.op_type == "Conv":
        return np.einsum("gmc,gc->gm", taps.reshape(groups, len(w) // groups, -1), each).reshape(-1)
    total = np.einsum("gcm,gc->gm", taps.reshape(groups, len(w) // groups, -1), each).reshape(-1)
    return np.asarray(total / np.prod(attribute(node, "strides", [1]), dtype=np.float64))  # taps that meet an output


def clipped(one: Expected, low: float, high: float) -> Expected | None:
    """Moments of a normal value behind a clip to [low, high], either of which may be infinite."""
    from scipy.special import ndtr

    if one.variance is None:
        return None
    mean, deviation = one.mean, np.sqrt(one.variance)
    safe = np.maximum(deviation, SMALLEST)
    a, b = (low - mean) / safe, (high - mean) / safe
    below, above, density_a, density_b = ndtr(a), ndtr(-b), _density(a), _density(b)
    inside = 1 - below - above

    def times(bound: float, factor: NDArray) -> NDArray:
        return bound * factor if np.isfinite(bound) else np.zeros_like(factor)

    first = times(low, below) + times(high, above) + mean * inside + deviation * (density_a - density_b)
    second = times(low * low, below) + times(high * high, above) + (mean**2 + deviation**2) * inside
    second += deviation * (mean * (density_a - density_b) + times(low, density_a) - times(high, density_b))
    still = deviation <= SMALLEST
    first = np.where(still, np.clip(mean, low, high), first)
    return Expected(first, np.where(still, 0.0, np.maximum(second - first**2, 0.0)))


def _density(x: NDArray) -> NDArray:
    return np.asarray(np.exp(-0.5 * np.square(np.clip(x, -50, 50))) / np.sqrt(2 * np.pi))


Known = dict[str, Expected]


def _of(value: ir.Value | None, found: Known) -> Expected | None:
    return found.get(str(value.name)) if value is not None else None


def _clip(graph: Graph, node: ir.Node, found: Known) -> Expected | None:
    one, bounds = _of(node.inputs[0], found), clip_bounds(graph, node)
    return None if one is None or bounds is None else clipped(one, *bounds)


def _add(graph: Graph, node: ir.Node, found: Known) -> Expected | None:
    a, b = (_of(value, found) for value in node.inputs[:2])
    if a is None or b is None or graph.shape(node.inputs[0]) != graph.shape(node.inputs[1]):
        return None
    both = a.variance is not None and b.variance is not None
    return Expected(a.mean + b.mean, a.variance + b.variance if both else None)  # type: ignore[operator]


def _concat(graph: Graph, node: ir.Node, found: Known) -> Expected | None:
    parts = [_of(value, found) for value in node.inputs]
    rank = len(graph.shape(node.outputs[0]))
    if attribute(node, "axis") % rank != 1 or any(one is None for one in parts):
        return None
    variances = [one.variance for one in parts if one is not None]
    known = all(variance is not None for variance in variances)
    mean = np.concatenate([one.mean for one in parts if one is not None])
    return Expected(mean, np.concatenate(variances) if known else None)  # type: ignore[arg-type]


def _average(graph: Graph, node: ir.Node, found: Known) -> Expected | None:
    """Of spatial axes; zeros of padding are not counted, as in convolutions."""
    one = _of(node.inputs[0], found)
    if one is None:
        return None
    if node.op_type == "ReduceMean":
        axes, rank = graph.const(node.inputs[1]) if len(node.inputs) > 1 else None, len(graph.shape(node.inputs[0]))
        if axes is None or any(int(axis) % rank < 2 for axis in axes.reshape(-1)):
            return None
    return Expected(one.mean, None)


def _same(graph: Graph, node: ir.Node, found: Known) -> Expected | None:
    return _of(node.inputs[0], found)


def _reshape(graph: Graph, node: ir.Node, found: Known) -> Expected | None:
    """[N, C, *S] -> [N, C, ...], or -> [N, C * prod(S)], where every channel becomes a run."""
    one = _of(node.inputs[0], found)
    if one is None:
        return None
    before, after = graph.shape(node.inputs[0]), graph.shape(node.outputs[0])
    if before[:2] == after[:2]:
        return one
    if len(after) == 2 and before[0] == after[0]:
        run = int(np.prod(before[2:], dtype=np.int64))
        return Expected(np.repeat(one.mean, run), None if one.variance is None else np.repeat(one.variance, run))
    return None


_RULES: dict[str, Callable[[Graph, ir.Node, Known], Expected | None]] = {
    "Relu": _clip, "Clip": _clip, "Add": _add, "Concat": _concat,
    "AveragePool": _average, "GlobalAveragePool": _average, "ReduceMean": _average,
    "Identity": _same, "Dropout": _same, "Reshape": _reshape, "Flatten": _reshape, "Squeeze": _reshape,
}  # fmt: skip
