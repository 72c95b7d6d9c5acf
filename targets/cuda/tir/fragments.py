"""Sums of products of a warp's part of a tile, out of shared memory.

On tensor cores: fragments of 16 x 32 by 32 x 8 bytes (mma.m16n8k32; of codes of 4 bits m16n8k64). Without them
(sm_61 to sm_72): four products at a time (dp4a), each thread with the rows and columns whose sums it has in a fragment,
so that all that comes before and after is the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from qcompiler.targets.cuda.grid import GridKernel
from qcompiler.targets.cuda.tir.staging import turned
from qcompiler.targets.cuda.tir.tile import Tile
from qcompiler.targets.shared.tir.builder import Expr, Pointer

ONES = 0x01010101
"""Four bytes of 1."""


class Fragments:
    """The part of a kernel that multiplies. Rows of x and w lie as `turned` has them; x_kind, w_kind: u8 or s8.

    bits: of a weight in memory, those of 4 and 2 packed as pack.py does it; sums count 16 or 64 fold then. narrow:
    codes of x have 4 bits too, and products are of such; sums count once. tensor: whether there are tensor cores.
    `x_sums` and `w_sums`, once asked for, hold sums of rows of x and of w.
    """

    def __init__(
        self,
        kernel: GridKernel,
        tile: Tile,
        memory: Pointer,
        kinds: tuple[str, str],
        *,
        rows: int,
        row_step: int = 16,
        bits: int = 8,
        narrow: bool = False,
        tensor: bool = True,
    ) -> None:
        self.kernel, self.tile, self.memory, self.kinds = kernel, tile, memory, kinds
        self.bits, self.narrow, self.tensor, self.row_step = bits, narrow, tensor, row_step
        self.tiles_m, self.tiles_n = rows // 16, tile.warp_channels // 8
        self.acc = self._zeros(self.tiles_m * self.tiles_n * 4)
        self.x_sums: Pointer | None = None
        self.w_sums: Pointer | None = None

    @property
    def shift(self) -> int:
        """Bits that sums have to be shifted down by."""
        return 0 if self.narrow else 8 - self.bits

    def want_x_sums(self) -> None:
        """Keep sums of rows of x."""
        self.x_sums = self._zeros(self.tiles_m * 4)

    def want_w_sums(self) -> None:
        """Keep sums of rows of w."""
        self.w_sums = self._zeros(self.tiles_n * 4)

    def _zeros(self, count: int) -> Pointer:
        k = self.kernel
        found = k.local(count, "int32")
        with k.unrolled(count) as i:
            found.store(i, k.const(0))
        return found

    def place(self, lane: Expr, warp_pixel: Expr, warp_channel: Expr) -> None:
        """Where in the tile this warp's rows of x and w begin."""
        self.lane, self.warp_pixel, self.warp_channel = lane, warp_pixel, warp_channel

    def each(self) -> Iterator[tuple[Expr, list[tuple[Expr, list[int]]]]]:
        """(first of two channels, [(pixel, places of both sums in acc)]): of the tile, what this thread has."""
        k = self.kernel
        for j in range(self.tiles_n):
            channel = k.let(self.warp_channel + j * 8 + (self.lane % 4) * 2)
            pixels = []
            for i in range(self.tiles_m):
                for half in (0, 1):
                    pixel = self.warp_pixel + i * self.row_step + half * 8 + self.lane // 4
                    first = (i * self.tiles_n + j) * 4 + half * 2
                    pixels.append((pixel, [first, first + 1]))
            yield channel, pixels

    def multiply(self, x: Expr, w: Expr) -> None:
        """Add the products of a tile of the inner dimension. x, w: where in shared memory they lie."""
        if not self.tensor:
            self._dots(x, w)
            return
        k, tile = self.kernel, self.tile
        a, b = k.local(self.tiles_m * 4, "uint32"), k.local(self.tiles_n * 2, "uint32")
        row = k.let(self.warp_pixel + self.lane % 16)
        if self.narrow:
            for step in range(0, tile.step // 32, 2):
                self._multiply_narrow(a, b, row, x, w, step)
            return
        fetch = {8: self._bytes, 4: self._halves, 2: self._quarters}[self.bits]
        ones = self._ones()
        for step in range(tile.step // 32):
            for i in range(self.tiles_m):
                self._fetch_x(a, 4 * i, row + 16 * i, x, step)
            fetch(b, w, step)
            self._mma("qc_mma_" + "".join(self.kinds), self.acc, a, b)
            if self.x_sums is not None:
                for i in range(self.tiles_m):
                    k.call(f"qc_mma_{self.kinds[0]}s8", k.at(self.x_sums, 4 * i), k.at(a, 4 * i), k.at(ones, 0))
            if self.w_sums is not None:
                for j in range(self.tiles_n):
                    k.call(f"qc_mma_u8{self.kinds[1]}", k.at(self.w_sums, 4 * j), k.at(ones, 0), k.at(b, 2 * j))

    def _ones(self) -> Any:
        """A fragment of ones, where sums of rows are wanted: products with it are such sums."""
        if self.x_sums is None and self.w_sums is None:
            return None
        ones = self.kernel.local(4, "uint32")
        for i in range(4):
            ones.store(i, self.kernel.const(ONES, "uint32"))
        return ones

    def _mma(self, name: str, acc: Pointer, a: Pointer, b: Pointer) -> None:
        k = self.kernel
        for i in range(self.tiles_m):
            for j in range(self.tiles_n):
                k.call(name, k.at(acc, (i * self.tiles_n + j) * 4), k.at(a, 4 * i), k.at(b, 2 * j))

    def _fetch_x(self, a: Pointer, to: int, row: Expr, x: Expr, step: int) -> None:
        k = self.kernel
        at = x + turned(row, self.lane // 16 + 2 * step, self.tile.step)
        k.call("qc_ldmatrix4", k.at(a, to), k.at(self.memory, at))

    def _w_at(self, w: Expr, row: Expr, chunk: Expr) -> Expr:
        return w + turned(row, chunk, self.tile.step * self.bits // 8)

    def _bytes(self, b: Pointer, w: Expr, step: int) -> None:
        """Fragments of all channels of the warp, of 32 bytes."""
        self._chunks(b, w, 2 * step)

    def _chunks(self, to: Pointer, w: Expr, first: int) -> None:
        """Two chunks of w as they lie, `first` and the next, of all channels of the warp."""
        k, lane = self.kernel, self.lane
        row = k.let(self.warp_channel + lane % 8 + (lane // 16) * 8)
        for j in range(self.tiles_n // 2):
            at = self._w_at(w, row + 16 * j, (lane // 8) % 2 + first)
            k.call("qc_ldmatrix4", k.at(to, 4 * j), k.at(self.memory, at))

    def _halves(self, b: Pointer, w: Expr, step: int) -> None:
        """The same of codes of 4 bits, which count 16 fold: a fetch is that of two steps."""
        k = self.kernel
        if step % 2 == 0:
            self.fetched = k.local(self.tiles_n * 2, "uint32")
            self._chunks(self.fetched, w, step)
        for j in range(self.tiles_n):
            word = k.let(self.fetched.load(2 * j + step % 2))
            for i in (0, 1):
                part = k.tirx.shift_left(word, k.const(4, "uint32")) if i == 0 else word
                b.store(2 * j + i, k.tirx.bitwise_and(part, k.const(0xF0F0F0F0, "uint32")))

    def _quarters(self, b: Pointer, w: Expr, step: int) -> None:
        """The same of codes of 2 bits, which count 64 fold: a fetch is that of four blocks of channels, two steps."""
        k, lane = self.kernel, self.lane
        if step % 2 == 0:
            self.fetched = k.local(max(4, self.tiles_n), "uint32")
            row = k.let(lane % 8 + (lane // 8) % min(4, self.tiles_n) * 8 + self.warp_channel)
            for j in range(-(-self.tiles_n // 4)):
                at = self._w_at(w, row + 32 * j, k.const(step // 2))
                k.call("qc_ldmatrix4", k.at(self.fetched, 4 * j), k.at(self.memory, at))
        for j in range(self.tiles_n):
            word = k.let(self.fetched.load(j))
            for i in (0, 1):
                shift = 6 - 4 * (step % 2) - 2 * i
                part = k.tirx.shift_left(word, k.const(shift, "uint32")) if shift else word
                b.store(2 * j + i, k.tirx.bitwise_and(part, k.const(0xC0C0C0C0, "uint32")))

    def _multiply_narrow(self, a: Pointer, b: Pointer, row: Expr, x: Expr, w: Expr, step: int) -> None:
        """Two steps at once. Codes i and i + 16 of 32 are a byte, in w as they lie, in x put together here: which of
        a sum's products is which does not matter."""
        k = self.kernel
        wide = k.local(4, "uint32")
        for i in range(self.tiles_m):
            for part in (0, 1):
                self._fetch_x(wide, 0, row + 16 * i, x, step + part)
                for half in (0, 1):  # upper and lower eight rows
                    word = k.value("qc_nibbles", wide.load(half), wide.load(half + 2), dtype="uint32")
                    a.store(4 * i + 2 * part + half, word)
        self._chunks(b, w, step)
        self._mma(f"qc_mma_{self.kinds[0][0]}4s4", self.acc, a, b)

    # -- without tensor cores ----------------------------------------------------------------------------------

    def _dots(self, x: Expr, w: Expr) -> None:
        k, tile = self.kernel, self.tile
        row = k.let(self.warp_pixel + self.lane // 4)
        column = k.let(self.warp_channel + (self.lane % 4) * 2)
        signs = ["true" if kind == "s8" else "false" for kind in self.kinds]
        name = f"qc_dots<{self.tiles_m}, {self.tiles_n}, {tile.step}, {self.bits}, {signs[0]}, {signs[1]}>"
        places = k.at(self.memory, x), k.at(self.memory, w)
        k.call(name, k.at(self.acc, 0), *places, row, column)
        if self.x_sums is not None:
            k.call(f"qc_dots_rows<{self.tiles_m}, {tile.step}, {signs[0]}>", k.at(self.x_sums, 0), places[0], row)
        if self.w_sums is not None:
            k.call(f"qc_dots_columns<{self.tiles_n}, {tile.step}, {signs[1]}>", k.at(self.w_sums, 0), places[1], column)
