"""Kernels that slide a window and keep channels apart: depthwise convolution, max and average pooling, reductions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

from qcompiler.targets.shared.machine import Machine
from qcompiler.targets.shared.tir.builder import Expr, Kernel, Pointer
from qcompiler.targets.shared.tir.nest import Nest, for_lanes, load, unit_offsets
from qcompiler.targets.shared.tir.requantize import Requantize, store_lanes


@dataclass(frozen=True)
class Depthwise:
    """Depthwise convolution, channels-last. Strides in elements; x points at the first tap of the first pixel.

    Rows of one tap column share a 32-bit lane (four with a byte dot product, two with 16-bit pairs), and a column is
    assembled once for all output pixels of the tile that it touches.
    """

    channels: int
    rows: tuple[tuple[int, int, int], ...]
    """Nested (extent, x stride, y stride)."""
    pixels: int
    stride: int
    """Columns between output pixels."""
    column: int
    """Elements from one column to the next."""
    pixel_y: int
    kernel: tuple[int, int]
    dilation: tuple[int, int]
    row: int
    """Elements from one row to the next."""
    storage: str
    requantize: Requantize
    tile: int
    byte_weights: bool = True
    """Whether all weights fit int8."""

    def units(self, machine: Machine) -> int:
        """Output rows."""
        return prod(extent for extent, _, _ in self.rows)

    def group(self, machine: Machine) -> int:
        """Rows in one 32-bit lane."""
        if machine.vnni and self.storage == "uint8" and self.byte_weights:
            return 4
        return 2 if machine.madd_s16 and self.storage in ("uint8", "int8", "int16") else 1

    def weight_type(self, machine: Machine) -> str:
        """Storage of the packed weights."""
        return {4: "int8", 2: "int16", 1: "int8" if self.byte_weights else "int32"}[self.group(machine)]

    def build(self, name: str, machine: Machine) -> Any:
        """void name(lo, hi, x, y, w, bias, requantization...). w: [blocks, row groups, kx, lanes, group]."""
        kernel = Kernel(name)
        x, y = kernel.pointer("x", self.storage), kernel.pointer("y", self.requantize.storage)
        w = kernel.pointer("w", self.weight_type(machine))
        bias = kernel.pointer("bias", "int32")
        scales = self.requantize.parameters(kernel)
        lanes, group = machine.lanes, self.group(machine)
        groups = -(-self.kernel[0] // group)
        panel = groups * self.kernel[1] * lanes * group
        whole, left = divmod(self.channels, lanes)

        def block(x_row: Expr, y_row: Expr, b: Expr, valid: int) -> None:
            first = b * lanes
            weights = [
                kernel.let(w.load(b * panel + i * lanes * group, lanes * group)) for i in range(groups * self.kernel[1])
            ]
            start = kernel.let(bias.load(first, lanes))
            parameters = self.requantize.load(kernel, scales, first, lanes)

            def tile(pixel: Expr, count: int) -> None:
                acc: list[Expr] = [start] * count
                base = kernel.let(x_row + first + pixel * (self.stride * self.column))
                for column, uses in self._columns(count):
                    for g in range(groups):
                        taken = range(g * group, min((g + 1) * group, self.kernel[0]))
                        at = base + column * self.column
                        packed = kernel.let(self._assemble(kernel, machine, x, at, taken, lanes))
                        for pixel_index, kx in uses:
                            weight = weights[g * self.kernel[1] + kx]
                            acc[pixel_index] = kernel.let(self._dot(kernel, machine, acc[pixel_index], packed, weight))
                for i in range(count):
                    code = self.requantize.apply(kernel, acc[i], parameters, lanes)
                    at = y_row + first + pixel * self.pixel_y + i * self.pixel_y
                    store_lanes(kernel, y, at, code, lanes, valid)

            tiles, rest = divmod(self.pixels, self.tile)
            if tiles:
                with kernel.loop(tiles) as t:
                    tile(t * self.tile, self.tile)
            if rest:
                tile(tiles * self.tile, rest)

        nest = Nest(
            (*(e for e, _, _ in self.rows), 1), ((*(s for _, s, _ in self.rows), 1), (*(s for _, _, s in self.rows), 1))
        )
        with kernel.loop(kernel.hi, kernel.lo) as u:
            x_row, y_row = unit_offsets(kernel, nest, u)
            if whole:
                with kernel.loop(whole) as b:
                    block(x_row, y_row, b, lanes)
            if left:
                block(x_row, y_row, whole, left)
        return kernel.function()

    def _columns(self, count: int) -> Iterator[tuple[int, list[tuple[int, int]]]]:
        """(column, [(output pixel, kx)]) for every input column that a tile of `count` pixels touches."""
        uses: dict[int, list[tuple[int, int]]] = {}
        for pixel in range(count):
            for kx in range(self.kernel[1]):
                uses.setdefault(pixel * self.stride + kx * self.dilation[1], []).append((pixel, kx))
        yield from sorted(uses.items())

    def _assemble(self, kernel: Kernel, machine: Machine, x: Pointer, at: Expr, taken: range, lanes: int) -> Expr:
        """Rows `taken` of one column in the bytes (or 16-bit halves) of 32-bit lanes."""
        bits = 32 // self.group(machine)
        packed: Expr = None
        for place, ky in enumerate(taken):
            value = kernel.cast(x.load(at + ky * self.dilation[0] * self.row, lanes), "int32", lanes)
            if bits == 16 and place == 0 and self.storage != "uint8" and len(taken) > 1:
                value = value & kernel.const(0xFFFF, "int32", lanes)
            if place:
                value = kernel.tirx.shift_left(value, kernel.const(place * bits, "int32", lanes))
            packed = value if packed is None else packed | value
        return packed

    def _dot(self, kernel: Kernel, machine: Machine, acc: Expr, packed: Expr, weight: Expr) -> Expr:
        lanes, group = machine.lanes, self.group(machine)
        if group == 4:
            return kernel.intrinsic(
                "int32", lanes, machine.vnni, acc, kernel.reinterpret(packed, "uint8", 4 * lanes), weight
            )
        if group == 2:
            pairs = kernel.reinterpret(packed, "int16", 2 * lanes)
            return acc + kernel.intrinsic("int32", lanes, machine.madd_s16, pairs, weight)
        return acc + packed * kernel.cast(weight, "int32", lanes)


@dataclass(frozen=True)
class Pool:
    """Max or sum over a window, channels-last; the border of x holds what padding means."""

    channels: int
    rows: tuple[tuple[int, int, int], ...]
    pixels: int
    pixel_x: int
    pixel_y: int
    taps: tuple[int, ...]
    """x offsets of the window's cells."""
    storage: str
    requantize: Requantize | None
    """None for max pooling."""
    zero_point: int = 0
    per_position: bool = False
    """Whether the requantization has an entry for every output position of an image."""
    positions: int = 1

    def units(self, machine: Machine) -> int:
        """Output rows."""
        return prod(extent for extent, _, _ in self.rows)

    def build(self, name: str, machine: Machine) -> Any:
        """void name(lo, hi, x, y, requantization...)."""
        kernel = Kernel(name)
        requantize = self.requantize
        x = kernel.pointer("x", self.storage)
        y = kernel.pointer("y", requantize.storage if requantize else self.storage)
        scales = requantize.parameters(kernel) if requantize else []
        wide = "int64" if "16" in self.storage and requantize else "int32"
        nest = Nest(
            (*(e for e, _, _ in self.rows), 1), ((*(s for _, s, _ in self.rows), 1), (*(s for _, _, s in self.rows), 1))
        )
        lanes = machine.lanes * (4 if requantize is None and machine.lanes > 1 and "8" in self.storage else 1)
        with kernel.loop(kernel.hi, kernel.lo) as u:
            x_row, y_row = unit_offsets(kernel, nest, u)
            with kernel.loop(self.pixels) as pixel:

                def step(c: Expr, n: int, pixel: Expr = pixel, u: Expr = u) -> None:
                    at = kernel.let(x_row + pixel * self.pixel_x + c)
                    cells = [x.load(at + tap, n) for tap in self.taps]
                    if requantize is None:
                        best = cells[0]
                        for cell in cells[1:]:
                            best = kernel.tirx.max(best, cell)
                        y.store(y_row + pixel * self.pixel_y + c, best, n)
                        return
                    total = kernel.const(-len(cells) * self.zero_point, wide, n)
                    for cell in cells:
                        total = total + kernel.cast(cell, wide, n)
                    place = (u % (self.positions // self.pixels)) * self.pixels + pixel if self.per_position else 0
                    parameters = (
                        requantize.load(kernel, scales, place, n)
                        if not self.per_position
                        else [kernel.broadcast(kernel.let(pointer.load(place)), n) for pointer in scales]
                    )
                    y.store(y_row + pixel * self.pixel_y + c, requantize.apply(kernel, total, parameters, n), n)

                for_lanes(kernel, self.channels, lanes, step)
        return kernel.function()


@dataclass(frozen=True)
class Reduce:
    """requantize(sum(x - zx)) over some dimensions; operands y, x of `nest` iterate over the kept ones."""

    nest: Nest
    reduced: tuple[tuple[int, int], ...]
    """Nested (extent, x stride)."""
    storage: str
    zero_point: int
    requantize: Requantize

    def build(self, name: str, machine: Machine) -> Any:
        """void name(lo, hi, y, x, requantization...)."""
        kernel = Kernel(name)
        y, x = kernel.pointer("y", self.requantize.storage), kernel.pointer("x", self.storage)
        scales = self.requantize.parameters(kernel)
        wide = "int64" if "16" in self.storage else "int32"
        count = prod(extent for extent, _ in self.reduced)
        inner = tuple(strides[-1] for strides in self.nest.strides)
        with kernel.loop(kernel.hi, kernel.lo) as u:
            y_at, x_at = unit_offsets(kernel, self.nest, u)

            def step(i: Expr, n: int) -> None:
                acc = kernel.local(n, wide)
                acc.store(0, kernel.const(-count * self.zero_point, wide, n), n)

                def add(depth: int, at: Expr) -> None:
                    if depth < len(self.reduced):
                        extent, stride = self.reduced[depth]
                        with kernel.loop(extent) as r:
                            add(depth + 1, at + r * stride)
                        return
                    acc.store(0, acc.load(0, n) + kernel.cast(load(kernel, x, at, n, inner[1]), wide, n), n)

                add(0, kernel.let(x_at + i * inner[1]))
                parameters = self.requantize.load(kernel, scales, 0, n)
                y.store(y_at + i * inner[0], self.requantize.apply(kernel, acc.load(0, n), parameters, n), n, inner[0])

            for_lanes(kernel, self.nest.extents[-1], machine.lanes, step)
        return kernel.function()
