"""The part of a product that a block makes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from qcompiler.targets.cuda.grid import GridKernel
from qcompiler.targets.cuda.tir.epilogue import itemsize
from qcompiler.targets.shared.tir.builder import Expr

CHUNK = 16
"""Bytes that fragments and copies are made of."""
LINES, LINE = 64, 128
"""Places that what lies outside of a tensor is read from, and bytes from one to the next. Were there one place, all
processors would read one piece of the second-level cache, one after the other."""
RESIDENT_BYTES, RESIDENT_THREADS = 228 << 10, 2048
"""Shared memory and threads of a processor of sm_90; of a block's registers at most 255 a thread are not counted."""


def line_of(kernel: GridKernel) -> Expr:
    """Which byte of LINES places a warp reads from."""
    k = kernel
    warps = k.threads // 32
    return k.let((((k.blocks[1] + k.blocks[0]) * warps + k.thread // 32) % LINES) * LINE)


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


def tiled(tile: Tile, storage: str, steps: int, copies: int, bits: int = 8) -> dict[str, Any]:
    """What a block of a tile does. storage: of its codes; copies: that its threads issue in a step."""
    room = RESIDENT_BYTES // (tile.shared(storage, bits) + 1024)
    return {
        "steps": steps,
        "copies": copies,
        "bytes": tile.stage_bytes(bits),
        "macs": tile.pixels * tile.channels * tile.step,
        "outputs": tile.pixels * tile.channels,
        "resident": max(1, min(room, RESIDENT_THREADS // tile.threads)),
        "wgmma": tile.wgmma,
    }
