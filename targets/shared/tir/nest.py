"""Loop nests over strided operands: collapsed, shared among threads, vectorized along the innermost dimension."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

from qcompiler.targets.shared.tir.builder import Expr, Kernel, Pointer

CHUNK = 4096
"""Elements of one unit when a nest has collapsed to a single run."""


@dataclass(frozen=True)
class Nest:
    """extents[d] and strides[operand][d], outermost first. Operand 0 is the output."""

    extents: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]

    def collapsed(self) -> Nest:
        """The same iteration with as few dimensions as the strides allow, and at least two."""
        dims = [d for d, extent in enumerate(self.extents) if extent != 1]
        extents = [self.extents[d] for d in dims]
        columns = [[strides[d] for strides in self.strides] for d in dims]
        i = 0
        while i + 1 < len(extents):
            if all(outer == inner * extents[i + 1] for outer, inner in zip(columns[i], columns[i + 1], strict=True)):
                extents[i + 1] *= extents[i]
                del extents[i], columns[i]
            else:
                i += 1
        if not extents:
            extents, columns = [1], [[1] * len(self.strides)]
        if len(extents) == 1:
            inner = _chunk(extents[0])
            columns = [[stride * inner for stride in columns[0]], columns[0]]
            extents = [extents[0] // inner, inner]
        return Nest(tuple(extents), tuple(zip(*columns, strict=True)))

    @property
    def units(self) -> int:
        """Pieces of work that threads may share: everything but the innermost dimension."""
        return prod(self.extents[:-1])


def _chunk(extent: int) -> int:
    """A divisor of `extent`, at most CHUNK if there is a useful one."""
    for parts in range(1, extent + 1):
        if extent % parts == 0 and extent // parts <= CHUNK:
            return extent // parts if extent // parts >= 64 else extent
    return extent


def run_nest(kernel: Kernel, nest: Nest, lanes: int, body: Callable[[list[Expr], int, tuple[int, ...]], None]) -> None:
    """Emit the loops over units lo <= u < hi; body(offsets, lanes, inner strides) handles `lanes` elements."""
    inner = tuple(strides[-1] for strides in nest.strides)
    with kernel.loop(kernel.hi, kernel.lo) as u:
        starts = unit_offsets(kernel, nest, u)

        def step(i: Expr, n: int) -> None:
            body([start + i * stride for start, stride in zip(starts, inner, strict=True)], n, inner)

        for_lanes(kernel, nest.extents[-1], lanes, step)


def unit_offsets(kernel: Kernel, nest: Nest, u: Expr) -> list[Expr]:
    """Offset of every operand at unit `u`."""
    offsets: list[Expr] = [0] * len(nest.strides)
    outer = nest.extents[:-1]
    for d in reversed(range(len(outer))):
        index = kernel.let(u % outer[d]) if d else u
        u = kernel.let(u // outer[d]) if d else u
        offsets = [at + index * strides[d] for at, strides in zip(offsets, nest.strides, strict=True)]
    return [kernel.let(at) if not isinstance(at, int) else at for at in offsets]


def for_lanes(kernel: Kernel, extent: int, lanes: int, body: Callable[[Expr, int], None]) -> None:
    """body(start, n) over 0..extent: whole vectors in a loop, then power-of-two pieces."""
    whole = extent // lanes
    if whole:
        with kernel.loop(whole) as v:
            body(v * lanes, lanes)
    done = whole * lanes
    while done < extent:
        piece = 1 << ((extent - done).bit_length() - 1)
        body(done, piece)
        done += piece


def load(kernel: Kernel, pointer: Pointer, at: Expr, lanes: int, stride: int) -> Expr:
    """`lanes` elements with any inner stride; 0 spreads one element."""
    if stride == 0:
        return kernel.broadcast(kernel.let(pointer.load(at)), lanes)
    return pointer.load(at, lanes, stride)


def collapse(extents: Sequence[int], *strides: Sequence[int]) -> Nest:
    """A collapsed nest from extents and one stride list an operand."""
    return Nest(tuple(extents), tuple(tuple(s) for s in strides)).collapsed()
