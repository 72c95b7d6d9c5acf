"""The generated C entry: every kernel call in order, shared among threads."""

from __future__ import annotations

from qcompiler.targets.shared.codegen import comment
from qcompiler.targets.shared.program import Argument, Program


def entry_source(program: Program) -> str:
    """C text of qc_entry and of the arena's size."""
    arity = {call.kernel: len(call.arguments) for call in program.calls}
    lines = ['#include "qc_runtime.h"', ""]
    for kernel, count in arity.items():
        pointers = ", ".join(["const void *"] * count)
        lines.append(f"void {kernel}(int32_t lo, int32_t hi, {pointers});")
    lines += [
        "",
        f"const int64_t qc_arena_bytes = {program.arena_bytes};",
        "",
        "/* Units lo..hi of a kernel belong to this thread. */",
        "#define QC_CALL(kernel, units, ...)                                   \\",
        "    do {                                                              \\",
        "        int32_t lo = (int32_t)((int64_t)(units) * t / n);             \\",
        "        int32_t hi = (int32_t)((int64_t)(units) * (t + 1) / n);       \\",
        "        if (lo < hi) kernel(lo, hi, __VA_ARGS__);                     \\",
        "        qc_barrier(p);                                                \\",
        "    } while (0)",
        "",
        "void qc_entry(int32_t t, int32_t n, qc_pool *p, uint8_t *A, const uint8_t *W,",
        "              const void *const *I, void *const *O) {",
        "    if (n == 1) {",
    ]
    for call in program.calls:
        arguments = ", ".join(address(a) for a in call.arguments)
        lines.append(f"        {call.kernel}(0, {call.units}, {arguments});")
    lines += ["        return;", "    }"]
    for call in program.calls:
        arguments = ", ".join(address(a) for a in call.arguments)
        lines.append(f"    QC_CALL({call.kernel}, {call.units}, {arguments}); /* {comment(call.node)} */")
    lines += ["    (void)A; (void)W; (void)I; (void)O; (void)p;", "}", ""]
    return "\n".join(lines)


def address(argument: Argument) -> str:
    """A pointer in C: into arena, weights, inputs or outputs."""
    buffer = argument.buffer
    if buffer.kind == "arena":
        return f"A + {buffer.offset + argument.offset}"
    if buffer.kind == "constant":
        return f"W + {buffer.index + argument.offset}"
    if buffer.kind == "input":
        return f"(const uint8_t *)I[{buffer.index}] + {argument.offset}"
    return f"(uint8_t *)O[{buffer.index}] + {argument.offset}"
