"""More samples from where quantization hurts: PASER's idea, carried over from pruned language models.

Clusters of activations get shares of the budget in proportion to the mean loss of their samples under quantization at
the target's bits, and within a cluster samples are drawn with odds of loss^(1 / T): the worst ones alone would be
mislabelled or damaged. Samples whose activations are far above the usual, or whose float output is far less sure, are
left out. Source: PASER (arXiv 2502.12594); clusters by k-means in place of spectral clustering of sentences, no graph
of concepts.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from qcompiler.calibrate.data import Samples
from qcompiler.calibrate.select.features import Features
from qcompiler.calibrate.select.kmeans import kmeans
from qcompiler.calibrate.select.strata import share_out
from qcompiler.execute.ort import Session
from qcompiler.graph.model import Graph

CLUSTERS = 10
TEMPERATURE = 1.5
FAR = 6.0
"""Median absolute deviations from the median."""


def output_losses(
    pool: Samples, graph: Graph, quantized: Graph, progress: Callable[[str, int, int], None]
) -> NDArray[np.float64]:
    """Loss float64 [n] of each sample's first output: the mean Jensen-Shannon divergence of its rows where they are
    scores (rank 2 or 3, not as many numbers as an input has), else the squared error relative to the float energy."""
    sessions = Session(graph), Session(quantized)
    output = graph.shape(graph.outputs[0])
    sizes = {int(np.prod(graph.shape(value))) for value in graph.inputs}
    scores = len(output) in (2, 3) and output[-1] > 1 and int(np.prod(output)) not in sizes
    losses, total = [], pool.count or 0
    for index, sample in enumerate(pool):
        want, got = (session.run(sample)[0].astype(np.float64) for session in sessions)
        if scores:
            losses.append(float(divergence(probabilities(want), probabilities(got)).mean()))
        else:
            losses.append(float(np.square(want - got).sum() / max(np.square(want).sum(), 1e-30)))
        progress("select", index + 1, total)
    return np.asarray(losses)


def probabilities(scores: NDArray) -> NDArray[np.float64]:
    """Rows as they are if they are distributions, else their softmax."""
    if (scores >= 0).all() and np.allclose(scores.sum(axis=-1), 1, atol=1e-3):
        return scores
    z = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return np.asarray(z / z.sum(axis=-1, keepdims=True))


def divergence(p: NDArray, q: NDArray) -> NDArray[np.float64]:
    """Jensen-Shannon divergence in bits over the last axis, 0 to 1; 0 log 0 is 0."""
    middle = (p + q) / 2

    def relative(a: NDArray) -> NDArray:
        ratio = np.divide(a, middle, out=np.ones_like(a), where=a > 0)
        return np.asarray((a * np.log2(ratio)).sum(axis=-1))

    return np.maximum((relative(p) + relative(q)) / 2, 0.0)


def usual(features: Features) -> NDArray[np.bool_]:
    """Which samples are no outliers: bool [n]."""
    kept = features.norm <= _limit(features.norm)
    if features.scores is not None and features.scores.shape[1] > 1:
        doubt = -probabilities(features.scores.astype(np.float64)).max(axis=1)
        kept &= doubt <= _limit(doubt)
    return kept


def _limit(values: NDArray) -> float:
    middle = np.median(values)
    return float(middle + FAR * np.median(np.abs(values - middle)) + 1e-12)


def choose_degraded(
    features: Features, losses: NDArray, count: int, rng: np.random.Generator, temperature: float = TEMPERATURE
) -> NDArray[np.int64]:
    """int64 [count] indices. losses: float64 [n], not negative."""
    pool = np.flatnonzero(usual(features))
    if len(pool) < count:
        pool = np.arange(len(losses))
    loss = losses[pool]
    clusters = min(CLUSTERS, count, len(pool))
    member = kmeans(features.embedding[pool], clusters, rng)[1]
    size = np.bincount(member, minlength=clusters)
    mean = np.bincount(member, loss, clusters) / np.maximum(size, 1)
    quota = share_out(count, mean, size)
    # Keys log(p) + Gumbel noise: the largest ones are a draw without replacement with odds p.
    keys = np.log(np.maximum(loss, 1e-12)) / temperature + rng.gumbel(size=len(pool))
    chosen = []
    for cluster, n in enumerate(quota):
        own = np.flatnonzero(member == cluster)
        chosen.append(own[np.argsort(-keys[own], kind="stable")[:n]])
    return np.asarray(pool[np.concatenate(chosen)], np.int64)
