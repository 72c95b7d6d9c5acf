"""Weights as products on tensor cores read them: tile by tile, codes of 4 and 2 bits packed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qcompiler.targets.cuda.tir.tile import Tile

LARGEST = 1 << 16
"""Inner dimension up to which sums of products with packed codes, which count 16 or 64 fold, say what the sums are:
255 * 8 * 2^16 < 2^27, and likewise 255 * 2 * 2^16 < 2^25."""


def bits_of(weights: NDArray, inner: int) -> int:
    """Bits that hold all weights: 2, 4 or 8. inner: products of a sum."""
    if inner > LARGEST:
        return 8
    low, high = int(weights.min(initial=0)), int(weights.max(initial=0))
    return next((bits for bits in (2, 4) if -(1 << bits - 1) <= low and high < 1 << bits - 1), 8)


def pack_weights(codes: NDArray, tile: Tile, bits: int) -> NDArray[np.int8]:
    """[groups, channels, inner] -> int8 [groups, tiles of channels, tiles of inner, channels of a tile, bytes].

    Codes of 4 bits: byte i of 16 has code i below and code i + 16 above, of 32 in a row. Codes of 2 bits: byte i of 16
    has codes i, i + 16, i + 32 and i + 48, from below, of 64 in a row.
    """
    groups, channels, inner = codes.shape
    rows, columns = -(-channels // tile.channels), -(-inner // tile.step)
    padded = np.zeros((groups, rows * tile.channels, columns * tile.step), np.int8)
    padded[:, :channels, :inner] = codes
    tiled = padded.reshape(groups, rows, tile.channels, columns, tile.step).transpose(0, 1, 3, 2, 4)
    if bits == 8:
        return np.ascontiguousarray(tiled)
    many = 8 // bits
    parts = (tiled.view(np.uint8) & ((1 << bits) - 1)).reshape(*tiled.shape[:-1], -1, many, 16)
    packed = np.zeros((*parts.shape[:-2], 16), np.uint8)
    for i in range(many):
        packed |= parts[..., i, :] << (bits * i)
    return packed.reshape(*tiled.shape[:-1], -1).view(np.int8)
