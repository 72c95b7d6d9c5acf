"""A layer and its folding -> modules with parameters and memory files: everything about an engine but its wires."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, reduce
from math import gcd, prod
from operator import or_

import numpy as np
from numpy.typing import NDArray

from qcompiler.errors import UnsupportedError
from qcompiler.formats import Int, Minifloat
from qcompiler.targets.fpga.layers import (
    Codes,
    Layer,
    Requantizer,
    Stream,
    Window,
    exponent_bits,
    signed_bits,
)

BLOCK_BITS = 8192
"""A memory of more bits than this goes to block RAM, if the words are not too few for their width, where a family's
LUTs hold 64 bits each."""
BLOCK_WORDS = 64
MAX_LANES = 64
SUM_STEPS = 4


@dataclass(frozen=True)
class Fold:
    """pe: sums (or lanes) at a time; simd: products of a sum at a time; dsp: products in multiplier blocks; block: bits
    of a memory above which it goes to block RAM; queue: a global average's sums leave while the next image comes in;
    signs: weights as sign and magnitude, as qc_mac's WM has it."""

    pe: int = 1
    simd: int = 1
    dsp: bool = False
    block: int = BLOCK_BITS
    queue: bool = False
    signs: int = 0


@dataclass(frozen=True)
class Module:
    """One instance. files: parameter -> what makes the words of its memory file."""

    kind: str
    parameters: dict[str, int]
    files: dict[str, Callable[[], list[int]]] = field(default_factory=dict)


@dataclass(frozen=True)
class Multiplication:
    """How a requantizer works: `lanes` codes at a time, `stages` of `steps` digits of two bits."""

    lanes: int
    stages: int
    steps: int
    bits: int
    shift: int
    left: int


@dataclass(frozen=True, eq=False)
class Engine:
    """One layer, folded. Modules stand in a row; the first reads the inputs."""

    layer: Layer
    fold: Fold

    @cached_property
    def in_lanes(self) -> tuple[int, ...]:
        """Codes of a beat of each input."""
        layer, fold = self.layer, self.fold
        lanes = fold.simd if layer.kind == "dense" else fold.pe
        return (lanes,) * len(layer.inputs)

    @cached_property
    def out_lanes(self) -> int:
        """Codes of a beat of the output."""
        return self.multiplication.lanes if self.layer.requantizer is not None else self.fold.pe

    @cached_property
    def passes(self) -> int:
        """Beats of a window that make `pe` sums."""
        layer = self.layer
        if layer.kind == "sum":
            return 1
        assert layer.window is not None
        return prod(layer.window.kernel) * (layer.channels // self.fold.simd if layer.kind == "dense" else 1)

    @cached_property
    def repeats(self) -> int:
        """Groups of `pe` sums of an output pixel."""
        layer = self.layer
        sums = len(layer.weights) if layer.weights is not None else layer.channels
        return sums // self.fold.pe

    @cached_property
    def cycles(self) -> int:
        """Cycles of an image where nothing waits for others."""
        layer, fold = self.layer, self.fold
        if layer.kind in ("dense", "depthwise", "max"):
            assert layer.window is not None
            parts = layer.channels * layer.groups // self.in_lanes[0]
            into = prod(layer.window.input) * parts
            return max(into, prod(layer.window.output) * self.repeats * self.passes)
        if layer.kind == "sum":
            assert layer.window is not None
            into = prod(layer.window.input) * (layer.channels // fold.pe)
            return max(into, self.drain) if fold.queue else into - layer.channels // fold.pe + self.drain
        if layer.kind == "slice":
            assert layer.window is not None
            return prod(layer.window.input) * layer.values["channels"] // fold.pe
        if layer.kind == "softmax":
            rows, division = layer.output.codes // layer.channels, layer.values["numerator"].bit_length() + 6
            return rows * layer.channels * (4 + division)
        return layer.output.codes // fold.pe

    @property
    def drain(self) -> int:
        """Cycles in which the sums of a global average are requantized."""
        way = self.multiplication
        return self.layer.channels // way.lanes * way.steps

    @cached_property
    def multiplication(self) -> Multiplication:
        """The requantizer's parameters: fast enough that sums never wait."""
        layer, pe = self.layer, self.fold.pe
        assert layer.requantizer is not None
        bits, shift = common_shift(layer.requantizer)
        digits = -(-bits // 2)
        per_turn = self.passes
        if layer.kind == "sum":  # codes leave in about the time in which an image came in
            assert layer.window is not None
            per_turn = max(SUM_STEPS, prod(layer.window.input) // pe) * pe
        lanes = next(n for n in divisors(pe) if pe // n <= per_turn)
        steps = min(per_turn * lanes // pe, digits)
        stages = -(-digits // steps)
        steps = -(-digits // stages)
        left = max(0, 2 * stages * steps + 1 - shift)
        return Multiplication(lanes, stages, steps, bits, shift + left, left)

    # -- modules -------------------------------------------------------------------------------------------------

    @cached_property
    def modules(self) -> list[Module]:
        """Those of rtl/, in the order of the data."""
        return list(getattr(self, f"_{self.layer.kind}")())

    def _dense(self) -> Iterator[Module]:
        yield self._windows(self.fold.simd, self.repeats, int(self.layer.groups > 1))
        yield self._mac(0)
        yield self._requantizer()

    def _depthwise(self) -> Iterator[Module]:
        yield self._windows(self.fold.pe, self.repeats, 1)
        yield self._mac(1)
        yield self._requantizer()

    def _max(self) -> Iterator[Module]:
        yield self._windows(self.fold.pe, self.repeats, 1)
        fmt = self.layer.formats[0]
        kind = (2 if isinstance(fmt, Minifloat) else 1) if fmt.signed else 0
        yield Module("qc_max", {"LANES": self.fold.pe, "B": fmt.bits, "SIGNED": kind})

    def _sum(self) -> Iterator[Module]:
        layer, fmt = self.layer, self.layer.formats[0]
        assert layer.window is not None
        yield Module(
            "qc_sum",
            {"LANES": self.fold.pe, "AB": fmt.bits, "AS": int(fmt.signed), "ACC": signed_bits(*layer.sums),
             "CF": layer.channels // self.fold.pe, "PIXELS": prod(layer.window.input)},
        )  # fmt: skip
        if self.fold.queue:
            width, words = self.fold.pe * signed_bits(*layer.sums), max(2, layer.channels // self.fold.pe)
            block = int(in_block(width, words, self.fold.block))
            yield Module("qc_fifo", {"WIDTH": width, "DEPTH": words, "BLOCK": block})
        yield self._requantizer()

    def _add(self) -> Iterator[Module]:
        layer, v = self.layer, self.layer.values
        a, b = layer.formats
        fmt = layer.output.fmt
        assert isinstance(fmt, Int)
        yield Module(
            "qc_add",
            {"LANES": self.fold.pe, "AB": a.bits, "AS": int(a.signed), "BB": b.bits, "BS": int(b.signed),
             "W": max(signed_bits(*layer.sums), v["shift"] + fmt.bits + 2), "SHIFT": v["shift"], "OB": fmt.bits,
             "LO": fmt.min, "HI": fmt.max, "MA": v["ma"], "MB": v["mb"], "OFFSET": v["offset"]},
        )  # fmt: skip

    def _concat(self) -> Iterator[Module]:
        v, lanes = self.layer.values, self.fold.pe
        yield Module(
            "qc_concat", {"WIDTH": lanes * self.layer.output.fmt.bits, "A": v["a"] // lanes, "B": v["b"] // lanes}
        )

    def _slice(self) -> Iterator[Module]:
        layer, v, w, lanes = self.layer, self.layer.values, self.layer.window, self.fold.pe
        assert w is not None
        yield Module(
            "qc_slice",
            {"WIDTH": lanes * layer.output.fmt.bits, "H": w.input[0], "W": w.input[1], "CF": v["channels"] // lanes,
             "Y0": -w.before[0], "SY": w.strides[0], "YN": w.output[0], "X0": -w.before[1], "SX": w.strides[1],
             "XN": w.output[1], "C0": v["first"] // lanes, "CN": v["count"] // lanes},
        )  # fmt: skip

    def _pad(self) -> Iterator[Module]:
        layer, v, w, lanes = self.layer, self.layer.values, self.layer.window, self.fold.pe
        assert w is not None
        bits = layer.output.fmt.bits
        yield Module(
            "qc_pad",
            {"WIDTH": lanes * bits, "H": w.input[0], "W": w.input[1], "CF": v["channels"] // lanes, "PT": w.before[0],
             "PL": w.before[1], "CB": v["first"] // lanes, "OH": w.output[0], "OW": w.output[1],
             "OC": v["count"] // lanes, "PAD": packed([layer.pad] * lanes, bits)},
        )  # fmt: skip

    def _table(self) -> Iterator[Module]:
        layer = self.layer
        parameters = {"LANES": self.fold.pe, "IB": layer.formats[0].bits, "OB": layer.output.fmt.bits}
        yield Module("qc_table", parameters, {"TFILE": self._entries})

    def _entries(self) -> list[int]:
        layer = self.layer
        assert layer.table is not None
        if layer.kind == "softmax":
            return [int(e) for e in layer.table]
        return [masked(int(e), layer.output.fmt.bits) for e in coded(layer.table, layer.output.fmt)]

    def _softmax(self) -> Iterator[Module]:
        layer, fmt = self.layer, self.layer.output.fmt
        assert layer.table is not None and isinstance(fmt, Int)
        bits = int(layer.table.max()).bit_length()
        parameters = {
            "C": layer.channels, "AB": layer.formats[0].bits, "AS": int(layer.formats[0].signed), "EB": bits,
            "R": layer.values["numerator"], "OB": fmt.bits, "ZERO": layer.values["zero"], "LO": fmt.min, "HI": fmt.max,
        }  # fmt: skip
        yield Module("qc_softmax", parameters, {"TFILE": self._entries})

    def _windows(self, lanes: int, outer: int, ostep: int) -> Module:
        layer, w, bits = self.layer, self.layer.window, self.layer.formats[0].bits
        assert w is not None
        parts = layer.channels * layer.groups // lanes
        depth = ring_pixels(w)
        # Where a lane is a channel, each beat of a pixel is a group of its own.
        groups = {"GROUPS": layer.groups} if layer.groups > 1 else {}
        pad = packed([layer.pad] * lanes, bits)
        return Module(
            "qc_window",
            {"WIDTH": lanes * bits, "H": w.input[0], "W": w.input[1], "CF": parts, "OH": w.output[0],
             "OW": w.output[1], "KH": w.kernel[0], "KW": w.kernel[1], "SH": w.strides[0], "SW": w.strides[1],
             "DH": w.dilations[0], "DW": w.dilations[1], "PT": w.before[0], "PL": w.before[1],
             "PADDED": int(w.padded), "OUTER": outer, "OSTEP": ostep, "DEPTH": depth,
             "BLOCK": int(in_block(lanes * bits, depth * parts, self.fold.block)), "PAD": pad,
             **groups},
        )  # fmt: skip

    def _mac(self, depthwise: int) -> Module:
        layer, fold, fmt = self.layer, self.fold, self.layer.formats[0]
        words = self.repeats * self.passes
        width = fold.pe * fold.simd * layer.weight_bits
        return Module(
            "qc_mac",
            {"PE": fold.pe, "SIMD": fold.simd, "WB": layer.weight_bits, "AB": fmt.bits, "AS": int(fmt.signed),
             "WE": exponent_bits(layer.weight_format), "AE": exponent_bits(fmt), "WM": fold.signs,
             "ACC": signed_bits(*layer.sums), "WORDS": words, "DEPTHWISE": depthwise, "DSP": int(fold.dsp),
             "BLOCK": int(in_block(width, words, fold.block))},
            {"WFILE": self.weight_words},
        )  # fmt: skip

    def weight_words(self) -> list[int]:
        """Memory words in the order of the window's beats."""
        layer, pe, simd = self.layer, self.fold.pe, self.fold.simd
        assert layer.weights is not None
        w = layer.weights if layer.weight_format is None else coded(layer.weights, layer.weight_format)
        if self.fold.signs:
            w = sign_magnitude(w, layer.weight_bits)
        if layer.kind == "depthwise":  # [C, KH, KW] -> [C/PE, KH KW, PE]
            rows = w.reshape(self.repeats, pe, -1).transpose(0, 2, 1)
        else:  # [M, KH, KW, C] -> [M/PE, KH KW, C/SIMD, PE, SIMD]
            rows = w.reshape(self.repeats, pe, prod(w.shape[1:3]), w.shape[3] // simd, simd).transpose(0, 2, 3, 1, 4)
        return packed_rows(rows.reshape(-1, pe * simd), layer.weight_bits)

    def _requantizer(self) -> Module:
        layer, way, r = self.layer, self.multiplication, self.layer.requantizer
        assert r is not None
        bias_bits = signed_bits(int(r.bias.min()), int(r.bias.max()))
        alike = all(len(np.unique(array)) == 1 for array in (r.bias, r.multiplier, r.shift))
        count = 1 if alike else len(r.bias) // way.lanes
        width = way.lanes * (bias_bits + way.bits)

        def words() -> list[int]:
            common, found = way.shift - way.left, []
            for first in range(0, count * way.lanes, way.lanes):
                word = 0
                for i in reversed(range(first, first + way.lanes)):
                    m = int(r.multiplier[i])
                    scaled = (m << max(0, common - int(r.shift[i]))) >> max(0, int(r.shift[i]) - common)
                    word = word << (bias_bits + way.bits) | masked(int(r.bias[i]), bias_bits) << way.bits | scaled
                found.append(word)
            return found

        ends = (r.fmt.min, r.fmt.max) if isinstance(r.fmt, Int) else (0, 0)
        return Module(
            "qc_requant",
            {"PE": self.fold.pe, "LANES": way.lanes, "ACC": signed_bits(*layer.sums), "BB": bias_bits, "MB": way.bits,
             "STAGES": way.stages, "STEPS": way.steps, "GL": way.left,
             "DROP": way.shift - 1 - 2 * way.stages * way.steps, "WORDS": count, "OB": r.fmt.bits,
             "ZERO": r.zero_point, "LO": ends[0], "HI": ends[1], "OE": exponent_bits(r.fmt), "OS": int(r.fmt.signed),
             "BLOCK": int(way.steps >= 4 and in_block(width, count, self.fold.block))},
            {"QFILE": words},
        )  # fmt: skip


def ring_pixels(w: Window) -> int:
    """Pixels of a window's ring: the window, and what comes in while it is worked on."""
    span = (w.kernel[0] - 1) * w.dilations[0] * w.input[1] + (w.kernel[1] - 1) * w.dilations[1]
    ahead = max(w.strides[1], w.strides[0] * w.input[1] - (w.output[1] - 1) * w.strides[1]) + 1
    return min(span + 1 + ahead, max(2, 2 * prod(w.input)))


def in_block(width: int, words: int, limit: int = BLOCK_BITS) -> bool:
    """Whether a memory goes to block RAM."""
    return width * words > limit and words >= BLOCK_WORDS


def common_shift(r: Requantizer) -> tuple[int, int]:
    """(bits, shift): all multipliers brought to one shift have at most so many bits. Zeros that all have at their ends
    (seven, where scales are float32) are left out: they would be steps and memory for nothing."""
    used = r.multiplier != 0
    shift = int(r.shift[used].max(initial=1))
    scaled = [int(m) << (shift - int(s)) for m, s in zip(r.multiplier[used], r.shift[used], strict=True)]
    ones = reduce(or_, scaled, 0)
    zeros = min(shift - 1, (ones & -ones).bit_length() - 1) if ones else 0
    return max([1, *(value.bit_length() - zeros for value in scaled)]), shift - zeros


def divisors(n: int) -> list[int]:
    """All, in order."""
    return [d for d in range(1, n + 1) if n % d == 0]


def coded(values: NDArray[np.int64], fmt: Codes) -> NDArray[np.int64]:
    """Codes of integers (they are that) or of levels."""
    return fmt.encode(values).astype(np.int64) if isinstance(fmt, Minifloat) else values


def codings(layer: Layer) -> tuple[int, ...]:
    """How qc_mac may have a layer's weights (WM): as two's complement (0), or where all factors are integers, as sign
    and magnitude (1), in which minus zero is the lowest code if there is one (2)."""
    if layer.weights is None or layer.weight_format is not None or isinstance(layer.formats[0], Minifloat):
        return (0,)
    return 0, 1 if int(layer.weights.min()) > -(1 << (layer.weight_bits - 1)) else 2


def sign_magnitude(values: NDArray[np.int64], bits: int) -> NDArray[np.int64]:
    """Codes of so many bits, the sign on top; that of the lowest number of two's complement is minus zero."""
    return np.where(values < 0, (1 << (bits - 1)) | -values, values)


def masked(code: int, bits: int) -> int:
    """Two's complement in so many bits."""
    return code & ((1 << bits) - 1)


def packed(codes: Sequence[int], bits: int) -> int:
    """A word, the first code in its low bits."""
    word = 0
    for code in reversed(codes):
        word = word << bits | masked(int(code), bits)
    return word


def packed_rows(rows: NDArray[np.int64], bits: int) -> list[int]:
    """Every row as one word."""
    return [packed(row.tolist(), bits) for row in rows]


def beats(stream: Stream, tensor: NDArray, lanes: int) -> list[int]:
    """A tensor as the words of its stream."""
    codes = np.asarray(tensor, np.int64).reshape(-1)[stream.order.reshape(-1)]
    return packed_rows(codes.reshape(-1, lanes), stream.fmt.bits)


def folds(layer: Layer, cycles: int, dsp: bool = False) -> list[Fold]:
    """Foldings that need at most so many cycles, none of which is larger than another. Raises UnsupportedError."""
    found = []
    outs = len(layer.weights) if layer.weights is not None else layer.channels
    outs //= layer.groups  # all sums of a beat read the same channels
    if layer.kind in ("concat", "slice", "pad"):
        outs = gcd(*layer.values.values())
    if layer.kind == "softmax":
        outs = 1
    for pe in (d for d in divisors(outs) if d <= MAX_LANES):
        for simd in divisors(layer.channels) if layer.kind == "dense" else (1,):
            fold = Fold(pe, simd, dsp and layer.weights is not None)
            if simd <= MAX_LANES and Engine(layer, fold).cycles <= cycles:
                found.append(fold)
                break
    kept: list[Fold] = []
    for fold in found:  # rising pe, falling simd: more of both is never cheaper
        if not any(other.pe <= fold.pe and other.simd <= fold.simd for other in kept):
            kept.append(fold)
    if not kept:
        raise UnsupportedError(
            f"{layer.op_type} (node `{layer.node}`) does not reach {cycles} cycles an image with {MAX_LANES} lanes.",
            where="target `fpga`",
            hint="Ask for fewer frames a second (--fps).",
        )
    return kept
