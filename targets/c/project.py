"""Project files of a firmware bundle: Makefile, CMake, README. See modules.py for Zephyr and Arduino."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from qcompiler.targets.c.emit import Sources
from qcompiler.targets.c.mcus import Mcu
from qcompiler.targets.c.state import reset_signature

_MAKEFILE = """# make: lib{name}.a{about}
{selftest_about}
{tools}
CFLAGS ?= {level}
STRICT = -std=c99 -ffreestanding -pedantic -Wall -Wextra -Wconversion -Wsign-conversion -Wcast-align \\
\t-Wstrict-prototypes -Wmissing-prototypes -Werror
OBJECTS = {objects}

lib{name}.a: $(OBJECTS)
\t$(AR) rcs $@ $(OBJECTS)

src/%.o: src/%.c
\t$(CC) $(MCU) $(CFLAGS) $(STRICT) -Isrc -c -o $@ $<
{more}
clean:
\trm -f {built} lib{name}.a selftest

.PHONY: clean selftest
"""

_ASSEMBLE = """
src/%.o: src/%.S src/%.bin
\t$(CC) $(MCU) -Isrc -c -o $@ $<
"""

_SELFTEST = """
selftest: test/selftest.c {sources}
\t$(HOST_CC) {level} $(STRICT) -Isrc -o selftest test/selftest.c {sources}
\t./selftest && echo "bit-exact"
"""

_CMAKE = """cmake_minimum_required(VERSION 3.15)
project(qc_{name} {languages})
add_library(qc_{name} STATIC {sources})
target_include_directories(qc_{name} PUBLIC src)
set(gnu $<AND:$<COMPILE_LANGUAGE:C>,$<C_COMPILER_ID:GNU,Clang>>)
target_compile_options(qc_{name} PRIVATE $<${{gnu}}:-ffreestanding>)
set_target_properties(qc_{name} PROPERTIES C_STANDARD 99 LINKER_LANGUAGE C)
"""

_TOOLCHAIN = """# cmake -DCMAKE_TOOLCHAIN_FILE={mcu}.cmake -DCMAKE_BUILD_TYPE=MinSizeRel -B build .
set(CMAKE_SYSTEM_NAME Generic)
set(CMAKE_SYSTEM_PROCESSOR {processor})
set(CMAKE_C_COMPILER {compiler})
set(CMAKE_ASM_COMPILER {compiler})
set(CMAKE_C_FLAGS_INIT "{flags}")
set(CMAKE_ASM_FLAGS_INIT "{flags}")
set(CMAKE_TRY_COMPILE_TARGET_TYPE STATIC_LIBRARY)
"""


@dataclass(frozen=True)
class Project:
    """What project files say of a bundle. `core`: of the object, if kernels are one; `mcu`: none for any machine."""

    sources: Sources
    mcu: Mcu | None
    core: str | None = None

    @property
    def name(self) -> str:
        """The prefix of the model."""
        return self.sources.name

    def parts(self) -> list[str]:
        """What makes the library, as paths in the bundle: sources, and the kernels' object if they are one."""
        kernels = f"{self.name}_kernels.{{}}"
        files = [f"src/{file}" for file in self.sources.files()]
        if self.core:
            files[files.index(f"src/{kernels.format('c')}")] = f"src/{kernels.format('o')}"
        return files

    def files(self) -> dict[str, str]:
        """Makefile, CMakeLists.txt, and a toolchain file where the core is known."""
        found = {"Makefile": self._makefile(), "CMakeLists.txt": self._cmake()}
        if self.mcu:
            flags = " ".join(self.mcu.flags)
            found[f"{self.mcu.name}.cmake"] = _TOOLCHAIN.format(
                mcu=self.mcu.name, processor=self.mcu.processor, compiler=self.mcu.compiler, flags=flags
            )
        return found

    def _makefile(self) -> str:
        parts = self.parts()
        built = [part.rpartition(".")[0] + ".o" for part in parts if not part.endswith(".o")]
        objects = [part.rpartition(".")[0] + ".o" for part in parts]
        sources = " ".join(part for part in parts if not part.endswith(".o"))
        if self.mcu:
            tools = f"CROSS = {self.mcu.prefix}\nCC = $(CROSS)gcc\nAR = $(CROSS)ar\nHOST_CC ?= cc\n"
            tools += f"MCU = {' '.join(self.mcu.flags)}"
        else:
            tools = "CC ?= cc\nHOST_CC ?= $(CC)\nMCU ="
        more = _ASSEMBLE if self.sources.blob else ""
        about = f" for {self.mcu.name}" if self.mcu else ""
        test = "# make selftest: compile with the strictest warnings and compare with the oracle's answers"
        if self.core:
            test = f"# The kernels are an object file for {self.core}; test/selftest.c runs there."
        else:
            more += _SELFTEST.format(sources=sources, level="-O2" if self.mcu else "$(CFLAGS)")
            test += " on this machine" if self.mcu else ""
        return _MAKEFILE.format(
            name=self.name, about=about, selftest_about=test, tools=tools, objects=" ".join(objects), more=more,
            built=" ".join(built), level="-Os" if self.mcu else "-O2",
        )  # fmt: skip

    def _cmake(self) -> str:
        languages = "C ASM" if self.sources.blob else "C"
        return _CMAKE.format(name=self.name, languages=languages, sources=" ".join(self.parts()))

    def _states(self) -> str:
        if not self.sources.states:
            return ""
        return (
            f"    {reset_signature(self.name, self.sources.caller_arena)};\n\nCall the second before the first step.\n"
        )

    def readme(self, sizes: Mapping[str, int]) -> str:
        """What is in the folder, with the numbers."""
        name = self.name
        compiled = " and ".join(f"`{part}`" for part in self.parts() if not part.endswith(".o"))
        if self.core and self.mcu:
            add = (
                f"Add {compiled} and the object `src/{name}_kernels.o` to your build and include `{name}.h`.\n"
                f"The object is for `{' '.join(self.mcu.flags)}`; `make` puts all into `lib{name}.a`.\n"
                "It may call `memset`, and needs neither heap nor float."
            )
            proof = "`test/selftest.c`, linked with it and run on the board, returns 0 when every bit is the oracle's."
        else:
            add = (
                f"Add {compiled} to your build and include `{name}.h`.\n"
                "They need a C99 compiler and nothing else: no library, no heap, no float.\n"
            )
            core = f" for `{' '.join(self.mcu.flags)}`" if self.mcu else ""
            add += f"`make` builds `lib{name}.a`{core}. "
            add += "The folder is also a Zephyr module and an Arduino library."
            proof = (
                "`make selftest` compiles with strict warnings and compares seeded inputs with the oracle's answers."
            )
        about = "" if self.core else ", about (Cortex-M4, -Os)"
        weights = f", in `src/{name}_weights.bin`" if self.sources.blob else ""
        flash, ram = sizes["weight_bytes"] + sizes["code_bytes"], sizes["arena_bytes"]
        kept = sizes.get("state_bytes", 0)
        stack = f"| states, kept between steps (RAM) | {kept} |\n" if kept else ""
        if "stack_bytes" in sizes:
            stack = f"| stack (RAM){about} | {sizes['stack_bytes']} |\n"
            stack += f"| flash, RAM in all{about} | {flash}, {ram + kept + sizes['stack_bytes']} |\n"
        return f"""# {name}: sources for firmware

{add}
`src/{name}_float.c` is optional: it quantizes inputs and dequantizes outputs.

    {self.sources.run_signature()};
{self._states()}
| what | bytes |
|---|---|
| constants (flash){weights} | {sizes["weight_bytes"]} |
| code (flash){about} | {sizes["code_bytes"]} |
| arena (RAM) | {sizes["arena_bytes"]}, lower bound {sizes["arena_lower_bound"]} |
{stack}
{proof}
"""
