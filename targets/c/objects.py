"""Processors for which kernels come as an object file, with vectors that C text cannot say."""

from __future__ import annotations

import struct
from typing import Any

from qcompiler.targets.shared.machine import Machine


def _scalar(core: str, triple: str, cpu: str, **more: Any) -> Machine:
    """A core without vectors: the kernels of the C text, by LLVM."""
    llvm = {"kind": "llvm", "mtriple": triple, "mcpu": cpu, "vector-width": 32, **more}
    return Machine(core, llvm, cpu_flags=(), lanes=1, registers=8, alignment=8, slack=0, borders=False)


_EABI, _HARD = "none-unknown-eabi", "none-unknown-eabihf"
OBJECTS: dict[str, Machine] = {
    "cortex-m4": _scalar("cortex-m4", f"thumbv7em-{_EABI}", "cortex-m4"),
    "cortex-m7": _scalar("cortex-m7", f"thumbv7em-{_HARD}", "cortex-m7", **{"mfloat-abi": "hard"}),
    "cortex-m33": _scalar("cortex-m33", f"thumbv8m.main-{_EABI}", "cortex-m33"),
    "cortex-m55": Machine(
        name="cortex-m55",
        llvm={
            "kind": "llvm", "mtriple": "thumbv8.1m.main-none-unknown-eabi", "mcpu": "cortex-m55", "mfloat-abi": "hard",
            "vector-width": 128,
        },
        cpu_flags=(),
        lanes=4,
        registers=8,
        across="llvm.arm.mve.vmldava.v16i8",
        alignment=16,
        slack=16,
    ),
    "rv32imac": _scalar("rv32imac", "riscv32-unknown-elf", "generic-rv32", mabi="ilp32", mattr=["+m", "+a", "+c"]),
}  # fmt: skip
"""Core -> machine."""

_EXECUTABLE = 4


def code_bytes(elf: bytes) -> int:
    """Bytes of code in a 32-bit little-endian ELF object: the sum of its executable sections."""
    assert elf[:6] == b"\x7fELF\x01\x01", "no 32-bit little-endian ELF file"
    (start,) = struct.unpack_from("<I", elf, 32)
    size, count = struct.unpack_from("<HH", elf, 46)
    headers = (struct.unpack_from("<10I", elf, start + i * size) for i in range(count))
    return sum(header[5] for header in headers if header[2] & _EXECUTABLE)
