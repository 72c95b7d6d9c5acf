"""Choose which samples of a pool calibration sees.

One float pass over the pool keeps a few numbers of each sample (features.py); each method then picks indices:

    random          seeded draw: what every other method must beat
    stratified      as random, from each class in proportion; classes by labels, else the model's own
    kmeans          one sample for each of n clusters of projected activations (COLA, arXiv 2510.10618)
    outlier_cover   samples in which the largest values of channels occur (COVERCAL, arXiv 2604.24008): for ranges; use
                    it with ranges that clip, or they get wider than they should
    moment_match    samples whose second moments are nearest to the pool's: for Hessians and reconstruction
    degradation     clusters by how much quantization hurts them (PASER's idea, for quantization)
    composite       a quarter by outlier_cover, the rest by moment_match

Same pool, seed and versions: same indices; ties go to the lower index. The pool must not hold evaluation data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcompiler.calibrate.data import Sample, Samples, digest_of
from qcompiler.calibrate.select.degradation import choose_degraded, output_losses
from qcompiler.calibrate.select.features import Features, collect
from qcompiler.calibrate.select.kmeans import choose_clusters
from qcompiler.calibrate.select.moments import choose_moments
from qcompiler.calibrate.select.outliers import choose_cover
from qcompiler.calibrate.select.strata import choose_strata, model_classes
from qcompiler.errors import CalibrationError, RecipeError
from qcompiler.graph.model import Graph

METHODS = ("random", "stratified", "kmeans", "outlier_cover", "moment_match", "degradation", "composite")
Quantize = Callable[[Samples], Graph]


@dataclass(frozen=True, eq=False)
class Selection:
    """What was chosen: rising indices int64 [n] into the pool, and these samples as a stream."""

    method: str
    indices: NDArray[np.int64]
    samples: Samples
    pool: int

    def describe(self) -> dict[str, Any]:
        """JSON-able, for the report."""
        return {"method": self.method, "samples": len(self.indices), "pool": self.pool,
                "indices": [int(i) for i in self.indices]}  # fmt: skip


def check_method(method: str) -> None:
    """Raises RecipeError for a name that is no method."""
    if method not in METHODS:
        raise RecipeError(f"`{method}` chooses no samples.", where="select", hint=f"Methods: {', '.join(METHODS)}.")


def select(
    pool: Samples,
    graph: Graph,
    method: str,
    count: int,
    seed: int = 0,
    *,
    labels: NDArray | None = None,
    quantize: Quantize | None = None,
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> Selection:
    """Choose `count` samples of the pool.

    graph: the float model. labels: [pool], for `stratified`. quantize: makes the model quantized at the target's bits
    from a few samples, for `degradation`. A pool of at most `count` samples is taken whole.
    Raises RecipeError (no such method, no `quantize`), CalibrationError (count below 1, labels that do not fit, values
    that become NaN or infinite).
    """
    check_method(method)
    if count < 1:
        raise CalibrationError(f"at least one sample is needed, not {count}.", where="select")
    total = len(pool)
    rng = np.random.default_rng(seed)
    if labels is not None and len(labels) != total:
        raise CalibrationError(f"there are {len(labels)} labels for {total} samples.", where=pool.source)
    if count >= total:
        chosen = np.arange(total)
    elif method == "random":
        chosen = rng.choice(total, count, replace=False)
    elif method == "stratified" and labels is not None:
        chosen = choose_strata(labels, count, rng)
    elif method == "degradation":
        if quantize is None:
            raise RecipeError("degradation needs a quantized model.", where="select")
        few = subset(pool, np.sort(rng.choice(total, count, replace=False)), "random")
        losses = output_losses(pool, graph, quantize(few), progress)
        features = collect(pool, graph, seed, progress)
        chosen = choose_degraded(features, losses, count, rng)
    else:
        chosen = _by_features(method, collect(pool, graph, seed, progress), count, rng)
    indices = np.sort(np.asarray(chosen, np.int64))
    return Selection(method, indices, subset(pool, indices, method), total)


def _by_features(method: str, features: Features, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    if method == "stratified":
        return choose_strata(model_classes(features, count, rng), count, rng)
    if method == "kmeans":
        return choose_clusters(features.embedding, count, rng)
    if method == "outlier_cover":
        return choose_cover(features.maxima, count, rng, features.layers)
    if method == "moment_match":
        return choose_moments(features.moments, count)
    first = choose_cover(features.maxima, -(-count // 4), rng, features.layers)
    return choose_moments(features.moments, count, first)


def subset(pool: Samples, indices: NDArray[np.int64], method: str) -> Samples:
    """The samples at rising `indices`, read again from the pool at every pass."""

    def stream() -> Iterator[Sample]:
        wanted = iter(indices.tolist())
        following = next(wanted, None)
        for index, sample in enumerate(pool):
            if following is None:
                return
            if index == following:
                yield sample
                following = next(wanted, None)

    source = f"{pool.source} ({len(indices)} chosen by {method})"
    digest = None if pool.digest is None else digest_of(pool.digest, np.asarray(indices, np.int64))
    return Samples(source, stream, digest, len(indices))
