"""Products on tensor cores: convolutions and MatMul as one tiled kernel over [pixels, taps x channels] x weights.

A block makes a tile of pixels by output channels. Tiles of x and w travel to shared memory by asynchronous copies,
several of them in flight (staging.py), while warps multiply fragments of 16 x 32 by 32 x 8 bytes (mma.m16n8k32; what
older cards have instead is in templates/qc_device.h), or groups of four warps 64 x 32 by 32 x N bytes out of shared
memory (wgmma, sm_90a). Codes leave through shared memory, so that stores are wide.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from qcompiler.targets.cuda.grid import GridKernel, Launch
from qcompiler.targets.cuda.tir.epilogue import Codes, itemsize
from qcompiler.targets.cuda.tir.staging import CHUNK, NUMBERS, Staging
from qcompiler.targets.cuda.tir.tail import Tail, Tails
from qcompiler.targets.shared.machine import Machine
from qcompiler.targets.shared.tir.builder import Expr, Pointer


@dataclass(frozen=True)
class Tile:
    """Pixels and channels of a block, and how many of each a warp has (with `wgmma`: a group of four warps)."""

    pixels: int
    channels: int
    warp_pixels: int
    warp_channels: int
    stages: int
    step: int = 64
    """Bytes of the inner dimension."""
    wgmma: bool = False

    @property
    def threads(self) -> int:
        """Of a block."""
        together = 128 if self.wgmma else 32
        return together * (self.pixels // self.warp_pixels) * (self.channels // self.warp_channels)

    def stage_bytes(self, bits: int = 8) -> int:
        """Shared memory of one stage. bits: of a weight."""
        return self.pixels * self.step + self.channels * self.step * bits // 8

    def shared(self, storage: str, bits: int = 8) -> int:
        """Shared memory of a block: stages, or in their place the codes that leave."""
        return max(self.stages * self.stage_bytes(bits), self.pixels * self.pitch(storage))

    def pitch(self, storage: str) -> int:
        """Bytes between rows of leaving codes: not a multiple of all banks."""
        return self.channels * itemsize(storage) + CHUNK

    @property
    def ahead(self) -> int:
        """Tiles of the inner dimension that are copied ahead: all stages but the one in use, and with wgmma, which
        still reads when the next tile begins, but the one before it."""
        return self.stages - (2 if self.wgmma else 1)


@dataclass(frozen=True)
class Product:
    """y[pixel, channel] = requantize(bias[channel] + sum over k of x[pixel, k] * w[channel, k]).

    w: int8, as pack.py packs them; table: int32 pairs (offset, row << 16 | column & 0xffff)
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
    tails: tuple[Tail, ...] = ()
    """What follows on the codes, before they leave."""
    bits: int = 8
    """Of a weight: 8, 4 or 2; not with wgmma, whose operands are bytes in shared memory."""

    def launch(self, groups: int, pixels: int, channels: int) -> Launch:
        """Blocks of channels beside each other, so that they find the same x in the cache."""
        tile = self.tile
        grid = (-(-channels // tile.channels), -(-pixels // tile.pixels), groups)
        return Launch(grid, tile.threads, tile.shared(self.codes.storage, self.bits))

    @property
    def roomy(self) -> bool:
        """Whether registers matter more than blocks beside each other: ptxas spills where it thinks otherwise."""
        return not self.tile.wgmma and self.tile.warp_pixels * self.tile.warp_channels <= 32 * 32

    def fetched(self, launch: Launch, numbers: Sequence[int]) -> int:
        """Bytes that all blocks copy to shared memory."""
        tiles = numbers[NUMBERS.index("tiles")]
        return prod(launch.grid) * tiles * self.tile.stage_bytes(self.bits)

    def build(self, name: str, machine: Machine) -> Any:
        """void name(x, y, w, bias, scales..., table, line, tails..., NUMBERS..., numbers of codes and tails...)."""
        return _Emitter(self, name).function()


class _Emitter:
    """The kernel under construction."""

    def __init__(self, spec: Product, name: str) -> None:
        self.spec, self.tile = spec, spec.tile
        kernel = self.kernel = GridKernel(name, spec.tile.threads, 3)
        self.left = spec.tails[-1].storage if spec.tails else spec.codes.storage
        self.x, self.y = kernel.pointer("x", spec.storage), kernel.pointer("y", self.left)
        self.w, self.bias = kernel.pointer("w", "int8"), kernel.pointer("bias", "int32")
        self.scales = spec.codes.pointers(kernel)
        self.table, self.line = kernel.pointer("table", "int32"), kernel.pointer("line", spec.storage)
        self.tails = Tails(kernel, spec.codes.storage, spec.tails)
        self.n = {number: kernel.number(number) for number in NUMBERS}
        self.code_numbers = spec.codes.numbers(kernel)
        self.tails.numbers()
        self.memory = kernel.shared()

    def function(self) -> Any:
        """The PrimFunc."""
        k, tile = self.kernel, self.tile
        self.first_channel = k.let(k.blocks[0] * tile.channels)
        self.first_pixel = k.let(k.blocks[1] * tile.pixels)
        self.group = k.blocks[2]
        self.lane = k.let(k.thread % 32)
        self._place()
        self.staging = Staging(self)
        self.tiles_m, self.tiles_n = self.rows // 16, tile.warp_channels // 8
        self.acc = k.local(self.tiles_m * self.tiles_n * 4, "int32")
        with k.unrolled(self.tiles_m * self.tiles_n * 4) as i:
            self.acc.store(i, k.const(0))
        for stage in range(tile.ahead):
            self.staging.load_w(k.const(stage), k.const(stage))
        k.call("qc_begin")  # weights are nobody's output: their copies need not wait
        for stage in range(tile.ahead):
            self.staging.load_x(k.const(stage), k.const(stage))
            k.call("qc_async_commit")
        with k.loop(self.n["tiles"]) as t:
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
                self._multiply(base)
        k.call("qc_async_wait0")
        if tile.wgmma:
            k.call(f"qc_wgmma_finish_{self.tiles_m * self.tiles_n * 4}", k.at(self.acc, 0))
        k.sync()
        self._leave()
        return k.function()

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

    def _multiply(self, base: Expr) -> None:
        k, tile = self.kernel, self.tile
        lane = self.lane
        a, b = k.local(self.tiles_m * 4, "uint32"), k.local(self.tiles_n * 2, "uint32")
        a_row = k.let(self.warp_pixel + lane % 16)
        name = "qc_mma_u8s8" if self.spec.storage == "uint8" else "qc_mma_s8s8"
        weights = k.let(base + tile.pixels * tile.step)
        fetch = {8: self._bytes, 4: self._halves, 2: self._quarters}[self.spec.bits]
        for step in range(tile.step // 32):
            for i in range(self.tiles_m):
                at = base + self.staging.swizzled(a_row + 16 * i, lane // 16 + 2 * step)
                k.call("qc_ldmatrix4", k.at(a, 4 * i), k.at(self.memory, at))
            fetch(b, weights, step)
            for i in range(self.tiles_m):
                for j in range(self.tiles_n):
                    k.call(name, k.at(self.acc, (i * self.tiles_n + j) * 4), k.at(a, 4 * i), k.at(b, 2 * j))

    def _bytes(self, b: Pointer, weights: Expr, step: int) -> None:
        """Fragments of all channels of the warp, of 32 bytes."""
        k, lane = self.kernel, self.lane
        row = k.let(self.warp_channel + lane % 8 + (lane // 16) * 8)
        for j in range(self.tiles_n // 2):
            at = weights + self.staging.packed(row + 16 * j, (lane // 8) % 2 + 2 * step)
            k.call("qc_ldmatrix4", k.at(b, 4 * j), k.at(self.memory, at))

    def _halves(self, b: Pointer, weights: Expr, step: int) -> None:
        """The same of codes of 4 bits, which count 16 fold: a fetch is that of two steps."""
        k, lane = self.kernel, self.lane
        if step % 2 == 0:
            self.fetched = k.local(self.tiles_n * 2, "uint32")
            row = k.let(self.warp_channel + lane % 8 + (lane // 16) * 8)
            for j in range(self.tiles_n // 2):
                at = weights + self.staging.packed(row + 16 * j, (lane // 8) % 2 + step)
                k.call("qc_ldmatrix4", k.at(self.fetched, 4 * j), k.at(self.memory, at))
        for j in range(self.tiles_n):
            word = k.let(self.fetched.load(2 * j + step % 2))
            for i in (0, 1):
                part = k.tirx.shift_left(word, k.const(4, "uint32")) if i == 0 else word
                b.store(2 * j + i, k.tirx.bitwise_and(part, k.const(0xF0F0F0F0, "uint32")))

    def _quarters(self, b: Pointer, weights: Expr, step: int) -> None:
        """The same of codes of 2 bits, which count 64 fold: a fetch is that of four blocks of channels, two steps."""
        k, lane = self.kernel, self.lane
        if step % 2 == 0:
            self.fetched = k.local(max(4, self.tiles_n), "uint32")
            row = k.let(lane % 8 + (lane // 8) % min(4, self.tiles_n) * 8 + self.warp_channel)
            for j in range(-(-self.tiles_n // 4)):
                at = weights + self.staging.packed(row + 32 * j, k.const(step // 2))
                k.call("qc_ldmatrix4", k.at(self.fetched, 4 * j), k.at(self.memory, at))
        for j in range(self.tiles_n):
            word = k.let(self.fetched.load(j))
            for i in (0, 1):
                shift = 6 - 4 * (step % 2) - 2 * i
                part = k.tirx.shift_left(word, k.const(shift, "uint32")) if shift else word
                b.store(2 * j + i, k.tirx.bitwise_and(part, k.const(0xC0C0C0C0, "uint32")))

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
                    pixel = self.warp_pixel + i * self.row_step + half * 8 + self.lane // 4
                    found = []
                    for c in (0, 1):
                        bias, *scales = parameters[c]
                        acc = self.acc.load((i * self.tiles_n + j) * 4 + half * 2 + c)
                        total = k.tirx.shift_right(acc, k.const(8 - spec.bits)) + bias if spec.bits < 8 else acc + bias
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
