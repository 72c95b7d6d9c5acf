"""Fits or not: a model's flash and RAM against the limits of a microcontroller, and what would make it fit."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from qcompiler.errors import RecipeError
from qcompiler.targets.c.advice import Ways, less_flash, less_ram
from qcompiler.targets.c.footprint import Footprint
from qcompiler.targets.c.instructions import estimate, read_rates
from qcompiler.targets.shared.program import Program

TIGHT = 0.9
"""A limit used beyond this share is tight: an application needs room too."""
_UNITS = {"": 1, "B": 1, "KB": 1000, "KIB": 1 << 10, "K": 1 << 10, "MB": 10**6, "MIB": 1 << 20, "M": 1 << 20}


def parse_size(text: str, where: str) -> int:
    """`256KiB`, `1MB` or `65536` -> bytes. Raises RecipeError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", text.strip())
    if match is None or match[2].upper() not in _UNITS or float(match[1]) == 0:
        raise RecipeError(f"`{text}` is no size.", where=where, hint="For example 256KiB, 1MiB or 65536.")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def limits_of(options: Mapping[str, Any]) -> dict[str, int]:
    """`flash` and `ram` in bytes, where given. Raises RecipeError."""
    return {name: parse_size(options[name], f"--{name}") for name in ("flash", "ram") if options.get(name) is not None}


def constants_by_node(program: Program) -> dict[str, int]:
    """Node -> bytes of constants that only it, or it first, reads."""
    found: dict[str, int] = {}
    seen: set[int] = set()
    for call in program.calls:
        for argument in call.arguments:
            buffer = argument.buffer
            if buffer.kind == "constant" and buffer.index not in seen:
                seen.add(buffer.index)
                size = int(program.constants.arrays[buffer.index].nbytes)
                found[call.node] = found.get(call.node, 0) + size
    return found


def peak(program: Program) -> tuple[str, list[tuple[str, int]]]:
    """The node during which most of the arena is alive, and what is alive then: (name, bytes), largest first."""
    best: tuple[int, str, list[tuple[str, int]]] = (0, "", [])
    for step, call in enumerate(program.calls):
        alive = [(b.name, b.bytes) for b in program.buffers if 0 <= b.first <= step <= b.last]
        total = sum(size for _, size in alive)
        if total > best[0]:
            best = (total, call.node, sorted(alive, key=lambda pair: -pair[1]))
    return best[1], best[2]


def judge(
    footprint: Footprint, program: Program, limits: Mapping[str, int], ways: Ways | None = None
) -> dict[str, Any]:
    """The report's entry `fit`. verdict is FITS, TIGHT or TOO BIG, or null where no limit is given.

    ways: options that the user has left, for advice.
    """
    ways = ways or Ways()
    nodes = constants_by_node(program)
    largest = max(nodes, key=lambda name: nodes[name], default="")
    where, alive = peak(program)
    layers = estimate(program, read_rates())
    used = {"flash": footprint.flash, "ram": footprint.ram}
    states = [_state(used[name], limit) for name, limit in limits.items()]
    verdict = next((state for state in ("TOO BIG", "TIGHT", "FITS") if state in states), None)
    return {
        "verdict": verdict,
        "how": footprint.how,
        "core": footprint.core,
        "flash_bytes": footprint.flash,
        "code_bytes": footprint.code,
        "constant_bytes": footprint.constants,
        "ram_bytes": footprint.ram,
        "arena_bytes": footprint.arena,
        **({"state_bytes": footprint.state} if footprint.state else {}),
        "stack_bytes": footprint.stack,
        "limits": dict(limits),
        "largest_layer": {"node": largest, "constant_bytes": nodes.get(largest, 0)},
        "peak": {"node": where, "alive": [{"name": name, "bytes": size} for name, size in alive[:4]]},
        "instructions": sum(layer["instructions"] for layer in layers),
        "layers": layers,
        "advice": [
            less_flash(used[name] - limit, (largest, nodes.get(largest, 0)), footprint, program, ways)
            if name == "flash"
            else less_ram(used[name] - limit, (where, alive), footprint, program, ways)
            for name, limit in limits.items()
            if used[name] > limit
        ],
    }


def _state(used: int, limit: int) -> str:
    if used > limit:
        return "TOO BIG"
    return "TIGHT" if used > TIGHT * limit else "FITS"
