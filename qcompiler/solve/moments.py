"""Second moments of a layer's inputs: all that layer-wise solvers need to know of the data.

A layer is seen as G matrix products y = W x + b, W float64 [G, M, K]; see `qcompiler.solve.layers`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(eq=False)
class Moments:
    """Sums over samples and positions of x (float32 model) and x^ (quantized prefix), both [G, N, K].

    gram: sum of x^ x^T, float64 [G, K, K]. cross: sum of x (rows) times x^ (columns), [G, K, K]. sum_float,
    sum_quantized: sums of x and x^, [G, K]. count: N in all.
    """

    gram: NDArray[np.float64]
    cross: NDArray[np.float64]
    sum_float: NDArray[np.float64]
    sum_quantized: NDArray[np.float64]
    count: int = 0

    @classmethod
    def zeros(cls, groups: int, columns: int) -> Moments:
        """Nothing seen yet."""
        square, line = (groups, columns, columns), (groups, columns)
        return cls(np.zeros(square), np.zeros(square), np.zeros(line), np.zeros(line))

    def add(self, x: NDArray, quantized: NDArray) -> None:
        """Count rows. x, quantized: float32 [G, N, K]; products are summed in float32 within the call."""
        turned = quantized.transpose(0, 2, 1)
        self.gram += np.matmul(turned, quantized)
        self.cross += np.matmul(x.transpose(0, 2, 1), quantized)
        self.sum_float += x.sum(1, dtype=np.float64)
        self.sum_quantized += quantized.sum(1, dtype=np.float64)
        self.count += x.shape[1]

    def plus(self, other: Moments) -> Moments:
        """Of both."""
        return Moments(
            self.gram + other.gram,
            self.cross + other.cross,
            self.sum_float + other.sum_float,
            self.sum_quantized + other.sum_quantized,
            self.count + other.count,
        )

    def centred(self) -> Moments:
        """Moments around the means: what matters for W when a bias takes up the means."""
        a, b = self.sum_float / max(self.count, 1), self.sum_quantized / max(self.count, 1)
        gram = self.gram - self.count * np.einsum("gi,gj->gij", b, b)
        cross = self.cross - self.count * np.einsum("gi,gj->gij", a, b)
        return Moments(gram, cross, self.sum_float, self.sum_quantized, self.count)

    def bias_shift(self, weight: NDArray, solved: NDArray) -> NDArray[np.float64]:
        """What the bias must gain so that mean outputs agree: W E[x] - W^ E[x^], float64 [G, M]. W, W^: [G, M, K]."""
        count = max(self.count, 1)
        return np.asarray(
            np.einsum("gmk,gk->gm", weight, self.sum_float / count)
            - np.einsum("gmk,gk->gm", solved, self.sum_quantized / count)
        )
