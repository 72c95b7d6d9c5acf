"""Dense products: convolutions of any kind, MatMul and Gemm as one register-tiled kernel.

Activations lie channels-last, so a row of kernel taps (kx, c) is one contiguous run and a convolution is a matrix
product without im2col: for each tap row, a run of `run` elements times a panel of weights. A tile holds `tile`
output pixels by `vectors` vectors of output channels in registers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from qcompiler.targets.shared.machine import Machine
from qcompiler.targets.shared.tir.builder import Expr, Kernel
from qcompiler.targets.shared.tir.dot import Dot, accumulate
from qcompiler.targets.shared.tir.requantize import Requantize, store_lanes


@dataclass(frozen=True)
class Matrix:
    """One dense product. Strides in elements; x points at the first tap of the first pixel, y at its output.

    Outermost: groups, then blocks of output channels, then `rows` (nested (extent, x stride, y stride)); these are
    the units that threads share. Then pixels of a row in tiles.
    """

    groups: int
    group_x: int
    channels: int
    """Output channels of one group; they are contiguous in y, and so are the groups."""
    rows: tuple[tuple[int, int, int], ...]
    pixels: int
    pixel_x: int
    pixel_y: int
    taps: tuple[tuple[int, int], ...]
    """Nested loops (extent, x stride) around the contiguous run."""
    run: int
    dot: Dot
    requantize: Requantize
    tile: int
    vectors: int
    group_y: int = 0
    """Elements of y between groups; 0: their channels, so that groups lie side by side."""
    one_bias: bool = False
    """Whether all groups share bias and requantization."""

    @property
    def steps(self) -> int:
        """Groups of `dot.group` elements in a run; the last may be padded with zero weights."""
        return -(-self.run // self.dot.group)

    def panel(self, machine: Machine, vectors: int) -> int:
        """Weight elements of one block of `vectors` vectors."""
        size = self.steps * vectors * machine.lanes * self.dot.group
        for extent, _ in self.taps:
            size *= extent
        return size

    def build(self, name: str, machine: Machine) -> Any:
        """void name(lo, hi, x, y, w, bias, requantization...)."""
        return matrix_kernel(name, self, machine)

    def units(self, machine: Machine) -> int:
        """How many pieces of work threads may share."""
        blocks = -(-self.channels // (self.vectors * machine.lanes))
        return self.groups * blocks * self._row_count()

    def _row_count(self) -> int:
        count = 1
        for extent, _, _ in self.rows:
            count *= extent
        return count


def padded_channels(channels: int, lanes: int) -> int:
    """Channels of one group as the parameter arrays hold them: whole vectors."""
    return -(-channels // lanes) * lanes


def matrix_kernel(name: str, spec: Matrix, machine: Machine) -> Any:
    """void name(lo, hi, x, y, w, bias, requantization...): units lo <= u < hi."""
    kernel = Kernel(name)
    lo, hi = kernel.lo, kernel.hi
    x = kernel.pointer("x", spec.dot.activation)
    y = kernel.pointer("y", spec.requantize.storage)
    w = kernel.pointer("w", spec.dot.weight)
    bias = kernel.pointer("bias", spec.dot.accumulator)
    scales = spec.requantize.parameters(kernel)

    lanes, rows = machine.lanes, spec._row_count()
    all_vectors = -(-spec.channels // lanes)
    full, rest = divmod(all_vectors, spec.vectors)
    blocks = full + bool(rest)
    padded = all_vectors * lanes
    group_panel = full * spec.panel(machine, spec.vectors) + (spec.panel(machine, rest) if rest else 0)

    def unit(u: Expr, vectors: int, block: Expr, group: Expr) -> None:
        row = kernel.let(u % rows) if rows > 1 else 0
        x_row, y_row = _row_offsets(kernel, spec, row)
        x_row = x_row + group * spec.group_x
        first = block * (spec.vectors * lanes)
        y_row = y_row + group * (spec.group_y or spec.channels) + first
        w_block = kernel.let(group * group_panel + block * spec.panel(machine, spec.vectors))
        p_block = kernel.let(first if spec.one_bias else group * padded + first)
        tiles, left = divmod(spec.pixels, spec.tile)
        if tiles:
            with kernel.loop(tiles) as t:
                _tile(t * spec.tile, spec.tile, vectors, x_row, y_row, w_block, p_block)
        if left:
            _tile(tiles * spec.tile, left, vectors, x_row, y_row, w_block, p_block)

    def _tile(pixel: Expr, count: int, vectors: int, x_row: Expr, y_row: Expr, w_block: Expr, p_block: Expr) -> None:
        acc = kernel.local(count * vectors * lanes, spec.dot.accumulator)
        for j in range(vectors):
            start = kernel.let(bias.load(p_block + j * lanes, lanes))
            for i in range(count):
                acc.store((i * vectors + j) * lanes, start, lanes)
        x_tile = kernel.let(x_row + pixel * spec.pixel_x)

        def reduce(depth: int, x_at: Expr, tap: Expr) -> None:
            if depth < len(spec.taps):
                extent, stride = spec.taps[depth]
                with kernel.loop(extent) as i:
                    reduce(depth + 1, x_at + i * stride, tap * extent + i)
                return
            w_run = kernel.let(w_block + tap * (spec.steps * vectors * lanes * spec.dot.group))
            x_run = kernel.let(x_at) if spec.taps else x_at
            whole, left = divmod(spec.steps, spec.dot.chain)
            if whole:
                with kernel.loop(whole) as s:
                    step(x_run, w_run, s * spec.dot.chain, spec.dot.chain)
            if left:
                step(x_run, w_run, whole * spec.dot.chain, left)

        def step(x_run: Expr, w_run: Expr, s: Expr, chain: int) -> None:
            group = spec.dot.group
            panel = vectors * lanes * group

            def weights(c: int, j: int) -> Expr:
                return w.load(w_run + (s + c) * panel + j * lanes * group, lanes * group)

            for i in range(count):
                xs = [
                    kernel.let(_word(kernel, x, spec, x_run + i * spec.pixel_x + (s + c) * group)) for c in range(chain)
                ]
                for j in range(vectors):
                    at = (i * vectors + j) * lanes
                    pairs = [(xs[c], lambda c=c, j=j: weights(c, j)) for c in range(chain)]
                    acc.store(at, accumulate(kernel, machine, spec.dot, acc.load(at, lanes), pairs), lanes)

        reduce(0, x_tile, 0)
        for j in range(vectors):
            parameters = spec.requantize.load(kernel, scales, p_block + j * lanes, lanes)
            # Only the last vector of a group can be partly filled.
            partial = spec.channels % lanes if spec.channels % lanes and _ends_here(vectors, j) else lanes
            for i in range(count):
                code = spec.requantize.apply(kernel, acc.load((i * vectors + j) * lanes, lanes), parameters, lanes)
                at = y_row + pixel * spec.pixel_y + i * spec.pixel_y + j * lanes
                store_lanes(kernel, y, at, code, lanes, partial)

    def _ends_here(vectors: int, j: int) -> bool:
        return j == vectors - 1 and last_block[0]

    last_block = [False]

    def region(begin: int, end: int, vectors: int, last: bool, block_of: Any) -> None:
        """Units begin..end of each group run with `vectors`; the kernel intersects that with lo..hi."""
        last_block[0] = last
        low = kernel.let(kernel.tirx.max(lo, kernel.const(begin)))
        high = kernel.let(kernel.tirx.min(hi, kernel.const(end)))
        with kernel.loop(high, low) as u:
            unit(u, vectors, *block_of(u))

    # Unit order: group-major, blocks, rows. Whole blocks and the last one need different code, so the order is
    # (all groups' whole blocks) then (all groups' last blocks).
    tail_vectors = rest or (spec.vectors if spec.channels % lanes else 0)
    whole = full if rest or not tail_vectors else full - 1
    cut = spec.groups * whole * rows
    if whole:
        region(0, cut, spec.vectors, False, lambda u: _decode(kernel, u // rows, whole))
    if tail_vectors:
        region(cut, cut + spec.groups * rows, tail_vectors, True, lambda u: (blocks - 1, kernel.let((u - cut) // rows)))
    return kernel.function()


def _decode(kernel: Kernel, index: Expr, blocks: int) -> tuple[Expr, Expr]:
    """index -> (block, group)."""
    index = kernel.let(index)
    return kernel.let(index % blocks), kernel.let(index // blocks)


def _row_offsets(kernel: Kernel, spec: Matrix, row: Expr) -> tuple[Expr, Expr]:
    x, y = 0, 0
    for extent, x_stride, y_stride in reversed(spec.rows):
        index = row % extent if len(spec.rows) > 1 else row
        row = row // extent
        x, y = x + index * x_stride, y + index * y_stride
    return x, y


def _word(kernel: Kernel, x: Any, spec: Matrix, index: Expr) -> Expr:
    """`group` elements of x as one scalar."""
    if spec.dot.group == 1:
        return x.load(index)
    return kernel.reinterpret(x.load(index, spec.dot.group), "int32")
