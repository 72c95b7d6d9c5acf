"""Packing at run time: the right operand of a product of two activations, laid out as weights of the dense kernel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from qcompiler.targets.shared.machine import Machine
from qcompiler.targets.shared.tir.builder import Expr, Kernel, Pointer
from qcompiler.targets.shared.tir.dot import accumulate
from qcompiler.targets.shared.tir.matrix import Matrix, padded_channels
from qcompiler.targets.shared.tir.nest import Nest, unit_offsets


@dataclass(frozen=True)
class PackRight:
    """b [batch, K, N] -> panels [batch][block][step][vectors * lanes][group] of `product`, b - shift, zeros behind.

    `nest` runs over the batch (innermost extent 1), operand 0 is not used, operand 1 is b. With `zero` (the zero point
    of a left operand that stays uncentred) the bias -zero * (sum over k of b) is written too.
    """

    product: Matrix
    nest: Nest
    k_stride: int
    n_stride: int
    storage: str
    shift: int
    zero: int

    def blocks(self, machine: Machine) -> int:
        """Panels of one matrix."""
        return -(-self.product.channels // (self.product.vectors * machine.lanes))

    def units(self, machine: Machine) -> int:
        """Panels of all matrices."""
        return self.nest.units * self.blocks(machine)

    def elements(self, machine: Machine) -> int:
        """Of one packed matrix."""
        lanes = padded_channels(self.product.channels, machine.lanes)
        return lanes * self.product.steps * self.product.dot.group

    def build(self, name: str, machine: Machine) -> Any:
        """void name(lo, hi, y, bias, x), or without bias."""
        kernel, spec = Kernel(name), self.product
        tirx = kernel.tirx
        y = kernel.pointer("y", spec.dot.weight)
        bias = kernel.pointer("bias", "int32") if self.zero else None
        x = kernel.pointer("x", self.storage)
        all_vectors = padded_channels(spec.channels, machine.lanes) // machine.lanes
        blocks = self.blocks(machine)

        def panel(batch: Expr, x_at: Expr, block: Expr, first: int, vectors: int) -> None:
            """Vectors first .. first + vectors of every block `block` (an expression or a number)."""
            size = spec.steps * vectors * machine.lanes * spec.dot.group
            y_at = kernel.let(batch * self.elements(machine) + block * size)
            if first:  # the last, smaller block lies behind all whole ones
                whole = spec.panel(machine, spec.vectors) * (blocks - 1)
                y_at = kernel.let(batch * self.elements(machine) + whole)
            n_first = kernel.let(block * (spec.vectors * machine.lanes)) if not first else first * machine.lanes
            valid = (
                min(vectors * machine.lanes, spec.channels - first * machine.lanes)
                if first or blocks == 1
                else (vectors * machine.lanes)
            )
            self._fill(kernel, machine, y, x, y_at, x_at, n_first, vectors, valid)
            if bias is not None:
                at = kernel.let(batch * (all_vectors * machine.lanes) + n_first)
                self._sums(kernel, machine, y, bias, y_at, at, vectors)

        with kernel.loop(kernel.hi, kernel.lo) as u:
            batch = kernel.let(tirx.truncdiv(u, tirx.const(blocks, "int32"))) if blocks > 1 else u
            block = kernel.let(u - batch * blocks) if blocks > 1 else 0
            _, x_at = unit_offsets(kernel, self.nest, batch)
            rest = all_vectors - (blocks - 1) * spec.vectors
            if blocks == 1:
                panel(batch, x_at, 0, 0, rest)
            else:
                last = (blocks - 1) * spec.vectors
                kernel.when(block < blocks - 1, lambda: panel(batch, x_at, block, 0, spec.vectors))
                kernel.when(block == blocks - 1, lambda: panel(batch, x_at, block, last, rest))
        return kernel.function()

    def _value(self, kernel: Kernel, loaded: Expr, lanes: int) -> Expr:
        """b - shift in the storage of the panel."""
        if self.storage == self.product.dot.weight and not self.shift:
            return loaded
        wide = kernel.cast(loaded, "int32", lanes) - kernel.const(self.shift, "int32", lanes)
        return kernel.cast(wide, self.product.dot.weight, lanes)

    def _fill(
        self,
        kernel: Kernel,
        machine: Machine,
        y: Pointer,
        x: Pointer,
        y_at: Expr,
        x_at: Expr,
        n_first: Expr,
        vectors: int,
        valid: int,
    ) -> None:
        spec, group, lanes = self.product, self.product.dot.group, machine.lanes
        row = vectors * lanes * group
        whole, left = divmod(spec.run, group)

        def step(s: Expr, present: int) -> None:
            """One step: `present` of its `group` rows exist."""
            y_step = kernel.let(y_at + s * row)
            x_step = kernel.let(x_at + n_first * self.n_stride + s * (group * self.k_stride))
            if self.n_stride == 1 and self.k_stride != 1:
                columns = (valid // lanes) * lanes
                for j in range(0, columns, lanes):
                    rows = [
                        kernel.let(self._value(kernel, x.load(x_step + g * self.k_stride + j, lanes), lanes))
                        if g < present
                        else kernel.const(0, spec.dot.weight, lanes)
                        for g in range(group)
                    ]
                    mixed = [g * lanes + i for i in range(lanes) for g in range(group)]
                    value = rows[0] if group == 1 else kernel.shuffle(rows, mixed)
                    y.store(y_step + j * group, value, lanes * group)
            else:
                columns = 0
            with kernel.loop(valid, columns) if valid > columns else _nothing() as c:
                if valid > columns:
                    self._column(kernel, y, x, y_step + c * group, x_step + c * self.n_stride, present)
            if valid < vectors * lanes:
                with kernel.loop(vectors * lanes * group, valid * group) as c:
                    y.store(y_step + c, kernel.const(0, spec.dot.weight))

        if whole:
            with kernel.loop(whole) as s:
                step(s, group)
        if left:
            step(whole, left)

    def _column(self, kernel: Kernel, y: Pointer, x: Pointer, y_at: Expr, x_at: Expr, present: int) -> None:
        """The rows of one step in one column."""
        group = self.product.dot.group
        if self.k_stride == 1 and present == group and group > 1:
            y.store(y_at, self._value(kernel, x.load(x_at, group), group), group)
            return
        for g in range(group):
            value = (
                self._value(kernel, x.load(x_at + g * self.k_stride), 1)
                if g < present
                else kernel.const(0, self.product.dot.weight)
            )
            y.store(y_at + g, value)

    def _sums(
        self, kernel: Kernel, machine: Machine, y: Pointer, bias: Pointer, y_at: Expr, at: Expr, vectors: int
    ) -> None:
        """bias = -zero * (sum of a column), by the product's own instruction with ones."""
        spec, lanes = self.product, machine.lanes
        acc = kernel.local(vectors * lanes, "int32")
        for j in range(vectors):
            acc.store(j * lanes, kernel.const(0, "int32", lanes), lanes)
        ones = kernel.const(0x01010101, "int32")
        with kernel.loop(spec.steps) as s:
            for j in range(vectors):
                at_w = y_at + s * (vectors * lanes * spec.dot.group) + j * lanes * spec.dot.group
                pairs = [(ones, lambda at_w=at_w: y.load(at_w, lanes * spec.dot.group))]
                acc.store(j * lanes, accumulate(kernel, machine, spec.dot, acc.load(j * lanes, lanes), pairs), lanes)
        for j in range(vectors):
            total = acc.load(j * lanes, lanes) * kernel.const(-self.zero, "int32", lanes)
            bias.store(at + j * lanes, total, lanes)


class _nothing:
    """A loop that does not run."""

    def __enter__(self) -> int:
        return 0

    def __exit__(self, *exception: object) -> None:
        pass
