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

OLD = "sm_61"
"""The level without tensor cores: the oldest that has dp4a. Only for cards that are asked for by name."""
LEVELS = {machine.name: machine for machine in (replace(THREAD, name=OLD), THREAD, replace(THREAD, name="sm_90a"))}
"""Kernels without tensor cores, those that all cards from sm_75 on run, and those with wgmma, which only sm_90 has."""


def has_tensor_cores(machine: Machine) -> bool:
    """Whether a level's kernels multiply by them."""
    return machine.name != OLD
