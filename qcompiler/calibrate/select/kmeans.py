"""K-means, and a sample for each cluster (COLA, stage 3: clusters in the space of activations, k = n)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

ROUNDS = 50
STARTS = 4


def kmeans(x: NDArray, k: int, rng: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Centres float64 [k, D] and the cluster int64 [n] of each row of x float [n, D], k <= n.

    Lloyd's rounds from STARTS seeded k-means++ starts, the one with the least squared distance. An empty cluster takes
    the row that is farthest from its centre. Source: Arthur and Vassilvitskii 2007, k-means++.
    """
    x = np.asarray(x, np.float64)
    best: tuple[float, NDArray, NDArray] | None = None
    for _ in range(STARTS):
        centres = _seeds(x, k, rng)
        cluster = np.full(len(x), -1)
        for _ in range(ROUNDS):
            distance = squared_distances(x, centres)
            nearest = distance.argmin(axis=1)
            away = distance[np.arange(len(x)), nearest].copy()
            for empty in np.setdiff1d(np.arange(k), nearest):
                company = np.bincount(nearest, minlength=k)[nearest] > 1  # no cluster gives its last row
                farthest = int(np.where(company, away, -1.0).argmax())
                nearest[farthest], away[farthest] = empty, 0.0
            if (nearest == cluster).all():
                break
            cluster = nearest
            size = np.bincount(cluster, minlength=k)
            centres = np.zeros_like(centres)
            np.add.at(centres, cluster, x)
            centres /= np.maximum(size, 1)[:, None]
        loss = float(((x - centres[cluster]) ** 2).sum())
        if best is None or loss < best[0]:
            best = (loss, centres, cluster)
    assert best is not None
    return best[1], best[2]


def squared_distances(x: NDArray, centres: NDArray) -> NDArray[np.float64]:
    """float64 [n, k]."""
    cross = x @ centres.T
    return np.maximum((x * x).sum(1)[:, None] - 2 * cross + (centres * centres).sum(1), 0.0)


def choose_clusters(x: NDArray, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """For each of `count` clusters of the rows of x the row nearest to its centre: int64 [count], all different."""
    x = np.asarray(x, np.float64)
    centres, cluster = kmeans(x, count, rng)
    distance = squared_distances(x, centres)
    members = cluster[:, None] == np.arange(count)
    return np.asarray(np.where(members, distance, np.inf).argmin(axis=0), np.int64)  # clusters are not empty


def _seeds(x: NDArray, k: int, rng: np.random.Generator) -> NDArray[np.float64]:
    chosen = [int(rng.integers(len(x)))]
    away = squared_distances(x, x[chosen]).min(axis=1)
    while len(chosen) < k:
        away[chosen] = 0.0
        total = away.sum()
        if total > 0:
            following = int(np.searchsorted(np.cumsum(away), rng.random() * total, side="right"))
            following = min(following, len(x) - 1)
        else:  # what is left equals what was chosen
            following = int(np.setdiff1d(np.arange(len(x)), chosen)[0])
        chosen.append(following)
        away = np.minimum(away, squared_distances(x, x[[following]])[:, 0])
    return x[chosen]
