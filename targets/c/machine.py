"""The processor that C text is written for: scalar, without borders in memory."""

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
