"""What kernels need to know of a processor: vector width, registers, dot-product instructions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Machine:
    """One instruction set. `lanes` counts int32 lanes of a vector; 1 means scalar code."""

    name: str
    llvm: Mapping[str, Any]
    """TVM LLVM target."""
    cpu_flags: tuple[str, ...]
    """Flags of /proc/cpuinfo that code for it needs."""
    lanes: int
    registers: int
    vnni: str = ""
    """LLVM intrinsic of the u8 x s8 dot product into int32, if there is one."""
    madd_u8s8: str = ""
    """Saturating u8 x s8 pair sums into int16 (vpmaddubsw)."""
    madd_s16: str = ""
    """s16 x s16 pair sums into int32 (vpmaddwd)."""
    across: str = ""
    """s8 x s8 products of 16 lanes summed into one int32 scalar (vmladava)."""
    permute_bytes: str = ""
    """Two-table byte permutation over 128 entries (vpermi2b)."""
    alignment: int = 64
    """Of values in the arena, in bytes."""
    slack: int = 64
    """Bytes behind the arena that vector loads may touch; what they read there meets zero weights."""
    helpers: bool = False
    """Whether the functions of targets/c/templates/ are there to be called (see tir/scalar.py, tir/columns.py)."""
    packed: bool = False
    """Whether weights of 2 to 4 bits stay packed; needs `helpers`."""
    in_place: bool = False
    """Whether outputs may be written over inputs of the same size."""
    borders: bool = True
    """Whether images carry their padding in memory; without, kernels clip their windows (see tir/scalar.py)."""
    grid: bool = False
    """Whether a unit of work is one thread's of thousands, so that units are as small as can be."""

    def __hash__(self) -> int:
        return hash(self.name)
