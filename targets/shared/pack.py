"""Weights and tables as kernels read them, in one blob of constants."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from qcompiler.formats import Minifloat, parse_format
from qcompiler.targets.shared.machine import Machine
from qcompiler.targets.shared.tir.columns import PACKINGS
from qcompiler.targets.shared.tir.matrix import Matrix, padded_channels
from qcompiler.targets.shared.tir.window import Depthwise
from qcompiler.targets.shared.views import ALIGNMENT, SLACK, Buffer


class Constants:
    """The blob: 64-byte aligned arrays, equal ones stored once."""

    def __init__(self) -> None:
        self.arrays: dict[int, NDArray] = {}
        """Array by its place in the blob."""
        self._parts: list[bytes] = []
        self._size = 0
        self._known: dict[bytes, int] = {}

    def add(self, array: NDArray, name: str) -> Buffer:
        """Store an array; returns its place."""
        data = np.ascontiguousarray(array).tobytes()
        key = hashlib.sha256(str(array.dtype).encode() + data).digest()
        if key not in self._known:
            self._known[key] = self._size
            self.arrays[self._size] = np.asarray(array).ravel()
            padding = -len(data) % ALIGNMENT
            self._parts += [data, bytes(padding)]
            self._size += len(data) + padding
        return Buffer("constant", len(data), name, index=self._known[key])

    def blob(self) -> bytes:
        """All of it."""
        return b"".join(self._parts) + bytes(SLACK)


def pack_matrix(weights: NDArray, spec: Matrix, machine: Machine) -> NDArray:
    """weights [groups, channels, taps, run] -> panels [group][block][tap][step][vectors * lanes][dot.group]."""
    lanes, group = machine.lanes, spec.dot.group
    groups, channels, taps, run = weights.shape
    padded = np.zeros((groups, padded_channels(channels, lanes), taps, spec.steps * group), spec.dot.weight)
    padded[:, :channels, :, :run] = weights
    width = spec.vectors * lanes
    panels = []
    for g in range(groups):
        for begin in range(0, padded.shape[1], width):
            block = padded[g, begin : begin + width].reshape(-1, taps, spec.steps, group)
            panels.append(block.transpose(1, 2, 0, 3).ravel())
    return np.concatenate(panels)


def pack_depthwise(weights: NDArray, spec: Depthwise, machine: Machine) -> NDArray:
    """weights [channels, KH, KW] -> [block][row group][kx][lanes][group]."""
    lanes, group = machine.lanes, spec.group(machine)
    channels, height, width = weights.shape
    groups = -(-height // group)
    padded = np.zeros((padded_channels(channels, lanes), groups * group, width), spec.weight_type(machine))
    padded[:channels, :height] = weights
    blocks = padded.reshape(-1, lanes, groups, group, width)
    return blocks.transpose(0, 2, 4, 1, 3).ravel()


def pack_bits(weights: NDArray, name: str) -> NDArray[np.uint8]:
    """int8 [M, 4 steps] -> uint8 [M, bytes]: the blocks of templates/qc_dot.h, little-endian words.

    name: of PACKINGS; weights are codes of integers, or levels of a minifloat, whose codes are packed.
    """
    packing = PACKINGS[name]
    bits = packing.bits
    if not name.isdigit():
        fmt = parse_format(name)
        assert isinstance(fmt, Minifloat)
        weights = fmt.encode(weights)
    rows, count = weights.shape
    width = 4 * packing.steps
    padded = np.zeros((rows, -(-count // width) * width), np.uint32)
    padded[:, :count] = weights.astype(np.int64) & ((1 << bits) - 1)
    steps = padded.reshape(rows, -1, packing.steps, 4)
    lane = 8 * np.arange(4, dtype=np.uint32)

    def words(codes: NDArray, width: int, per_word: int) -> NDArray:
        """[..., steps, 4] -> [..., steps / per_word]: step j of a word from bit 8 - width (j + 1) of each byte on."""
        grouped = codes.reshape(*codes.shape[:2], -1, per_word, 4)
        down = 8 - width * np.arange(1, per_word + 1, dtype=np.uint32)
        return (grouped << (down[:, None] + lane)).sum(axis=(-1, -2), dtype=np.uint32)

    if bits == 3:
        blocks = np.concatenate([words(steps >> 1, 2, 4), words(steps & 1, 1, 8)], axis=-1)
    else:
        blocks = words(steps, bits, packing.steps)
    return np.ascontiguousarray(blocks.reshape(rows, -1)).astype("<u4").view(np.uint8).reshape(rows, -1)


def pack_channels(values: NDArray, groups: int, lanes: int) -> NDArray:
    """[M] -> per group padded to whole vectors with zeros."""
    per_group = np.asarray(values).reshape(groups, -1)
    padded = np.zeros((groups, padded_channels(per_group.shape[1], lanes)), per_group.dtype)
    padded[:, : per_group.shape[1]] = per_group
    return padded.ravel()
