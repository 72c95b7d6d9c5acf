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
GROUPS = (
    Tile(128, 256, 64, 256, 4, 128, True),
    Tile(128, 128, 64, 128, 4, 128, True),
    Tile(128, 64, 64, 64, 4, 128, True),
)
"""With wgmma."""
PROCESSORS = 132
"""Of the card that the estimate is for; smaller ones rank tiles much the same."""
_MACS = 2048
"""Products of bytes that a processor does in a clock."""
_WGMMA = 3600
"""The same of groups of four warps."""
_SHARED = 128
"""Bytes of shared memory that it reads in a clock."""
_FETCH = 48
"""Bytes that it gets from the second-level cache in a clock."""
_START = 1500
"""Clocks before the first product and after the last one."""


def choose_tile(level: str, pixels: int, channels: int, inner: int, groups: int) -> Tile:
    """The tile with the least estimated time. inner: extent of the inner dimension."""
    tiles = (*TILES, *GROUPS) if level == "sm_90a" else TILES
    return min(tiles, key=lambda tile: (_clocks(tile, pixels, channels, inner, groups), -tile.pixels, tile.channels))


def _clocks(tile: Tile, pixels: int, channels: int, inner: int, groups: int) -> float:
    blocks = -(-pixels // tile.pixels) * -(-channels // tile.channels) * groups
    warps = tile.threads // 32
    products = tile.pixels * tile.channels * tile.step
    reads = 0 if tile.wgmma else warps * (tile.warp_pixels + tile.warp_channels) * tile.step
    fetches = (tile.pixels + tile.channels) * tile.step
    step = max(products / (_WGMMA if tile.wgmma else _MACS), reads / _SHARED, fetches / _FETCH)
    together = min(8, max(1, -(-blocks // PROCESSORS)))
    start = _START / min(together, 4)
    steps = -(-inner // tile.step) * max(step, 60 / together)
    return -(-blocks // PROCESSORS) * (steps + start + tile.pixels * tile.channels / 64)
