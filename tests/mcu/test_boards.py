"""Whole networks on emulated boards, bit for bit with the oracle. `make test-mcu BOARDS=all` runs every board."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from qcompiler.bundle import Bundle, manifest_of, write_bundle
from qcompiler.driver import bundle_runner, quantize
from qcompiler.errors import UnsupportedError
from qcompiler.targets.c.build import build as compile_sources
from qcompiler.targets.c.objects import OBJECTS
from tests.conformance.suite import build_suite
from tests.graph.test_state import sequences
from tests.mcu.boards import BOARDS, Board, build, emulate, instructions, probe
from tests.targets.test_c_state import MODELS, bundle_of

SECONDS = 120.0


@pytest.mark.parametrize("level", ["-Os", "-O2"])
def test_self_test_passes(board: Board, bundle: Bundle, level: str, tmp_path: Path) -> None:
    image = build(board, bundle.path, bundle.manifest["c"], tmp_path / "image.elf", level=level)
    done = emulate(board, image, SECONDS)
    assert (done.returncode, done.stderr) == (0, "")


def run_suite(board: Board, folder: Path, **options: Any) -> int:
    """Exit code of the self-test of the conformance suite: the inner loops that the host does not compile."""
    graph = build_suite("fixed").graph
    table = {"prefix": "suite", "vectors": "2", **options}
    lowered = compile_sources(graph, table, lambda stage, done, total: None)
    manifest = manifest_of("c", "fixed", graph, lowered.files, lowered.manifest, lowered.sizes)
    suite = write_bundle(folder / "suite", lowered.files, manifest, overwrite=False)
    image = build(board, suite.path, manifest["c"], folder / "image.elf", level="-O2")
    return emulate(board, image, SECONDS).returncode


@pytest.mark.parametrize("pack", [False, True])
def test_every_problem_has_the_oracles_bits(board: Board, pack: bool, tmp_path: Path) -> None:
    assert run_suite(board, tmp_path, pack=pack) == 0


def test_an_object_with_vectors_solves_every_problem(tmp_path: Path) -> None:
    board = BOARDS["m55"]
    if reason := board.missing():
        pytest.skip(reason)
    assert run_suite(board, tmp_path, object="cortex-m55") == 0


def test_states_go_on_from_step_to_step(board: Board, tmp_path: Path) -> None:
    """Recurrent states (16 bits, copied behind the last reader), and a cache that is written where it lies."""
    for name, (make, pairs) in MODELS.items():
        graph = quantize(make().model, {"x": sequences(4)}, target="c", state=pairs).integer_graph
        assert graph is not None
        made = bundle_of(graph, tmp_path / name, vectors="6")
        image = build(board, made.path, made.manifest["c"], tmp_path / f"{name}.elf")
        done = emulate(board, image, SECONDS)
        assert (done.returncode, done.stderr) == (0, "")


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


def variant(bundle: Bundle, path: Path, **options: str) -> Bundle:
    """The same network, arena and prefix with other options."""
    graph = bundle.integer_graph()
    same = {"prefix": bundle.manifest["c"]["prefix"], "arena": bundle.manifest["c"]["arena"]}
    lowered = compile_sources(graph, same | options, lambda stage, done, total: None)
    manifest = manifest_of("c", "fixed", graph, lowered.files, lowered.manifest, lowered.sizes)
    return write_bundle(path, lowered.files, manifest, overwrite=False)


def test_weights_as_bytes_give_the_same_bits(board: Board, bundle: Bundle, tmp_path: Path) -> None:
    """In the section of their own, at its place in the memory map."""
    binary = variant(bundle, tmp_path / "binary", weights="bin")
    image = build(board, binary.path, binary.manifest["c"], tmp_path / "image.elf")
    assert emulate(board, image, SECONDS).returncode == 0
    symbols = subprocess.run([board.compiler.removesuffix("gcc") + "nm", str(image)], capture_output=True, text=True)
    assert re.search(rf" [RT] qc_{binary.manifest['c']['prefix']}_weights\n", symbols.stdout)
    flash = [size for name, size in sections(board, image) if name in (".rodata", ".text")]
    assert sum(flash) > (binary.path / "src" / f"{binary.manifest['c']['prefix']}_weights.bin").stat().st_size


def sections(board: Board, image: Path) -> list[tuple[str, int]]:
    """(section, bytes) of an image."""
    command = [board.compiler.removesuffix("gcc") + "size", "-A", str(image)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return [(words[0], int(words[1])) for words in map(str.split, lines) if words and words[0].startswith(".")]


def test_two_models_live_in_one_image(board: Board, bundle: Bundle, tmp_path: Path) -> None:
    """One with arrays, one with bytes, a static arena and the caller's: each proves its bits twice, in turns."""
    facts = bundle.manifest["c"]
    options = {"prefix": "second", "weights": "bin", "arena": "caller" if facts["arena"] == "static" else "static"}
    second = variant(bundle, tmp_path / "second", **options)
    for one in (bundle, second):
        name = one.manifest["c"]["prefix"]
        text = (one.path / "test" / "selftest.c").read_text()
        (tmp_path / f"{name}.c").write_text(text.replace("int main(void)", f"int main_{name}(void)"))
    names = [one.manifest["c"]["prefix"] for one in (bundle, second)]
    (tmp_path / "main.c").write_text(
        "\n".join(f"int main_{name}(void);" for name in names)
        + "\nint main(void) { return "
        + " | ".join(f"main_{name}() << {i}" for i, name in enumerate(names * 2))
        + "; }\n"
    )
    shared = tmp_path / "both"
    shared.mkdir()
    for one in (bundle, second):
        shutil.copytree(one.path / "src", shared / "src", dirs_exist_ok=True)
    files = [file for one in (bundle, second) for file in one.manifest["c"]["files"]]
    for name in names:
        shutil.copy(tmp_path / f"{name}.c", shared / "src" / f"main_{name}.c")
    main = [f"main_{name}.c" for name in names]
    image = build(board, shared, {"files": files + main}, tmp_path / "image.elf", main=tmp_path / "main.c")
    assert emulate(board, image, SECONDS).returncode == 0


BOARD_OF = {"cortex-m4": "m4", "cortex-m7": "m7", "cortex-m33": "m33", "cortex-m55": "m55", "rv32imac": "rv32"}


@pytest.mark.parametrize("core", sorted(OBJECTS))
def test_an_object_gives_the_same_bits(bundle: Bundle, core: str, plugin: Path, tmp_path: Path) -> None:
    """Kernels as an object are bit-exact on their core; with vectors they take fewer instructions than C at -O2."""
    board = BOARDS[BOARD_OF[core]]
    if reason := board.missing():
        pytest.skip(reason)
    vectors = variant(bundle, tmp_path / "object", object=core)
    manifest = vectors.manifest
    assert emulate(board, build(board, vectors.path, manifest["c"], tmp_path / "test.elf"), SECONDS).returncode == 0
    if OBJECTS[core].lanes > 1:
        (tmp_path / "probe.c").write_text(probe(manifest["c"], 1))
        counts = []
        for one in (bundle, vectors):
            facts = one.manifest["c"]
            image = build(board, one.path, facts, tmp_path / "probe.elf", main=tmp_path / "probe.c", level="-O2")
            counts.append(sum(count for _, count in instructions(board, image, plugin, facts, SECONDS)))
        assert counts[1] < counts[0]
    with pytest.raises(UnsupportedError, match=f"object for {core}"):
        bundle_runner(vectors)
    subprocess.run(["make"], cwd=vectors.path, check=True, capture_output=True)
    assert (vectors.path / f"lib{manifest['c']['prefix']}.a").is_file()
    kernels = vectors.path / "src" / manifest["c"]["object"]["file"]
    assert manifest["size"]["code_bytes"] == sum(
        size for name, size in sections(board, kernels) if name.startswith(".text")
    )
