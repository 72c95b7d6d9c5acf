"""Tiles of x and w on their way to shared memory, by asynchronous copies.

A pixel's row of x is never put together in memory: a table says where each run of `grain` bytes lies from the pixel's
first tap, and how far down and right, so that runs outside the image are read from a line of zero points.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qcompiler.targets.cuda.tir.tile import CHUNK, line_of
from qcompiler.targets.shared.tir.builder import Expr

if TYPE_CHECKING:
    from qcompiler.targets.cuda.tir.product import _Emitter

OUTSIDE = -(1 << 14)
"""A row or column that lies in no image."""
NUMBERS = (
    *("pixels", "channels", "tiles", "y_pixel"),
    *("columns", "positions", "stride_y", "stride_x", "before_y", "before_x", "height", "width"),
    *("x_image", "x_row", "x_pixel", "x_group", "y_group", "w_group", "p_group"),
)
"""int32 parameters before those of Codes: pixels of all images, channels of a group, tiles of the inner dimension,
elements of y between pixels; then the window, strides of x in elements, and what a group moves on by."""


class Staging:
    """The part of a product's kernel that copies; it is emitted into that of `product`."""

    def __init__(self, product: _Emitter) -> None:
        self.product, self.kernel = product, product.kernel
        self.tile, self.n, self.memory = product.tile, product.n, product.memory
        self.chunks = self.tile.step // CHUNK
        self.row_bytes = self.tile.step * product.spec.bits // 8
        self._prepare()

    def _prepare(self) -> None:
        """Where the rows of x and w that this thread copies begin."""
        k, tile, n = self.kernel, self.tile, self.n
        self.column = k.let(k.thread % self.chunks)
        self.row = k.let(k.thread // self.chunks)
        self.step = tile.threads // self.chunks
        self.rows_x = -(-tile.pixels // self.step)
        chunks = self.row_bytes // CHUNK
        self.w_step = tile.threads // chunks
        self.w_column, self.w_row = k.let(k.thread % chunks), k.let(k.thread // chunks)
        self.line = k.const(0) if self.product.spec.direct else line_of(k)
        self.starts = k.local(self.rows_x, "int32")
        self.tops, self.lefts = k.local(self.rows_x, "int32"), k.local(self.rows_x, "int32")
        for i in range(self.rows_x):
            pixel = k.let(self.product.first_pixel + self.row + i * self.step)
            inside = k.let(k.tirx.min(pixel, n["pixels"] - 1))
            if self.product.spec.direct:
                self.starts.store(i, self.product.group * n["x_group"] + inside * n["x_pixel"])
                continue
            image = k.let(k.tirx.truncdiv(inside, n["positions"]))
            place = k.let(inside - image * n["positions"])
            line = k.let(k.tirx.truncdiv(place, n["columns"]))
            top = k.let(line * n["stride_y"] - n["before_y"])
            left = k.let((place - line * n["columns"]) * n["stride_x"] - n["before_x"])
            start = image * n["x_image"] + top * n["x_row"] + left * n["x_pixel"] + self.product.group * n["x_group"]
            self.starts.store(i, start)
            self.tops.store(i, k.tirx.Select(pixel < n["pixels"], top, k.const(OUTSIDE)))
            self.lefts.store(i, left)

    def _of(self, t: Expr, stage: Expr) -> tuple[Expr, Expr, Expr]:
        """Whether there is a tile t of the inner dimension, its number or the last one's, and the stage's place."""
        k = self.kernel
        there = k.let(k.cast(t < self.product.tiles, "int32"))
        last = k.let(self.product.first_tile + k.tirx.min(t, self.product.tiles - 1))
        return there, last, k.let(stage * self.tile.stage_bytes(self.product.spec.bits))

    def load_x(self, t: Expr, stage: Expr) -> None:
        """Start the copies of tile t of x, if there is one. No branches: wgmma may be running."""
        there, last, base = self._of(t, stage)
        self._load_x(base, self.kernel.let(last * self.tile.step + self.column * CHUNK), there)

    def load_w(self, t: Expr, stage: Expr) -> None:
        """The same of w."""
        k, tile, product = self.kernel, self.tile, self.product
        there, last, base = self._of(t, stage)
        size = tile.channels * self.row_bytes
        number = product.kernel.blocks[0] * self.n["tiles"] + last
        source = k.let(product.group * self.n["w_group"] + number * size + self.w_row * self.row_bytes
                       + self.w_column * CHUNK)  # fmt: skip
        for i in range(-(-tile.channels // self.w_step)):
            row = k.let(self.w_row + i * self.w_step)
            to = k.at(self.memory, base + tile.pixels * tile.step + self.packed(row, self.w_column))
            copied = there if tile.channels % self.w_step == 0 else k.let(there & k.cast(row < tile.channels, "int32"))
            k.call("qc_async16", copied, to, k.at(product.w, source + i * self.w_step * self.row_bytes))

    def _if(self, there: Expr, row: Expr, rows: int) -> Expr:
        """Whether a row of a tile that is there is one."""
        k = self.kernel
        return there if rows % self.step == 0 else k.let(there & k.cast(row < rows, "int32"))

    def _load_x(self, base: Expr, first: Expr, there: Expr) -> None:
        k, tile, grain = self.kernel, self.tile, self.product.spec.grain
        parts = CHUNK // max(grain, 4)
        runs: list[tuple[Expr, Expr, Expr]] = []
        if not self.product.spec.direct:
            for part in range(CHUNK // grain):
                entry = k.let((k.tirx.truncdiv(first, k.const(grain)) + part) * 2)
                where = k.let(self.product.table.load(entry + 1))
                runs.append((
                    k.let(self.product.table.load(entry)),
                    k.let(k.tirx.shift_right(where, k.const(16))),
                    k.let(k.value("qc_low_half", where)),
                ))  # fmt: skip
        for i in range(self.rows_x):
            row = k.let(self.row + i * self.step)
            to = k.let(base + self.swizzled(row, self.column))
            addresses = [self._source(i, first + part * grain, runs[part] if runs else None)
                         for part in range(CHUNK // grain)]  # fmt: skip
            copied = self._if(there, row, tile.pixels)
            if grain >= 4:
                for part in range(parts):
                    k.call(f"qc_async{grain}", copied, k.at(self.memory, to + part * grain), addresses[part])
            else:
                k.call("qc_bytes16", copied, k.at(self.memory, to), *addresses)

    def _source(self, i: int, at: Expr, run: tuple[Expr, Expr, Expr] | None) -> Expr:
        """Address of a run of x: of row i of this thread."""
        k = self.kernel
        if run is None:
            return k.at(self.product.x, self.starts.load(i) + at)
        offset, down, right = run
        line = k.let(self.tops.load(i) + down)
        column = k.let(self.lefts.load(i) + right)
        inside = k.value("qc_inside", line, column, self.n["height"], self.n["width"])
        start = k.let(self.starts.load(i) + offset)
        line_at = k.at(self.product.line, self.line)
        return k.value("qc_choose", inside, k.at(self.product.x, 0), start, line_at, dtype="handle")

    def swizzled(self, row: Expr, chunk: Expr) -> Expr:
        """Where a chunk of a row of x lies: eight rows of the same chunk are in eight different groups of banks."""
        return turned(row, chunk, self.tile.step)

    def packed(self, row: Expr, chunk: Expr) -> Expr:
        """The same of w, whose rows are shorter where weights are packed."""
        return turned(row, chunk, self.row_bytes)


def turned(row: Expr, chunk: Expr, size: int) -> Expr:
    """Rows of `size` bytes, of which 128 are once around the banks."""
    chunks = size // CHUNK
    if chunks == 1:
        return row * size
    turn = row % 8 if chunks >= 8 else (row // (8 // chunks)) % chunks
    return row * size + (chunk ^ turn) * CHUNK
