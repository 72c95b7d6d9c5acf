"""Products of two activations on tensor cores.

y[.., m, n] = requantize(sum over k of (a - za)[.., m, k] * (b - zb)[.., k, n]).

The tiles and fragments of products with weights (product.py), with b in the place of weights: rows of both lie along
the inner dimension in shared memory. What lies so in memory travels by asynchronous copies; what lies across it is
turned on the way, a block of 4 x 16 bytes at a time; anything else is gathered byte by byte. Bytes are multiplied as
they are, and zero points taken off at the end: sums of rows of a and b are products with ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from qcompiler.targets.cuda.grid import GridKernel, Launch
from qcompiler.targets.cuda.machine import has_tensor_cores
from qcompiler.targets.cuda.tir.direct import BATCHED
from qcompiler.targets.cuda.tir.epilogue import Codes, itemsize
from qcompiler.targets.cuda.tir.fragments import Fragments
from qcompiler.targets.cuda.tir.staging import turned
from qcompiler.targets.cuda.tir.tile import CHUNK, Tile, line_of, tiled
from qcompiler.targets.shared.machine import Machine
from qcompiler.targets.shared.tir.builder import Expr

NUMBERS = (*BATCHED[1:], "tiles")
"""int32 parameters: those of products with a thread an element (direct.py), and tiles of the inner dimension."""


@dataclass(frozen=True)
class Operand:
    """How an operand lies: rows of it are those of a, or columns of b.

    grain: bytes of a row that may be copied at once (16, 8 or 4); 0 where rows are not contiguous. words: whether four
    rows are a word instead.
    """

    storage: str
    grain: int
    words: bool = False

    @property
    def kind(self) -> str:
        """u8 or s8."""
        return "u8" if self.storage == "uint8" else "s8"


@dataclass(frozen=True)
class BatchedProduct:
    """a_centred, b_centred: whether their zero points are 0."""

    a: Operand
    b: Operand
    codes: Codes
    tile: Tile
    store: int
    """Bytes of y that are written at once."""
    a_centred: bool
    b_centred: bool

    def launch(self, batch: int, rows: int, columns: int) -> Launch:
        """Blocks of columns beside each other, so that they find the same a in the cache."""
        tile = self.tile
        grid = (-(-columns // tile.channels), -(-rows // tile.pixels), batch)
        return Launch(grid, tile.threads, tile.shared(self.codes.storage))

    @property
    def roomy(self) -> bool:
        """Whether registers matter more than blocks beside each other."""
        return self.tile.warp_pixels * self.tile.warp_channels <= 32 * 32

    def fetched(self, launch: Launch, numbers: Sequence[int]) -> int:
        """Bytes that all blocks copy to shared memory."""
        return prod(launch.grid) * numbers[NUMBERS.index("tiles")] * self.tile.stage_bytes()

    def tiled(self, numbers: Sequence[int]) -> dict[str, Any]:
        """What a block does, for who prices it."""
        sides = ((self.a, self.tile.pixels), (self.b, self.tile.channels))
        copies = sum(rows * self.tile.step // (operand.grain or (4 if operand.words else 1)) for operand, rows in sides)
        steps = numbers[NUMBERS.index("tiles")]
        return tiled(self.tile, self.codes.storage, steps, copies) | {"parts": 1}

    def build(self, name: str, machine: Machine) -> Any:
        """void name(a, b, y, scales..., zeros, NUMBERS..., numbers of codes...); zeros: LINES * LINE bytes."""
        return _Emitter(self, name, has_tensor_cores(machine)).function()


class _Side:
    """One operand of the kernel under construction."""

    def __init__(self, emitter: _Emitter, name: str, operand: Operand, rows: int, extent: str, strides: Sequence[str]):
        self.emitter, self.name, self.operand, self.rows, self.extent = emitter, name, operand, rows, extent
        self.row, self.inner = (emitter.n[stride] for stride in strides)
        self.pointer = {"a": emitter.a, "b": emitter.b}[name]

    def begin(self, first: Expr, start: Expr) -> None:
        """first: row of the block's tile; start: where this matrix begins."""
        self.first, self.start = first, start

    def load(self, t: Expr, base: Expr) -> None:
        """Start the copies of tile t of the inner dimension, if there is one, to `base`."""
        k, n, tile = self.emitter.kernel, self.emitter.n, self.emitter.tile
        there = k.let(k.cast(t < n["tiles"], "int32"))
        k0 = k.let(k.tirx.min(t, n["tiles"] - 1) * tile.step)
        chunks, threads = tile.step // CHUNK, tile.threads
        count = (self.rows // 4 if self.operand.words else self.rows) * chunks
        for i in range(-(-count // threads)):
            item = k.let(k.thread + i * threads)
            wanted = there if count % threads == 0 else k.let(there & k.cast(item < count, "int32"))
            if self.operand.words:
                self._turn(wanted, base, k0, k.let(item % (self.rows // 4) * 4), k.let(item // (self.rows // 4)))
            else:
                self._row(wanted, base, k0, k.let(item // chunks), k.let(item % chunks))

    def _source(self, row: Expr, last: int) -> Expr:
        """Where a row of the tile begins; of those behind the matrix its last `last`."""
        k = self.emitter.kernel
        inside = k.let(k.tirx.min(self.first + row, self.emitter.n[self.extent] - last))
        return k.let(self.start + inside * self.row)

    def _row(self, there: Expr, base: Expr, k0: Expr, row: Expr, chunk: Expr) -> None:
        k, inner = self.emitter.kernel, self.emitter.n["inner"]
        at, source = k.let(k0 + chunk * CHUNK), self._source(row, 1)
        to = k.let(base + turned(row, chunk, self.emitter.tile.step))
        memory, grain = self.emitter.memory, self.operand.grain
        if not grain:
            place = k.at(self.pointer, source + k.tirx.min(at, inner - 1) * self.inner)
            k.call("qc_strided16", there, k.at(memory, to), place, self.inner, inner - at)
            return
        for part in range(CHUNK // grain):
            begin = k.let(at + part * grain)
            chosen = k.value("qc_choose", k.cast(begin < inner, "int32"), k.at(self.pointer, 0), source + begin,
                             k.at(self.emitter.zeros, self.emitter.line), dtype="handle")  # fmt: skip
            k.call(f"qc_async{grain}", there, k.at(memory, to + part * grain), chosen)

    def _turn(self, there: Expr, base: Expr, k0: Expr, row: Expr, chunk: Expr) -> None:
        k, inner = self.emitter.kernel, self.emitter.n["inner"]
        at, source = k.let(k0 + chunk * CHUNK), self._source(row, 4)
        to = [k.at(self.emitter.memory, base + turned(row + i, chunk, self.emitter.tile.step)) for i in range(4)]
        place = k.at(self.pointer, source + k.tirx.min(at, inner - 1) * self.inner)
        k.call("qc_columns16", there, *to, place, self.inner, inner - at)


class _Emitter:
    """The kernel under construction."""

    def __init__(self, spec: BatchedProduct, name: str, tensor: bool) -> None:
        self.spec, self.tile, self.tensor = spec, spec.tile, tensor
        kernel = self.kernel = GridKernel(name, spec.tile.threads, 3)
        self.a, self.b = kernel.pointer("a", spec.a.storage), kernel.pointer("b", spec.b.storage)
        self.y, self.scales = kernel.pointer("y", spec.codes.storage), spec.codes.pointers(kernel)
        self.zeros = kernel.pointer("zeros", "uint8")
        self.n = {number: kernel.number(number) for number in NUMBERS}
        self.code_numbers = spec.codes.numbers(kernel)
        self.memory = kernel.shared()

    def function(self) -> Any:
        """The PrimFunc."""
        k, tile, spec, n = self.kernel, self.tile, self.spec, self.n
        self.first_column = k.let(k.blocks[0] * tile.channels)
        self.first_row = k.let(k.blocks[1] * tile.pixels)
        self.line = line_of(k)
        starts = self._starts()
        a = _Side(self, "a", spec.a, tile.pixels, "rows", ("a_row", "a_k"))
        b = _Side(self, "b", spec.b, tile.channels, "columns", ("b_n", "b_k"))
        a.begin(self.first_row, starts["a"])
        b.begin(self.first_column, starts["b"])
        self.y_start = starts["y"]
        self.fragments = Fragments(
            k, tile, self.memory, (spec.a.kind, spec.b.kind), rows=tile.warp_pixels, tensor=self.tensor
        )
        warp, beside = k.let(k.thread // 32), tile.channels // tile.warp_channels
        warp_row, warp_column = (warp // beside) * tile.warp_pixels, (warp % beside) * tile.warp_channels
        self.fragments.place(k.let(k.thread % 32), k.let(warp_row), k.let(warp_column))
        if not spec.b_centred:
            self.fragments.want_x_sums()
        if not spec.a_centred:
            self.fragments.want_w_sums()

        def load(t: Expr, stage: Expr) -> None:
            base = k.let(stage * tile.stage_bytes())
            a.load(t, base)
            b.load(t, k.let(base + tile.pixels * tile.step))
            k.call("qc_async_commit")

        for stage in range(tile.ahead):
            load(k.const(stage), k.const(stage))
        with k.loop(n["tiles"]) as t:
            k.call(f"qc_async_wait{tile.ahead - 1}")
            k.sync()
            ahead = k.let(t + tile.ahead)
            load(ahead, k.let(ahead % tile.stages))
            base = k.let((t % tile.stages) * tile.stage_bytes())
            self.fragments.multiply(base, k.let(base + tile.pixels * tile.step))
        k.call("qc_async_wait0")
        k.sync()
        self._leave()
        return k.function()

    def _starts(self) -> dict[str, Expr]:
        """Where this block's matrices begin."""
        k, n = self.kernel, self.n
        outer = k.let(k.tirx.truncdiv(k.blocks[2], n["extent2"]))
        i2 = k.let(k.blocks[2] - outer * n["extent2"])
        i0 = k.let(k.tirx.truncdiv(outer, n["extent1"]))
        i1 = k.let(outer - i0 * n["extent1"])
        return {v: k.let(i0 * n[f"{v}0"] + i1 * n[f"{v}1"] + i2 * n[f"{v}2"]) for v in "aby"}

    def _leave(self) -> None:
        k, spec, n = self.kernel, self.spec, self.n
        size, pitch = itemsize(spec.codes.storage), self.tile.pitch(spec.codes.storage)
        scales = [k.let(p.load(0)) for p in self.scales]
        fragments = self.fragments
        constant = k.let(n["inner"] * n["a_zero_point"] * n["b_zero_point"])
        for j, (channel, pixels) in enumerate(fragments.each()):
            for i, (pixel, places) in enumerate(pixels):
                found = []
                for c, place in enumerate(places):
                    total = fragments.acc.load(place)
                    if fragments.x_sums is not None:
                        total = total - fragments.x_sums.load(2 * i) * n["b_zero_point"]
                    if fragments.w_sums is not None:
                        total = total - fragments.w_sums.load(4 * j + c) * n["a_zero_point"]
                    if fragments.x_sums is not None and fragments.w_sums is not None:
                        total = total + constant
                    found.append(spec.codes.apply(k, total, scales, self.code_numbers))
                k.call(f"qc_put2_{size}", k.at(self.memory, pixel * pitch + channel * size), *found)
        k.sync()
        self._store(size, pitch)

    def _store(self, size: int, pitch: int) -> None:
        """Rows of codes, `store` bytes a thread at a time."""
        k, tile, n = self.kernel, self.tile, self.n
        elements = self.spec.store // size
        per_row = tile.channels // elements
        pieces = tile.pixels * per_row
        with k.loop(-(-pieces // tile.threads)) as i:
            piece = k.let(k.thread + i * tile.threads)
            row = k.let(piece // per_row)
            column = k.let((piece % per_row) * elements)
            y_row, y_column = k.let(self.first_row + row), k.let(self.first_column + column)
            fits = k.tirx.all(y_row < n["rows"], y_column < n["columns"])
            if pieces % tile.threads:
                fits = k.tirx.all(fits, row < tile.pixels)
            target = k.at(self.y, self.y_start + y_row * n["y_row"] + y_column * n["y_n"])
            source = k.at(self.memory, row * pitch + column * size)
            k.when(fits, lambda to=target, at=source: k.call(f"qc_move{self.spec.store}", to, at))  # type: ignore[misc]
