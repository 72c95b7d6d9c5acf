"""One inference of any C or C++ implementation on the emulated Cortex-M4: instructions, flash, RAM.

All implementations are measured in the same way: an image with the inference less the same image without it. Stack is
that of set-up and inference together, painted over on the board.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.mcu.boards import BOARDS, emulate

M4 = BOARDS["m4"]
SECONDS = 900.0
PAINT = 1 << 19
"""Bytes of stack that are painted: generators without an arena keep whole activations there."""

_MAIN = """#include <stdint.h>
#include <stdio.h>
{declarations}
#ifdef __cplusplus
extern "C" {{
#endif
void qc_before(void);
void qc_after(void);
#ifdef __cplusplus
}}
#endif
__attribute__((noinline)) void qc_before(void) {{ __asm volatile("" ::: "memory"); }}
__attribute__((noinline)) void qc_after(void) {{ __asm volatile("" ::: "memory"); }}
__attribute__((noinline)) static long work(void) {{
  {setup}
  qc_before();
  {run}
  qc_after();
  return (long)({arena});
}}
int main(void) {{
  volatile uint8_t mark;
  volatile uint8_t *top = (volatile uint8_t *)((uintptr_t)&mark - 64u), *deep = top - {paint};
  for (volatile uint8_t *p = deep; p < top; ++p) *p = 0xA5u;
  const long arena = work();
  while (deep < top && *deep == 0xA5u) ++deep;
  printf("stack %ld arena %ld\\n", (long)((volatile uint8_t *)__builtin_frame_address(0) - deep), arena);
  return 0;
}}
"""


@dataclass(frozen=True)
class Inference:
    """An implementation of one network, ready to be linked with a program that runs it once."""

    objects: Sequence[Path]
    """Objects and archives, in the order that the linker wants."""
    run: str
    """Statement: the inference."""
    declarations: str = ""
    setup: str = ""
    """Statement in front of it, not counted."""
    arena: str = "0"
    """Expression for the bytes of the arena in use, where `reserved` bytes of it are in .bss."""
    reserved: int = 0
    compiler: str = M4.compiler
    flags: Sequence[str] = ()
    link: Sequence[str] = field(default=())


@dataclass(frozen=True)
class Figures:
    """What one inference takes."""

    instructions: int
    flash: int
    static: int
    """Arena in use and other variables."""
    stack: int

    @property
    def ram(self) -> int:
        """All of it."""
        return self.static + self.stack


def compile_object(source: Path, output: Path, level: str, flags: Sequence[str], compiler: str = M4.compiler) -> Path:
    """One object for the Cortex-M4, unless it is there already. Raises CalledProcessError."""
    if not output.exists():
        output.parent.mkdir(parents=True, exist_ok=True)
        specs = [flag for flag in M4.link if flag.startswith("--specs")]
        command = [compiler, *M4.flags, *specs, level, "-ffunction-sections", "-fdata-sections", "-w", *flags]
        subprocess.run([*command, "-c", str(source), "-o", str(output)], check=True, capture_output=True, text=True)
    return output


def measure(inference: Inference, folder: Path, level: str, plugin: Path) -> Figures:
    """Link, run, count. Raises CalledProcessError where it does not link, RuntimeError where it does not run."""
    sections = []
    suffix = ".cc" if inference.compiler.endswith("g++") else ".c"
    for name in ("without", "with"):
        parts = {"declarations": "", "setup": "", "run": "", "arena": "0"}
        if name == "with":
            parts = {key: getattr(inference, key) for key in parts}
        source, image = folder / f"{name}{suffix}", folder / name
        source.write_text(_MAIN.format(paint=PAINT, **parts))
        output = folder / f"{name}.o"
        output.unlink(missing_ok=True)
        compile_object(source, output, level, inference.flags, inference.compiler)
        objects = [str(output), *(map(str, inference.objects) if name == "with" else ())]
        command = [inference.compiler, *M4.flags, level, *objects, *inference.link, "-Wl,--gc-sections", *M4.link]
        startup = str(next(flag for flag in M4.link if flag.endswith(".c")))
        if suffix == ".cc":  # g++ would compile it as C++
            command[command.index(startup)] = str(compile_object(Path(startup), folder / "startup.o", "-Os", ()))
        subprocess.run([*command, "-o", str(image)], check=True, capture_output=True, text=True)
        listing = subprocess.run(["arm-none-eabi-size", str(image)], check=True, capture_output=True, text=True).stdout
        sections.append([int(word) for word in listing.splitlines()[1].split()[:3]])
    text, data, bss = (b - a for a, b in zip(*sections, strict=True))
    spent, printed = _count(folder / "with", plugin)
    stack, arena = (int(printed[name]) for name in ("stack", "arena"))
    return Figures(spent, text + data, data + bss - inference.reserved + (arena if inference.reserved else 0), stack)


def _count(image: Path, plugin: Path) -> tuple[int, dict[str, str]]:
    """Instructions between qc_before and qc_after, and what the program printed."""
    listing = subprocess.run(["arm-none-eabi-nm", str(image)], check=True, capture_output=True, text=True).stdout
    marks = {match[2]: int(match[1], 16) & ~1 for match in re.finditer(r"(?m)^(\w+) T (qc_\w+)$", listing)}
    log = image.with_suffix(".counts")
    places = f"mark={marks['qc_before']:#x},mark={marks['qc_after']:#x}"
    done = emulate(M4, image, SECONDS, ["-plugin", f"{plugin},out={log},{places}"])
    if done.returncode:
        raise RuntimeError(f"exit code {done.returncode}: {(done.stderr + done.stdout).strip()[:300]}")
    at = [int(line.split()[1]) for line in log.read_text().splitlines()]
    words = done.stdout.split()
    return at[1] - at[0], dict(zip(words[::2], words[1::2], strict=True))
