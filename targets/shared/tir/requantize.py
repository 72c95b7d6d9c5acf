"""Requantization as TIR: the two forms of docs/integer_operators.md, scalar or vector."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from numpy.typing import NDArray

from qcompiler.formats import Int, Minifloat
from qcompiler.targets.shared.tir.builder import Expr, Kernel, Pointer


@dataclass(frozen=True)
class Requantize:
    """Accumulator -> code. Parameters are arrays in the constants; `scalar` ones have one entry."""

    arithmetic: Literal["float", "fixed"]
    format: Int
    zero_point: int
    scalar: bool = False
    high: bool = False
    """Fixed arithmetic whose shifts are all 33 or more: the upper word of the product decides. Shifts are stored as
    int8, less 33."""
    minifloat: Minifloat | None = None
    """The format whose levels are written; `format` is then that of these integers, and the zero point 0."""

    def upper(self, shifts: NDArray) -> bool:
        """Whether all shifts allow to decide by upper words."""
        return self.minifloat is None and int(shifts.min(initial=33)) >= 33

    @property
    def storage(self) -> str:
        """dtype of the codes."""
        return str(self.format.storage)

    def parameters(self, kernel: Kernel) -> list[Pointer]:
        """Declare the pointer parameters that `apply` reads."""
        if self.arithmetic == "float":
            return [kernel.pointer("scale", "float32")]
        return [kernel.pointer("multiplier", "int32"), kernel.pointer("shift", "int8" if self.high else "int32")]

    def load(self, kernel: Kernel, pointers: list[Pointer], index: Expr, lanes: int) -> list[Expr]:
        """Parameters of `lanes` channels from `index` on."""
        if self.scalar:
            return [kernel.broadcast(kernel.let(pointer.load(0)), lanes) for pointer in pointers]
        return [kernel.let(pointer.load(index, lanes)) for pointer in pointers]

    def apply(
        self, kernel: Kernel, acc: Expr, parameters: list[Expr], lanes: int, zero_point: Expr | None = None
    ) -> Expr:
        """The code, in storage dtype. acc: int32 or int64 [lanes]; zero_point: int32, if known at run time only."""
        if self.minifloat is not None:
            return self._apply_levels(kernel, acc, parameters, lanes, self.minifloat)
        low, high, z = self.format.min, self.format.max, self.zero_point
        if self.high:
            zero = kernel.const(z) if zero_point is None else zero_point
            return self._apply_high(kernel, acc, parameters, lanes, zero)
        if zero_point is not None:
            return self._apply_late(kernel, acc, parameters, zero_point)
        if self.arithmetic == "float":
            scaled = kernel.tirx.nearbyint(kernel.cast(acc, "float32", lanes) * parameters[0])
            clipped = kernel.clamp(scaled, float(low - z), float(high - z), "float32", lanes)
            code = kernel.cast(clipped, "int32", lanes) + kernel.const(z, "int32", lanes)
        else:
            multiplier, shift = (kernel.cast(p, "int64", lanes) for p in parameters)
            one = kernel.const(1, "int64", lanes)
            half = kernel.tirx.shift_left(one, shift - one)
            product = kernel.cast(acc, "int64", lanes) * multiplier + half
            shifted = kernel.tirx.shift_right(product, shift)
            clipped = kernel.clamp(shifted, low - z, high - z, "int64", lanes)
            code = kernel.cast(clipped, "int32", lanes) + kernel.const(z, "int32", lanes)
        return kernel.cast(code, self.storage, lanes)

    def _apply_levels(self, kernel: Kernel, acc: Expr, parameters: list[Expr], lanes: int, fmt: Minifloat) -> Expr:
        """Levels are 2^k apart where k comparisons with powers of two say so: as many as the format has binades."""
        tirx, places = kernel.tirx, range(1, fmt.largest.bit_length() - fmt.mantissa)
        if self.arithmetic == "float":
            ratio = kernel.let(
                kernel.clamp(
                    kernel.cast(acc, "float32", lanes) * parameters[0],
                    float(-fmt.largest if fmt.signed else 0), float(fmt.largest), "float32", lanes,
                )
            )  # fmt: skip
            size = kernel.let(tirx.max(ratio, kernel.const(0.0, "float32", lanes) - ratio))
            step, share = (kernel.const(1.0, "float32", lanes) for _ in range(2))
            for k in places:
                far = tirx.GE(size, kernel.const(float(1 << (fmt.mantissa + k)), "float32", lanes))
                step = kernel.select(far, kernel.const(float(1 << k), "float32", lanes), step)
                share = kernel.select(far, kernel.const(2.0**-k, "float32", lanes), share)
            level = tirx.nearbyint(ratio * share) * step
            return kernel.cast(kernel.cast(level, "int32", lanes), self.storage, lanes)
        zero, one = (kernel.const(value, "int64", lanes) for value in (0, 1))
        multiplier, shift = (kernel.cast(p, "int64", lanes) for p in parameters)
        shift = kernel.let(shift)
        product = kernel.let(kernel.cast(acc, "int64", lanes) * multiplier)
        size = kernel.let(tirx.max(product, zero - product))
        apart = zero
        for k in places:
            place = tirx.min(shift + kernel.const(fmt.mantissa + k, "int64", lanes), kernel.const(62, "int64", lanes))
            apart = kernel.select(tirx.GE(size, tirx.shift_left(one, place)), kernel.const(k, "int64", lanes), apart)
        apart = kernel.let(apart)
        below = kernel.let(shift + apart)
        odd = tirx.bitwise_and(tirx.shift_right(size, below), one)
        half = tirx.shift_left(one, below - one) - one + odd
        rounded = tirx.shift_left(tirx.shift_right(size + half, below), apart)
        level = kernel.let(tirx.min(rounded, kernel.const(fmt.largest, "int64", lanes)))
        lowest = (zero - level) if fmt.signed else zero
        code = kernel.select(tirx.LT(product, zero), lowest, level)
        return kernel.cast(kernel.cast(code, "int32", lanes), self.storage, lanes)

    def _apply_high(self, kernel: Kernel, acc: Expr, parameters: list[Expr], lanes: int, zero_point: Expr) -> Expr:
        """With s >= 33, floor((p + 2^(s-1)) / 2^s) = floor((floor(p / 2^(s-1)) + 1) / 2), whose inner part is the
        upper word of p shifted by s - 33."""
        product = kernel.cast(acc, "int64", lanes) * kernel.cast(parameters[0], "int64", lanes)
        upper = kernel.cast(kernel.tirx.shift_right(product, kernel.const(32, "int64", lanes)), "int32", lanes)
        halves = kernel.tirx.shift_right(upper, kernel.cast(parameters[1], "int32", lanes))
        added = halves + kernel.broadcast(zero_point * 2 + 1, lanes)
        rounded = kernel.let(kernel.tirx.shift_right(added, kernel.const(1, "int32", lanes)))
        clipped = kernel.clamp(rounded, self.format.min, self.format.max, "int32", lanes)
        return kernel.cast(clipped, self.storage, lanes)

    def _apply_late(self, kernel: Kernel, acc: Expr, parameters: list[Expr], zero_point: Expr) -> Expr:
        """One code by the fixed arithmetic, zero point as an expression; scalar code has no float form."""
        assert self.arithmetic == "fixed", "scalar schedules requantize in fixed point"
        multiplier, shift = (kernel.cast(p, "int64") for p in parameters)
        half = kernel.tirx.shift_left(kernel.const(1, "int64"), shift - kernel.const(1, "int64"))
        shifted = kernel.tirx.shift_right(kernel.cast(acc, "int64") * multiplier + half, shift)
        code = shifted + kernel.cast(zero_point, "int64")
        clipped = kernel.clamp(code, self.format.min, self.format.max, "int64")
        return kernel.cast(kernel.cast(clipped, "int32"), self.storage)


def store_lanes(kernel: Kernel, target: Pointer, index: Expr, value: Expr, lanes: int, valid: int) -> None:
    """Store the first `valid` lanes of a vector, in power-of-two pieces: nothing behind them is touched."""
    if valid >= lanes:
        target.store(index, value, lanes)
        return
    value, done = kernel.let(value), 0
    while done < valid:
        piece = 1 << ((valid - done).bit_length() - 1)
        target.store(index + done, kernel.shuffle([value], range(done, done + piece)), piece)
        done += piece
