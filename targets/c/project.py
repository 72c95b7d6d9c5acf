"""Project files of a firmware bundle: Makefile, CMakeLists.txt, README."""

from __future__ import annotations

from collections.abc import Mapping

from qcompiler.targets.c.emit import Sources
from qcompiler.targets.c.objects import COMPILER_FLAGS

_MAKEFILE = """# make selftest: compile with the strictest warnings and compare with the oracle's answers
CC ?= cc
CFLAGS ?= -O2
STRICT = -std=c99 -ffreestanding -pedantic -Wall -Wextra -Wconversion -Wsign-conversion -Wcast-align \\
\t-Wstrict-prototypes -Wmissing-prototypes -Werror
OBJECTS = src/{name}.o src/{name}_kernels.o

lib{name}.a: $(OBJECTS)
\t$(AR) rcs $@ $(OBJECTS)

src/%.o: src/%.c
\t$(CC) $(CFLAGS) $(STRICT) -Isrc -c -o $@ $<

selftest: test/selftest.c $(OBJECTS)
\t$(CC) $(CFLAGS) $(STRICT) -Isrc -o selftest test/selftest.c $(OBJECTS)
\t./selftest && echo "bit-exact"

clean:
\trm -f $(OBJECTS) lib{name}.a selftest

.PHONY: clean selftest
"""

_OBJECT_MAKEFILE = """# The kernels are an object file for {core}; what is compiled here goes with it.
CC = arm-none-eabi-gcc
AR = arm-none-eabi-ar
CFLAGS ?= -Os
CORE = {flags}

lib{name}.a: src/{name}.o src/{name}_kernels.o
\t$(AR) rcs $@ src/{name}.o src/{name}_kernels.o

src/{name}.o: src/{name}.c
\t$(CC) $(CORE) $(CFLAGS) -std=c99 -Isrc -c -o $@ $<

clean:
\trm -f src/{name}.o lib{name}.a

.PHONY: clean
"""

_CMAKE = """cmake_minimum_required(VERSION 3.13)
project(qc_{name} C)
add_library(qc_{name} STATIC src/{name}.c src/{name}_kernels.c)
target_include_directories(qc_{name} PUBLIC src)
set_property(TARGET qc_{name} PROPERTY C_STANDARD 99)
"""


def makefile(name: str) -> str:
    """Makefile: a static library and the self-test."""
    return _MAKEFILE.format(name=name)


def object_makefile(name: str, core: str) -> str:
    """Makefile of a bundle whose kernels are an object for `core`."""
    return _OBJECT_MAKEFILE.format(name=name, core=core, flags=COMPILER_FLAGS[core])


def cmake(name: str) -> str:
    """CMakeLists.txt: a static library."""
    return _CMAKE.format(name=name)


def readme(sources: Sources, sizes: Mapping[str, int], core: str | None = None) -> str:
    """What is in the folder, with the numbers. core: of the object, if kernels are one."""
    name = sources.name
    if core:
        add = (
            f"Add `src/{name}.c` and the object `src/{name}_kernels.o` to your build and include `{name}.h`.\n"
            f"The object is for `{COMPILER_FLAGS[core]}`; `make` puts both into `lib{name}.a`.\n"
            "It may call `memset`, and needs neither heap nor float."
        )
        proof = "`test/selftest.c`, linked with it and run on the board, returns 0 when every bit is the oracle's."
    else:
        add = (
            f"Add `src/{name}.c` and `src/{name}_kernels.c` to your build and include `{name}.h`.\n"
            "They need a C99 compiler and nothing else: no library, no heap, no float."
        )
        proof = "`make selftest` compiles with strict warnings and compares seeded inputs with the oracle's answers."
    about = "" if core else ", about (Cortex-M4, -Os)"
    return f"""# {name}: sources for firmware

{add}
`src/{name}_float.c` is optional: it quantizes inputs and dequantizes outputs.

    {sources.run_signature()};

| what | bytes |
|---|---|
| constants (flash) | {sizes["weight_bytes"]} |
| code (flash){about} | {sizes["code_bytes"]} |
| arena (RAM) | {sizes["arena_bytes"]}, lower bound {sizes["arena_lower_bound"]} |

{proof}
"""
