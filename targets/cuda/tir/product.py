"""Products on tensor cores: convolutions and MatMul as one tiled kernel over [pixels, taps x channels] x weights.

A block makes a tile of pixels by output channels. Tiles of x and w travel to shared memory by asynchronous copies,
several of them in flight (staging.py), while warps multiply fragments (fragments.py), or groups of four warps 64 x 32
by 32 x N bytes out of shared memory (wgmma, sm_90a). Codes leave through shared memory, so that stores are wide.

Where tiles are few and sums long, several blocks have parts of the same sums. Each writes what it has, and the one that
comes last, as a counter says, adds all of them; integers, so that the order is nothing. The counter is 0 again then.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from qcompiler.targets.cuda.grid import GridKernel, Launch
from qcompiler.targets.cuda.machine import has_tensor_cores
from qcompiler.targets.cuda.tir.epilogue import Codes, itemsize
from qcompiler.targets.cuda.tir.fragments import Fragments
from qcompiler.targets.cuda.tir.staging import NUMBERS, Staging
from qcompiler.targets.cuda.tir.tail import Tail, Tails
from qcompiler.targets.cuda.tir.tile import CHUNK, Tile, tiled
from qcompiler.targets.shared.machine import Machine
from qcompiler.targets.shared.tir.builder import Expr

PARTS = ("parts", "part_tiles")
"""int32 parameters behind NUMBERS of kernels whose sums have parts: how many, and tiles of the inner dimension of each
but the last, which may have fewer."""


@dataclass(frozen=True)
class Product:
    """y[pixel, channel] = requantize(bias[channel] + sum over k of x[pixel, k] * w[channel, k]).

    w: int8, as pack.py packs them; table: int32 pairs (offset, row << 16 | column & 0xffff)
    for every run of `grain` bytes, as many as tiles have; line: LINES * LINE bytes that are the zero point of x.
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
    tails: tuple[Tail, ...] = ()
    """What follows on the codes, before they leave."""
    bits: int = 8
    """Of a weight: 8, 4 or 2; not with wgmma, whose operands are bytes in shared memory."""
    narrow: bool = False
    """Whether codes of x have 4 bits, and products are of such (mma.m16n8k64); with weights of 4 bits only."""
    split: bool = False
    """Whether sums have parts."""

    def launch(self, groups: int, pixels: int, channels: int, parts: int = 1) -> Launch:
        """Blocks of channels beside each other, so that they find the same x in the cache."""
        tile = self.tile
        grid = (-(-channels // tile.channels), -(-pixels // tile.pixels), groups * parts)
        return Launch(grid, tile.threads, tile.shared(self.codes.storage, self.bits))

    @property
    def roomy(self) -> bool:
        """Whether registers matter more than blocks beside each other: ptxas spills where it thinks otherwise."""
        return not self.tile.wgmma and self.tile.warp_pixels * self.tile.warp_channels <= 32 * 32

    def fetched(self, launch: Launch, numbers: Sequence[int]) -> int:
        """Bytes that all blocks copy to shared memory, and of partial sums, which are written and read."""
        tiles = numbers[len(NUMBERS) + PARTS.index("part_tiles") if self.split else NUMBERS.index("tiles")]
        sums = 2 * 4 * self.tile.pixels * self.tile.channels if self.split else 0
        return prod(launch.grid) * (tiles * self.tile.stage_bytes(self.bits) + sums)

    def tiled(self, numbers: Sequence[int]) -> dict[str, Any]:
        """What a block does, for who prices it: tiles of the inner dimension, and for each of them copies that threads
        issue, bytes and products; outputs; how many blocks fit a processor at once."""
        parts = numbers[len(NUMBERS) + PARTS.index("parts")] if self.split else 1
        steps = numbers[len(NUMBERS) + PARTS.index("part_tiles") if self.split else NUMBERS.index("tiles")]
        weights = self.tile.channels * self.tile.step * self.bits // 8
        copies = self.tile.pixels * self.tile.step // self.grain + weights // CHUNK
        return tiled(self.tile, self.codes.storage, steps, copies, self.bits) | {"parts": parts}

    def build(self, name: str, machine: Machine) -> Any:
        """void name(x, y, w, bias, scales..., table, line, tails..., [partial sums, counters,] NUMBERS..., [PARTS...,]
        numbers of codes and tails...)."""
        return _Emitter(self, name, has_tensor_cores(machine)).function()


class _Emitter:
    """The kernel under construction."""

    def __init__(self, spec: Product, name: str, tensor: bool) -> None:
        self.spec, self.tile, self.tensor = spec, spec.tile, tensor
        kernel = self.kernel = GridKernel(name, spec.tile.threads, 3)
        self.left = spec.tails[-1].storage if spec.tails else spec.codes.storage
        self.x, self.y = kernel.pointer("x", spec.storage), kernel.pointer("y", self.left)
        self.w, self.bias = kernel.pointer("w", "int8"), kernel.pointer("bias", "int32")
        self.scales = spec.codes.pointers(kernel)
        self.table, self.line = kernel.pointer("table", "int32"), kernel.pointer("line", spec.storage)
        self.tails = Tails(kernel, spec.codes.storage, spec.tails)
        if spec.split:
            self.sums, self.counters = kernel.pointer("sums", "int32"), kernel.pointer("counters", "int32")
        self.n = {number: kernel.number(number) for number in (*NUMBERS, *(PARTS if spec.split else ()))}
        self.code_numbers = spec.codes.numbers(kernel)
        self.tails.numbers()
        self.memory = kernel.shared()

    def function(self) -> Any:
        """The PrimFunc."""
        k, tile = self.kernel, self.tile
        self.first_channel = k.let(k.blocks[0] * tile.channels)
        self.first_pixel = k.let(k.blocks[1] * tile.pixels)
        self._parts()
        self.lane = k.let(k.thread % 32)
        self._place()
        self.staging = Staging(self)
        kinds = "u8" if self.spec.storage == "uint8" else "s8", "s8"
        self.fragments = Fragments(
            k, tile, self.memory, kinds, rows=self.rows, row_step=self.row_step,
            bits=self.spec.bits, narrow=self.spec.narrow, tensor=self.tensor,
        )  # fmt: skip
        self.fragments.place(self.lane, self.warp_pixel, self.warp_channel)
        self.acc, self.tiles_m, self.tiles_n = self.fragments.acc, self.fragments.tiles_m, self.fragments.tiles_n
        for stage in range(tile.ahead):
            self.staging.load_w(k.const(stage), k.const(stage))
        k.call("qc_begin")  # weights are nobody's output: their copies need not wait
        for stage in range(tile.ahead):
            self.staging.load_x(k.const(stage), k.const(stage))
            k.call("qc_async_commit")
        with k.loop(self.tiles) as t:
            k.call(f"qc_async_wait{tile.ahead - 1}")
            if tile.wgmma:
                k.call("qc_proxy_fence")
            k.sync()
            ahead = k.let(t + tile.ahead)
            stage = k.let(ahead % tile.stages)
            self.staging.load_x(ahead, stage)
            self.staging.load_w(ahead, stage)
            k.call("qc_async_commit")
            base = k.let((t % tile.stages) * tile.stage_bytes(self.spec.bits))
            if tile.wgmma:
                self._multiply_groups(base)
            else:
                self.fragments.multiply(base, k.let(base + tile.pixels * tile.step))
        k.call("qc_async_wait0")
        if tile.wgmma:
            k.call(f"qc_wgmma_finish_{self.tiles_m * self.tiles_n * 4}", k.at(self.acc, 0))
        k.sync()
        if self.spec.split:
            self._add_parts()
        else:
            self._leave()
        return k.function()

    def _parts(self) -> None:
        """The group, and which tiles of the inner dimension this block has."""
        k, n = self.kernel, self.n
        if not self.spec.split:
            self.group, self.first_tile, self.tiles = k.blocks[2], k.const(0), n["tiles"]
            return
        self.group = k.let(k.tirx.truncdiv(k.blocks[2], n["parts"]))
        self.part = k.let(k.blocks[2] - self.group * n["parts"])
        self.first_tile = k.let(self.part * n["part_tiles"])
        self.tiles = k.let(k.tirx.min(n["part_tiles"], n["tiles"] - self.first_tile))

    def _place(self) -> None:
        """Where in the tile the rows and columns of this warp lie."""
        k, tile = self.kernel, self.tile
        warp, beside = k.let(k.thread // 32), tile.channels // tile.warp_channels
        if not tile.wgmma:
            self.rows, self.row_step = tile.warp_pixels, 16
            self.warp_pixel = k.let((warp // beside) * tile.warp_pixels)
            self.warp_channel = k.let((warp % beside) * tile.warp_channels)
            return
        group = k.let(warp // 4)
        self.rows, self.row_step = tile.warp_pixels // 4, 64
        self.group_pixel = k.let((group // beside) * tile.warp_pixels)
        self.warp_pixel = k.let(self.group_pixel + (warp % 4) * 16)
        self.warp_channel = k.let((group % beside) * tile.warp_channels)

    # -- sums --------------------------------------------------------------------------------------------------

    def _multiply_groups(self, base: Expr) -> None:
        """Rows of 64 pixels, one wgmma for 32 bytes of the inner dimension."""
        k, tile = self.kernel, self.tile
        kind = "u8s8" if self.spec.storage == "uint8" else "s8s8"
        count = self.tiles_n * 4
        k.call("qc_wgmma_fence")
        for step in range(tile.step // 32):
            b_at = base + (tile.pixels + self.warp_channel) * tile.step + 32 * step
            for i in range(self.tiles_m):
                a_at = base + (self.group_pixel + 64 * i) * tile.step + 32 * step
                name = f"qc_wgmma{tile.warp_channels}_{kind}"
                k.call(name, k.at(self.acc, i * count), k.at(self.memory, a_at), k.at(self.memory, b_at))
        k.call("qc_wgmma_commit")
        k.call(f"qc_wgmma_wait1_{self.tiles_m * count}", k.at(self.acc, 0))

    def _add_parts(self) -> None:
        """Write this block's sums; in the last block that comes here, add those of all, and go on."""
        k, tile, n = self.kernel, self.tile, self.n
        count = self.tiles_m * self.tiles_n * 4
        across = k.let(k.tirx.truncdiv(n["channels"] + (tile.channels - 1), k.const(tile.channels)))
        down = k.let(k.tirx.truncdiv(n["pixels"] + (tile.pixels - 1), k.const(tile.pixels)))
        place = k.let((self.group * down + k.blocks[1]) * across + k.blocks[0])
        first = k.let(place * n["parts"] * (count * tile.threads) + k.thread * 4)
        own = k.let(first + self.part * (count * tile.threads))
        for i in range(count // 4):
            k.call("qc_put_sums", k.at(self.sums, own + i * 4 * tile.threads), k.at(self.acc, 4 * i))
        counter, shared = k.at(self.counters, place), k.at(self.memory, 0)
        last = k.let(k.tirx.call_extern("int32", "qc_comes_last", counter, n["parts"], shared))

        def add() -> None:
            for i in range(count):
                self.acc.store(i, k.const(0))
            with k.loop(n["parts"]) as part:
                begin = k.let(first + part * (count * tile.threads))
                for i in range(count // 4):
                    k.call("qc_add_sums", k.at(self.acc, 4 * i), k.at(self.sums, begin + i * 4 * tile.threads))
            self._leave()

        k.when(last != 0, add)

    # -- codes -------------------------------------------------------------------------------------------------

    def _leave(self) -> None:
        k, tile, spec = self.kernel, self.tile, self.spec
        size, pitch = itemsize(spec.codes.storage), tile.pitch(spec.codes.storage)
        name = f"qc_put2_{size}"
        p_first = k.let(self.group * self.n["p_group"] + self.first_channel)
        shift = self.fragments.shift
        for channel, pixels in self.fragments.each():
            parameters = [[k.let(p.load(p_first + channel + c)) for p in (self.bias, *self.scales)] for c in (0, 1)]
            for pixel, places in pixels:
                found = []
                for place, (bias, *scales) in zip(places, parameters, strict=True):
                    acc = self.acc.load(place)
                    total = k.tirx.shift_right(acc, k.const(shift)) + bias if shift else acc + bias
                    found.append(spec.codes.apply(k, total, scales, self.code_numbers))
                k.call(name, k.at(self.memory, pixel * pitch + channel * size), *found)
        k.sync()
        self._store(size, pitch)

    def _store(self, size: int, pitch: int) -> None:
        """Rows of codes, `store` bytes a thread at a time. size: of a code in shared memory."""
        k, tile, n = self.kernel, self.tile, self.n
        own = itemsize(self.left)
        elements = max(1, self.spec.store // own)
        per_row = tile.channels // elements
        pieces = tile.pixels * per_row
        y_first = k.let(self.group * n["y_group"] + self.first_channel)

        def move(row: Expr, column: Expr, pixel: Expr) -> None:
            target = k.at(self.y, y_first + pixel * n["y_pixel"] + column)
            if not self.spec.tails:
                k.call(f"qc_move{self.spec.store}", target, k.at(self.memory, row * pitch + column * size))
                return
            codes = k.local(elements, self.spec.codes.storage)
            piece = min(CHUNK, elements * size)
            for begin in range(0, elements * size, piece):
                source = k.at(self.memory, row * pitch + column * size + begin)
                k.call(f"qc_move{piece}", k.at(codes, begin // size), source)
            out = self.tails.apply(codes, pixel, k.let(y_first + column), elements)
            k.call(f"qc_move{self.spec.store}", target, k.at(out, 0))

        with k.loop(-(-pieces // tile.threads)) as i:
            piece = k.let(k.thread + i * tile.threads)
            row = k.let(piece // per_row)
            column = k.let((piece % per_row) * elements)
            pixel = k.let(self.first_pixel + row)
            fits = k.tirx.all(pixel < n["pixels"], self.first_channel + column < n["channels"])
            if pieces % tile.threads:
                fits = k.tirx.all(fits, row < tile.pixels)
            k.when(fits, lambda at=(row, column, pixel): move(*at))  # type: ignore[misc]
