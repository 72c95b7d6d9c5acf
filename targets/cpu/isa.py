"""Instruction sets that the cpu target builds for, from the most portable to the fastest."""

from __future__ import annotations

from qcompiler.targets.shared.machine import Machine

_TRIPLE = "x86_64-unknown-linux-gnu"

LEVELS: dict[str, Machine] = {
    machine.name: machine
    for machine in (
        Machine(
            name="x86-64-v3",
            llvm={"kind": "llvm", "mtriple": _TRIPLE, "mcpu": "x86-64-v3"},
            cpu_flags=("avx2", "fma"),
            lanes=8,
            registers=16,
            madd_u8s8="llvm.x86.avx2.pmadd.ub.sw",
            madd_s16="llvm.x86.avx2.pmadd.wd",
        ),
        Machine(
            name="x86-64-v3-vnni",
            llvm={"kind": "llvm", "mtriple": _TRIPLE, "mcpu": "alderlake"},
            cpu_flags=("avx2", "fma", "avx_vnni"),
            lanes=8,
            registers=16,
            vnni="llvm.x86.avx512.vpdpbusd.256",
            madd_u8s8="llvm.x86.avx2.pmadd.ub.sw",
            madd_s16="llvm.x86.avx2.pmadd.wd",
        ),
        Machine(
            name="x86-64-v4-vnni",
            llvm={"kind": "llvm", "mtriple": _TRIPLE, "mcpu": "icelake-server", "mattr": ["-prefer-256-bit"]},
            cpu_flags=("avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni", "avx512vbmi"),
            lanes=16,
            registers=32,
            vnni="llvm.x86.avx512.vpdpbusd.512",
            madd_u8s8="llvm.x86.avx512.pmaddubs.w.512",
            madd_s16="llvm.x86.avx512.pmaddw.d.512",
            permute_bytes="llvm.x86.avx512.vpermi2var.qi.512",
        ),
    )
}


def host_level() -> str:
    """The fastest level that this machine runs. Raises UnsupportedError on other processors."""
    from qcompiler.errors import UnsupportedError
    from qcompiler.runtime.loader import cpu_flags

    have = cpu_flags()
    fitting = [name for name, machine in LEVELS.items() if have.issuperset(machine.cpu_flags)]
    if not fitting:
        raise UnsupportedError(
            f"this processor has none of the instruction sets that the cpu target builds for ({', '.join(LEVELS)}).",
            where="target `cpu`",
            hint="Name the deployment processor's with --cpu, for example --cpu x86-64-v3.",
        )
    return fitting[-1]
