"""What would make a model fit: options first, with what they save, then a smaller network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

from qcompiler.graph.model import Graph, attribute
from qcompiler.graph.qdq import FORMAT_KEY
from qcompiler.targets.c.footprint import Footprint
from qcompiler.targets.shared.paired import packing_of
from qcompiler.targets.shared.program import Program
from qcompiler.targets.shared.tir.columns import PACKINGS

SURE = 0.95
"""Share of what fewer bits save on paper that advice counts on: rows are filled up to whole words."""


@dataclass(frozen=True)
class Ways:
    """What options that are not in use would take, found when asked for; None where one is in use or impossible."""

    in_bands: Callable[[], int] | None = None
    """Bytes of the arena with `--optimize-for memory`."""
    packed: Callable[[], int] | None = None
    """Bytes of constants with `--pack`."""


def less_flash(excess: int, largest: tuple[str, int], footprint: Footprint, program: Program, ways: Ways) -> str:
    """One paragraph. excess: bytes too many; largest: the layer with most constants, and how many bytes."""
    name, size = largest
    head = f"flash: {_kib(excess)} too much; `{name}` is the largest layer with {_kib(size)} of constants"
    if excess >= footprint.constants:
        return f"{head}. The limit is below the code alone ({_kib(footprint.code)}): it needs a larger part."
    outside = f"or with the constants in external flash (`--weights bin`), beside {_kib(footprint.code)} of code"
    found = [_packed(footprint, program, ways), _wide(program), *_fewer_bits(program)]
    for option, saved in found:
        if saved >= excess:
            return f"{head}. It fits with {option}, saving {_kib(saved)}, {outside}."
    option, saved = max(found, key=lambda way: way[1])
    if saved:
        head += f". {option[0].upper()}{option[1:]} would save {_kib(saved)} of it"
        excess -= saved
        return f"{head}; beside that it takes {_percent(excess, footprint.constants - saved)} less weights, {outside}."
    if excess < size:
        return f"{head}. It fits with {_percent(excess, size)} fewer channels there, {outside}."
    return f"{head}. It fits with {_percent(excess, footprint.constants)} less weights in all, {outside}."


def _packed(footprint: Footprint, program: Program, ways: Ways) -> tuple[str, int]:
    narrow = any(packed < 8 for packed, _ in _weights(program.graph))
    saved = footprint.constants - ways.packed() if narrow and ways.packed else 0
    return "`--pack`", max(saved, 0)


def _wide(program: Program) -> tuple[str, int]:
    """Bytes that int16 weights take beyond int8."""
    arrays = [program.constants.arrays[index] for index in program.constants_read()]
    saved = sum(int(array.nbytes) // 2 for array in arrays if array.dtype == "int16")
    return "symmetric 8-bit weights", saved


def _fewer_bits(program: Program) -> list[tuple[str, int]]:
    """Options of 4 and 2 bits with what they would save, 0 for what is no less than now."""
    found = []
    for bits in (4, 2):
        saved = 0
        for now, count in _weights(program.graph):
            before = now if program.machine.packed else 8
            saved += max(0, count * (before - bits)) // 8
        found.append((f"weights of {bits} bits (`--precision w{bits}a8 --pack`)", int(SURE * saved)))
    return found


def _weights(graph: Graph) -> list[tuple[int, int]]:
    """(bits that `--pack` leaves, how many) of the weights of every node that it reaches."""
    found = []
    for node in graph.nodes("Conv", "MatMul"):
        weights = node.inputs[1]
        known = weights is not None and FORMAT_KEY in weights.metadata_props
        if known and graph.const(weights) is not None and attribute(node, "group", 1) == 1:
            packing = packing_of(weights)
            found.append((PACKINGS[packing].bits if packing else 8, prod(graph.shape(weights))))
    return found


def less_ram(
    excess: int, peak: tuple[str, Sequence[tuple[str, int]]], footprint: Footprint, program: Program, ways: Ways
) -> str:
    """One paragraph. excess: bytes too many; peak: a node, and what is alive then as (name, bytes)."""
    where, alive = peak
    names = " and ".join(f"`{name}` ({_kib(size)})" for name, size in alive[:2])
    head = f"RAM: {_kib(excess)} too much; most is alive at `{where}`: {names}"
    if excess > footprint.arena:
        kept = f" and the states ({_kib(footprint.state)})" if footprint.state else ""
        return f"{head}. The limit is below the stack alone ({footprint.stack} B){kept}."
    arena = min(footprint.arena, ways.in_bands()) if ways.in_bands else footprint.arena
    if footprint.arena - arena >= excess:
        return f"{head}. It fits with `--optimize-for memory`, which takes {_kib(arena)} of arena."
    if arena < footprint.arena:
        head += f". `--optimize-for memory` saves {_kib(footprint.arena - arena)} of it"
        excess -= footprint.arena - arena
    if any(view.buffer.kind == "arena" and view.itemsize > 1 for view in program.views.values()):
        return f"{head}. Activations of 8 bits (--precision w8a8) would halve the arena to {_kib(arena // 2)}."
    side = int(100 * (1 - excess / arena) ** 0.5)
    return f"{head}. It fits with {_percent(excess, arena)} fewer channels there, or pictures {side}% as wide."


def _percent(part: int, whole: int) -> str:
    """Rounded up: advice must be enough."""
    return f"{-(-100 * part // whole)}%"


def _kib(size: int) -> str:
    return f"{size / 1024:.1f} KiB" if size >= 1024 else f"{size} B"
