"""What is done to a product's codes before they leave the block: tables of bytes, and sums with another value.

Numbers of a sum are parameters of the call, so that layers share kernels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from qcompiler.targets.cuda.grid import GridKernel
from qcompiler.targets.cuda.tir.epilogue import itemsize
from qcompiler.targets.shared.tir.builder import Expr, Pointer

WIDEST = 16
"""Bytes of a load."""
SUM = ("pixel", "a_zero", "b_zero", "a_multiplier", "b_multiplier", "shift", "low", "high", "zero")
"""int32 parameters of a sum: elements of the other value between pixels; what its Add node says, the product being a,
the other value b."""


@dataclass(frozen=True)
class Tail:
    """One step. storage: of its codes. other: storage of the value that is added, '' for a table; load: bytes of it
    that may be read at once."""

    storage: str
    other: str = ""
    load: int = 0


class Tails:
    """Steps of a kernel under construction: pointers first, then `numbers` behind all pointers."""

    def __init__(self, kernel: GridKernel, storage: str, tails: Sequence[Tail]) -> None:
        self.kernel, self.tails = kernel, tails
        self.storages = [storage, *(tail.storage for tail in tails)]
        self.pointers: list[Pointer] = [
            kernel.pointer(f"other{i}", tail.other) if tail.other else kernel.pointer(f"table{i}", tail.storage)
            for i, tail in enumerate(tails)
        ]
        self.values: list[dict[str, Expr]] = []

    def numbers(self) -> None:
        """Declare the parameters of sums."""
        k = self.kernel
        for i, tail in enumerate(self.tails):
            self.values.append({name: k.number(f"{name}{i}") for name in SUM} if tail.other else {})

    def apply(self, codes: Pointer, pixel: Expr, channel: Expr, elements: int) -> Pointer:
        """Codes of `elements` channels from `channel` on, of a pixel; a local array of the last storage."""
        k = self.kernel
        others: list[Any] = [self._read(i, pixel, channel, elements) for i in range(len(self.tails))]
        out = k.local(elements, self.storages[-1])
        with k.unrolled(elements) as e:
            code = k.let(k.cast(codes.load(e), "int32"))
            for i, tail in enumerate(self.tails):
                if not tail.other:
                    first = {"uint8": 0, "int8": -128}[self.storages[i]]
                    code = k.let(k.cast(self.pointers[i].load(code - first), "int32"))
                    continue
                wide = itemsize(tail.other) > 1 or itemsize(self.storages[i]) > 1
                given = [self.values[i][name] for name in SUM[1:]]
                other = k.cast(others[i].load(e), "int32")
                code = k.let(k.value("qc_add_wide" if wide else "qc_add", code, other, *given))
            out.store(e, k.cast(code, self.storages[-1]))
        return out

    def _read(self, i: int, pixel: Expr, channel: Expr, elements: int) -> Pointer | None:
        k, tail = self.kernel, self.tails[i]
        if not tail.other:
            return None
        size = itemsize(tail.other)
        piece = min(tail.load, elements * size)
        found = k.local(elements, tail.other)
        at = k.let(pixel * self.values[i]["pixel"] + channel)
        for begin in range(0, elements, piece // size):
            k.call(f"qc_move{piece}", k.at(found, begin), k.at(self.pointers[i], at + begin))
        return found
