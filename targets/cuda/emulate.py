"""A cuda bundle on a machine without a card: its text compiled by the host's C++ compiler, threads run one by one.

What the card computes, computed at the desk, by the same loader: the emulator has the part of the driver's interface
that the loader calls. `verify` and `eval` use it, and so do the tests.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcompiler.errors import BundleError, UnsupportedError
from qcompiler.targets.cuda.emit import TEMPLATES, emulator_table

FLAGS = ("-std=c++17", "-fPIC", "-shared", "-fwrapv", "-fno-strict-aliasing", "-ffp-contract=off", "-w")
"""Sums may wrap around, words are read as bytes, and no product is contracted into a sum."""


def cxx_compiler() -> str:
    """Name of a C++ compiler on this machine. Raises UnsupportedError."""
    for name in (os.environ.get("CXX"), "g++", "clang++", "c++"):
        if name and shutil.which(name):
            return name
    raise UnsupportedError(
        "the kernels cannot be tried here: there is no card, and no C++ compiler for the emulator was found.",
        where="target `cuda`",
        hint="Install one (`apt install g++`), or name it in the environment variable CXX.",
    )


def compile_emulator(
    source: str, output: Path, arch: int, compiler: str | None = None, optimize: str = "-O2"
) -> None:
    """The shared library that stands in for libcuda and a card of this architecture, and has these kernels.

    optimize: many small kernels are compiled and run soonest with -O0. Raises BundleError, UnsupportedError.
    """
    name = compiler or cxx_compiler()
    with tempfile.TemporaryDirectory(prefix="qcompiler-") as folder:
        work = Path(folder)
        for template in ("qc_device.h", "qc_emulate.h", "qc_emulate.cpp"):
            shutil.copy(TEMPLATES / template, work / template)
        (work / "kernels.cpp").write_text(f"{source}\n{emulator_table(source)}")
        command = [name, optimize, *FLAGS, "-DQC_EMULATE", f"-DQC_EMULATE_ARCH={arch}", "kernels.cpp", "qc_emulate.cpp"]
        command += ["-o", str(output.resolve())]
        done = subprocess.run(command, cwd=work, capture_output=True, text=True, check=False)
        if done.returncode:
            raise BundleError(
                f"`{name}` does not compile the kernels for the emulator: {done.stderr.strip()[:1600]}",
                hint="Use g++ or clang++ with C++17, named in the environment variable CXX.",
            )


class EmulatedSession:
    """A bundle run by the emulator: floats in, floats out. level: which of its variants, by default the first."""

    def __init__(
        self,
        path: Path,
        manifest: Mapping[str, Any],
        level: str | None = None,
        compiler: str | None = None,
        optimize: str = "-O2",
    ) -> None:
        from qcompiler.runtime.cuda_loader import CudaSession

        self._folder = tempfile.TemporaryDirectory(prefix="qcompiler-")
        library = Path(self._folder.name) / "libcuda-emulated.so"
        variants = {variant["level"]: variant for variant in manifest["cuda"]["variants"]}
        variant = variants[level or next(iter(variants))]
        compile_emulator((path / variant["source"]).read_text(), library, variant["arch"], compiler, optimize)
        self.session = CudaSession(path, driver=str(library))

    def close(self) -> None:
        """Forget the compiled kernels."""
        self.session.close()
        self._folder.cleanup()

    def run(self, inputs: Mapping[str, NDArray]) -> list[NDArray[np.generic]]:
        """Outputs in the order of the manifest."""
        return self.session.run(inputs)
