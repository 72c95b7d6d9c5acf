"""Depthwise convolution: a thread has four channels of some pixels of a row.

Four rows of four channels are turned, so that a word holds four taps of one channel, and dp4a adds four products at
once. A column is read and turned once for all pixels that it takes part in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcompiler.targets.cuda.grid import GridKernel, Launch
from qcompiler.targets.cuda.tir.direct import THREADS, WINDOW
from qcompiler.targets.cuda.tir.epilogue import Codes
from qcompiler.targets.shared.machine import Machine
from qcompiler.targets.shared.tir.builder import Expr

CHANNELS = 4
"""Of a thread: a word of x."""
DEPTHWISE = (*WINDOW, "channels", "blocks", "fill")
"""int32 parameters: the window, channels, blocks of pixels in a row, and a word of zero points of x."""


@dataclass(frozen=True)
class Depthwise:
    """Weights [channels / 4][groups of four rows][KW][4 channels][4 rows]; padded cells are zero points."""

    storage: str
    codes: Codes
    kernel: tuple[int, int]
    stride: int
    """Columns between pixels."""
    dilation: tuple[int, int]
    pixels: int

    @property
    def groups(self) -> int:
        """Words of taps in a column."""
        return -(-self.kernel[0] // 4)

    def launch(self, images: int, rows: int, columns: int, channels: int) -> Launch:
        """One thread four channels of `pixels` pixels."""
        units = images * rows * -(-columns // self.pixels) * (channels // CHANNELS)
        return Launch((-(-units // THREADS), 1, 1), THREADS)

    def pack(self, weights: NDArray) -> NDArray[np.int8]:
        """[C, KH, KW] as the kernel reads them."""
        c, height, width = weights.shape
        padded = np.zeros((c, self.groups * 4, width), np.int8)
        padded[:, :height] = weights
        return padded.reshape(c // 4, 4, self.groups, 4, width).transpose(0, 2, 4, 1, 3).copy()

    def build(self, name: str, machine: Machine) -> Any:
        """void name(x, y, w, bias, scales..., DEPTHWISE..., numbers of codes...)."""
        k = GridKernel(name, THREADS)
        div = k.tirx.truncdiv
        x, y = k.pointer("x", self.storage), k.pointer("y", self.codes.storage)
        w, bias = k.pointer("w", "int8"), k.pointer("bias", "int32")
        scales = self.codes.pointers(k)
        n = {name: k.number(name) for name in DEPTHWISE}
        numbers = self.codes.numbers(k)
        unit = k.let(k.blocks[0] * THREADS + k.thread)
        per_pixel = k.let(n["channels"] // CHANNELS)
        block = k.let(div(unit, per_pixel))
        channel = k.let((unit - block * per_pixel) * CHANNELS)
        line = k.let(div(block, n["blocks"]))
        column = k.let((block - line * n["blocks"]) * self.pixels)
        image = k.let(div(line, n["rows"]))
        row = k.let(line - image * n["rows"])

        def pixels() -> None:
            acc = k.local(self.pixels * CHANNELS, "int32")
            first = k.local(CHANNELS, "int32")
            k.call("qc_move16", k.at(first, 0), k.at(bias, channel))
            for p in range(self.pixels):
                for c in range(CHANNELS):
                    acc.store(p * CHANNELS + c, first.load(c))
            self._taps(k, x, w, n, acc, image, row, column, channel)
            parameters = []
            for pointer in scales:
                held = k.local(CHANNELS, pointer.dtype)
                k.call("qc_move16", k.at(held, 0), k.at(pointer, channel))
                parameters.append(held)
            y_at = k.let(image * n["y_image"] + row * n["y_row"] + column * n["y_pixel"] + channel)
            size = np.dtype(self.codes.storage).itemsize
            for p in range(self.pixels):
                codes = [
                    self.codes.apply(k, acc.load(p * CHANNELS + c), [h.load(c) for h in parameters], numbers)
                    for c in range(CHANNELS)
                ]
                target = k.at(y, y_at + p * n["y_pixel"])
                k.when(column + p < n["columns"], lambda t=target, c=codes: k.call(f"qc_put4_{size}", t, *c))  # type: ignore[misc]

        k.when(line < div(n["total"], n["columns"] * n["channels"]), pixels)
        return k.function()

    def _taps(
        self, k: GridKernel, x: Any, w: Any, n: dict[str, Expr], acc: Any, image: Expr, row: Expr, column: Expr,
        channel: Expr,
    ) -> None:  # fmt: skip
        words = self.groups * self.kernel[1] * CHANNELS
        weights = k.local(words, "int32")
        w_at = k.let(channel // CHANNELS * (words * 4))
        for i in range(words // 4):
            k.call("qc_move16", k.at(weights, 4 * i), k.at(w, w_at + 16 * i))
        top = k.let(row * n["stride_y"] - n["before_y"])
        left = k.let(column * self.stride - n["before_x"])
        base = k.let(image * n["x_image"] + channel)
        lines, inside = [], []
        for ky in range(self.kernel[0]):
            at = k.let(top + ky * self.dilation[0])
            inside.append(k.let(k.value("qc_inside", at, k.const(0), n["height"], k.const(1))))
            lines.append(k.let(base + at * n["x_row"]))
        turned = k.local(4, "int32")
        name = "qc_dp4a_u8s8" if self.storage == "uint8" else "qc_dp4a_s8s8"
        columns = (self.pixels - 1) * self.stride + (self.kernel[1] - 1) * self.dilation[1] + 1
        for j in range(columns):
            uses = [
                (p, kx)
                for p in range(self.pixels)
                for kx in range(self.kernel[1])
                if p * self.stride + kx * self.dilation[1] == j
            ]
            if not uses:
                continue
            at = k.let(left + j)
            there = k.let(k.value("qc_inside", at, k.const(0), n["width"], k.const(1)))
            for g in range(self.groups):
                cells = []
                for r in range(4):
                    ky = 4 * g + r
                    if ky >= self.kernel[0]:
                        cells.append(k.const(0))
                        continue
                    address = k.at(x, lines[ky] + at * n["x_pixel"])
                    cells.append(k.let(k.value("qc_word_or", there & inside[ky], address, n["fill"])))
                k.call("qc_turn4", k.at(turned, 0), *cells)
                for p, kx in uses:
                    for c in range(CHANNELS):
                        weight = weights.load((g * self.kernel[1] + kx) * CHANNELS + c)
                        total = k.value(name, turned.load(c), weight, acc.load(p * CHANNELS + c))
                        acc.store(p * CHANNELS + c, total)
