"""Emulated boards: cross-compile the sources of a bundle, run them, read exit code, stack and instructions."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PAINT = 16384
"""Bytes of stack that the probe paints."""


@dataclass(frozen=True)
class Board:
    """A machine of QEMU and how to compile for it."""

    name: str
    core: str
    compiler: str
    emulator: str
    machine: str
    flags: tuple[str, ...]
    """Code generation, for sources and linking."""
    link: tuple[str, ...]
    packages: tuple[str, ...]
    """Of Debian."""

    def missing(self) -> str:
        """Why it cannot run here; empty if it can."""
        lacking = [tool for tool in (self.compiler, self.emulator) if shutil.which(tool) is None]
        return f"no {' and no '.join(lacking)} (apt install {' '.join(self.packages)})" if lacking else ""


def _arm(name: str, core: str, machine: str, flags: Sequence[str], rom: int, constants: int, ram: int) -> Board:
    places = (f"ROM_BASE={rom:#x}", f"CONST_BASE={constants:#x}", f"RAM_BASE={ram:#x}")
    link = (str(HERE / "startup.c"), "--specs=rdimon.specs", "-T", str(HERE / "mps2.ld"), "-Wl,--no-warn-rwx-segments")
    return Board(
        name, core, "arm-none-eabi-gcc", "qemu-system-arm", machine, ("-mthumb", *flags),
        (*link, *(f"-Wl,--defsym={place}" for place in places)),
        ("gcc-arm-none-eabi", "libnewlib-arm-none-eabi", "qemu-system-arm"),
    )  # fmt: skip


_PICOLIBC = {
    "__flash": 0x80000000, "__flash_size": 0x800000, "__ram": 0x80800000, "__ram_size": 0x400000,
    "__stack_size": 0x10000,
}  # fmt: skip
_HARD = "-mfloat-abi=hard"
BOARDS: Mapping[str, Board] = {
    board.name: board
    for board in (
        _arm("m4", "Cortex-M4", "mps2-an386", ["-mcpu=cortex-m4", "-mfloat-abi=soft"], 0, 0x40000, 0x20000000),
        _arm("m7", "Cortex-M7", "mps2-an500", ["-mcpu=cortex-m7", _HARD, "-mfpu=fpv5-d16"], 0, 0x40000, 0x20000000),
        _arm(
            "m33", "Cortex-M33", "mps2-an505", ["-mcpu=cortex-m33", "-mfloat-abi=soft"], 0x10000000, 0x10040000, 0x38000000
        ),
        _arm("m55", "Cortex-M55", "mps3-an547", ["-mcpu=cortex-m55", _HARD], 0x10000000, 0x70000000, 0x31000000),
        Board(
            "rv32", "RV32IMAC", "riscv64-unknown-elf-gcc", "qemu-system-riscv32", "virt",
            ("-march=rv32imac", "-mabi=ilp32"),
            ("--specs=picolibc.specs", "--oslib=semihost", "--crt0=hosted",
             *(f"-Wl,--defsym={name}={value:#x}" for name, value in _PICOLIBC.items())),
            ("gcc-riscv64-unknown-elf", "picolibc-riscv64-unknown-elf", "qemu-system-misc"),
        ),
    )
}  # fmt: skip


def build(
    board: Board, bundle: Path, facts: Mapping[str, Any], output: Path, *, main: Path | None = None, level: str = "-Os"
) -> Path:
    """The image of a bundle's sources and a program with main(); the self-test if none is given.

    facts: the manifest's entry of the target. Raises CalledProcessError with the compiler's words.
    """
    sources = [str(bundle / "src" / name) for name in facts["files"]]
    program = str(main or bundle / "test" / "selftest.c")
    specs = [flag for flag in board.link if flag.startswith("--specs")]
    objects = []
    for i, source in enumerate((*sources, program)):
        objects.append(f"{output}.{i}.o")
        strict = ["-std=c99", "-Wall", "-Wextra", "-Wconversion", "-Wsign-conversion", "-Wcast-align", "-Werror"]
        command = [board.compiler, *board.flags, *specs, *(strict if i < len(sources) else []), level]
        command += ["-ffunction-sections", "-fdata-sections", f"-I{bundle / 'src'}", "-c", source, "-o", objects[-1]]
        subprocess.run(command, check=True, capture_output=True, text=True)
    command = [board.compiler, *board.flags, level, *objects, "-Wl,--gc-sections", *board.link, "-o", str(output)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return output


def emulate(board: Board, image: Path, timeout: float, extra: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    """Run an image; its exit code is main's. Raises TimeoutExpired."""
    command = [board.emulator, "-M", board.machine, "-nographic", "-monitor", "none", "-serial", "none"]
    if board.emulator.endswith("riscv32"):
        command += ["-bios", "none"]
    command += ["-semihosting-config", "enable=on,target=native", *extra, "-kernel", str(image)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)


def probe(facts: Mapping[str, Any], runs: int) -> str:
    """A program that prints the deepest stack of qc_NAME_run, in bytes."""
    name = str(facts["prefix"])
    signature = str(facts["run"])
    arguments = [word.rpartition("*")[2].strip() for word in signature.partition("(")[2].rstrip(")").split(",")]
    memory = []
    for argument in arguments:
        size = f"QC_{name.upper()}_ARENA_BYTES" if argument == "arena" else f"8 * QC_{name.upper()}_{argument.upper()}_SIZE"
        memory.append(f"static union {{ long long align; char bytes[{size}]; }} {argument};")
    call = f"qc_{name}_run({', '.join(f'(void *){argument}.bytes' for argument in arguments)});"
    return f"""#include <stdint.h>
#include <stdio.h>
#include "{name}.h"
{chr(10).join(memory)}
int main(void) {{
  volatile uint8_t mark;
  volatile uint8_t *top = (volatile uint8_t *)((uintptr_t)&mark - 64u), *deep = top - {PAINT};
  for (volatile uint8_t *p = deep; p < top; ++p) *p = 0xA5u;
  for (int i = 0; i < {runs}; ++i) {call}
  while (deep < top && *deep == 0xA5u) ++deep;
  printf("stack %ld\\n", (long)((volatile uint8_t *)__builtin_frame_address(0) - deep));
  return 0;
}}
"""
