"""The part of a product that a block makes."""

from __future__ import annotations

from dataclasses import dataclass

from qcompiler.targets.cuda.tir.epilogue import itemsize

CHUNK = 16
"""Bytes that fragments and copies are made of."""


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
