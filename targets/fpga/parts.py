"""FPGAs that a circuit can be held against: what they have, from their makers' tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qcompiler.errors import RecipeError

CLOCK = 100_000_000
"""Cycles a second that rates and latencies are told for."""


@dataclass(frozen=True)
class Part:
    """lut: LUT6 (ecp5: LUT4); bram: in 18 Kbit; dsp: multiplier blocks."""

    name: str
    family: str
    device: str
    """What the maker's tools call it."""
    lut: int
    ff: int
    bram: int
    dsp: int


PARTS = {
    part.name: part
    for part in (
        # AMD DS180 and DS190: block RAM there is in 36 Kbit.
        Part("xc7a35t", "xc7", "xc7a35tcpg236-1", 20800, 41600, 100, 90),
        Part("xc7a100t", "xc7", "xc7a100tcsg324-1", 63400, 126800, 270, 240),
        Part("xc7a200t", "xc7", "xc7a200tfbg484-1", 134600, 269200, 730, 740),
        Part("xc7z010", "xc7", "xc7z010clg400-1", 17600, 35200, 120, 80),
        Part("xc7z020", "xc7", "xc7z020clg400-1", 53200, 106400, 280, 220),
        Part("xc7z045", "xc7", "xc7z045ffg900-2", 218600, 437200, 1090, 900),
        # Lattice FPGA-DS-02012.
        Part("ecp5-25k", "ecp5", "25k", 24288, 24288, 56, 28),
        Part("ecp5-45k", "ecp5", "45k", 43848, 43848, 108, 72),
        Part("ecp5-85k", "ecp5", "85k", 83640, 83640, 208, 156),
    )
}
DEFAULT = "xc7z020"


def part_of(options: Mapping[str, Any]) -> Part:
    """The part that options name. Raises RecipeError."""
    name = str(options.get("part") or DEFAULT)
    if name not in PARTS:
        raise RecipeError(f"`{name}` is not known.", where="--part", hint=f"Choose from {', '.join(PARTS)}.")
    return PARTS[name]


def limits_of(options: Mapping[str, Any]) -> dict[str, int]:
    """lut, ff, bram and dsp: the part's, or less where options say so. Raises RecipeError."""
    part = part_of(options)
    found = {"lut": part.lut, "ff": part.ff, "bram": part.bram, "dsp": part.dsp}
    for name in ("lut", "bram", "dsp"):
        if (given := options.get(name)) is None:
            continue
        if not str(given).isdigit():
            raise RecipeError(f"`{given}` is no count.", where=f"--{name}", hint="For example 40000.")
        found[name] = min(found[name], int(given))
    return found


def cycles_of(options: Mapping[str, Any]) -> int | None:
    """Cycles an image that `fps` leaves, None without it. Raises RecipeError."""
    given = options.get("fps")
    if given is None:
        return None
    try:
        rate = float(given)
    except (TypeError, ValueError):
        rate = 0.0
    if not 0 < rate <= CLOCK:
        raise RecipeError(f"`{given}` is no rate.", where="--fps", hint="Images a second, for example 1000.")
    return int(CLOCK / rate)
