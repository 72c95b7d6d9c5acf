"""Microcontrollers: bits on emulated boards, flash, RAM, and instructions by kind of layer.

    python -m benchmarks.mcu [--only PARTS] [--precisions w8a8,w4a8] [--boards m4,m55,rv32] [--vectors 20]
                             [--levels=-Os,-O2] [--json FILE]

Needs the cross compilers and emulators that tests/mcu/install.sh installs. `exact`: the self-test with that many
samples passes on every board; so it does for kernels as an object on the Cortex-M55, and with --optimize-for memory on
the Cortex-M4. Instructions are those of one inference on the Cortex-M4, counted by a plugin of the emulator; they are
not cycles. Exit code 1 if a bit is wrong anywhere.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir

from benchmarks.assets import Case, arguments, networks, write_json
from benchmarks.bundles import quantize
from qcompiler.bundle import Bundle, manifest_of, write_bundle
from qcompiler.cli.console import table
from qcompiler.graph.model import Graph, attribute
from qcompiler.ops.macs import node_macs
from qcompiler.targets.c import footprint
from qcompiler.targets.c.build import build as build_sources
from tests.mcu.boards import BOARDS, Board, build, build_plugin, emulate, instructions, probe

NETWORKS = "digits,kws,tiny_ad,resnet8,vww,mobilenetv2_cifar10,resnet20_cifar10_jpeg"
KINDS = ("3x3", "1x1", "depthwise", "first", "dense")
SECONDS = 300.0


def kind_of(graph: Graph, node: ir.Node) -> str:
    """A convolution with many inputs, one of 1 x 1, depthwise, one on a few planes, a matrix product; or ``."""
    if node.op_type == "MatMul":
        return "dense"
    if node.op_type != "Conv":
        return ""
    assert node.inputs[1] is not None
    shape = graph.shape(node.inputs[1])
    if attribute(node, "group", 1) > 1:
        return "depthwise" if shape[1] == 1 else ""
    if shape[1] < 16:
        return "first"
    return "1x1" if set(shape[2:]) == {1} else "3x3"


def per_mac(graph: Graph, calls: Sequence[tuple[str, int]]) -> dict[str, float]:
    """Instructions for each multiply-accumulate, by kind of layer and in `all`. calls: (node, instructions)."""
    nodes = {str(node.name): node for node in graph.nodes()}
    spent: dict[str, int] = {}
    work: dict[str, int] = {}
    for node in nodes.values():
        kind = kind_of(graph, node)
        for name in (kind, "all"):
            work[name] = work.get(name, 0) + node_macs(graph, node)
    for name, count in calls:
        kind = kind_of(graph, nodes[name]) if name in nodes else ""
        for one in (kind, "all"):
            spent[one] = spent.get(one, 0) + count
    return {name: round(spent.get(name, 0) / macs, 3) for name, macs in work.items() if name and macs}


def counted(bundle: Bundle, plugin: Path, folder: Path, level: str, name: str = "m4") -> list[tuple[str, int]]:
    """(node, instructions) of every call on a board, the Cortex-M4."""
    facts, board = bundle.manifest["c"], BOARDS[name]
    (folder / "probe.c").write_text(probe(facts, 1))
    image = build(board, bundle.path, facts, folder / "probe.elf", main=folder / "probe.c", level=level)
    found = instructions(board, image, plugin, facts, SECONDS)
    return [(call["node"], count) for call, (_, count) in zip(facts["calls"], found, strict=True)]


def made(graph: Graph, folder: Path, **options: Any) -> Bundle:
    """The bundle of an integer graph."""
    lowered = build_sources(graph, {"prefix": "net", **options}, lambda stage, done, total: None)
    manifest = manifest_of("c", "fixed", graph, lowered.files, lowered.manifest, lowered.sizes)
    return write_bundle(folder, lowered.files, manifest, overwrite=True)


def variants(graph: Graph, folder: Path, vectors: int, plugin: Path) -> dict[str, Any]:
    """The plan with least memory, weights packed, and kernels as an object for the Cortex-M55."""

    def passes(bundle: Bundle, board: str) -> bool:
        image = build(BOARDS[board], bundle.path, bundle.manifest["c"], folder / "selftest.elf", level="-O2")
        return emulate(BOARDS[board], image, SECONDS).returncode == 0

    small = made(graph, folder / "small", vectors=vectors, optimize_for="memory", pack=True)
    spent = sum(count for _, count in counted(small, plugin, folder, "-O2"))
    found: dict[str, Any] = {
        "small": {
            "exact": passes(small, "m4"), "arena": small.manifest["size"]["arena_bytes"],
            "constants": small.manifest["size"]["weight_bytes"], "instructions": spent,
        }
    }  # fmt: skip
    if not BOARDS["m55"].missing():
        object_ = made(graph, folder / "object", vectors=vectors, object="cortex-m55")
        calls = counted(object_, plugin, folder, "-O2", "m55")
        figures = {"total": sum(count for _, count in calls), **per_mac(graph, calls)}
        found["object"] = {"exact": passes(object_, "m55"), **figures}
    return found


def row(
    case: Case, precision: str, boards: Sequence[Board], levels: Sequence[str], vectors: int, plugin: Path
) -> dict[str, Any]:
    """Everything about one network at one precision."""
    graph = quantize(case, precision, "fixed").integer_graph
    assert graph is not None
    lowered = build_sources(graph, {"prefix": "net", "vectors": vectors}, lambda stage, done, total: None)
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        manifest = manifest_of("c", "fixed", graph, lowered.files, lowered.manifest, lowered.sizes)
        bundle = write_bundle(folder / "bundle", lowered.files, manifest, overwrite=False)
        exact = {}
        for board in boards:
            image = build(board, bundle.path, bundle.manifest["c"], folder / "selftest.elf", level="-O2")
            exact[board.name] = emulate(board, image, SECONDS).returncode == 0
        found: dict[str, Any] = {"network": case.name, "precision": precision, "vectors": vectors, "exact": exact}
        size = lowered.sizes
        print_ = footprint.measure(
            bundle.path, bundle.manifest["c"]["files"], "net", size["arena_bytes"], size["weight_bytes"]
        )
        assert print_ is not None
        found |= {"code": print_.code, "constants": print_.constants, "arena": print_.arena, "stack": print_.stack}
        found["bound"] = size["arena_lower_bound"]
        found["estimated"] = {
            "flash": size["weight_bytes"] + size["code_bytes"], "ram": size["arena_bytes"] + size["stack_bytes"],
        }  # fmt: skip
        found["instructions"] = {}
        for level in levels:
            calls = counted(bundle, plugin, folder, level)
            if level == "-Os":
                found["estimated"]["instructions"] = lowered.facts["fit"]["instructions"]
            found["instructions"][level] = {"total": sum(count for _, count in calls), **per_mac(graph, calls)}
        found |= variants(graph, folder, vectors, plugin)
    return found


def lines(rows: Sequence[Mapping[str, Any]]) -> Iterator[list[object]]:
    """Lines of the table of sizes and bits."""
    for one in rows:
        flash, ram = one["code"] + one["constants"], one["arena"] + one["stack"]
        guess = one["estimated"]
        off = max(abs(guess["flash"] / flash - 1), abs(guess["ram"] / ram - 1))
        bad = [name for name, good in one["exact"].items() if not good]
        yield [
            one["network"], one["precision"], "NO: " + ", ".join(bad) if bad else "yes", one["constants"], one["code"],
            one["arena"], f"{one['arena'] / one['bound']:.2f}", one["stack"], f"{off:.1%}",
        ]  # fmt: skip


def instruction_lines(rows: Sequence[Mapping[str, Any]]) -> Iterator[list[object]]:
    """Lines of the table of instructions, one a network and level of optimization."""
    for one in rows:
        for level, found in one["instructions"].items():
            kinds = [f"{found[kind]:.2f}" if kind in found else "" for kind in ("all", *KINDS)]
            guess = one["estimated"].get("instructions", 0) if level == "-Os" else 0
            off = f"{guess / found['total'] - 1:+.1%}" if guess else ""
            yield [one["network"], one["precision"], level, f"{found['total'] / 1e6:.2f} M", off, *kinds]


def variant_lines(rows: Sequence[Mapping[str, Any]]) -> Iterator[list[object]]:
    """Lines of the table of the smallest form, and of the object for the Cortex-M55."""
    for one in rows:
        small, figures = one["small"], one.get("object", {})
        exact = all([small["exact"], figures.get("exact", True)])
        kinds = [f"{figures[kind]:.2f}" if kind in figures else "" for kind in ("all", *KINDS)]
        yield [
            one["network"], one["precision"], "yes" if exact else "NO", small["constants"], small["arena"],
            f"{small['arena'] / one['arena']:.2f}", f"{small['instructions'] / 1e6:.2f} M",
            f"{figures['total'] / 1e6:.2f} M" if figures else "", *kinds,
        ]  # fmt: skip


VARIANT_HEADERS = [
    "network", "precision", "bit-exact", "constants", "arena", "/ default", "M4 -O2", "M55 object", "per MAC", *KINDS,
]  # fmt: skip
HEADERS = ["network", "precision", "bit-exact", "constants", "code", "arena", "/ bound", "stack", "estimate off"]
INSTRUCTION_HEADERS = ["network", "precision", "level", "instructions", "estimate off", "per MAC", *KINDS]


def main() -> int:
    """Print the tables."""
    given = arguments(
        __doc__, precisions={"default": "w8a8,w4a8"}, boards={"default": "m4,m55,rv32"}, levels={"default": "-Os,-O2"},
        vectors={"type": int, "default": 20},
    )  # fmt: skip
    boards = [BOARDS[name] for name in given.boards.split(",")]
    for board in (*boards, BOARDS["m4"]):
        if reason := board.missing():
            sys.exit(reason)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as work:
        plugin = build_plugin(Path(work) / "count.so")
        for case in networks(given.only or NETWORKS):
            for precision in given.precisions.split(","):
                rows.append(row(case, precision, boards, given.levels.split(","), given.vectors, plugin))
                print(rows[-1], file=sys.stderr, flush=True)
                write_json(given.json, rows)
    print(table(HEADERS, list(lines(rows))) + "\n\n" + table(INSTRUCTION_HEADERS, list(instruction_lines(rows))))
    print("\n" + table(VARIANT_HEADERS, list(variant_lines(rows))))
    parts = [one["exact"].values() for one in rows]
    parts += [[one["small"]["exact"], one.get("object", {}).get("exact", True)] for one in rows]
    return 0 if all(map(all, parts)) else 1


if __name__ == "__main__":
    sys.exit(main())
