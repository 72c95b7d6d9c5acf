"""The c target against the oracle on every problem: each host compiler, strict flags, sanitizers, 32 bits."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from qcompiler.bundle import Bundle, manifest_of, write_bundle
from qcompiler.execute.oracle import Oracle
from qcompiler.targets.c.build import build
from qcompiler.targets.c.host import STRICT, HostSession
from qcompiler.targets.c.mcus import MCUS
from tests.conformance.suite import build_suite, samples

EXCEPTIONS: dict[str, str] = {}
"""Problems that the target does not solve, with the reason."""


@pytest.fixture(scope="module", params=["static", "caller", "packed"])
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    graph = build_suite("fixed").graph
    options = {"pack": True} if request.param == "packed" else {"arena": request.param}
    lowered = build(graph, {"prefix": "suite", **options}, lambda stage, done, total: None)
    manifest = manifest_of("c", "fixed", graph, lowered.files, lowered.manifest, lowered.sizes)
    return write_bundle(tmp_path_factory.mktemp("c") / "bundle", lowered.files, manifest, overwrite=False)


def found_compiler(name: str) -> str:
    if shutil.which(name) is None:
        pytest.skip(f"no {name}")
    return name


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_every_problem_has_the_oracles_bits(bundle: Bundle, compiler: str) -> None:
    problems = build_suite("fixed")
    session = HostSession(bundle.path, bundle.manifest, found_compiler(compiler))
    oracle = Oracle(problems.graph)
    wrong: set[str] = set()
    for sample in samples(problems, 4):
        found = session.run_codes([sample[name] for name in oracle.input_names])
        # Scales are 1 and zero points 0 at the suite's boundary: its floats are the codes.
        for name, want, got in zip(oracle.output_names, oracle.run(sample), found, strict=True):
            if not np.array_equal(want, got):
                wrong.add(name)
    assert wrong - set(EXCEPTIONS) == set()


@pytest.mark.parametrize("core", ["cortex-m0", "cortex-m4", "rv32imac"])
def test_cross_compilers_have_nothing_to_say(bundle: Bundle, core: str, tmp_path: Path) -> None:
    """Every problem's kernels, with and without the DSP extension."""
    compiler = found_compiler(MCUS[core].compiler)
    for name in bundle.manifest["c"]["files"]:
        command = [compiler, *MCUS[core].flags, *STRICT, "-Os", "-I", str(bundle.path / "src"), "-c", "-o"]
        command += [str(tmp_path / "out.o"), str(bundle.path / "src" / name)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")


def self_test(bundle: Bundle, folder: Path, compiler: str, flags: list[str]) -> subprocess.CompletedProcess[str]:
    """Compile sources and self-test into one program, and run it."""
    sources = [str(bundle.path / "src" / name) for name in bundle.manifest["c"]["files"]]
    command = [compiler, *flags, "-I", str(bundle.path / "src"), "-o", str(folder / "selftest"), *sources]
    subprocess.run([*command, str(bundle.path / "test" / "selftest.c")], check=True)
    # LeakSanitizer cannot attach where ptrace is not allowed, and nothing allocates anyway.
    environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "print_stacktrace=1"}
    return subprocess.run(
        [str(folder / "selftest")], capture_output=True, text=True, check=False, timeout=300, env=environment
    )


@pytest.mark.slow
def test_sanitizers_find_nothing(bundle: Bundle, tmp_path: Path) -> None:
    flags = [*STRICT, "-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    done = self_test(bundle, tmp_path, found_compiler("gcc"), flags)
    assert (done.returncode, done.stderr) == (0, "")


def test_32_bits_give_the_same(bundle: Bundle, tmp_path: Path) -> None:
    compiler = found_compiler("gcc")
    (tmp_path / "empty.c").write_text("int main(void) { return 0; }\n")
    trial = [compiler, "-m32", "-o", str(tmp_path / "empty"), str(tmp_path / "empty.c")]
    if subprocess.run(trial, capture_output=True, check=False).returncode:
        pytest.skip("gcc makes no 32-bit programs here (gcc-multilib)")
    assert self_test(bundle, tmp_path, compiler, [*STRICT, "-O2", "-m32"]).returncode == 0


def test_self_test_notices_a_wrong_bit(bundle: Bundle, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(bundle.path, broken)
    source = broken / "test" / "selftest.c"
    text = source.read_text()
    line = next(line for line in text.splitlines() if "crc32(" not in line and " want_0_" in line and " = {" in line)
    rest = text.partition(f"{line}\n  ")[2]
    number = rest.partition(",")[0]
    source.write_text(text.replace(f"{line}\n  {number},", f"{line}\n  {int(number) ^ 1},", 1))
    assert source.read_text() != text
    done = self_test(Bundle(broken, bundle.manifest), tmp_path, found_compiler("gcc"), ["-std=c99", "-O1"])
    assert done.returncode == 1


def test_cxx_compilers_accept_the_headers(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "user.cpp").write_text('#include "suite.h"\n#include "suite_float.h"\nint main() { return 0; }\n')
    command = [found_compiler("g++"), "-std=c++11", "-pedantic", "-Wall", "-Wextra", "-Werror", "-I"]
    command += [str(bundle.path / "src"), "-fsyntax-only", str(tmp_path / "user.cpp")]
    assert subprocess.run(command, capture_output=True, text=True, check=False).stderr == ""
