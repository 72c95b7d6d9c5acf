"""Processors for which kernels come as an object file, with vectors that C text cannot say."""

from __future__ import annotations

import struct

from qcompiler.targets.shared.machine import Machine

OBJECTS: dict[str, Machine] = {
    "cortex-m55": Machine(
        name="cortex-m55",
        llvm={
            "kind": "llvm", "mtriple": "thumbv8.1m.main-none-unknown-eabi", "mcpu": "cortex-m55", "mfloat-abi": "hard",
            "vector-width": 128,
        },
        cpu_flags=(),
        lanes=4,
        registers=8,
        alignment=16,
        slack=16,
    ),
}  # fmt: skip
"""Core -> machine."""

COMPILER_FLAGS = {"cortex-m55": "-mcpu=cortex-m55 -mthumb -mfloat-abi=hard"}
"""What the rest of the firmware is compiled with, for gcc and clang."""

_EXECUTABLE = 4


def code_bytes(elf: bytes) -> int:
    """Bytes of code in a 32-bit little-endian ELF object: the sum of its executable sections."""
    assert elf[:6] == b"\x7fELF\x01\x01", "no 32-bit little-endian ELF file"
    (start,) = struct.unpack_from("<I", elf, 32)
    size, count = struct.unpack_from("<HH", elf, 46)
    headers = (struct.unpack_from("<10I", elf, start + i * size) for i in range(count))
    return sum(header[5] for header in headers if header[2] & _EXECUTABLE)
