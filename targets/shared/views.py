"""Where values lie in memory: buffers, and strided views of them with borders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import prod

import numpy as np

ALIGNMENT = 64
SLACK = 64
"""Bytes behind every buffer that a vector load may touch; what it reads there meets zero weights."""


@dataclass(eq=False)
class Buffer:
    """A piece of memory. Arena buffers get their offset when all lifetimes are known."""

    kind: str
    """'arena', 'input', 'output', 'state', 'constant' or 'counters' (of graphics cards: 0 between any two kernels)."""
    bytes: int
    name: str
    index: int = 0
    """Which input, output or state; for constants the offset in the blob."""
    first: int = -1
    last: int = -1
    offset: int = 0

    def touch(self, step: int) -> None:
        """Live at `step`."""
        self.first = step if self.first < 0 else min(self.first, step)
        self.last = max(self.last, step)


@dataclass(frozen=True)
class View:
    """A tensor in a buffer: element [i, j, ..] lies at origin + i * strides[0] + j * strides[1] + ...

    `border` cells before and after every dimension exist in the buffer and hold `border_code`.
    """

    buffer: Buffer
    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    origin: int = 0
    border: tuple[tuple[int, int], ...] = field(default=())
    border_code: int = 0

    def permuted(self, order: Sequence[int]) -> View:
        """Dimension d of the result is dimension order[d]."""
        border = tuple(self.border[d] for d in order) if self.border else ()
        return replace(
            self,
            shape=tuple(self.shape[d] for d in order),
            strides=tuple(self.strides[d] for d in order),
            border=border,
        )

    def window(self, starts: Sequence[int], shape: Sequence[int], steps: Sequence[int] | None = None) -> View:
        """A box inside: no border of its own."""
        steps = steps or [1] * len(shape)
        shift = sum(start * stride for start, stride in zip(starts, self.strides, strict=True))
        strides = tuple(stride * step for stride, step in zip(self.strides, steps, strict=True))
        return replace(self, shape=tuple(shape), strides=strides, origin=self.origin + shift, border=())

    def broadcast(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Strides of this view when it is broadcast to `shape`."""
        lead = len(shape) - len(self.shape)
        return tuple(
            0 if d < lead or self.shape[d - lead] == 1 and shape[d] != 1 else self.strides[d - lead]
            for d in range(len(shape))
        )

    @property
    def itemsize(self) -> int:
        """Bytes of an element."""
        return np.dtype(self.dtype).itemsize

    def is_dense(self) -> bool:
        """Whether elements follow each other in logical order, size-one dimensions aside."""
        expected = 1
        for extent, stride in zip(reversed(self.shape), reversed(self.strides), strict=True):
            if extent != 1:
                if stride != expected:
                    return False
                expected *= extent
        return not any(before or after for before, after in self.border)

    def reshaped(self, shape: Sequence[int]) -> View:
        """The same dense memory under another shape."""
        return replace(self, shape=tuple(shape), strides=dense_strides(shape), border=())


    def regrouped(self, shape: Sequence[int]) -> View | None:
        """The same memory under another shape in logical order, where strides can say it."""
        if any(before or after for before, after in self.border):
            return None
        kept = [(e, s) for e, s in zip(self.shape, self.strides, strict=True) if e != 1]
        runs: list[tuple[int, int]] = []  # the longest runs at one distance, (extent, stride)
        for extent, stride in kept:
            if runs and runs[-1][1] == stride * extent:
                runs[-1] = (runs[-1][0] * extent, stride)
            else:
                runs.append((extent, stride))
        strides = [0] * len(shape)
        left = [*runs]
        step = 1
        for d in reversed(range(len(shape))):
            if shape[d] == 1:
                strides[d] = step
                continue
            if not left or left[-1][0] % shape[d]:
                return None
            extent, stride = left.pop()
            strides[d], step = stride, stride * shape[d]
            if extent > shape[d]:
                left.append((extent // shape[d], step))
        return None if left else replace(self, shape=tuple(shape), strides=tuple(strides), border=())


def dense_strides(shape: Sequence[int]) -> tuple[int, ...]:
    """Strides of logical order."""
    return tuple(prod(shape[d + 1 :]) for d in range(len(shape)))


def allocate(
    name: str,
    dtype: str,
    shape: Sequence[int],
    order: Sequence[int],
    border: Sequence[tuple[int, int]] = (),
    border_code: int = 0,
) -> View:
    """A new arena buffer; `order` lists logical dimensions from outermost to innermost in memory."""
    border = tuple(border) or ((0, 0),) * len(shape)
    padded = [before + extent + after for extent, (before, after) in zip(shape, border, strict=True)]
    strides, step = [0] * len(shape), 1
    for d in reversed(order):
        strides[d] = step
        step *= padded[d]
    origin = sum(before * stride for (before, _), stride in zip(border, strides, strict=True))
    size = step * np.dtype(dtype).itemsize
    buffer = Buffer("arena", size, name)
    return View(buffer, dtype, tuple(shape), tuple(strides), origin, border, border_code)


def channels_last(rank: int) -> tuple[int, ...]:
    """Memory order of [N, C, spatial...] with channels innermost."""
    return (0, *range(2, rank), 1)


def as_image(view: View) -> View:
    """[N, C, W] as [N, C, 1, W]; four dimensions stay."""
    if len(view.shape) == 4:
        return view
    n, c, w = view.shape
    return replace(view, shape=(n, c, 1, w), strides=(*view.strides[:2], 0, view.strides[2]), border=())
