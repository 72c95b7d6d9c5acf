"""The C++ example that runs cuda bundles, with the emulator in place of the driver."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest

from qcompiler.bundle import manifest_of, write_bundle
from qcompiler.errors import UnsupportedError
from qcompiler.execute.oracle import Oracle
from qcompiler.targets.cuda.build import build
from qcompiler.targets.cuda.cubin import find_nvcc
from qcompiler.targets.cuda.emulate import compile_emulator, cxx_compiler
from tests.conformance.problems import Problems

SOURCE = Path(__file__).resolve().parent.parent.parent / "examples" / "cuda" / "host.cpp"

try:
    COMPILER = cxx_compiler()
except UnsupportedError:
    pytest.skip("no C++ compiler", allow_module_level=True)
if find_nvcc() is None:
    pytest.skip("nvcc is not installed (CUDA toolkit): the example takes cubins", allow_module_level=True)


@pytest.fixture(scope="module")
def problems() -> Problems:
    p = Problems("float")
    p.conv("conv", (1, 16, 9, 11), 24, (3, 3), pads=(1, 1, 1, 1))
    p.add("sum", (2, 24), (2, 24))
    p.matmul("long", (1, 8192), 40)  # sums in parts, which have counters
    return p


@pytest.fixture(scope="module")
def made(problems: Problems, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(bundle, program)."""
    folder = tmp_path_factory.mktemp("host")
    lowered = build(problems.graph, {"arch": "sm_80"}, lambda *_: None)
    manifest = manifest_of("cuda", "float", problems.graph, lowered.files, lowered.manifest, lowered.sizes)
    bundle = write_bundle(folder / "bundle", lowered.files, manifest, overwrite=False).path
    compile_emulator((bundle / "sm_75" / "kernels.cu").read_text(), folder / "libcuda.so", 80, optimize="-O0")
    command = [COMPILER, "-std=c++17", "-Wall", "-Wextra", "-Werror", "-O1", str(SOURCE), "-L.", "-lcuda", "-o", "host"]
    subprocess.run([*command, f"-Wl,-rpath,{folder}"], cwd=folder, check=True)
    return bundle, folder / "host"


def test_the_example_has_the_oracles_bits(problems: Problems, made: tuple[Path, Path], tmp_path: Path) -> None:
    bundle, program = made
    oracle, rng = Oracle(problems.graph), np.random.default_rng(0)
    shapes = {str(value.name): problems.graph.shape(value) for value in problems.graph.inputs}
    sample = {name: rng.integers(0, 256, shape).astype(np.float32) for name, shape in shapes.items()}
    for name, array in sample.items():
        (tmp_path / f"{name}.bin").write_bytes(array.tobytes())
    inputs, outputs = [f"{name}.bin" for name in sample], [f"{name}.bin" for name in oracle.output_names]
    subprocess.run([str(program), str(bundle), *inputs, "--", *outputs], cwd=tmp_path, check=True)
    for name, want in zip(oracle.output_names, oracle.run(sample), strict=True):
        assert (tmp_path / f"{name}.bin").read_bytes() == want.tobytes()


def test_the_example_says_what_is_wrong(made: tuple[Path, Path], tmp_path: Path) -> None:
    bundle, program = made
    (tmp_path / "short.bin").write_bytes(b"1234")
    done = subprocess.run([str(program), str(bundle), "short.bin", "--", "y.bin"], cwd=tmp_path, capture_output=True)
    assert done.returncode == 1 and b"4 inputs and 3 outputs" in done.stderr
    inputs = ["short.bin"] * 4
    done = subprocess.run([str(program), str(bundle), *inputs, "--", "a", "b", "c"], cwd=tmp_path, capture_output=True)
    assert done.returncode == 1 and b"short.bin has 4 bytes, not" in done.stderr
