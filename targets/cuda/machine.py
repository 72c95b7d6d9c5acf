"""The processors that kernels are written for: one thread of many, scalar, without borders in memory."""

from dataclasses import replace

from qcompiler.targets.shared.machine import Machine

THREAD = Machine(
    name="sm_75",
    llvm={"kind": "cuda", "arch": "sm_80"},
    cpu_flags=(),
    lanes=1,
    registers=64,
    alignment=256,
    slack=256,
    borders=False,
    grid=True,
)
"""`arch` only has to be one that TVM knows: what depends on the card is behind functions of templates/qc_device.h."""

LEVELS = {machine.name: machine for machine in (THREAD, replace(THREAD, name="sm_90a"))}
"""Kernels that all cards have from sm_75 on, and such with wgmma, which sm_90 has and no other."""
