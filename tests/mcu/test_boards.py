"""Whole networks on emulated boards, bit for bit with the oracle. `make test-mcu BOARDS=all` runs every board."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from qcompiler.bundle import Bundle, manifest_of, write_bundle
from qcompiler.driver import bundle_runner
from qcompiler.errors import UnsupportedError
from qcompiler.targets.c.build import build as compile_sources
from tests.conformance.suite import build_suite
from tests.mcu.boards import BOARDS, Board, build, emulate, instructions, probe

SECONDS = 120.0


@pytest.mark.parametrize("level", ["-Os", "-O2"])
def test_self_test_passes(board: Board, bundle: Bundle, level: str, tmp_path: Path) -> None:
    image = build(board, bundle.path, bundle.manifest["c"], tmp_path / "image.elf", level=level)
    done = emulate(board, image, SECONDS)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("level", ["-O2"])
def test_every_problem_has_the_oracles_bits(board: Board, level: str, tmp_path: Path) -> None:
    """The conformance suite on a board: the inner loops for its instructions, which the host does not compile."""
    graph = build_suite("fixed").graph
    lowered = compile_sources(graph, {"prefix": "suite", "vectors": "2"}, lambda stage, done, total: None)
    manifest = manifest_of("c", "fixed", graph, lowered.files, lowered.manifest, lowered.sizes)
    suite = write_bundle(tmp_path / "suite", lowered.files, manifest, overwrite=False)
    image = build(board, suite.path, manifest["c"], tmp_path / "image.elf", level=level)
    assert emulate(board, image, SECONDS).returncode == 0


def test_a_wrong_bit_is_noticed(board: Board, bundle: Bundle, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(bundle.path, broken)
    source = broken / "test" / "selftest.c"
    text = source.read_text()
    before, opening, after = text.partition("want_3_0[")
    declared, brace, values = after.partition("{\n  ")
    first, comma, rest = values.partition(",")
    source.write_text(before + opening + declared + brace + str(int(first) ^ 1) + comma + rest)
    image = build(board, broken, bundle.manifest["c"], tmp_path / "image.elf")
    assert emulate(board, image, SECONDS).returncode == 1


def test_instructions_are_counted_call_by_call(board: Board, bundle: Bundle, plugin: Path, tmp_path: Path) -> None:
    """Two runs of the emulator agree, and there is one figure for every call of qc_NAME_run."""
    (tmp_path / "probe.c").write_text(probe(bundle.manifest["c"], 1))
    image = build(board, bundle.path, bundle.manifest["c"], tmp_path / "image.elf", main=tmp_path / "probe.c")
    first, again = (instructions(board, image, plugin, bundle.manifest["c"], SECONDS) for _ in range(2))
    assert first == again
    name = bundle.manifest["c"]["prefix"]
    source = (bundle.path / "src" / f"{name}.c").read_text()
    body = source.partition(f"void qc_{name}_run(")[2]
    assert [kernel for kernel, _ in first] == [
        line.split("(")[0].strip() for line in body.splitlines() if line.startswith(f"  qc_{name}_")
    ]
    assert all(count > 0 for _, count in first)


def test_instructions_are_estimated(bundle: Bundle, plugin: Path, tmp_path: Path) -> None:
    """The report's figure, from rates fitted to other networks, is close to what the Cortex-M4 executes."""
    if reason := BOARDS["m4"].missing():
        pytest.skip(reason)
    (tmp_path / "probe.c").write_text(probe(bundle.manifest["c"], 1))
    image = build(BOARDS["m4"], bundle.path, bundle.manifest["c"], tmp_path / "image.elf", main=tmp_path / "probe.c")
    counted = instructions(BOARDS["m4"], image, plugin, bundle.manifest["c"], SECONDS)
    fit = bundle.report()["fit"]
    assert fit["instructions"] == sum(layer["instructions"] for layer in fit["layers"])
    assert fit["instructions"] == pytest.approx(sum(count for _, count in counted), rel=0.15)


def test_an_object_with_vectors_gives_the_same_bits(bundle: Bundle, plugin: Path, tmp_path: Path) -> None:
    """Kernels as an object for the Cortex-M55: bit-exact, and fewer instructions than the C text at -O2."""
    board = BOARDS["m55"]
    if reason := board.missing():
        pytest.skip(reason)
    graph = bundle.integer_graph()
    options = {"prefix": bundle.manifest["c"]["prefix"], "arena": bundle.manifest["c"]["arena"], "object": "cortex-m55"}
    lowered = compile_sources(graph, options, lambda stage, done, total: None)
    manifest = manifest_of("c", "fixed", graph, lowered.files, lowered.manifest, lowered.sizes)
    vectors = write_bundle(tmp_path / "object", lowered.files, manifest, overwrite=False)
    assert emulate(board, build(board, vectors.path, manifest["c"], tmp_path / "test.elf"), SECONDS).returncode == 0
    (tmp_path / "probe.c").write_text(probe(manifest["c"], 1))
    counts = []
    for one in (bundle, vectors):
        facts = one.manifest["c"]
        image = build(board, one.path, facts, tmp_path / "probe.elf", main=tmp_path / "probe.c", level="-O2")
        counts.append(sum(count for _, count in instructions(board, image, plugin, facts, SECONDS)))
    assert counts[1] < counts[0]
    with pytest.raises(UnsupportedError, match="object for cortex-m55"):
        bundle_runner(vectors)
    subprocess.run(["make"], cwd=vectors.path, check=True, capture_output=True)
    assert (vectors.path / f"lib{options['prefix']}.a").is_file()
    listing = subprocess.run(["arm-none-eabi-size", "-A", str(vectors.path / "src" / manifest["c"]["object"]["file"])],
                             capture_output=True, text=True, check=True).stdout  # fmt: skip
    text = sum(int(line.split()[1]) for line in listing.splitlines() if line.startswith(".text"))
    assert manifest["size"]["code_bytes"] == text
