"""nvcc, where there is one: cubins for the architectures that are asked for."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from qcompiler.errors import RecipeError, UnsupportedError

ARCHITECTURES = (75, 80, 86, 89, 90)
"""That kernels are tried with; newer ones run what NVRTC makes of the sources."""
HOPPER = 90
"""The architecture that has kernels of its own (sm_90a)."""
LEAST = 61
"""The oldest that has what kernels use (dp4a)."""
FIRST_TENSOR = 75
"""The oldest with tensor cores for integers (mma, ldmatrix). Cards before it get kernels of their own, if named."""
FLAGS = ("-O3", "--fmad=false", "-std=c++17", "-diag-suppress", "177")
"""Warning 177 is about variables of TVM's that nothing uses."""


def find_nvcc() -> str | None:
    """Path of nvcc, if there is one: $NVCC, on the PATH, or of the toolkit in its usual place."""
    for name in (os.environ.get("NVCC"), "nvcc", "/usr/local/cuda/bin/nvcc"):
        if name and (found := shutil.which(name)):
            return found
    return None


def architectures(asked: str | None) -> list[int]:
    """Of the option `arch`: numbers, rising. `none`: no cubins. Raises RecipeError, UnsupportedError without nvcc."""
    if asked == "none":
        return []
    if not asked or asked == "all":
        return list(ARCHITECTURES)
    found = []
    for name in asked.split(","):
        number = re.fullmatch(r"(?:sm_)?(\d{2,3})", name.strip())
        if number is None or int(number[1]) < LEAST:
            hint = (
                f"For example sm_80,sm_90; the oldest is sm_{LEAST}. Or all (default: from sm_{FIRST_TENSOR} on), or "
                "none: NVRTC compiles at load."
            )
            raise RecipeError(f"`{name}` is no architecture of the cuda target.", where="option arch", hint=hint)
        found.append(int(number[1]))
    if max(found) >= FIRST_TENSOR and find_nvcc() is None:
        raise UnsupportedError(
            "nvcc was not found, which makes cubins.",
            where="option arch",
            hint="Install the CUDA toolkit, name it in the environment variable NVCC, or leave out --arch: the loader "
            "then compiles with NVRTC.",
        )
    return sorted(set(found))


def made_by_nvcc(names: Sequence[str]) -> list[str]:
    """Those of these architectures, such as sm_61, that nvcc makes cubins for; for the others NVRTC has to, at load."""
    nvcc = find_nvcc()
    if nvcc is None:
        return []
    listed = subprocess.run([nvcc, "--list-gpu-code"], capture_output=True, text=True, check=False).stdout.split()
    return [name for name in names if name in listed]


@dataclass(frozen=True)
class Cubin:
    """Code for one architecture, and what ptxas said about each kernel."""

    data: bytes
    usage: Mapping[str, Mapping[str, int]]
    """Kernel -> registers, spilled (bytes), shared (static bytes)."""


def compile_cubins(
    header: str, jobs: Sequence[tuple[str, str]], progress: Callable[[int, int], None] = lambda done, total: None
) -> list[Cubin]:
    """Cubins of (text of kernels, architecture such as sm_80). header: qc_device.h; progress: (done, of how many).

    None at all where there is no nvcc. Raises UnsupportedError with nvcc's words.
    """
    nvcc = find_nvcc()
    if nvcc is None or not jobs:
        return []
    with tempfile.TemporaryDirectory(prefix="qcompiler-") as folder:
        work = Path(folder)
        (work / "qc_device.h").write_text(header)
        made: list[Cubin] = []
        with ThreadPoolExecutor(max_workers=min(len(jobs), os.cpu_count() or 1)) as pool:
            for cubin in pool.map(lambda job: _compile(nvcc, work, job[0], *job[1]), enumerate(jobs)):
                made.append(cubin)
                progress(len(made), len(jobs))
        return made


def _compile(nvcc: str, work: Path, number: int, source: str, arch: str) -> Cubin:
    text, output = work / f"{number}.cu", work / f"{number}.cubin"
    text.write_text(source)
    command = [nvcc, *FLAGS, "-Xptxas", "-v", "-cubin", f"-arch={arch}", text.name, "-o", output.name]
    done = subprocess.run(command, cwd=work, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UnsupportedError(
            f"nvcc failed for {arch}: {(done.stderr or done.stdout).strip()[:600]}",
            where="target `cuda`",
            hint="Leave this architecture out of --arch, or name another nvcc in the environment variable NVCC.",
        )
    return Cubin(output.read_bytes(), usage_of(done.stderr))


def usage_of(log: str) -> dict[str, dict[str, int]]:
    """What `ptxas -v` says, by kernel."""
    found: dict[str, dict[str, int]] = {}
    name = ""
    for line in log.splitlines():
        if entry := re.search(r"Compiling entry function '(\w+)'", line):
            name = entry[1]
            found[name] = {"registers": 0, "spilled": 0, "shared": 0}
        elif name and (spilled := re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", line)):
            found[name]["spilled"] = int(spilled[1]) + int(spilled[2])
        elif name and (used := re.search(r"Used (\d+) registers", line)):
            found[name]["registers"] = int(used[1])
            if static := re.search(r"(\d+) bytes smem", line):
                found[name]["shared"] = int(static[1])
    return found
