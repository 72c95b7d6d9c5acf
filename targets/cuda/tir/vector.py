"""Elementwise operators with wide loads and stores: a thread has a run of neighbouring elements.

What is computed is the shared spec's (pointwise.py), element by element; only how elements come and go differs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import gcd, prod
from typing import Any

import numpy as np

from qcompiler.targets.cuda.grid import GridKernel, Launch
from qcompiler.targets.shared.machine import Machine
from qcompiler.targets.shared.program import Argument
from qcompiler.targets.shared.tir.nest import Nest, unit_offsets
from qcompiler.targets.shared.tir.pointwise import (
    Add,
    Convert,
    Dequantize,
    Divide,
    Fill,
    Lookup,
    Multiply,
    Quantize,
    Rescale,
)

MAPS = (Add, Convert, Dequantize, Divide, Fill, Lookup, Multiply, Quantize, Rescale)
THREADS = 128
WIDEST = 16
"""Bytes of a load."""


@dataclass(frozen=True)
class Vector:
    """A shared spec, `run` elements a thread. Its nest is (..., run), and in that last dimension strides are 1 or 0.

    flat: every operand is one run from first to last element (or one element), so the extent is a number of the call.
    """

    spec: Any
    run: int
    flat: bool

    def build(self, name: str, machine: Machine) -> Any:
        """void name(pointers..., [threads])."""
        k = GridKernel(name, THREADS)
        y, operands, compute = self.spec.parts(k)
        nest: Nest = self.spec.nest
        unit = k.let(k.blocks[0] * THREADS + k.thread)
        count = k.number("threads") if self.flat else k.const(nest.units)

        def body() -> None:
            if self.flat:
                starts = [k.let(unit * (self.run * strides[-1])) for strides in nest.strides]
            else:
                starts = unit_offsets(k, nest, unit)
            held: list[tuple[Any, Any]] = []
            for pointer, at, strides in zip(operands, starts[1:], nest.strides[1:], strict=True):
                if strides[-1] == 0:
                    held.append((k.let(pointer.load(at)), None))
                    continue
                local = k.local(self.run, pointer.dtype)
                self._move(k, pointer.dtype, k.at, (local, 0), (pointer, at))
                held.append((None, local))
            out = k.local(self.run, y.dtype)
            for i in range(self.run):
                values = [one if local is None else local.load(i) for one, local in held]
                out.store(i, compute(values, 1))
            self._move(k, y.dtype, k.at, (y, starts[0]), (out, 0))

        k.when(unit < count, body)
        return k.function()

    def _move(self, k: GridKernel, dtype: str, at: Any, to: tuple[Any, Any], source: tuple[Any, Any]) -> None:
        """`run` elements, in pieces of at most WIDEST bytes."""
        size = np.dtype(dtype).itemsize
        piece = min(WIDEST, self.run * size)
        for i in range(self.run * size // piece):
            step = i * piece // size
            k.call(f"qc_move{piece}", at(to[0], to[1] + step), at(source[0], source[1] + step))


def vectorize(spec: Any, arguments: list[Argument]) -> tuple[Vector, Launch, tuple[int, ...]] | None:
    """(spec, launch, numbers) with runs as long as extents, strides and places in memory allow, and one store at most
    (several of a thread leave gaps between those of its neighbours); None if that is 1."""
    if not isinstance(spec, MAPS):
        return None
    nest = _whole(spec.nest)
    inner = [strides[-1] for strides in nest.strides]
    if inner[0] != 1 or any(step not in (0, 1) for step in inner[1:]):
        return None
    dtypes = _dtypes(spec)
    run = gcd(nest.extents[-1], WIDEST, max(1, WIDEST // np.dtype(dtypes[0]).itemsize))
    for argument, dtype, strides in zip(arguments, dtypes, nest.strides, strict=False):
        size = np.dtype(dtype).itemsize
        if strides[-1]:
            # A piece of a load has at most WIDEST bytes, and begins at a multiple of them.
            run = min(run, *(_fits(place, size) for place in (argument.offset // size, *strides[:-1])))
        if argument.offset % size:
            return None
    if run < 2:
        return None
    extents = (*nest.extents[:-1], nest.extents[-1] // run, run)
    columns = tuple((*strides[:-1], strides[-1] * run, strides[-1]) for strides in nest.strides)
    flat = all(extent == 1 for extent in nest.extents[:-1])
    units = prod(extents[:-1])
    split = Nest((1, run), tuple((0, strides[-1]) for strides in columns)) if flat else Nest(extents, columns)
    launch = Launch((-(-units // THREADS), 1, 1), THREADS)
    return Vector(replace(spec, nest=split), run, flat), launch, (units,) if flat else ()


def _fits(place: int, size: int) -> int:
    """The longest run (a power of two) for which loads at multiples of `place` elements are aligned."""
    run = WIDEST
    while run > 1 and place * size % min(WIDEST, run * size):
        run //= 2
    return run


def _dtypes(spec: Any) -> list[str]:
    """Of y and the operands of the nest."""
    k = GridKernel("", THREADS)
    y, operands, _ = spec.parts(k)
    return [y.dtype, *(pointer.dtype for pointer in operands)]


def _whole(nest: Nest) -> Nest:
    """The nest with as few dimensions as strides allow: what was cut into units for threads of a processor is one."""
    extents = list(nest.extents)
    columns = [list(strides) for strides in nest.strides]
    d = 0
    while d + 1 < len(extents):
        if extents[d] == 1 or all(c[d] == c[d + 1] * extents[d + 1] for c in columns):
            extents[d + 1] *= extents[d]
            del extents[d]
            for c in columns:
                del c[d]
        else:
            d += 1
    return Nest(tuple(extents), tuple(map(tuple, columns)))
