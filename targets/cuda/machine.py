"""The processor that shared kernels are written for: one thread, scalar, without borders in memory."""

from qcompiler.targets.shared.machine import Machine

THREAD = Machine(
    name="cuda-thread",
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
