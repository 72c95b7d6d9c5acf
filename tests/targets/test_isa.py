"""The instructions that each level and weight width is meant to use are in the code, and no others of their kind."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from qcompiler.bundle import manifest_of, write_bundle
from qcompiler.driver import quantize
from qcompiler.errors import RecipeError, UnsupportedError
from qcompiler.graph.model import Graph
from qcompiler.runtime.loader import cpu_flags
from qcompiler.targets.cpu.build import build, check
from qcompiler.targets.cpu.isa import LEVELS
from qcompiler.targets.shared.codegen import assembly
from qcompiler.targets.shared.lower import lower

VNNI = [name for name, machine in LEVELS.items() if machine.vnni]
PLAIN = [name for name, machine in LEVELS.items() if not machine.vnni]
CONV = """<ir_version: 10, opset_import: ["": 21]> g (float[1,32,8,8] x, float[32,32,3,3] w) => (float[1,32,8,8] y)
{ y = Conv <pads = [1, 1, 1, 1]> (x, w) }"""


@cache
def integer_graph(bits: int) -> Graph:
    weight = np.random.default_rng(0).standard_normal((32, 32, 3, 3)).astype(np.float32)
    options = {"precision": f"w{bits}a8", "keep_first_last": False}
    graph = quantize(Graph.parse(CONV, w=weight).model, "random", samples=4, options=options).integer_graph
    assert graph is not None
    return graph


@cache
def instructions(bits: int, level: str) -> frozenset[str]:
    program = lower(integer_graph(bits), LEVELS[level])
    text = assembly(program.kernels(), program.machine.llvm)
    return frozenset(re.findall(r"^\s+(?:\{vex\}\s+)?(\w+)\s", text, re.MULTILINE))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("level", VNNI)
def test_vnni_levels_use_the_dot_product_instruction(level: str, bits: int):
    found = instructions(bits, level)
    assert "vpdpbusd" in found
    assert "vpdpbusds" not in found and "vpmaddubsw" not in found  # both saturate


@pytest.mark.parametrize("level", PLAIN)
def test_without_vnni_the_exact_pair_sums_are_used(level: str):
    assert "vpmaddwd" in instructions(8, level) and "vpmaddubsw" not in instructions(8, level)
    assert "vpmaddubsw" in instructions(4, level)
    for bits in (4, 8):
        assert not any(name.startswith("vpdpbusd") for name in instructions(bits, level))


def test_no_float_multiply_add_is_contracted_into_the_requantization():
    for level in LEVELS:
        assert not any(name.startswith(("vfmadd", "vfmsub", "vfnmadd")) for name in instructions(8, level))


def test_all_builds_every_level_and_the_loader_takes_the_best(tmp_path: Path):
    lowered = build(integer_graph(8), {"cpu": "all"}, lambda stage, done, total: None)
    assert [variant["level"] for variant in lowered.manifest["variants"]] == list(LEVELS)
    assert sorted(lowered.files) == sorted(f"lib/{name}.{kind}" for name in LEVELS for kind in ("so", "weights"))
    assert all(data[:4] == b"\x7fELF" for name, data in lowered.files.items() if name.endswith(".so"))
    graph = integer_graph(8)
    manifest = manifest_of("cpu", "float", graph, lowered.files, lowered.manifest, lowered.sizes)
    bundle = write_bundle(tmp_path / "bundle", lowered.files, manifest, overwrite=False)
    fitting = [name for name, machine in LEVELS.items() if cpu_flags().issuperset(machine.cpu_flags)]
    if not fitting:
        pytest.skip("this processor runs none of the levels")
    with bundle.load() as session:
        assert session.level == fitting[-1]


def test_a_level_that_this_machine_lacks_can_be_built(monkeypatch):
    monkeypatch.setattr("qcompiler.runtime.loader.cpu_flags", lambda: set())
    with pytest.raises(UnsupportedError, match="--cpu x86-64-v3"):
        build(integer_graph(8), {}, lambda stage, done, total: None)
    lowered = build(integer_graph(8), {"cpu": "x86-64-v4-vnni"}, lambda stage, done, total: None)
    assert [variant["level"] for variant in lowered.manifest["variants"]] == ["x86-64-v4-vnni"]


@pytest.mark.parametrize("asked", ["pentium", "x86-64-v3,pentium", "x86-64-v3,", "ALL"])
def test_unknown_levels_are_refused(asked: str):
    with pytest.raises(RecipeError, match="no instruction set.*`native` or `all`"):
        check({"cpu": asked})


def test_levels_are_built_in_order_and_once():
    asked = {"cpu": "x86-64-v4-vnni, x86-64-v3,x86-64-v3"}
    lowered = build(integer_graph(8), asked, lambda stage, done, total: None)
    assert [variant["level"] for variant in lowered.manifest["variants"]] == ["x86-64-v3", "x86-64-v4-vnni"]


def test_without_a_working_c_compiler_it_says_so(monkeypatch, tmp_path: Path):
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\necho cannot compile >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CC", str(broken))
    with pytest.raises(UnsupportedError, match="`.*broken` failed: cannot compile"):
        build(integer_graph(8), {"cpu": "x86-64-v3"}, lambda stage, done, total: None)
    monkeypatch.setenv("CC", "")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UnsupportedError, match="no C compiler was found.*apt install gcc"):
        check({})
