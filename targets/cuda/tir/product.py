"""Products on tensor cores: convolutions and MatMul as one tiled kernel over [pixels, taps x channels] x weights.

A block makes a tile of pixels by output channels. Tiles of x and w travel to shared memory by asynchronous copies,
`stages` of them in flight, while warps multiply fragments of 16 x 32 by 32 x 8 bytes (mma.m16n8k32; what older cards
have instead is in templates/qc_device.h). A pixel's row of x is never put together in memory: a table says where
each run of `grain` bytes lies from the pixel's first tap, and how far down and right, so that runs outside the image
are read from a line of zero points. Codes leave through shared memory, so that stores are wide.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from qcompiler.targets.cuda.grid import GridKernel, Launch
from qcompiler.targets.cuda.tir.epilogue import Codes, itemsize
from qcompiler.targets.shared.machine import Machine
from qcompiler.targets.shared.tir.builder import Expr, Pointer

STEP = 64
"""Bytes of the inner dimension in a tile."""
CHUNK = 16
"""Bytes that fragments and copies are made of."""
CHUNKS = STEP // CHUNK
OUTSIDE = -(1 << 14)
"""A row or column that lies in no image."""


@dataclass(frozen=True)
class Tile:
    """Pixels and channels of a block, and how many of each a warp has."""

    pixels: int
    channels: int
    warp_pixels: int
    warp_channels: int
    stages: int

    @property
    def threads(self) -> int:
        """Of a block."""
        return 32 * (self.pixels // self.warp_pixels) * (self.channels // self.warp_channels)

    def stage_bytes(self) -> int:
        """Shared memory of one stage."""
        return (self.pixels + self.channels) * STEP

    def shared(self, storage: str) -> int:
        """Shared memory of a block: stages, or in their place the codes that leave."""
        return max(self.stages * self.stage_bytes(), self.pixels * self.pitch(storage))

    def pitch(self, storage: str) -> int:
        """Bytes between rows of leaving codes: not a multiple of all banks."""
        return self.channels * itemsize(storage) + CHUNK


NUMBERS = (
    *("pixels", "channels", "tiles", "y_pixel"),
    *("columns", "positions", "stride_y", "stride_x", "before_y", "before_x", "height", "width"),
    *("x_image", "x_row", "x_pixel", "x_group", "y_group", "w_group", "p_group"),
)
"""int32 parameters before those of Codes: pixels of all images, channels of a group, tiles of the inner dimension,
elements of y between pixels; then the window, strides of x in elements, and what a group moves on by."""


@dataclass(frozen=True)
class Product:
    """y[pixel, channel] = requantize(bias[channel] + sum over k of x[pixel, k] * w[channel, k]).

    w: int8 [groups, channels padded to tiles, tiles * STEP]; table: int32 pairs (offset, row << 16 | column & 0xffff)
    for every run of `grain` bytes, as many as tiles have; line: CHUNK bytes that hold the zero point of x.
    """

    storage: str
    codes: Codes
    tile: Tile
    grain: int
    """Bytes of x that are copied at once: 16, 8, 4 or 1."""
    store: int
    """Bytes of y that are written at once."""
    direct: bool
    """Whether pixels are rows of x at one distance (`x_pixel`) and the inner dimension is contiguous: no window."""

    def launch(self, groups: int, pixels: int, channels: int) -> Launch:
        """Blocks of channels beside each other, so that they find the same x in the cache."""
        tile = self.tile
        grid = (-(-channels // tile.channels), -(-pixels // tile.pixels), groups)
        return Launch(grid, tile.threads, tile.shared(self.codes.storage))

    def build(self, name: str, machine: Machine) -> Any:
        """void name(x, y, w, bias, scales..., table, line, NUMBERS..., numbers of codes...)."""
        return _Emitter(self, name).function()


class _Emitter:
    """The kernel under construction."""

    def __init__(self, spec: Product, name: str) -> None:
        self.spec, self.tile = spec, spec.tile
        kernel = self.kernel = GridKernel(name, spec.tile.threads, 3)
        self.x, self.y = kernel.pointer("x", spec.storage), kernel.pointer("y", spec.codes.storage)
        self.w, self.bias = kernel.pointer("w", "int8"), kernel.pointer("bias", "int32")
        self.scales = spec.codes.pointers(kernel)
        self.table, self.line = kernel.pointer("table", "int32"), kernel.pointer("line", spec.storage)
        self.n = {number: kernel.number(number) for number in NUMBERS}
        self.code_numbers = spec.codes.numbers(kernel)
        self.memory = kernel.shared()
        self.warps_x = spec.tile.channels // spec.tile.warp_channels

    def function(self) -> Any:
        """The PrimFunc."""
        k, tile = self.kernel, self.tile
        self.first_channel = k.let(k.blocks[0] * tile.channels)
        self.first_pixel = k.let(k.blocks[1] * tile.pixels)
        self.group = k.blocks[2]
        self.lane = k.let(k.thread % 32)
        warp = k.let(k.thread // 32)
        self.warp_pixel = k.let((warp // self.warps_x) * tile.warp_pixels)
        self.warp_channel = k.let((warp % self.warps_x) * tile.warp_channels)
        self._prepare()
        self.tiles_m, self.tiles_n = tile.warp_pixels // 16, tile.warp_channels // 8
        self.acc = k.local(self.tiles_m * self.tiles_n * 4, "int32")
        with k.unrolled(self.tiles_m * self.tiles_n * 4) as i:
            self.acc.store(i, k.const(0))
        for stage in range(tile.stages - 1):
            self._load(k.const(stage), k.const(stage))
            k.call("qc_async_commit")
        with k.loop(self.n["tiles"]) as t:
            k.call(f"qc_async_wait{tile.stages - 2}")
            k.sync()
            ahead = k.let(t + (tile.stages - 1))
            self._load(ahead, k.let(ahead % tile.stages))
            k.call("qc_async_commit")
            self._multiply(k.let((t % tile.stages) * tile.stage_bytes()))
        k.call("qc_async_wait0")
        k.sync()
        self._leave()
        return k.function()

    # -- copies ------------------------------------------------------------------------------------------------

    def _prepare(self) -> None:
        """Where the rows of x and w that this thread copies begin."""
        k, tile, n = self.kernel, self.tile, self.n
        self.column = k.let(k.thread % CHUNKS)
        self.row = k.let(k.thread // CHUNKS)
        self.step = tile.threads // CHUNKS
        self.rows_x, self.rows_w = -(-tile.pixels // self.step), -(-tile.channels // self.step)
        self.starts = k.local(self.rows_x, "int32")
        self.tops, self.lefts = k.local(self.rows_x, "int32"), k.local(self.rows_x, "int32")
        for i in range(self.rows_x):
            pixel = k.let(self.first_pixel + self.row + i * self.step)
            inside = k.let(k.tirx.min(pixel, n["pixels"] - 1))
            if self.spec.direct:
                self.starts.store(i, self.group * n["x_group"] + inside * n["x_pixel"])
                continue
            image = k.let(k.tirx.truncdiv(inside, n["positions"]))
            place = k.let(inside - image * n["positions"])
            line = k.let(k.tirx.truncdiv(place, n["columns"]))
            top = k.let(line * n["stride_y"] - n["before_y"])
            left = k.let((place - line * n["columns"]) * n["stride_x"] - n["before_x"])
            start = image * n["x_image"] + top * n["x_row"] + left * n["x_pixel"] + self.group * n["x_group"]
            self.starts.store(i, start)
            self.tops.store(i, k.tirx.Select(pixel < n["pixels"], top, k.const(OUTSIDE)))
            self.lefts.store(i, left)

    def _load(self, t: Expr, stage: Expr) -> None:
        """Start the copies of tile t of the inner dimension, if there is one."""
        k, tile = self.kernel, self.tile

        def copies() -> None:
            base = k.let(stage * tile.stage_bytes())
            first = k.let(t * STEP + self.column * CHUNK)
            self._load_x(base, first)
            w_row = self.group * self.n["w_group"] + (self.first_channel + self.row) * (self.n["tiles"] * STEP)
            w_first = k.let(w_row + first)
            for i in range(self.rows_w):
                row = k.let(self.row + i * self.step)
                to = k.at(self.memory, base + tile.pixels * STEP + self._swizzled(row, self.column))
                source = k.at(self.w, w_first + i * self.step * STEP * self.n["tiles"])
                self._if(row < tile.channels, tile.channels % self.step == 0, "qc_async16", to, source)

        k.when(t < self.n["tiles"], copies)

    def _load_x(self, base: Expr, first: Expr) -> None:
        k, tile, grain = self.kernel, self.tile, self.spec.grain
        parts = CHUNK // max(grain, 4)
        runs: list[tuple[Expr, Expr, Expr]] = []
        if not self.spec.direct:
            for part in range(CHUNK // grain):
                entry = k.let((k.tirx.truncdiv(first, k.const(grain)) + part) * 2)
                where = k.let(self.table.load(entry + 1))
                runs.append((
                    k.let(self.table.load(entry)),
                    k.let(k.tirx.shift_right(where, k.const(16))),
                    k.let(k.value("qc_low_half", where)),
                ))  # fmt: skip
        for i in range(self.rows_x):
            row = k.let(self.row + i * self.step)
            to = k.let(base + self._swizzled(row, self.column))
            addresses = [self._source(i, first + part * grain, runs[part] if runs else None)
                         for part in range(CHUNK // grain)]  # fmt: skip
            whole = tile.pixels % self.step == 0
            if grain >= 4:
                for part in range(parts):
                    target = k.at(self.memory, to + part * grain)
                    self._if(row < tile.pixels, whole, f"qc_async{grain}", target, addresses[part])
            else:
                self._if(row < tile.pixels, whole, "qc_bytes16", k.at(self.memory, to), *addresses)

    def _source(self, i: int, at: Expr, run: tuple[Expr, Expr, Expr] | None) -> Expr:
        """Address of a run of x: of row i of this thread."""
        k = self.kernel
        if run is None:
            return k.at(self.x, self.starts.load(i) + at)
        offset, down, right = run
        line = k.let(self.tops.load(i) + down)
        column = k.let(self.lefts.load(i) + right)
        inside = k.value("qc_inside", line, column, self.n["height"], self.n["width"])
        start = k.let(self.starts.load(i) + offset)
        return k.value("qc_choose", inside, k.at(self.x, 0), start, k.at(self.line, 0), dtype="handle")

    def _if(self, condition: Expr, always: bool, name: str, *arguments: Expr) -> None:
        if always:
            self.kernel.call(name, *arguments)
        else:
            self.kernel.when(condition, lambda: self.kernel.call(name, *arguments))

    @staticmethod
    def _swizzled(row: Expr, chunk: Expr) -> Expr:
        """Where a chunk of a row lies: eight rows of the same chunk are in eight different groups of banks."""
        return row * STEP + (chunk ^ ((row // 2) % CHUNKS)) * CHUNK

    # -- sums --------------------------------------------------------------------------------------------------

    def _multiply(self, base: Expr) -> None:
        k, tile = self.kernel, self.tile
        lane = self.lane
        a, b = k.local(self.tiles_m * 4, "uint32"), k.local(self.tiles_n * 2, "uint32")
        a_row = k.let(self.warp_pixel + lane % 16)
        b_row = k.let(self.warp_channel + lane % 8 + (lane // 16) * 8)
        name = "qc_mma_u8s8" if self.spec.storage == "uint8" else "qc_mma_s8s8"
        for step in range(STEP // 32):
            for i in range(self.tiles_m):
                at = base + self._swizzled(a_row + 16 * i, lane // 16 + 2 * step)
                k.call("qc_ldmatrix4", k.at(a, 4 * i), k.at(self.memory, at))
            for j in range(self.tiles_n // 2):
                at = base + tile.pixels * STEP + self._swizzled(b_row + 16 * j, (lane // 8) % 2 + 2 * step)
                k.call("qc_ldmatrix4", k.at(b, 4 * j), k.at(self.memory, at))
            for i in range(self.tiles_m):
                for j in range(self.tiles_n):
                    k.call(name, k.at(self.acc, (i * self.tiles_n + j) * 4), k.at(a, 4 * i), k.at(b, 2 * j))

    # -- codes -------------------------------------------------------------------------------------------------

    def _leave(self) -> None:
        k, tile, spec = self.kernel, self.tile, self.spec
        size, pitch = itemsize(spec.codes.storage), tile.pitch(spec.codes.storage)
        name = f"qc_put2_{size}"
        p_first = k.let(self.group * self.n["p_group"] + self.first_channel)
        for j in range(self.tiles_n):
            channel = k.let(self.warp_channel + j * 8 + (self.lane % 4) * 2)
            parameters = [[k.let(p.load(p_first + channel + c)) for p in (self.bias, *self.scales)] for c in (0, 1)]
            for i in range(self.tiles_m):
                for half in (0, 1):
                    pixel = self.warp_pixel + i * 16 + half * 8 + self.lane // 4
                    found = []
                    for c in (0, 1):
                        bias, *scales = parameters[c]
                        total = self.acc.load((i * self.tiles_n + j) * 4 + half * 2 + c) + bias
                        found.append(spec.codes.apply(k, total, scales, self.code_numbers))
                    k.call(name, k.at(self.memory, pixel * pitch + channel * size), *found)
        k.sync()
        self._store(size, pitch)

    def _store(self, size: int, pitch: int) -> None:
        """Rows of codes, `store` bytes a thread at a time."""
        k, tile, n = self.kernel, self.tile, self.n
        per_row = tile.channels * size // self.spec.store
        pieces = tile.pixels * per_row
        elements = max(1, self.spec.store // size)
        y_first = k.let(self.group * n["y_group"] + self.first_channel)
        with k.loop(-(-pieces // tile.threads)) as i:
            piece = k.let(k.thread + i * tile.threads)
            row = k.let(piece // per_row)
            column = k.let((piece % per_row) * elements)
            pixel = k.let(self.first_pixel + row)
            fits = k.tirx.all(pixel < n["pixels"], self.first_channel + column < n["channels"])
            if pieces % tile.threads:
                fits = k.tirx.all(fits, row < tile.pixels)
            target = k.at(self.y, y_first + pixel * n["y_pixel"] + column)
            source = k.at(self.memory, row * pitch + column * size)
            k.when(fits, lambda to=target, at=source: k.call(f"qc_move{self.spec.store}", to, at))  # type: ignore[misc]


def pointer_names(spec: Product) -> list[str]:
    """Of the kernel's pointers, in order."""
    scales = ["scale"] if spec.codes.arithmetic == "float" else ["multiplier", "shift"]
    return ["x", "y", "w", "bias", *scales, "table", "line"]


__all__ = ["NUMBERS", "OUTSIDE", "STEP", "Pointer", "Product", "Tile", "pointer_names"]
