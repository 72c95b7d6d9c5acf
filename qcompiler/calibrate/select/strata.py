"""A draw from each class in proportion."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qcompiler.calibrate.select.features import Features
from qcompiler.calibrate.select.kmeans import kmeans

MOST_CLASSES = 1000
CLUSTERS = 10


def share_out(count: int, weights: NDArray, most: NDArray) -> NDArray[np.int64]:
    """`count` as whole numbers in proportion to weights float [k], each at most most[k]; sum(most) >= count.

    Largest remainders; what a full one cannot take goes to the others; ties to the lower index.
    """
    given = np.zeros(len(weights), np.int64)
    weights = np.asarray(weights, np.float64)
    while (left := count - int(given.sum())) > 0:
        room = given < most
        share = np.where(room, np.maximum(weights, 0.0), 0.0)
        if not share.sum() > 0:
            share = room.astype(np.float64)
        exact = left * share / share.sum()
        whole = np.minimum(np.floor(exact).astype(np.int64), most - given)
        given += whole
        left -= int(whole.sum())
        remainder = np.where(given < most, exact - np.floor(exact), -1.0)
        for at in np.argsort(-remainder, kind="stable")[:left]:
            if remainder[at] >= 0:
                given[at] += 1
    return given


def choose_strata(labels: NDArray, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """int64 [count] indices, so that classes have the shares that they have in labels [n], at most one apart; every
    class has one at least if count allows."""
    classes, member = np.unique(np.asarray(labels).reshape(len(labels), -1)[:, 0], return_inverse=True)
    size = np.bincount(member, minlength=len(classes))
    quota = np.ones(len(classes), np.int64) if count >= len(classes) else np.zeros(len(classes), np.int64)
    ideal = np.maximum(count * size / size.sum() - quota, 0.0)
    quota = quota + share_out(count - int(quota.sum()), ideal, size - quota)
    drawn = [rng.choice(np.flatnonzero(member == i), n, replace=False) for i, n in enumerate(quota)]
    return np.concatenate(drawn).astype(np.int64)


def model_classes(features: Features, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Classes int64 [n] for want of labels: the model's own decisions, else clusters of activations."""
    if features.scores is not None and 1 < features.scores.shape[1] <= MOST_CLASSES:
        decided = features.scores.argmax(axis=1)
        if len(np.unique(decided)) > 1:
            return np.asarray(decided, np.int64)
    clusters = min(CLUSTERS, count, len(features.embedding))
    return kmeans(features.embedding, clusters, rng)[1]
