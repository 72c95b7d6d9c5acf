"""The processor that C text is written for: scalar, without borders in memory."""

from dataclasses import replace

from qcompiler.targets.shared.machine import Machine

SCALAR = Machine(
    name="c99",
    llvm={"kind": "c"},
    cpu_flags=(),
    lanes=1,
    registers=8,
    alignment=8,
    slack=0,
    helpers=True,
    in_place=True,
    borders=False,
)

PACKED = replace(SCALAR, name="c99-packed", packed=True)
"""With weights of 2 to 4 bits packed."""
