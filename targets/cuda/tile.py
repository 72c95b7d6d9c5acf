"""Which tile a product gets: an estimate of clocks, no tuning."""

from __future__ import annotations

from qcompiler.targets.cuda.tir.product import Tile

TILES = (
    Tile(128, 256, 64, 64, 4),
    Tile(128, 128, 64, 32, 4),
    Tile(128, 64, 32, 32, 4),
    Tile(64, 128, 32, 32, 4),
    Tile(64, 64, 32, 32, 4),
    Tile(128, 32, 32, 32, 4),
    Tile(128, 16, 32, 16, 4),
    Tile(64, 32, 32, 16, 4),
    Tile(32, 64, 32, 16, 4),
    Tile(32, 32, 16, 16, 4),
    Tile(16, 64, 16, 16, 4),
)
PROCESSORS = 132
"""Of the card that the estimate is for; smaller ones rank tiles much the same."""
_MACS = 2048
"""Products of bytes that a processor does in a clock."""
_SHARED = 128
"""Bytes of shared memory that it reads in a clock."""
_FETCH = 48
"""Bytes that it gets from the second-level cache in a clock."""
_START = 1500
"""Clocks before the first product and after the last one."""


def choose_tile(pixels: int, channels: int, tiles: int, groups: int) -> Tile:
    """The tile with the least estimated time. tiles: of the inner dimension."""
    return min(TILES, key=lambda tile: (_clocks(tile, pixels, channels, tiles, groups), -tile.pixels, tile.channels))


def _clocks(tile: Tile, pixels: int, channels: int, tiles: int, groups: int) -> float:
    blocks = -(-pixels // tile.pixels) * -(-channels // tile.channels) * groups
    warps = tile.threads // 32
    reads = warps * (tile.warp_pixels + tile.warp_channels) * 64
    products = tile.pixels * tile.channels * 64
    step = max(products / _MACS, reads / _SHARED, (tile.pixels + tile.channels) * 64 / _FETCH)
    together = min(8, max(1, -(-blocks // PROCESSORS)))
    start = _START / min(together, 4)
    return -(-blocks // PROCESSORS) * (tiles * max(step, 60 / together) + start + tile.pixels * tile.channels / 64)
