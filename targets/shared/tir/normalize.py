"""Normalize (qcompiler/ops/normalize.py): two passes over a run of codes, 64-bit integers for a run's own numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from qcompiler.formats import Int
from qcompiler.targets.shared.machine import Machine
from qcompiler.targets.shared.tir.builder import Expr, Kernel
from qcompiler.targets.shared.tir.nest import Nest, for_lanes, load, unit_offsets


@dataclass(frozen=True)
class Normalize:
    """Operands y, x of `nest` (one unit a run, innermost extent 1 and a third operand for the parameters).

    run: nested loops (extent, y stride, x stride, parameter stride) over a run, outermost first.
    """

    nest: Nest
    run: tuple[tuple[int, int, int, int], ...]
    storage: str
    x_zero_point: int
    centre: bool
    half_shift: int
    epsilon: int
    shift: int
    zero_point: int
    format: Int

    @property
    def length(self) -> int:
        """Elements of a run."""
        n = 1
        for extent, *_ in self.run:
            n *= extent
        return n

    def build(self, name: str, machine: Machine) -> Any:
        """void name(lo, hi, y, x, gain, bias)."""
        kernel = Kernel(name)
        y, x = kernel.pointer("y", str(self.format.storage)), kernel.pointer("x", self.storage)
        gain, bias = kernel.pointer("gain", "int32"), kernel.pointer("bias", "int64")
        n, lanes = self.length, machine.lanes
        with kernel.loop(kernel.hi, kernel.lo) as u:
            y_at, x_at, p_at = unit_offsets(kernel, self.nest, u)

            def code(at: Expr, count: int) -> Expr:
                stride = self.run[-1][2]
                value = kernel.cast(load(kernel, x, at, count, stride), "int32", count)
                return value - kernel.const(self.x_zero_point, "int32", count)

            s1, s2 = kernel.local(lanes, "int64") if self.centre else None, kernel.local(lanes, "int64")
            for sums in (s1, s2):
                if sums is not None:
                    sums.store(0, kernel.const(0, "int64", lanes), lanes)

            def add(_: Expr, at: Expr, __: Expr, count: int) -> None:
                q = kernel.let(kernel.cast(code(at, count), "int64", count))
                if s1 is not None:
                    s1.store(0, s1.load(0, count) + q, count)
                s2.store(0, s2.load(0, count) + q * q, count)

            self._each(kernel, lanes, y_at, x_at, p_at, add)
            total1 = self._total(kernel, s1, lanes) if s1 is not None else None
            spread = kernel.const(n, "int64") * self._total(kernel, s2, lanes)
            v = kernel.let(spread if total1 is None else spread - total1 * total1)
            w = kernel.let(v * kernel.const(1 << (2 * self.half_shift), "int64") + kernel.const(self.epsilon, "int64"))
            r, a = self.reciprocal(kernel, machine, w)
            half = kernel.let(kernel.tirx.shift_left(kernel.const(1, "int64"), a - kernel.const(1, "int64")))

            def write(to: Expr, at: Expr, p: Expr, count: int) -> None:
                d = kernel.cast(code(at, count), "int64", count) * kernel.const(n, "int64", count)
                if total1 is not None:
                    d = d - kernel.broadcast(total1, count)
                scaled = d * kernel.broadcast(r, count) + kernel.broadcast(half, count)
                t = kernel.tirx.shift_right(scaled, kernel.broadcast(a, count))
                g = kernel.cast(load(kernel, gain, p, count, self.run[-1][3]), "int64", count)
                b = load(kernel, bias, p, count, self.run[-1][3]) + kernel.const(1 << (self.shift - 1), "int64", count)
                shifted = kernel.tirx.shift_right(t * g + b, kernel.const(self.shift, "int64", count))
                low, high = self.format.min - self.zero_point, self.format.max - self.zero_point
                clipped = kernel.cast(kernel.clamp(shifted, low, high, "int64", count), "int32", count)
                result = clipped + kernel.const(self.zero_point, "int32", count)
                y.store(to, kernel.cast(result, y.dtype, count), count, self.run[-1][1])

            self._each(kernel, lanes, y_at, x_at, p_at, write)
        return kernel.function()

    def _each(self, kernel: Kernel, lanes: int, y_at: Expr, x_at: Expr, p_at: Expr, body: Callable[..., None]) -> None:
        """body(y offset, x offset, parameter offset, lanes) over a run."""

        def descend(depth: int, at: tuple[Expr, Expr, Expr]) -> None:
            extent, *strides = self.run[depth]
            if depth == len(self.run) - 1:
                for_lanes(
                    kernel,
                    extent,
                    lanes,
                    lambda i, count: body(*(a + i * s for a, s in zip(at, strides, strict=True)), count),
                )
                return
            with kernel.loop(extent) as i:
                descend(depth + 1, tuple(kernel.let(a + i * s) for a, s in zip(at, strides, strict=True)))  # type: ignore[arg-type]

        descend(0, (y_at, x_at, p_at))

    @staticmethod
    def _total(kernel: Kernel, sums: Any, lanes: int) -> Expr:
        if lanes == 1:
            return kernel.let(sums.load(0))
        total = kernel.local(1, "int64")
        total.store(0, kernel.const(0, "int64"))
        for i in range(lanes):
            total.store(0, total.load(0) + sums.load(i))
        return kernel.let(total.load(0))

    def reciprocal(self, kernel: Kernel, machine: Machine, w: Expr) -> tuple[Expr, Expr]:
        """(r, a) as int64, see qcompiler/ops/normalize.py."""
        tirx = kernel.tirx
        held, k = kernel.local(1, "int64"), kernel.local(1, "int64")
        held.store(0, w)
        k.store(0, kernel.const(0, "int64"))
        for step in (16, 8, 4, 2, 1):  # w 4^k reaches 2^60
            small = kernel.let(held.load(0) < kernel.const(1 << (62 - 2 * step), "int64"))
            by = kernel.let(tirx.Select(small, kernel.const(step, "int64"), kernel.const(0, "int64")))
            held.store(0, tirx.shift_left(held.load(0), by + by))
            k.store(0, k.load(0) + by)
        m = kernel.let(held.load(0))
        s = integer_root(kernel, machine, m)
        r = kernel.let(tirx.truncdiv(kernel.const(1 << 61, "int64"), s))
        a = kernel.let(tirx.max(kernel.const(1, "int64"), kernel.const(41 - self.half_shift, "int64") - k.load(0)))
        return r, a


def integer_root(kernel: Kernel, machine: Machine, m: Expr) -> Expr:
    """floor(sqrt(m)) of 0 <= m < 2^62: a double and its correction, or bit by bit without float."""
    tirx = kernel.tirx
    s = kernel.local(1, "int64")
    if machine.lanes > 1:
        s.store(0, kernel.cast(tirx.sqrt(kernel.cast(m, "float64")), "int64"))
        one, zero = kernel.const(1, "int64"), kernel.const(0, "int64")
        s.store(0, s.load(0) - tirx.Select(s.load(0) * s.load(0) > m, one, zero))
        above = kernel.let(s.load(0) + one)
        return kernel.let(s.load(0) + tirx.Select(above * above <= m, one, zero))
    s.store(0, kernel.const(0, "int64"))
    with kernel.loop(31) as i:
        bit = tirx.shift_left(kernel.const(1, "int64"), kernel.cast(kernel.const(30) - i, "int64"))
        trial = kernel.let(s.load(0) + bit)
        s.store(0, tirx.Select(trial * trial <= m, trial, s.load(0)))
    return kernel.let(s.load(0))
