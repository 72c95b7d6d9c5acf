"""Dot products: how one machine multiplies activations by weights, exactly.

A `Dot` names the storage that it reads, how many reduction elements share a 32-bit lane (`group`) and how many
groups may be summed before widening (`chain`). `choose_dot` takes the fastest that no weight can overflow.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from numpy.typing import NDArray

from qcompiler.targets.shared.machine import Machine
from qcompiler.targets.shared.tir.builder import Expr, Kernel

INT16_MAX = 32767


@dataclass(frozen=True)
class Dot:
    """One way to accumulate sum(x * w) into int32 (int64 for `wide`)."""

    kind: Literal["vnni", "madd_u8s8", "madd_s16", "plain", "wide"]
    activation: str
    """Storage that the kernel reads. int16 means x - zero_point, widened beforehand."""
    weight: str
    group: int
    chain: int = 1

    @property
    def accumulator(self) -> str:
        """dtype of the sums."""
        return "int64" if self.kind == "wide" else "int32"

    @property
    def centred(self) -> bool:
        """Whether activations arrive as x - zero_point; otherwise the zero point is folded into the bias."""
        return self.activation in ("int16", "int32")


def reach_of(weights: NDArray) -> int:
    """Largest |w| of a layer, at least 1; 129 where +128 occurs, since int8 holds -128 but not that."""
    low, high = int(weights.min(initial=0)), int(weights.max(initial=0))
    return max(-low, high + (high == 128), 1)


def choose_dot(machine: Machine, activation_max: int, weight_max: int, activation_bits: int) -> Dot:
    """The fastest exact form. activation_max: largest unsigned code; weight_max: largest |w| of the layer.

    vpmaddubsw adds two u8 x s8 products in int16: R of them in a row stay exact
    while activation_max * weight_max * 2 * R <= 32767.
    """
    if activation_bits > 8:
        return Dot("wide", "int32", "int16", 1)
    if machine.vnni and weight_max <= 128:
        return Dot("vnni", "uint8", "int8", 4)
    chain = INT16_MAX // max(2 * activation_max * weight_max, 1)
    if machine.madd_u8s8 and chain >= 1 and weight_max <= 127:
        return Dot("madd_u8s8", "uint8", "int8", 4, next(c for c in (8, 4, 2, 1) if c <= chain))
    if machine.madd_s16:
        return Dot("madd_s16", "int16", "int16", 2)
    return Dot("plain", "int16", "int16", 1)


def accumulate(
    kernel: Kernel, machine: Machine, dot: Dot, acc: Expr, pairs: Sequence[tuple[Expr, Callable[[], Expr]]]
) -> Expr:
    """acc + sum over `pairs` (x as one 32-bit scalar, loader of its weights); at most `chain` pairs."""
    lanes = machine.lanes
    if dot.kind == "vnni":
        for x, weights in pairs:
            spread = kernel.reinterpret(kernel.broadcast(x, lanes), "uint8", 4 * lanes)
            acc = kernel.intrinsic("int32", lanes, machine.vnni, acc, spread, weights())
        return acc
    if dot.kind == "madd_u8s8":
        total = None
        for x, weights in pairs:
            spread = kernel.reinterpret(kernel.broadcast(x, lanes), "uint8", 4 * lanes)
            term = kernel.intrinsic("int16", 2 * lanes, machine.madd_u8s8, spread, weights())
            total = term if total is None else total + term
        ones = kernel.const(1, "int16", 2 * lanes)
        return acc + kernel.intrinsic("int32", lanes, machine.madd_s16, total, ones)
    if dot.kind == "madd_s16":
        for x, weights in pairs:
            spread = kernel.reinterpret(kernel.broadcast(x, lanes), "int16", 2 * lanes)
            acc = acc + kernel.intrinsic("int32", lanes, machine.madd_s16, spread, weights())
        return acc
    for x, weights in pairs:
        wide = kernel.cast(weights(), dot.accumulator, lanes)
        acc = acc + kernel.broadcast(kernel.cast(x, dot.accumulator), lanes) * wide
    return acc
