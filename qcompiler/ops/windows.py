"""Windows of convolutions and pools, as views into a padded array. A 1-D window counts as 2-D with a height of 1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Window:
    """Kernel, strides, dilations as (y, x); pads as (top, left, bottom, right), negative ones crop."""

    kernel: tuple[int, int]
    strides: tuple[int, int]
    dilations: tuple[int, int]
    pads: tuple[int, int, int, int]

    def output(self, height: int, width: int) -> tuple[int, int]:
        """Extents of the output for an input of these extents."""
        top, left, bottom, right = self.pads
        padded = height + top + bottom, width + left + right
        reach = [d * (k - 1) + 1 for d, k in zip(self.dilations, self.kernel, strict=True)]
        y, x = ((p - r) // s + 1 for p, r, s in zip(padded, reach, self.strides, strict=True))
        return max(y, 0), max(x, 0)


def window_of(kernel: Sequence[int], attributes: dict[str, Any]) -> Window:
    """The window that strides, pads and dilations of a 1-D or 2-D node describe."""
    rank = len(kernel)
    strides = attributes.get("strides") or [1] * rank
    dilations = attributes.get("dilations") or [1] * rank
    pads = attributes.get("pads") or [0] * (2 * rank)
    if rank == 1:
        return Window((1, kernel[0]), (1, strides[0]), (1, dilations[0]), (0, pads[0], 0, pads[1]))
    return Window(
        (kernel[0], kernel[1]), (strides[0], strides[1]), (dilations[0], dilations[1]),
        (pads[0], pads[1], pads[2], pads[3]),
    )  # fmt: skip


def as_2d(x: NDArray) -> NDArray:
    """[N, C, W] as [N, C, 1, W]; [N, C, H, W] as it is."""
    return x[:, :, None, :] if x.ndim == 3 else x


def pad(x: NDArray, pads: tuple[int, int, int, int], value: int) -> NDArray:
    """x [N, C, H, W] with borders of `value`; negative pads crop."""
    top, left, bottom, right = pads
    height, width = x.shape[2:]
    x = x[:, :, max(-top, 0) : height - max(-bottom, 0), max(-left, 0) : width - max(-right, 0)]
    border = ((0, 0), (0, 0), (max(top, 0), max(bottom, 0)), (max(left, 0), max(right, 0)))
    return np.pad(x, border, constant_values=value) if any(map(any, border)) else x


def taps(x: NDArray, window: Window) -> NDArray:
    """View [KH, KW, N, C, OH, OW] of a padded x [N, C, H, W]: what each cell of the kernel sees."""
    none = Window(window.kernel, window.strides, window.dilations, (0, 0, 0, 0))
    output = none.output(*x.shape[2:])
    sy, sx = x.strides[2:]
    strides = (
        window.dilations[0] * sy, window.dilations[1] * sx, *x.strides[:2], window.strides[0] * sy,
        window.strides[1] * sx,
    )  # fmt: skip
    return np.lib.stride_tricks.as_strided(x, (*window.kernel, *x.shape[:2], *output), strides, writeable=False)
