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


def _arm(name: str, core: str, machine: str, flags: Sequence[str], places: Mapping[str, int]) -> Board:
    link = (str(HERE / "startup.c"), "--specs=rdimon.specs", "-T", str(HERE / "mps2.ld"), "-Wl,--no-warn-rwx-segments")
    return Board(
        name, core, "arm-none-eabi-gcc", "qemu-system-arm", machine, ("-mthumb", *flags),
        (*link, *(f"-Wl,--defsym={place}={at:#x}" for place, at in places.items())),
        ("gcc-arm-none-eabi", "libnewlib-arm-none-eabi", "qemu-system-arm"),
    )  # fmt: skip


_PICOLIBC = {
    "__flash": 0x80000000, "__flash_size": 0x800000, "__ram": 0x80800000, "__ram_size": 0x400000,
    "__stack_size": 0x10000,
}  # fmt: skip
_MPS2 = {
    "ROM_BASE": 0, "CODE_BASE": 0x400, "CODE_BYTES": 0x3FC00, "CONST_BASE": 0x40000, "RAM_BASE": 0x20000000,
}  # fmt: skip
_MPS2_SECURE = {
    "ROM_BASE": 0x10000000, "CODE_BASE": 0x10000400, "CODE_BYTES": 0x3FC00, "CONST_BASE": 0x10040000,
    "RAM_BASE": 0x38000000,
}  # fmt: skip
_MPS3 = {
    "ROM_BASE": 0x10000000, "CODE_BASE": 0x11000000, "CODE_BYTES": 0x200000, "CONST_BASE": 0x70000000,
    "RAM_BASE": 0x31000000,
}  # fmt: skip
_SOFT, _HARD = "-mfloat-abi=soft", "-mfloat-abi=hard"
BOARDS: Mapping[str, Board] = {
    board.name: board
    for board in (
        _arm("m4", "Cortex-M4", "mps2-an386", ["-mcpu=cortex-m4", _SOFT], _MPS2),
        _arm("m7", "Cortex-M7", "mps2-an500", ["-mcpu=cortex-m7", _HARD, "-mfpu=fpv5-d16"], _MPS2),
        _arm("m33", "Cortex-M33", "mps2-an505", ["-mcpu=cortex-m33", _SOFT], _MPS2_SECURE),
        _arm("m55", "Cortex-M55", "mps3-an547", ["-mcpu=cortex-m55", _HARD], _MPS3),
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
    objects += [str(bundle / "src" / facts["object"]["file"])] if "object" in facts else []
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
        upper = f"QC_{name.upper()}_{argument.upper()}"
        size = f"{upper}_BYTES" if argument in ("arena", "state") else f"8 * {upper}_SIZE"
        memory.append(f"static union {{ long long align; char bytes[{size}]; }} {argument};")
    call = f"qc_{name}_run({', '.join(f'(void *){argument}.bytes' for argument in arguments)});"
    return f"""#include <stdint.h>
#include <stdio.h>
#include "{name}.h"
{chr(10).join(memory)}
void qc_after(void);
__attribute__((noinline)) void qc_after(void) {{ __asm volatile(""); }}
int main(void) {{
  volatile uint8_t mark;
  volatile uint8_t *top = (volatile uint8_t *)((uintptr_t)&mark - 64u), *deep = top - {PAINT};
  for (volatile uint8_t *p = deep; p < top; ++p) *p = 0xA5u;
  for (int i = 0; i < {runs}; ++i) {call}
  qc_after();
  const uint8_t *sp;
#ifdef __riscv
  __asm volatile("mv %0, sp" : "=r"(sp));
#else
  __asm volatile("mov %0, sp" : "=r"(sp));
#endif
  while (deep < top && *deep == 0xA5u) ++deep;
  printf("stack %ld\\n", (long)(sp - (const uint8_t *)deep));
  return 0;
}}
"""


@dataclass(frozen=True)
class Linked:
    """Bytes that a model takes in an image: an image that runs it less one without it."""

    flash: int
    variables: int
    """.data and .bss: the arena, where the model holds it."""
    stack: int
    """Of qc_NAME_run at its deepest, painted over on the board."""


def linked(board: Board, bundle: Path, facts: Mapping[str, Any], folder: Path, timeout: float = 60.0) -> Linked:
    """What a model takes at -Os, without inputs and outputs. Raises CalledProcessError, TimeoutExpired."""
    program = probe(facts, 2)
    use = '__attribute__((noinline)) static void use(void *x, ...) { __asm volatile("" ::"r"(x)); }\n'
    texts = {"with": program, "without": use + program.replace(f"qc_{facts['prefix']}_run(", "use(")}
    sections = []
    for name, text in texts.items():
        (folder / f"{name}.c").write_text(text)
        image = build(board, bundle, facts, folder / name, main=folder / f"{name}.c")
        size = [board.compiler.removesuffix("gcc") + "size", str(image)]
        listing = subprocess.run(size, capture_output=True, text=True, check=True).stdout
        sections.append([int(field) for field in listing.splitlines()[1].split()[:3]])
    text, data, bss = (a - b for a, b in zip(*sections, strict=True))
    stack = int(emulate(board, folder / "with", timeout).stdout.split()[1])
    return Linked(text + data, data + bss, stack)


def build_plugin(output: Path) -> Path:
    """The instruction counter, compiled for this machine."""
    subprocess.run(["gcc", "-shared", "-fPIC", "-O2", str(HERE / "count.c"), "-o", str(output)], check=True)
    return output


def instructions(
    board: Board, image: Path, plugin: Path, facts: Mapping[str, Any], timeout: float
) -> list[tuple[str, int]]:
    """(kernel, instructions) of every call that the first qc_NAME_run makes, in order.

    A figure reaches from the entry of one kernel to that of the next: it holds what it calls, and the few instructions
    that pass the next one's arguments. The last ends where qc_NAME_run returns.
    """
    prefix = f"qc_{facts['prefix']}_"
    listing = subprocess.run(
        [board.compiler.removesuffix("gcc") + "nm", str(image)], check=True, capture_output=True, text=True
    ).stdout
    entries: dict[int, str] = {}
    for line in listing.splitlines():
        address, kind, name = line.split()[-3:] if len(line.split()) == 3 else ("0", "", "")
        if kind.lower() == "t" and (name.startswith(prefix) or name == "qc_after"):
            entries[int(address, 16) & ~1] = name
    log = image.with_suffix(".counts")
    marks = ",".join(f"mark={address:#x}" for address in entries)
    done = emulate(board, image, timeout, ["-plugin", f"{plugin},out={log},{marks}"])
    if done.returncode:
        raise RuntimeError(f"{board.name}: exit code {done.returncode}: {done.stderr.strip()[:300]}")
    rows = (line.split() for line in log.read_text().splitlines())
    steps = [(entries.get(int(address, 16), ""), int(at)) for address, at in rows]
    start = [name for name, _ in steps].index(f"{prefix}run")
    end = [name for name, _ in steps].index("qc_after")
    calls = steps[start + 1 : end + 1]
    return [(name, behind - at) for (name, at), (_, behind) in zip(calls[:-1], calls[1:], strict=True)]
