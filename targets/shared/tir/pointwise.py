"""Elementwise kernels: add, multiply, requantize, tables, conversions, the float boundary."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from qcompiler.formats import Int
from qcompiler.ops.elementwise import WHOLE
from qcompiler.targets.shared.machine import Machine
from qcompiler.targets.shared.tir.builder import Expr, Kernel, Pointer
from qcompiler.targets.shared.tir.nest import Nest, for_lanes, load, run_nest, unit_offsets
from qcompiler.targets.shared.tir.requantize import Requantize

Compute = Callable[[list[Expr], int], Expr]
"""Values of the operands, in their storage, and how many lanes -> what is stored."""


Parts = tuple[Pointer, list[Pointer], Compute]
"""y, its operands, and what is stored. Constants that a kernel reads besides are inside."""


class Map(Protocol):
    """An elementwise spec: y = compute(operands) over `nest`, whose strides are those of y, then of the operands."""

    @property
    def nest(self) -> Nest:
        """The iteration."""

    def parts(self, kernel: Kernel) -> Parts:
        """Declare the pointers, in the order of a call's arguments."""


def _build(spec: Map, name: str, lanes: int) -> Any:
    """void name(lo, hi, pointers...)."""
    kernel = Kernel(name)
    return _map(kernel, spec.nest, lanes, *spec.parts(kernel))


def _map(kernel: Kernel, nest: Nest, lanes: int, y: Pointer, operands: Sequence[Pointer], compute: Compute) -> Any:
    """y = compute(operands) over a nest; the finished function."""

    def body(at: list[Expr], n: int, inner: tuple[int, ...]) -> None:
        values = [load(kernel, p, at[i], n, inner[i]) for i, p in enumerate(operands, 1)]
        y.store(at[0], compute(values, n), n, inner[0])

    run_nest(kernel, nest, lanes, body)
    return kernel.function()


def _centred(kernel: Kernel, value: Expr, zero_point: int, wide: str, n: int) -> Expr:
    """value - zero_point in `wide`."""
    return kernel.cast(value, wide, n) - kernel.const(zero_point, wide, n)


def _wide(*storages: str) -> str:
    """Type in which products of operands in these storages fit."""
    return "int64" if any("16" in storage for storage in storages) else "int32"


@dataclass(frozen=True)
class Add:
    """clip((((a - za) * ma + (b - zb) * mb + 2^(shift-1)) >> shift) + z); operands y, a, b."""

    nest: Nest
    a_storage: str
    b_storage: str
    a_zero_point: int
    b_zero_point: int
    a_multiplier: int
    b_multiplier: int
    shift: int
    zero_point: int
    format: Int

    def parts(self, kernel: Kernel) -> Parts:
        """Pointers as `build` names them."""
        storage, wide = str(self.format.storage), _wide(self.a_storage, self.b_storage)
        y = kernel.pointer("y", storage)
        operands = [kernel.pointer("a", self.a_storage), kernel.pointer("b", self.b_storage)]

        def compute(values: list[Expr], n: int) -> Expr:
            a = _centred(kernel, values[0], self.a_zero_point, wide, n) * kernel.const(self.a_multiplier, wide, n)
            b = _centred(kernel, values[1], self.b_zero_point, wide, n) * kernel.const(self.b_multiplier, wide, n)
            half = kernel.const(1 << (self.shift - 1), wide, n)
            shifted = kernel.tirx.shift_right(a + b + half, kernel.const(self.shift, wide, n))
            low, high = self.format.min - self.zero_point, self.format.max - self.zero_point
            clipped = kernel.cast(kernel.clamp(shifted, low, high, wide, n), "int32", n)
            return kernel.cast(clipped + kernel.const(self.zero_point, "int32", n), storage, n)

        return y, operands, compute

    def build(self, name: str, machine: Machine) -> Any:
        """void name(lo, hi, y, a, b)."""
        return _build(self, name, machine.lanes)


@dataclass(frozen=True)
class Multiply:
    """requantize((a - za) * (b - zb)); operands y, a, b."""

    nest: Nest
    a_storage: str
    b_storage: str
    a_zero_point: int
    b_zero_point: int
    requantize: Requantize

    def parts(self, kernel: Kernel) -> Parts:
        """Pointers as `build` names them."""
        wide = _wide(self.a_storage, self.b_storage)
        y = kernel.pointer("y", self.requantize.storage)
        operands = [kernel.pointer("a", self.a_storage), kernel.pointer("b", self.b_storage)]
        scales = self.requantize.parameters(kernel)

        def compute(values: list[Expr], n: int) -> Expr:
            a = _centred(kernel, values[0], self.a_zero_point, wide, n)
            product = a * _centred(kernel, values[1], self.b_zero_point, wide, n)
            return self.requantize.apply(kernel, product, self.requantize.load(kernel, scales, 0, n), n)

        return y, operands, compute

    def build(self, name: str, machine: Machine) -> Any:
        """void name(lo, hi, y, a, b, requantization...)."""
        return _build(self, name, machine.lanes)


@dataclass(frozen=True)
class Divide:
    """(a - za) * multiplier / ((b - zb) 2^shift), rounded half up (qcompiler/ops/elementwise.py); operands y, a, b."""

    nest: Nest
    a_storage: str
    b_storage: str
    a_zero_point: int
    b_zero_point: int
    multiplier: int
    shift: int
    zero_point: int
    format: Int

    def parts(self, kernel: Kernel) -> Parts:
        """Pointers as `build` names them."""
        tirx, storage = kernel.tirx, str(self.format.storage)
        y = kernel.pointer("y", storage)
        operands = [kernel.pointer("a", self.a_storage), kernel.pointer("b", self.b_storage)]
        low, high = (kernel.const(v - self.zero_point, "int64") for v in (self.format.min, self.format.max))
        zero = kernel.const(0, "int64")

        def compute(values: list[Expr], n: int) -> Expr:
            a = _centred(kernel, values[0], self.a_zero_point, "int64", n) * kernel.const(self.multiplier, "int64")
            b = _centred(kernel, values[1], self.b_zero_point, "int64", n) * kernel.const(1 << self.shift, "int64")
            over, under = kernel.let(tirx.Select(b < zero, zero - a, a)), kernel.let(tirx.Select(b < zero, zero - b, b))
            # Kept in memory, so that no simplification moves the division to where the divisor may be 0.
            held = kernel.local(2, "int64")
            held.store(0, tirx.max(under + under, kernel.const(1, "int64")))
            divisor = kernel.let(held.load(0))
            top = kernel.let(over + over + under)
            held.store(1, tirx.truncdiv(top, divisor))  # towards 0: one too much for negative numerators
            cut = kernel.let(held.load(1))
            exact = tirx.any(top >= zero, tirx.EQ(cut * divisor, top))
            quotient = cut - tirx.Select(exact, zero, kernel.const(1, "int64"))
            endless = tirx.Select(over > zero, high, tirx.Select(over < zero, low, zero))
            code = tirx.Select(tirx.EQ(under, zero), endless, tirx.min(tirx.max(quotient, low), high))
            return kernel.cast(kernel.cast(code, "int32") + kernel.const(self.zero_point), storage)

        return y, operands, compute

    def build(self, name: str, machine: Machine) -> Any:
        """void name(lo, hi, y, a, b)."""
        return _build(self, name, 1)


@dataclass(frozen=True)
class Rescale:
    """requantize(x - zx); operands y, x."""

    nest: Nest
    storage: str
    x_zero_point: int
    requantize: Requantize

    def parts(self, kernel: Kernel) -> Parts:
        """Pointers as `build` names them."""
        y, x = kernel.pointer("y", self.requantize.storage), kernel.pointer("x", self.storage)
        scales = self.requantize.parameters(kernel)

        def compute(values: list[Expr], n: int) -> Expr:
            given = values[0]
            if np.dtype(self.storage).itemsize > 2:  # integers that are no codes
                given = kernel.clamp(given, -WHOLE, WHOLE, self.storage, n)
            acc = _centred(kernel, given, self.x_zero_point, "int32", n)
            return self.requantize.apply(kernel, acc, self.requantize.load(kernel, scales, 0, n), n)

        return y, [x], compute

    def build(self, name: str, machine: Machine) -> Any:
        """void name(lo, hi, y, x, requantization...)."""
        return _build(self, name, machine.lanes)


@dataclass(frozen=True)
class Convert:
    """y = x - zero_point in another storage: int8 to uint8, uint8 to int16, or a plain copy; operands y, x."""

    nest: Nest
    storage: str
    target: str
    zero_point: int = 0

    @property
    def plain(self) -> bool:
        """Whether it is a copy."""
        return self.storage == self.target and not self.zero_point

    def parts(self, kernel: Kernel) -> Parts:
        """Pointers as `build` names them."""
        y, x = kernel.pointer("y", self.target), kernel.pointer("x", self.storage)

        def compute(values: list[Expr], n: int) -> Expr:
            if self.plain:
                return values[0]
            return kernel.cast(_centred(kernel, values[0], self.zero_point, "int32", n), self.target, n)

        return y, [x], compute

    def build(self, name: str, machine: Machine) -> Any:
        """void name(lo, hi, y, x)."""
        size = np.dtype(self.storage).itemsize
        return _build(self, name, machine.lanes * 4 // size if self.plain and machine.lanes > 1 else machine.lanes)


@dataclass(frozen=True)
class Fill:
    """y = value; operand y."""

    nest: Nest
    storage: str
    value: int

    def parts(self, kernel: Kernel) -> Parts:
        """Pointers as `build` names them."""
        y = kernel.pointer("y", self.storage)
        return y, [], lambda values, n: kernel.const(self.value, self.storage, n)

    def build(self, name: str, machine: Machine) -> Any:
        """void name(lo, hi, y)."""
        return _build(self, name, machine.lanes * (4 if machine.lanes > 1 else 1))


@dataclass(frozen=True)
class Lookup:
    """y = table[x - x_min]; operands y, x."""

    nest: Nest
    storage: str
    x_min: int
    entries: int
    target: str

    def build(self, name: str, machine: Machine) -> Any:
        """void name(lo, hi, y, x, table)."""
        inner = tuple(strides[-1] for strides in self.nest.strides)
        permutes = machine.permute_bytes and self.target in ("uint8", "int8") and self.entries == 256
        if permutes and "8" in self.storage and inner == (1, 1) and self.nest.extents[-1] >= 16:
            kernel = Kernel(name)
            y, x = kernel.pointer("y", self.target), kernel.pointer("x", self.storage)
            table = kernel.pointer("table", self.target)
            self._permute(kernel, machine, y, x, table)
            return kernel.function()

        return _build(self, name, 1)

    def parts(self, kernel: Kernel) -> Parts:
        """Pointers as `build` names them; one lane."""
        y, x = kernel.pointer("y", self.target), kernel.pointer("x", self.storage)
        table = kernel.pointer("table", self.target)
        low = kernel.const(self.x_min)
        return y, [x], lambda values, n: table.load(kernel.cast(values[0], "int32") - low)

    def _permute(self, kernel: Kernel, machine: Machine, y: Any, x: Any, table: Any) -> None:
        """Four quarter tables in registers; bits 0..6 choose an entry of a half, bit 7 the half."""
        half = [
            [kernel.let(kernel.reinterpret(table.load(64 * i, 64), "uint8", 64)) for i in (0, 1)],
            [kernel.let(kernel.reinterpret(table.load(64 * i, 64), "uint8", 64)) for i in (2, 3)],
        ]
        tirx = kernel.tirx
        with kernel.loop(kernel.hi, kernel.lo) as u:
            y_at, x_at = unit_offsets(kernel, self.nest, u)

            def step(i: Expr, n: int) -> None:
                # Below a whole vector, lanes beyond n hold anything and are not stored.
                raw = kernel.reinterpret(x.load(x_at + i, n), "uint8", n)
                if n < 64:  # a Shuffle cannot have more lanes than its operands together
                    raw = (
                        kernel.shuffle([kernel.let(raw)] * (64 // n), range(64)) if n > 1 else kernel.broadcast(raw, 64)
                    )
                flip = kernel.const(0x80 if self.x_min < 0 else 0, "uint8", 64)
                index = kernel.let(raw ^ flip if self.x_min < 0 else raw)
                low = kernel.intrinsic("uint8", 64, machine.permute_bytes, half[0][0], index, half[0][1])
                high = kernel.intrinsic("uint8", 64, machine.permute_bytes, half[1][0], index, half[1][1])
                found = kernel.let(tirx.Select(index < kernel.const(128, "uint8", 64), low, high))
                if n < 64:
                    found = kernel.shuffle([found], range(n)) if n > 1 else kernel.shuffle([found], [0])
                y.store(y_at + i, kernel.reinterpret(found, self.target, n), n)

            for_lanes(kernel, self.nest.extents[-1], 64, step)


@dataclass(frozen=True)
class Quantize:
    """clip(rint(x / scale) + z): ONNX QuantizeLinear from float32; operands y, x."""

    nest: Nest
    scale: float
    zero_point: int
    format: Int

    def parts(self, kernel: Kernel) -> Parts:
        """Pointers as `build` names them."""
        storage = str(self.format.storage)
        y, x = kernel.pointer("y", storage), kernel.pointer("x", "float32")
        low, high = self.format.min - self.zero_point, self.format.max - self.zero_point

        def compute(values: list[Expr], n: int) -> Expr:
            rounded = kernel.tirx.nearbyint(values[0] / kernel.const(self.scale, "float32", n))
            clipped = kernel.clamp(rounded, float(low), float(high), "float32", n)
            code = kernel.cast(clipped, "int32", n) + kernel.const(self.zero_point, "int32", n)
            return kernel.cast(code, storage, n)

        return y, [x], compute

    def build(self, name: str, machine: Machine) -> Any:
        """void name(lo, hi, y, x)."""
        return _build(self, name, machine.lanes)


@dataclass(frozen=True)
class Dequantize:
    """float32(x - z) * scale: ONNX DequantizeLinear to float32; operands y, x."""

    nest: Nest
    scale: float
    zero_point: int
    storage: str

    def parts(self, kernel: Kernel) -> Parts:
        """Pointers as `build` names them."""
        y, x = kernel.pointer("y", "float32"), kernel.pointer("x", self.storage)

        def compute(values: list[Expr], n: int) -> Expr:
            centred = _centred(kernel, values[0], self.zero_point, "int32", n)
            return kernel.cast(centred, "float32", n) * kernel.const(self.scale, "float32", n)

        return y, [x], compute

    def build(self, name: str, machine: Machine) -> Any:
        """void name(lo, hi, y, x)."""
        return _build(self, name, machine.lanes)
