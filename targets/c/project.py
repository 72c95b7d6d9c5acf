"""Project files of a firmware bundle: Makefile, CMakeLists.txt, README."""

from __future__ import annotations

from collections.abc import Mapping

from qcompiler.targets.c.emit import Sources

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

_CMAKE = """cmake_minimum_required(VERSION 3.13)
project(qc_{name} C)
add_library(qc_{name} STATIC src/{name}.c src/{name}_kernels.c)
target_include_directories(qc_{name} PUBLIC src)
set_property(TARGET qc_{name} PROPERTY C_STANDARD 99)
"""


def makefile(name: str) -> str:
    """Makefile: a static library and the self-test."""
    return _MAKEFILE.format(name=name)


def cmake(name: str) -> str:
    """CMakeLists.txt: a static library."""
    return _CMAKE.format(name=name)


def readme(sources: Sources, sizes: Mapping[str, int]) -> str:
    """What is in the folder, with the numbers."""
    return f"""# {sources.name}: sources for firmware

Add `src/{sources.name}.c` and `src/{sources.name}_kernels.c` to your build and include `{sources.name}.h`.
They need a C99 compiler and nothing else: no library, no heap, no float. `{sources.name}_float.c` is optional.

    {sources.run_signature()};

| what | bytes |
|---|---|
| constants (flash) | {sizes["weight_bytes"]} |
| arena (RAM) | {sizes["arena_bytes"]}, lower bound {sizes["arena_lower_bound"]} |

`make selftest` compiles with strict warnings and compares seeded inputs with the oracle's answers, bit for bit.
"""
