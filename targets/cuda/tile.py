"""Which tile a product gets, and into how many parts its sums are split: an estimate of clocks, no tuning."""

from __future__ import annotations

from dataclasses import dataclass

from qcompiler.targets.cuda.machine import OLD
from qcompiler.targets.cuda.tir.tile import Tile

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
SMALL = (
    Tile(128, 64, 32, 32, 2),
    Tile(64, 64, 32, 32, 2),
    Tile(128, 16, 32, 16, 2),
    Tile(64, 32, 32, 16, 2),
    Tile(32, 32, 16, 16, 2),
    Tile(16, 64, 16, 16, 2),
)
"""Of cards without tensor cores, whose blocks have 48 KiB of shared memory, and copies nothing to wait for."""
PARTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
LEAST_PART = 4
"""Tiles of the inner dimension that a part has at least."""
SUMS = 32 << 20
"""Bytes of partial sums at most."""
PROCESSORS = 132
"""Of the card that the estimate is for; smaller ones rank tiles much the same."""
_MACS = 2048
"""Products of bytes that a processor does in a clock; of codes of 4 bits twice as many."""
_DOTS = 256
"""The same by dp4a."""
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
_MEET = 2000
"""Clocks that blocks with parts of the same sums take to write them, to count, and to read the first of them."""
_WORTH = 0.8
"""How much of the time may be left at most for sums to be split."""
_PACKED = 1.2
"""How much longer a product with packed weights may take, for fewer bytes of weights."""


@dataclass(frozen=True)
class Choice:
    """How a product is done. bits: of a weight in memory. parts: of each sum, by as many blocks. narrow: products of
    codes of 4 bits."""

    tile: Tile
    bits: int = 8
    parts: int = 1
    narrow: bool = False


@dataclass(frozen=True)
class Shape:
    """pixels x inner by inner x channels, `groups` times; inner: extent of the inner dimension."""

    pixels: int
    channels: int
    inner: int
    groups: int = 1


def choose_tile(level: str, shape: Shape, bits: int = 8, *, narrow: bool = False, split: bool = True) -> Choice:
    """The choice with the least estimated time.

    bits: 8, or 4 or 2 if weights can be packed so. narrow: whether codes of x have 4 bits. split: whether sums may
    have parts. Products of codes of 4 bits are for cards before sm_90, which has no such instruction.
    """
    tiles = {"sm_90a": (*TILES, *GROUPS), OLD: SMALL}.get(level, TILES)
    products = _DOTS if level == OLD else _MACS

    def best(width: int, narrow: bool = False) -> tuple[float, Choice]:
        rate = 2 * products if narrow else products
        found = [(_clocks(tile, shape, width, rate), Choice(tile, width, narrow=narrow))
                 for tile in tiles if not (tile.wgmma and width < 8)]  # fmt: skip
        whole = min(found, key=lambda one: _rank(*one))
        if not split:
            return whole
        parted = [(_clocks(tile, shape, width, rate, parts), Choice(tile, width, parts, narrow))
                  for tile in tiles if not tile.wgmma for parts in parts_of(tile, shape)]  # fmt: skip
        least = min(parted, key=lambda one: _rank(*one), default=whole)
        return least if least[0] <= _WORTH * whole[0] else whole

    clocks, plain = best(8)
    if bits == 8:
        return plain
    fewer, packed = best(bits, narrow and bits == 4 and level not in ("sm_90a", OLD))
    return packed if fewer <= _PACKED * clocks else plain


def _rank(clocks: float, choice: Choice) -> tuple[float, int, int]:
    return clocks, -choice.tile.pixels, choice.tile.channels


def parts_of(tile: Tile, shape: Shape) -> list[int]:
    """Into how many parts sums may be split: all blocks find a processor at once, and all parts have something."""
    tiles, blocks = -(-shape.inner // tile.step), _blocks(tile, shape)
    found = []
    for parts in PARTS[1:]:
        each = -(-tiles // parts)
        if each < LEAST_PART or blocks * parts > 2 * PROCESSORS or (parts - 1) * each >= tiles:
            continue
        if 4 * blocks * parts * tile.pixels * tile.channels <= SUMS:
            found.append(parts)
    return found


def _blocks(tile: Tile, shape: Shape) -> int:
    return -(-shape.pixels // tile.pixels) * -(-shape.channels // tile.channels) * shape.groups


def _clocks(tile: Tile, shape: Shape, bits: int = 8, rate: int = _MACS, parts: int = 1) -> float:
    blocks = _blocks(tile, shape) * parts
    warps = tile.threads // 32
    products = tile.pixels * tile.channels * tile.step
    reads = 0 if tile.wgmma else warps * (tile.warp_pixels + tile.warp_channels * bits // 8) * tile.step
    fetches = tile.stage_bytes(bits)
    step = max(products / (_WGMMA if tile.wgmma else rate), reads / _SHARED, fetches / _FETCH)
    together = min(8, max(1, -(-blocks // PROCESSORS)))
    start = _START / min(together, 4)
    tiles = -(-shape.inner // tile.step)
    steps = -(-tiles // parts) * max(step, _LATENCY / (tile.ahead * together))
    leave = tile.pixels * tile.channels / 64
    if parts > 1:
        leave += _MEET + 4 * (parts + 1) * tile.pixels * tile.channels / _FETCH
    return -(-blocks // PROCESSORS) * (steps + start + leave)
