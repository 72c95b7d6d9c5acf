"""Which tile a product gets: an estimate of clocks, no tuning."""

from __future__ import annotations

from qcompiler.targets.cuda.tir.product import Tile

TILES = (
    Tile(128, 128, 64, 64, 4),
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
    Tile(32, 64, 32, 16, 4, 128),
    Tile(32, 32, 16, 16, 4, 128),
    Tile(16, 64, 16, 16, 4, 128),
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
_LATENCY = 600
"""Clocks from a copy's start to its end."""


_PACKED = 1.2
"""How much longer a product with packed weights may take, for fewer bytes of weights."""


def choose_tile(level: str, pixels: int, channels: int, inner: int, groups: int, bits: int = 8) -> tuple[Tile, int]:
    """(the tile with the least estimated time, bits of a weight in memory). inner: extent of the inner dimension;
    bits: 8, or 4 or 2 if weights can be packed so."""
    shape = pixels, channels, inner, groups

    def rank(tile: Tile, width: int) -> tuple[float, int, int]:
        return _clocks(tile, *shape, width), -tile.pixels, tile.channels

    tiles = (*TILES, *GROUPS) if level == "sm_90a" else TILES
    best = min(tiles, key=lambda tile: rank(tile, 8))
    if bits == 8:
        return best, 8
    packed = min(TILES, key=lambda tile: rank(tile, bits))
    return (packed, bits) if _clocks(packed, *shape, bits) <= _PACKED * _clocks(best, *shape) else (best, 8)


def _clocks(tile: Tile, pixels: int, channels: int, inner: int, groups: int, bits: int = 8) -> float:
    blocks = -(-pixels // tile.pixels) * -(-channels // tile.channels) * groups
    warps = tile.threads // 32
    products = tile.pixels * tile.channels * tile.step
    reads = 0 if tile.wgmma else warps * (tile.warp_pixels + tile.warp_channels * bits // 8) * tile.step
    fetches = tile.stage_bytes(bits)
    step = max(products / (_WGMMA if tile.wgmma else _MACS), reads / _SHARED, fetches / _FETCH)
    together = min(8, max(1, -(-blocks // PROCESSORS)))
    start = _START / min(together, 4)
    steps = -(-inner // tile.step) * max(step, _LATENCY / (tile.ahead * together))
    return -(-blocks // PROCESSORS) * (steps + start + tile.pixels * tile.channels / 64)
