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
from qcompiler.formats import QuantParams, parse_format
from qcompiler.quantizer import dequantize, quantize
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
            self._run = getattr(ctypes.CDLL(str(library)), f"qc_{name}_run")
        self._run.restype = None
        words = (int(manifest["size"]["arena_bytes"]) + 7) // 8
        self._arena = np.zeros(max(words, 1), np.int64) if facts["arena"] == "caller" else None

    def run_codes(self, codes: Sequence[NDArray]) -> list[NDArray]:
        """Codes in and out, in the storage of their formats; integers that are no codes as they are."""
        results = [np.zeros(spec["shape"], _storage(spec)) for spec in self.outputs]
        given = [
            np.ascontiguousarray(array, _storage(spec)).reshape(spec["shape"])
            for array, spec in zip(codes, self.inputs, strict=True)
        ]
        memory = [] if self._arena is None else [self._arena]
        self._run(*(ctypes.c_void_p(array.ctypes.data) for array in (*memory, *given, *results)))
        return results

    def run(self, inputs: Mapping[str, NDArray]) -> list[NDArray]:
        """float32 by name in, float32 in the manifest's order out: the boundary by its definition, in numpy."""
        codes = [
            quantize(np.asarray(inputs[spec["name"]], np.float32), _params(spec))
            if "format" in spec
            else np.asarray(inputs[spec["name"]])
            for spec in self.inputs
        ]
        found = self.run_codes(codes)
        return [
            dequantize(array, _params(spec)) if "format" in spec else array
            for array, spec in zip(found, self.outputs, strict=True)
        ]


def _storage(spec: Mapping[str, Any]) -> Any:
    """dtype of the elements of an input or output."""
    return parse_format(spec["format"]).storage if "format" in spec else spec["dtype"]


def _params(spec: Mapping[str, Any]) -> QuantParams:
    return QuantParams(parse_format(spec["format"]), np.float32(spec["scale"]), np.int64(spec["zero_point"]))
