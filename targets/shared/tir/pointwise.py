"""Elementwise kernels: add, multiply, requantize, tables, conversions, the float boundary."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from qcompiler.formats import Int
from qcompiler.targets.shared.machine import Machine
from qcompiler.targets.shared.tir.builder import Expr, Kernel
from qcompiler.targets.shared.tir.nest import Nest, for_lanes, load, run_nest, unit_offsets
from qcompiler.targets.shared.tir.requantize import Requantize


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

    def build(self, name: str, machine: Machine) -> Any:
        """void name(lo, hi, y, a, b)."""
        kernel = Kernel(name)
        y = kernel.pointer("y", str(self.format.storage))
        a, b = kernel.pointer("a", self.a_storage), kernel.pointer("b", self.b_storage)
        wide = "int64" if "16" in self.a_storage + self.b_storage else "int32"

        def body(at: list[Expr], n: int, inner: tuple[int, ...]) -> None:
            def term(pointer: Any, i: int, zero: int, multiplier: int) -> Expr:
                value = kernel.cast(load(kernel, pointer, at[i], n, inner[i]), wide, n)
                return (value - kernel.const(zero, wide, n)) * kernel.const(multiplier, wide, n)

            total = term(a, 1, self.a_zero_point, self.a_multiplier) + term(b, 2, self.b_zero_point, self.b_multiplier)
            half = kernel.const(1 << (self.shift - 1), wide, n)
            shifted = kernel.tirx.shift_right(total + half, kernel.const(self.shift, wide, n))
            low, high = self.format.min - self.zero_point, self.format.max - self.zero_point
            clipped = kernel.cast(kernel.clamp(shifted, low, high, wide, n), "int32", n)
            code = clipped + kernel.const(self.zero_point, "int32", n)
            y.store(at[0], kernel.cast(code, str(self.format.storage), n), n, inner[0])

        run_nest(kernel, self.nest, machine.lanes, body)
        return kernel.function()


@dataclass(frozen=True)
class Multiply:
    """requantize((a - za) * (b - zb)); operands y, a, b."""

    nest: Nest
    a_storage: str
    b_storage: str
    a_zero_point: int
    b_zero_point: int
    requantize: Requantize

    def build(self, name: str, machine: Machine) -> Any:
        """void name(lo, hi, y, a, b, requantization...)."""
        kernel = Kernel(name)
        y = kernel.pointer("y", self.requantize.storage)
        a, b = kernel.pointer("a", self.a_storage), kernel.pointer("b", self.b_storage)
        scales = self.requantize.parameters(kernel)
        wide = "int64" if "16" in self.a_storage + self.b_storage else "int32"

        def body(at: list[Expr], n: int, inner: tuple[int, ...]) -> None:
            va = kernel.cast(load(kernel, a, at[1], n, inner[1]), wide, n) - kernel.const(self.a_zero_point, wide, n)
            vb = kernel.cast(load(kernel, b, at[2], n, inner[2]), wide, n) - kernel.const(self.b_zero_point, wide, n)
            parameters = self.requantize.load(kernel, scales, 0, n)
            y.store(at[0], self.requantize.apply(kernel, va * vb, parameters, n), n, inner[0])

        run_nest(kernel, self.nest, machine.lanes, body)
        return kernel.function()


@dataclass(frozen=True)
class Rescale:
    """requantize(x - zx); operands y, x."""

    nest: Nest
    storage: str
    x_zero_point: int
    requantize: Requantize

    def build(self, name: str, machine: Machine) -> Any:
        """void name(lo, hi, y, x, requantization...)."""
        kernel = Kernel(name)
        y, x = kernel.pointer("y", self.requantize.storage), kernel.pointer("x", self.storage)
        scales = self.requantize.parameters(kernel)

        def body(at: list[Expr], n: int, inner: tuple[int, ...]) -> None:
            acc = kernel.cast(load(kernel, x, at[1], n, inner[1]), "int32", n)
            acc = acc - kernel.const(self.x_zero_point, "int32", n)
            y.store(
                at[0], self.requantize.apply(kernel, acc, self.requantize.load(kernel, scales, 0, n), n), n, inner[0]
            )

        run_nest(kernel, self.nest, machine.lanes, body)
        return kernel.function()


@dataclass(frozen=True)
class Convert:
    """y = x - zero_point in another storage: int8 to uint8, uint8 to int16, or a plain copy; operands y, x."""

    nest: Nest
    storage: str
    target: str
    zero_point: int = 0

    def build(self, name: str, machine: Machine) -> Any:
        """void name(lo, hi, y, x)."""
        kernel = Kernel(name)
        y, x = kernel.pointer("y", self.target), kernel.pointer("x", self.storage)
        plain = self.storage == self.target and not self.zero_point
        size = np.dtype(self.storage).itemsize
        lanes = machine.lanes * 4 // size if plain and machine.lanes > 1 else machine.lanes

        def body(at: list[Expr], n: int, inner: tuple[int, ...]) -> None:
            value = load(kernel, x, at[1], n, inner[1])
            if not plain:
                value = kernel.cast(value, "int32", n) - kernel.const(self.zero_point, "int32", n)
                value = kernel.cast(value, self.target, n)
            y.store(at[0], value, n, inner[0])

        run_nest(kernel, self.nest, lanes, body)
        return kernel.function()


@dataclass(frozen=True)
class Fill:
    """y = value; operand y."""

    nest: Nest
    storage: str
    value: int

    def build(self, name: str, machine: Machine) -> Any:
        """void name(lo, hi, y)."""
        kernel = Kernel(name)
        y = kernel.pointer("y", self.storage)

        def body(at: list[Expr], n: int, inner: tuple[int, ...]) -> None:
            y.store(at[0], kernel.const(self.value, self.storage, n), n, inner[0])

        run_nest(kernel, self.nest, machine.lanes * (4 if machine.lanes > 1 else 1), body)
        return kernel.function()


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
        kernel = Kernel(name)
        y, x = kernel.pointer("y", self.target), kernel.pointer("x", self.storage)
        table = kernel.pointer("table", self.target)
        inner = tuple(strides[-1] for strides in self.nest.strides)
        permutes = machine.permute_bytes and self.target in ("uint8", "int8") and self.entries == 256
        if permutes and "8" in self.storage and inner == (1, 1) and self.nest.extents[-1] >= 16:
            self._permute(kernel, machine, y, x, table)
            return kernel.function()

        def body(at: list[Expr], n: int, inner: tuple[int, ...]) -> None:
            index = kernel.cast(x.load(at[1]), "int32") - kernel.const(self.x_min)
            y.store(at[0], table.load(index))

        run_nest(kernel, self.nest, 1, body)
        return kernel.function()

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

    def build(self, name: str, machine: Machine) -> Any:
        """void name(lo, hi, y, x)."""
        kernel = Kernel(name)
        y, x = kernel.pointer("y", str(self.format.storage)), kernel.pointer("x", "float32")
        low, high = self.format.min - self.zero_point, self.format.max - self.zero_point

        def body(at: list[Expr], n: int, inner: tuple[int, ...]) -> None:
            ratio = load(kernel, x, at[1], n, inner[1]) / kernel.const(self.scale, "float32", n)
            clipped = kernel.clamp(kernel.tirx.nearbyint(ratio), float(low), float(high), "float32", n)
            code = kernel.cast(clipped, "int32", n) + kernel.const(self.zero_point, "int32", n)
            y.store(at[0], kernel.cast(code, str(self.format.storage), n), n, inner[0])

        run_nest(kernel, self.nest, machine.lanes, body)
        return kernel.function()


@dataclass(frozen=True)
class Dequantize:
    """float32(x - z) * scale: ONNX DequantizeLinear to float32; operands y, x."""

    nest: Nest
    scale: float
    zero_point: int
    storage: str

    def build(self, name: str, machine: Machine) -> Any:
        """void name(lo, hi, y, x)."""
        kernel = Kernel(name)
        y, x = kernel.pointer("y", "float32"), kernel.pointer("x", self.storage)

        def body(at: list[Expr], n: int, inner: tuple[int, ...]) -> None:
            code = kernel.cast(load(kernel, x, at[1], n, inner[1]), "int32", n)
            centred = kernel.cast(code - kernel.const(self.zero_point, "int32", n), "float32", n)
            y.store(at[0], centred * kernel.const(self.scale, "float32", n), n, inner[0])

        run_nest(kernel, self.nest, machine.lanes, body)
        return kernel.function()
