"""Microcontrollers by their core: compiler and flags of project files, and for what sizes are measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

GENERIC = "generic"


@dataclass(frozen=True)
class Mcu:
    """A core, and how GNU compilers are told of it."""

    name: str
    prefix: str
    """Of the tools, as arm-none-eabi-."""
    flags: tuple[str, ...]
    """For compiling and linking."""
    link: tuple[str, ...] = ()
    """Beside them for linking: where the C library is."""
    processor: str = "arm"
    """CMake's word for it."""

    @property
    def compiler(self) -> str:
        """The C compiler."""
        return f"{self.prefix}gcc"


def _arm(core: str, *flags: str) -> Mcu:
    return Mcu(core, "arm-none-eabi-", (f"-mcpu={core}", "-mthumb", *flags))


MCUS: Mapping[str, Mcu] = {
    mcu.name: mcu
    for mcu in (
        _arm("cortex-m0"),
        _arm("cortex-m4"),
        _arm("cortex-m7", "-mfloat-abi=hard", "-mfpu=fpv5-d16"),
        _arm("cortex-m33"),
        _arm("cortex-m55", "-mfloat-abi=hard"),
        Mcu(
            "rv32imac",
            "riscv64-unknown-elf-",
            ("-march=rv32imac", "-mabi=ilp32"),
            ("--specs=picolibc.specs",),
            "riscv",
        ),
    )
}
"""Name of --mcu -> core. Float ABIs are those that firmware for parts with these cores mostly has; the interface of a
model has no float in registers, so another one is a matter of flags."""

CHOICES = (*MCUS, GENERIC)


def mcu_of(name: str | None) -> Mcu | None:
    """The core of --mcu or --object, or None for `generic`."""
    return MCUS.get(name or GENERIC)
