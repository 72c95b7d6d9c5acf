"""How long each kernel call of a program takes on this machine: the bundle's own library with a clock between calls."""

from __future__ import annotations

import ctypes
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qcompiler.targets.cpu.build import c_compiler, link
from qcompiler.targets.cpu.emit import address
from qcompiler.targets.shared.program import Program


def profiled_source(program: Program) -> str:
    """C text of qc_entry that writes the time in ns before the first and after every call to qc_times."""
    arity = {call.kernel: len(call.arguments) for call in program.calls}
    lines = ["#define _GNU_SOURCE", '#include "qc_runtime.h"', "#include <time.h>", ""]
    for kernel, count in arity.items():
        lines.append(f"void {kernel}(int32_t lo, int32_t hi, {', '.join(['const void *'] * count)});")
    lines += [
        "",
        f"const int64_t qc_arena_bytes = {program.arena_bytes};",
        f"int64_t qc_times[{len(program.calls) + 2}];",
        "",
        "static int64_t now(void) {",
        "    struct timespec t;",
        "    clock_gettime(CLOCK_MONOTONIC, &t);",
        "    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;",
        "}",
        "",
        "void qc_entry(int32_t t, int32_t n, qc_pool *p, uint8_t *A, const uint8_t *W,",
        "              const void *const *I, void *const *O) {",
        "    int32_t lo, hi;",
        "    qc_barrier(p);",
        "    if (!t) qc_times[0] = now(), qc_times[1] = now();",
    ]
    for i, call in enumerate(program.calls):
        lines += [
            f"    lo = (int32_t)((int64_t){call.units} * t / n), hi = (int32_t)((int64_t){call.units} * (t + 1) / n);",
            f"    if (lo < hi) {call.kernel}(lo, hi, {', '.join(map(address, call.arguments))});",
            "    qc_barrier(p);",
            f"    if (!t) qc_times[{i + 2}] = now();",
        ]
    return "\n".join([*lines, "    (void)A; (void)W; (void)I; (void)O; (void)p;", "}", ""])


def profile(
    program: Program, threads: int, rounds: int, progress: Callable[[int, int], None] = lambda done, total: None
) -> NDArray[np.float64]:
    """Nanoseconds of each call, [calls]: the median over `rounds` inferences on zeros, less what the clock takes.

    Every round does all calls in order, so noise hits all alike. Raises UnsupportedError where there is no C compiler.
    """
    graph, calls = program.graph, len(program.calls)
    with tempfile.TemporaryDirectory(prefix="qcompiler-") as folder:
        path = Path(folder) / "profile.so"
        path.write_bytes(link(program, profiled_source(program), c_compiler()))
        library = ctypes.CDLL(str(path))
    library.qc_open.restype = ctypes.c_void_p
    library.qc_open.argtypes = [ctypes.c_void_p, ctypes.c_int32]
    library.qc_run.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]
    library.qc_close.argtypes = [ctypes.c_void_p]
    blob = program.constants.blob()
    weights = _aligned(len(blob))
    weights[:] = np.frombuffer(blob, np.uint8)
    kinds = {v: v.dtype.numpy() for v in (*graph.inputs, *graph.outputs) if v.dtype is not None}
    buffers = [[np.zeros(graph.shape(v), kinds[v]) for v in vs] for vs in (graph.inputs, graph.outputs)]
    inputs, outputs = ((ctypes.c_void_p * max(len(b), 1))(*(a.ctypes.data for a in b)) for b in buffers)
    handle = library.qc_open(weights.ctypes.data, threads)
    times = np.ctypeslib.as_array((ctypes.c_int64 * (calls + 2)).in_dll(library, "qc_times"))
    found = np.empty((rounds, calls + 1))
    for i in range(rounds + 1):  # the first one warms up
        library.qc_run(handle, inputs, outputs)
        found[max(i - 1, 0)] = np.diff(times)
        progress(i, rounds)
    library.qc_close(handle)
    median = np.median(found, axis=0)
    return np.maximum(median[1:] - median[0], 1.0)


def _aligned(size: int) -> NDArray[np.uint8]:
    memory = np.empty(size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size]
