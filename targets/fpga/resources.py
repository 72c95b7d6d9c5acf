"""What modules take: look-up tables, registers, block RAMs and multiplier blocks, before any tool has run.

Multipliers are a measured table (prices.json). Everything else is counted from the structure: a carry chain takes a
LUT a bit, a memory in LUTs one for every 64 entries of a bit (16 where LUTs have four inputs). Constants for control
were fitted to yosys on single modules (`python -m benchmarks.fpga --modules`), for 7-series and for ECP5; then `joined`
and `spread`, requantizers and ECP5's word counters to the modules' shares of a flattened digits CNN at W4A8, block RAM
in many rows to ad's, multiplier blocks to single modules again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from qcompiler.targets.fpga.engines import Engine, Module

_MINIFLOAT_PRICES = Path(__file__).resolve().parent / "minifloat_prices.json"
_PRICES = Path(__file__).resolve().parent / "prices.json"
Parameters = Mapping[str, int]


@dataclass(frozen=True)
class Resources:
    """lut: LUT6, of ECP5 LUT4; bram: blocks of 18 Kbit; dsp: multiplier blocks."""

    lut: int = 0
    ff: int = 0
    bram: int = 0
    dsp: int = 0

    def __add__(self, other: Resources) -> Resources:
        return Resources(self.lut + other.lut, self.ff + other.ff, self.bram + other.bram, self.dsp + other.dsp)


@dataclass(frozen=True)
class Family:
    """What LUTs of a family hold, and what was fitted.

    words: entries of a constant memory of one bit; joined: LUTs that multiplexers beside them join (MUXF7 and MUXF8;
    PFUMX and L6MUX21); spread: LUTs for one that larger memories take, with their multiplexers; tree, sum: LUTs for a
    bit of an adder of a tree and of an accumulator, which is cleared on the way; dsp_bits: the narrowest product that
    yosys gives a multiplier block.
    """

    name: str
    words: int
    joined: int
    spread: float
    tree: float
    sum: float
    dsp_bits: int


FAMILIES = {"xc7": Family("xc7", 64, 4, 1.15, 1.0, 1.0, 9), "ecp5": Family("ecp5", 16, 8, 1.3, 1.6, 2.3, 4)}


@lru_cache(maxsize=1)
def prices() -> dict[str, Any]:
    """The measured table."""
    return dict(json.loads(_PRICES.read_text()))


def origin(family: str = "xc7") -> str:
    """Where the table is from."""
    return f"yosys for {family}, {prices()['date']}"


def total(found: Iterable[Resources]) -> Resources:
    """The sum."""
    return sum(found, Resources())


def engine_resources(engine: Engine, family: str = "xc7") -> Resources:
    """Of one engine."""
    return total(module_resources(module, family) for module in engine.modules)


def module_resources(module: Module, family: str = "xc7") -> Resources:
    """Of one module."""
    return _COUNTS[module.kind](module.parameters, FAMILIES[family])


def bits(n: int) -> int:
    """Of a counter that tells n things apart; at least 1."""
    return max(1, (n - 1).bit_length())


_SHAPES = ((512, 36), (1024, 18), (2048, 9), (4096, 4), (8192, 2), (16384, 1))


def _blocks(width: int, words: int) -> int:
    """18-Kbit blocks of a written memory, in the shape that takes fewest."""
    return min(-(-words // depth) * -(-width // wide) for depth, wide in _SHAPES)


def _constant(width: int, words: int, f: Family) -> tuple[int, int]:
    """(blocks, LUTs) of a constant memory: yosys fills blocks with bits of whichever row, and chooses among rows."""
    found = []
    for depth, wide in _SHAPES:
        rows = -(-words // depth)
        found.append((-(-rows * width // wide), rows))
    blocks, rows = min(found)
    return blocks, 0 if rows == 1 else (width + 4) * rows if f.name == "ecp5" else width * -(-rows // 4)


def _table_luts(width: int, words: int, f: Family) -> int:
    """A constant memory in LUTs; so many side by side that their own multiplexers still join cost nothing else."""
    if words == 1:
        return 0
    banks = -(-words // f.words)
    return int(width * banks * (1.0 if banks <= f.joined else f.spread))


def _ram_luts(width: int, words: int, f: Family) -> int:
    """A written memory in LUTs: 64 words of 3 bits, or 32 of 6, take four (ECP5: 16 words of 4); behind several, a
    multiplexer."""
    if f.name == "ecp5":
        banks = -(-words // 16)
        return banks * -(-width // 4) * 4 + (-(-width * (banks - 1) * 2 // 3) + 2 * banks if banks > 1 else 0)
    shallow, deep = -(-words // 32) * -(-width // 6) * 4, -(-words // 64) * -(-width // 3) * 4
    banks = -(-words // (32 if shallow <= deep else 64))
    return min(shallow, deep) + (width * -(-banks // 3) if banks > 1 else 0)


def _mac(p: Parameters, f: Family) -> Resources:
    lanes, width = p["PE"] * p["SIMD"], p["PE"] * p["SIMD"] * p["WB"]
    carried = 1 if (p["WE"] or p["AE"] or p["WM"]) and not p["DSP"] else 0  # a sign beside every sum
    product = _level_bits(p["WB"] - (p["WM"] > 0), 1, p["WE"]) + _level_bits(p["AB"], p["AS"], p["AE"]) + carried
    tree = tree_ff = 0
    nodes, level = p["SIMD"], 0
    while nodes > 1:
        level += 1
        tree += nodes // 2 * (product + level)
        nodes = -(-nodes // 2)
        tree_ff += nodes * (product + level)
    # As yosys does: a product of fewer bits stays in LUTs.
    blocks = p["DSP"] and product - carried + 1 - p["AS"] >= f.dsp_bits
    each = 0 if blocks else multiplier(p["WB"], p["AB"], p["AS"], f.name, p["WM"])
    if p["WE"] or p["AE"]:
        each = _minifloat_product(p)
    tree += p["SIMD"] * carried
    bram, memory = _constant(width, p["WORDS"], f) if p["BLOCK"] else (0, _table_luts(width, p["WORDS"], f))
    activations = (p["PE"] if p["DEPTHWISE"] else p["SIMD"]) * p["AB"]
    held = 0  # registers in blocks
    if blocks and f.name == "xc7":  # which add two products as well
        pairs = p["SIMD"] // 2 * (product + 1)
        tree, tree_ff = tree - pairs, tree_ff - pairs
        held = lanes * product + width + (activations if p["PE"] == 1 or p["DEPTHWISE"] else 0)
    counter = 2 * bits(p["WORDS"]) + 12 if f.name == "ecp5" else bits(p["WORDS"]) + 6
    lut = lanes * each + p["PE"] * (f.tree * tree + f.sum * p["ACC"]) + memory + counter
    ff = lanes * product + p["PE"] * (tree_ff + 2 * p["ACC"]) + (1 + p["BLOCK"]) * (width + activations) + 20
    return Resources(int(lut), ff - held, bram, lanes * bool(blocks))


CODINGS = ("multipliers", "sign_magnitude", "sign_magnitude_lowest")
"""Tables of multipliers by WM of qc_mac."""


def multiplier(weight: int, activation: int, signed: int, family: str = "xc7", magnitude: int = 0) -> int:
    """LUTs of a product of such codes; between the table's widths by its neighbours. magnitude: WM of
    qc_mac."""
    table = prices()[CODINGS[magnitude]][family]
    known = f"{weight},{activation},{signed}"
    if known in table:
        return int(table[known])
    # Beyond the table: two bits of the narrower factor are a row of the wider one, rows are added.
    narrow, wide = sorted((weight, activation))
    return -(-narrow // 2) * (wide + 3) + (-(-narrow // 2) - 1) * (wide + 3)


def _level_bits(width: int, signed: int, exponent: int) -> int:
    """Bits of what codes stand for, without the sign of a minifloat."""
    return width - signed - exponent + (1 << exponent) - 1 if exponent else width


def _minifloat_product(p: Parameters) -> int:
    """LUTs of a product where one or both are minifloats; DSP: of the decoders before its block."""
    sides = [(p["WB"], 1, p["WE"]), (p["AB"], p["AS"], p["AE"])]
    if p["DSP"]:
        return sum(2 * _level_bits(*side) + 2 for side in sides if side[2])
    # Signs are a LUT; the complement of a product of two minifloats is in the adder behind it.
    shared = _level_bits(*sides[0]) + _level_bits(*sides[1]) if p["WE"] and p["AE"] and p["SIMD"] > 1 else 0
    return minifloat_multiplier(*(minifloat_key(*side) for side in sides)) + shared


def minifloat_key(width: int, signed: int, exponent: int) -> str:
    """An operand in the table of minifloat multipliers: `e2m1` for signed and unsigned ones, int8, uint8."""
    if exponent:
        return f"e{exponent}m{width - signed - exponent}"
    known = next((bits for bits in (*range(2, 9), 16) if bits >= width), 16)
    return f"{'' if signed else 'u'}int{known}"


def minifloat_multiplier(one: str, other: str) -> int:
    """LUTs of qc_mul_float for such operands."""
    table = minifloat_prices()["multipliers"]
    return int(table[f"{one},{other}"] if f"{one},{other}" in table else table[f"{other},{one}"])


@lru_cache(maxsize=1)
def minifloat_prices() -> dict[str, Any]:
    """The measured table of minifloat multipliers."""
    return dict(json.loads(_MINIFLOAT_PRICES.read_text()))


def _requant(p: Parameters, f: Family) -> Resources:
    x = max(p["ACC"], p["BB"]) + 1 + p["GL"]
    digits, width = 2 * p["STAGES"] * p["STEPS"], p["LANES"] * (p["BB"] + p["MB"])
    slow = p["STEPS"] >= 4  # then the memory is read into a register
    held = x - p["GL"]  # bits that were moved left are no registers below
    ff = 5 * held + digits + 80
    if f.name == "ecp5":
        lut, control = digits + 9.7 * x + 4 * x * (p["STAGES"] - 1) + 15 * p["BLOCK"], 0
    else:
        lut, control = 3.0 * x + digits + 18, bits(p["STEPS"]) + bits(p["WORDS"]) + 8
    if not slow:
        lut, ff = lut + x, ff + 2 * digits + held
    for stage in range(1, p["STAGES"]):
        rest = digits - 2 * stage * p["STEPS"]
        lut += 0 if f.name == "ecp5" else 2 * (x + 3) + (rest if p["STEPS"] > 1 else 0)
        ff += 3 * held + rest + 3
    if p["WORDS"] == 1:
        lut -= x + digits  # of constants
    elif not slow:  # yosys merges the memory with what is behind it
        lut += (1.1 if f.name == "ecp5" else 4) * digits * (-(-p["WORDS"] // f.words) - 1)
    bram, memory = _constant(width, p["WORDS"], f) if p["BLOCK"] else (0, _table_luts(width, p["WORDS"], f))
    waiting = p["PE"] * p["ACC"]
    shift = waiting if p["PE"] > p["LANES"] else 0
    found = int(p["LANES"] * lut) + memory + shift + control
    if p["OE"]:
        more = encoder(p["OB"], p["OS"], p["OE"], x)
        found, ff = found + p["LANES"] * (more.lut - 16), ff + more.ff + p["STAGES"]  # 16: the rounding in its place
    return Resources(found, p["LANES"] * ff + waiting + 20, bram)


def encoder(width: int, signed: int, exponent: int, incoming: int) -> Resources:
    """Of qc_encode: codes of `width` bits from sums of `incoming` bits."""
    mantissa = width - signed - exponent
    levels = mantissa + (1 << exponent) - 1
    lut = incoming * 5 // 4 + ((1 << exponent) - 2) * (mantissa + 3) + 2
    return Resources(lut, 2 * levels + 12)


def _window(p: Parameters, f: Family) -> Resources:
    words, parts = p["DEPTH"] * p["CF"], 1 if p["OSTEP"] else p["CF"]
    address, image = bits(words), p["H"] * p["W"]
    pixel = bits(image + p["DEPTH"] + (p["KH"] * p["DH"] + p["PT"]) * p["W"] + p["KW"] * p["DW"]) + 2
    edge = bits(max(p["H"], p["W"]) + p["KH"] * p["DH"] + p["KW"] * p["DW"] + p["PT"] + p["PL"] + p["SH"] + p["SW"]) + 1
    control = 3 * address + 6.5 * pixel + (4.5 * edge if p["PADDED"] else 0) + 24
    control += 25 if p["KH"] * p["KW"] > 1 else 0
    control += p["WIDTH"]  # the beat that waits
    if f.name == "ecp5":
        control = 16 * address + 25 * pixel + (2 * edge if p["PADDED"] else 0) + 3 * p["WIDTH"] - 110
    counters = sum(bits(p[key]) for key in ("KH", "KW", "OUTER", "OH", "OW")) + bits(parts)
    memory = 0 if p["BLOCK"] else _ram_luts(p["WIDTH"], words, f)
    ff = (3 - p["BLOCK"]) * p["WIDTH"] + 3 * address + 6 * pixel + (2 * edge if p["PADDED"] else 0) + counters + 16
    return Resources(int(control + memory), ff, _blocks(p["WIDTH"], words) if p["BLOCK"] else 0)


def _add(p: Parameters, f: Family) -> Resources:
    digits = [-(-p[key] // 4) for key in ("AB", "BB")]
    wide = p["W"] - 6
    lut = p["LANES"] * (sum(d * wide + (d - 1) * wide for d in digits) + wide + 3 * p["OB"])
    return Resources(lut + 6, p["LANES"] * (p["AB"] + p["BB"] + 2 * p["W"] + p["W"] - p["SHIFT"] + p["OB"]) + 4)


def _sum(p: Parameters, f: Family) -> Resources:
    width = p["LANES"] * p["ACC"]
    lut = 2 * width + _ram_luts(width, p["CF"], f) + 2 * (bits(p["CF"]) + bits(p["PIXELS"])) + 8
    return Resources(lut, width + bits(p["CF"]) + bits(p["PIXELS"]) + 1)


def _softmax(p: Parameters, f: Family) -> Resources:
    total_bits = p["EB"] + bits(p["C"])
    quotient = bits(p["R"] + 1) + 1
    divide = total_bits + 1 + quotient
    lut = 4 * divide + 2 * total_bits + p["EB"] * -(-(1 << p["AB"]) // 64) + 6 * p["AB"] + 60
    return Resources(lut, 2 * divide + 2 * total_bits + 4 * p["AB"] + quotient + 20)


def _queue(p: Parameters, f: Family) -> Resources:
    control = (8 if f.name == "ecp5" else 5) * bits(p["DEPTH"] + 1) + 6
    if p["BLOCK"]:
        return Resources(control, 3 * bits(p["DEPTH"]) + 2, _blocks(p["WIDTH"], p["DEPTH"]))
    return Resources(control + _ram_luts(p["WIDTH"], p["DEPTH"], f), p["WIDTH"] + 3 * bits(p["DEPTH"]) + 2)


def _slice(p: Parameters, f: Family) -> Resources:
    counters = bits(p["CF"]) + 2 * bits(p["H"] + p["SY"]) + 2 * bits(p["W"] + p["SX"])
    return Resources(3 * counters + 10, counters)


def _pad(p: Parameters, f: Family) -> Resources:
    counters = bits(p["OC"]) + bits(p["OH"]) + bits(p["OW"])
    return Resources(3 * counters + p["WIDTH"] + 6, counters + 1)


_COUNTS: dict[str, Callable[[Parameters, Family], Resources]] = {
    "qc_add": _add,
    "qc_concat": lambda p, f: Resources(p["WIDTH"] + 2 * bits(p["A"] + p["B"]) + 4, bits(p["A"] + p["B"])),
    "qc_fifo": _queue,
    "qc_fork": lambda p, f: Resources(2 * p["N"] + 1, p["N"]),
    "qc_mac": _mac,
    "qc_max": lambda p, f: Resources(p["LANES"] * (p["B"] + 2) + 3, p["LANES"] * p["B"] + 1),
    "qc_pad": _pad,
    "qc_slice": _slice,
    "qc_narrow": lambda p, f: Resources(p["WIDTH"] * p["N"] + 2 * bits(p["N"] + 1) + 3, p["WIDTH"] * p["N"] + 3),
    "qc_requant": _requant,
    "qc_softmax": _softmax,
    "qc_sum": _sum,
    "qc_table": lambda p, f: Resources(p["LANES"] * p["OB"] * -(-(1 << p["IB"]) // 64) + 2, p["LANES"] * p["OB"] + 1),
    "qc_widen": lambda p, f: Resources(2 * bits(p["N"]) + 3, p["WIDTH"] * p["N"] + bits(p["N"]) + 1),
    "qc_window": _window,
}
