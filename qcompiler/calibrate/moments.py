"""Mean and variance by channel, summed up sample by sample: cumulative, so that no momentum has a say."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from qcompiler.calibrate.statistics import with_outputs
from qcompiler.execute.ort import Session
from qcompiler.graph.model import Graph


@dataclass(eq=False)
class ChannelMoments:
    """Of all elements added so far, by channel along `axis`. mean, squares (of deviations from it): float64 [C].

    Chan, Golub and LeVeque 1983, Algorithms for Computing the Sample Variance: what merging two parts takes; so nothing
    cancels where the mean is large. The order of samples counts in the last bits only, and is fixed.
    """

    axis: int
    count: int = 0
    mean: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    squares: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))

    def add(self, array: NDArray) -> None:
        """Count an array [..., C, ...] of floats."""
        rows = np.moveaxis(np.asarray(array, np.float64), self.axis, 0).reshape(array.shape[self.axis], -1)
        mean, number = rows.mean(axis=1), rows.shape[1]
        squares = ((rows - mean[:, None]) ** 2).sum(axis=1)
        if not self.count:
            self.count, self.mean, self.squares = number, mean, squares
            return
        total, apart = self.count + number, mean - self.mean
        self.squares = self.squares + squares + apart**2 * (self.count * number / total)
        self.mean = self.mean + apart * (number / total)
        self.count = total

    @property
    def variance(self) -> NDArray[np.float64]:
        """float64 [C]; zeros before the first element."""
        return self.squares / max(self.count, 1)


def channel_moments(
    graph: Graph, places: Sequence[tuple[str, int]], samples: Iterable[Mapping[str, NDArray]]
) -> list[ChannelMoments]:
    """Moments of float values, given as (name, axis of channels), over samples, in one run of the graph."""
    found = [ChannelMoments(axis) for _, axis in places]
    names = [name for name, _ in places]
    if not names:
        return found
    wanted = list(dict.fromkeys(names))
    session = Session(with_outputs(graph, wanted))
    for sample in samples:
        values = dict(zip(wanted, session.run(sample, wanted), strict=True))
        for name, moments in zip(names, found, strict=True):
            moments.add(values[name])
    return found
