"""Places of the largest or smallest codes along one axis (qcompiler/ops/order.py)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from qcompiler.targets.shared.machine import Machine
from qcompiler.targets.shared.tir.builder import Kernel
from qcompiler.targets.shared.tir.nest import Nest, unit_offsets

BEYOND = 1 << 20
"""More than every code."""


@dataclass(frozen=True)
class ArgExtreme:
    """The place of the largest code; operands y, x of `nest`, whose innermost dimension has an extent of 1."""

    nest: Nest
    extent: int
    stride: int
    storage: str
    largest: bool
    last: bool

    def build(self, name: str, machine: Machine) -> Any:
        """void name(lo, hi, y, x)."""
        kernel = Kernel(name)
        tirx, sign = kernel.tirx, 1 if self.largest else -1
        y, x = kernel.pointer("y", "int64"), kernel.pointer("x", self.storage)
        better = tirx.GE if self.last else tirx.GT
        with kernel.loop(kernel.hi, kernel.lo) as u:
            y_at, x_at = unit_offsets(kernel, self.nest, u)
            found = kernel.local(2, "int32")  # value, place
            found.store(0, kernel.const(-BEYOND))
            found.store(1, kernel.const(0))
            with kernel.loop(self.extent) as i:
                value = kernel.let(kernel.cast(x.load(x_at + i * self.stride), "int32") * sign)
                takes = kernel.let(better(value, found.load(0)))
                place = kernel.let(tirx.Select(takes, i + kernel.const(0), found.load(1)))
                found.store(0, tirx.max(value, found.load(0)))
                found.store(1, place)
            y.store(y_at, kernel.cast(found.load(1), "int64"))
        return kernel.function()


@dataclass(frozen=True)
class TopK:
    """k codes in order and their places; operands y, places, x of `nest`, whose innermost dimension has extent 1.

    Each pass over the run finds what follows the last one found, so that nothing needs to be kept.
    """

    nest: Nest
    extent: int
    k: int
    strides: tuple[int, int, int]
    """Of y, places and x along the axis."""
    storage: str
    largest: bool

    def build(self, name: str, machine: Machine) -> Any:
        """void name(lo, hi, y, places, x)."""
        kernel = Kernel(name)
        tirx, sign = kernel.tirx, 1 if self.largest else -1
        y, places = kernel.pointer("y", self.storage), kernel.pointer("places", "int64")
        x = kernel.pointer("x", self.storage)
        with kernel.loop(kernel.hi, kernel.lo) as u:
            y_at, places_at, x_at = unit_offsets(kernel, self.nest, u)
            state = kernel.local(4, "int32")  # value and place of the last one, and of the best that follows it
            state.store(0, kernel.const(BEYOND))
            state.store(1, kernel.const(-1))
            with kernel.loop(self.k) as r:
                state.store(2, kernel.const(-BEYOND))
                state.store(3, kernel.const(0))
                with kernel.loop(self.extent) as i:
                    value = kernel.let(kernel.cast(x.load(x_at + i * self.strides[2]), "int32") * sign)
                    place = kernel.let(i + kernel.const(0))
                    tie = tirx.all(tirx.EQ(value, state.load(0)), tirx.GT(place, state.load(1)))
                    follows = tirx.any(tirx.LT(value, state.load(0)), tie)
                    takes = kernel.let(tirx.all(follows, tirx.GT(value, state.load(2))))
                    best = kernel.let(tirx.Select(takes, value, state.load(2)))
                    at = kernel.let(tirx.Select(takes, place, state.load(3)))
                    state.store(2, best)
                    state.store(3, at)
                state.store(0, state.load(2))
                state.store(1, state.load(3))
                y.store(y_at + r * self.strides[0], kernel.cast(state.load(0) * sign, self.storage))
                places.store(places_at + r * self.strides[1], kernel.cast(state.load(1), "int64"))
        return kernel.function()
