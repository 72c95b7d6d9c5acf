"""A c bundle on this machine: its sources compiled with the host's compiler and called through ctypes.

What firmware computes, computed at the desk: `verify` and `eval` use it, and so do the tests.
"""

from __future__ import annotations

import ctypes
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcompiler.errors import BundleError, UnsupportedError
from qcompiler.targets.shared.codes import codes_of, real_of, storage_of
from qcompiler.targets.shared.compiler import find_compiler

STRICT = (
    *("-std=c99", "-ffreestanding", "-pedantic", "-Wall", "-Wextra", "-Wconversion", "-Wsign-conversion"),
    *("-Wcast-align", "-Wstrict-prototypes", "-Wmissing-prototypes", "-Werror"),
)
"""The flags that generated sources compile with, without a warning."""


def host_compiler() -> str:
    """Name of a C compiler on this machine. Raises UnsupportedError."""
    if found := find_compiler():
        return found
    raise UnsupportedError(
        "the sources cannot be tried here: no C compiler was found.",
        where="target `c`",
        hint="Install one (`apt install gcc`), or name it in the environment variable CC; `make selftest` in the "
        "bundle proves the bits with your own compiler.",
    )


def compile_sources(
    folder: Path, files: Sequence[str], output: Path, compiler: str, flags: Sequence[str] = (*STRICT, "-O2")
) -> None:
    """One shared library from files of a bundle. Raises BundleError with the compiler's words."""
    command = [compiler, *flags, "-fPIC", "-shared", "-I", str(folder / "src"), "-o", str(output)]
    command += [str(folder / name) for name in files]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BundleError(
            f"`{compiler}` does not compile its sources: {done.stderr.strip()[:400]}",
            where=str(folder),
            hint="Use a C99 compiler (gcc or clang), named in the environment variable CC.",
        )


class HostSession:
    """A c bundle compiled for this machine. Raises UnsupportedError without a compiler, BundleError for damage."""

    def __init__(self, path: Path, manifest: Mapping[str, Any], compiler: str | None = None) -> None:
        self.inputs, self.outputs = manifest["inputs"], manifest["outputs"]
        facts = manifest["c"]
        if "object" in facts:
            raise UnsupportedError(
                f"its kernels are an object for {facts['object']['core']}, which does not run here.",
                where=str(path),
                hint="Run test/selftest.c on the board, or compile without --object for the same bits in C.",
            )
        name = facts["prefix"]
        with tempfile.TemporaryDirectory(prefix="qcompiler-") as folder:
            library = Path(folder) / "model.so"
            compile_sources(path, [f"src/{file}" for file in facts["files"]], library, compiler or host_compiler())
            functions = ctypes.CDLL(str(library))
        self._run = getattr(functions, f"qc_{name}_run")
        self._run.restype = None
        caller = facts["arena"] == "caller"
        self._memory = [_words(manifest["size"]["arena_bytes"])] if caller else []
        self._states: dict[str, NDArray] = {}
        if "states" in facts:
            self._keep(functions, name, facts["states"], int(manifest["size"]["state_bytes"]), caller)

    def _keep(
        self, functions: ctypes.CDLL, name: str, states: Sequence[Mapping[str, Any]], size: int, caller: bool
    ) -> None:
        """Views of the states in the memory that the sources keep them in."""
        if caller:
            self._memory.append(_words(size))
            place = self._memory[-1].ctypes.data
        else:
            where = getattr(functions, f"qc_{name}_state")
            where.restype = ctypes.c_void_p
            place = where()
        self._reset = getattr(functions, f"qc_{name}_reset")
        self._reset.restype = None
        kept = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(place))
        for state in states:
            codes = kept[state["offset"] :].view()[: state["size"] * np.dtype(state["storage"]).itemsize]
            self._states[state["name"]] = codes.view(state["storage"])
        self.reset()

    def reset(self) -> None:
        """Let all states be the real 0."""
        self._reset(*(ctypes.c_void_p(array.ctypes.data) for array in self._memory[1:]))

    def step_codes(self, codes: Sequence[NDArray]) -> list[NDArray]:
        """One step: codes of the inputs without states -> codes of the outputs without states."""
        results = [np.zeros(spec["shape"], storage_of(spec)) for spec in self.outputs if not self._kept(spec)]
        specs = [spec for spec in self.inputs if not self._kept(spec)]
        given = [
            np.ascontiguousarray(array, storage_of(spec)).reshape(spec["shape"])
            for array, spec in zip(codes, specs, strict=True)
        ]
        self._run(*(ctypes.c_void_p(array.ctypes.data) for array in (*self._memory, *given, *results)))
        return results

    def step(self, inputs: Mapping[str, NDArray]) -> list[NDArray]:
        """One step, as the runtime's: float32 of the inputs without states -> of the outputs without states."""
        specs = [spec for spec in self.inputs if not self._kept(spec)]
        found = self.step_codes([codes_of(inputs, spec) for spec in specs])
        shown = [spec for spec in self.outputs if not self._kept(spec)]
        return [real_of(array, spec) for array, spec in zip(found, shown, strict=True)]

    def _kept(self, spec: Mapping[str, Any]) -> bool:
        return bool(self._states) and "state" in spec

    def run_codes(self, codes: Sequence[NDArray]) -> list[NDArray]:
        """Codes in and out, in the storage of their formats; states are put into place before and read behind."""
        given = []
        for array, spec in zip(codes, self.inputs, strict=True):
            if self._kept(spec):
                self._states[spec["name"]][...] = array.reshape(-1)
            else:
                given.append(array)
        shown = iter(self.step_codes(given))
        return [
            self._states[spec["state"]].copy().reshape(spec["shape"]) if self._kept(spec) else next(shown)
            for spec in self.outputs
        ]

    def run(self, inputs: Mapping[str, NDArray]) -> list[NDArray]:
        """float32 by name in, float32 in the manifest's order out: the boundary by its definition, in numpy."""
        found = self.run_codes([codes_of(inputs, spec) for spec in self.inputs])
        return [real_of(array, spec) for array, spec in zip(found, self.outputs, strict=True)]


def _words(size: int) -> NDArray[np.int64]:
    return np.zeros(max((int(size) + 7) // 8, 1), np.int64)
