"""Kernels of the cuda target as nvcc sees them: all kinds, all architectures, the instructions that they are for."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from qcompiler.errors import RecipeError
from qcompiler.targets.cuda.build import build, check, plan
from qcompiler.targets.cuda.cubin import ARCHITECTURES, FLAGS, HOPPER, compile_cubins, find_nvcc, usage_of
from qcompiler.targets.cuda.emit import TEMPLATES, cuda_source
from qcompiler.targets.cuda.machine import LEVELS
from tests.conformance import sequence
from tests.conformance.fused import add, attention, conv, linear, table
from tests.conformance.problems import Problems

HEADER = (TEMPLATES / "qc_device.h").read_text()
OLDEST_HERE = "sm_75"
"""That nvcc 13 makes code for: kernels without tensor cores are compiled for it, too."""
TENSOR = ("product", "batchedproduct", "attention")
"""Kernels that multiply on tensor cores."""
needs_nvcc = pytest.mark.skipif(find_nvcc() is None, reason="nvcc is not installed (CUDA toolkit)")


def one_of_each() -> Problems:
    """Every kind of kernel that the target has."""
    p = Problems("float")
    x = p.input("x", (1, 16, 8, 8))
    y = conv(p, x, 64)
    p.output("sum", add(p, table(p, conv(p, y, 64), "uint8", "uint8"), y))
    p.output("depthwise", conv(p, y, 64, group=64))
    p.conv("odd", (1, 1, 9, 9), 3, (3, 3), token="int8", out="int8")
    p.conv("packed4", (1, 32, 8, 8), 32, (1, 1), bits=4)
    p.conv("packed2", (1, 32, 8, 8), 32, (1, 1), bits=2)
    p.output("large", linear(p, p.input("large_x", (8192, 1024)), 1024, "int16"))
    p.conv("narrow", (1, 64, 16, 16), 64, (3, 3), bits=4, token="uint4", out="uint4")
    p.matmul("narrow_large", (4096, 1024), 1024, bits=4, token="int4", out="int4")
    p.matmul("long", (1, 16384), 64)
    p.matmul("long4", (40, 16384), 512, bits=4)
    p.pool("max", (1, 16, 8, 8), (2, 2), average=False)
    p.pool("mean", (1, 16, 8, 8), (2, 2), average=True)
    p.softmax("softmax", (4, 64), 1)
    sequence.normalization(p, "norm", (4, 64))
    sequence.product(p, "wide", (2, 6, 11), (2, 11, 18), ("uint16", "int8", "uint8"), (30000, 0))
    sequence.product(p, "pair", (8, 40, 64), (8, 64, 48), ("uint8", "uint8", "uint16"), (99, 201))
    sequence.product(p, "pair_large", (2048, 256), (256, 2048), ("uint8", "uint8", "uint8"), (9, 7), [1, 0])
    sequence.product(p, "pair_large_turned", (2048, 256), (256, 2048), ("int8", "uint8", "uint8"), (9, 7))
    sequence.product(p, "pair_large_odd", (2048, 255), (255, 2047), ("int8", "int8", "uint8"), (9, 0))
    sequence.product(p, "pair_signed", (4, 128, 256), (4, 256, 128), ("int8", "int8", "uint8"), (0, 0))
    attention(p, "heads", (1, 2), 20, 20, 32, 32, mask="causal", looked=True)
    return p


@pytest.fixture(scope="module")
def sources() -> dict[str, str]:
    """Level -> text."""
    graph = one_of_each().graph
    return {level: cuda_source(plan(graph, level, lambda *_: None)) for level in LEVELS}


@needs_nvcc
def test_all_architectures_take_all_kernels_without_spills(sources: dict[str, str]) -> None:
    archs = [(f"sm_{arch}", "sm_75") for arch in ARCHITECTURES if arch != HOPPER]
    archs += [("sm_90a", "sm_90a"), (OLDEST_HERE, "sm_61")]
    cubins = compile_cubins(HEADER, [(sources[level], arch) for arch, level in archs])
    for (arch, level), cubin in zip(archs, cubins, strict=True):
        assert set(cubin.usage) == set(re.findall(r"void __launch_bounds__\([^)]*\) (\w+)\(", sources[level])), arch
        assert {n: used["spilled"] for n, used in cubin.usage.items() if used["spilled"]} == {}, arch
        assert max(used["registers"] for used in cubin.usage.values()) <= 255


@needs_nvcc
@pytest.mark.parametrize(
    ("arch", "level", "wanted"),
    [
        (OLDEST_HERE, "sm_61", dict.fromkeys(("product", "batchedproduct", "depthwise"), "dp4a.")),
        ("sm_75", "sm_75", {**dict.fromkeys(TENSOR, r"mma.sync.aligned.m8n8k(16|32)"), "depthwise": "dp4a"}),
        ("sm_80", "sm_75", {**dict.fromkeys(TENSOR, r"mma.sync.aligned.m16n8k(32|64)"), "depthwise": "dp4a"}),
        ("sm_90a", "sm_90a", {"large": "wgmma.mma_async", "product": "griddepcontrol.wait"}),
    ],
)
def test_kernels_have_the_instructions_they_are_for(
    sources: dict[str, str], arch: str, level: str, wanted: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "qc_device.h").write_text(HEADER)
    (tmp_path / "kernels.cu").write_text(sources[level])
    command = [str(find_nvcc()), *FLAGS, "-ptx", f"-arch={arch}", "kernels.cu", "-o", "kernels.ptx"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    bodies = re.split(r"\.visible \.entry ", (tmp_path / "kernels.ptx").read_text())[1:]
    for kind, instruction in wanted.items():
        own = [body for body in bodies if kind == "large" or f"_{kind}_" in body.split("(")[0]]
        found = [body for body in own if re.search(instruction, body)]
        assert found and (kind == "large" or len(found) == len(own)), (arch, kind, instruction)
    split = [body for body in bodies if "atom.global.inc" in body]
    ordered = r"st\.global\.v4.*membar\.gl.*bar\.sync.*atom\.global\.inc.*bar\.sync.*ld\.global\.cg"
    assert split and all(re.search(ordered, body, re.DOTALL) for body in split)
    assert level != "sm_61" or not re.search(r"\b(mma|ldmatrix)\b", "".join(bodies))
    if arch == "sm_90a":  # nothing but weights is read before a kernel has waited for those before it
        for body in bodies:
            before = body[: body.index("griddepcontrol.wait")]
            assert not re.search(r"\b(ld|st)\.global", before)
            assert "cp.async" not in before or "_product_" in body.split("(")[0]


@needs_nvcc
def test_machine_code_multiplies_bytes(sources: dict[str, str], tmp_path: Path) -> None:
    beside = Path(str(find_nvcc())).with_name("cuobjdump")
    dump = str(beside) if beside.is_file() else shutil.which("cuobjdump")
    if dump is None:
        pytest.skip("cuobjdump is not installed (CUDA toolkit): no machine code to look at")
    for arch, level, wanted in (
        (OLDEST_HERE, "sm_61", ("IDP",)),
        ("sm_75", "sm_75", ("IMMA.8816.U8.S8", "IMMA.8832.U4.S4", "IDP")),
        ("sm_86", "sm_75", ("IMMA.16832.U8.S8", "IMMA.16864.U4.S4", "IMMA.16864.S4.S4", "IDP")),
        ("sm_90a", "sm_90a", ("IGMMA", "IMMA", "IDP")),
    ):
        (cubin,) = compile_cubins(HEADER, [(sources[level], arch)])
        (tmp_path / f"{arch}.cubin").write_bytes(cubin.data)
        command = [dump, "-sass", f"{arch}.cubin"]
        text = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout
        assert all(re.search(rf"\b{re.escape(name)}\b", text) for name in wanted), arch
        assert level != "sm_61" or "MMA." not in text


def test_sources_are_the_same_every_time() -> None:
    first, second = (build(one_of_each().graph, {"arch": "none"}, lambda *_: None).files for _ in range(2))
    assert first == second


def test_an_unknown_architecture_is_refused() -> None:
    with pytest.raises(RecipeError, match="no architecture of the cuda target"):
        check({"arch": "sm_60"})
    with pytest.raises(RecipeError, match="no architecture"):
        check({"arch": "hopper"})


def test_what_ptxas_says_is_read() -> None:
    log = """ptxas info    : Compiling entry function 'qc_a_0' for 'sm_90a'
    0 bytes stack frame, 8 bytes spill stores, 4 bytes spill loads
ptxas info    : Used 48 registers, used 1 barriers, 512 bytes smem"""
    assert usage_of(log) == {"qc_a_0": {"registers": 48, "spilled": 12, "shared": 512}}


def test_cards_without_tensor_cores_are_named_and_get_sources() -> None:
    check({"arch": "sm_61,sm_70"})
    lowered = build(one_of_each().graph, {"arch": "sm_61"}, lambda *_: None)
    (variant,) = lowered.manifest["variants"]
    assert (variant["level"], variant["arch"], variant["only"]) == ("sm_61", 61, False)
    assert all(name.startswith(("sm_61", "src/", "loader", "cuda_")) for name in lowered.files)
    text = lowered.files["sm_61/kernels.cu"].decode()
    assert "qc_dots<" in text and "qc_mma" not in text and "qc_ldmatrix" not in text
