"""Convolutions as paired multiplies take them (tir/columns.py): int8 weights, zero points folded, scales lifted."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qcompiler.formats import parse_format
from qcompiler.graph.model import attribute
from qcompiler.targets.shared.program import Program
from qcompiler.targets.shared.reads import format_of, requantize_inputs, requantize_of
from qcompiler.targets.shared.tir.columns import PACKINGS
from qcompiler.targets.shared.tir.requantize import Requantize


@dataclass(frozen=True)
class Paired:
    """A convolution as the schedules of tir/columns.py take it: int8 weights [M, ...] and sums that are not centred."""

    weights: NDArray[np.int8]
    bias: NDArray[np.int32]
    requantize: Requantize
    scales: list[NDArray]
    bits: int = 8
    """2 to 4: weights are to be packed, and sums are larger by 2^(8 - bits)."""


def _packed_bits(program: Program, node: ir.Node) -> int:
    """Bits of weights that stay packed, else 8."""
    weights = node.inputs[1]
    token = weights.metadata_props.get("qcompiler.format") if weights is not None else None
    bits = parse_format(token).bits if token else 8
    return bits if program.machine.packed and bits in PACKINGS else 8


def paired_form(
    program: Program, node: ir.Node, value: ir.Value, weights: NDArray, *, pack: bool = False
) -> Paired | None:
    """None where the machine has no such schedules, or types or sums do not fit them.

    Narrow weights are multiplied by a power of two where that makes all shifts 33 or more: the same product, shifted
    further. Packed ones always are, since they are used as the upper bits of a byte.
    """
    if not program.machine.helpers or format_of(value).bits > 8 or requantize_of(node).minifloat is not None:
        return None
    bias = program.graph.const(node.inputs[2])
    assert bias is not None
    wide = weights.astype(np.int64)
    if wide.min(initial=0) < -128 or wide.max(initial=0) > 127:
        return None
    each = wide.reshape(len(wide), -1)
    folded = bias.astype(np.int64) - attribute(node, "x_zero_point", 0) * each.sum(axis=1)
    reach = int((np.abs(folded) + 255 * np.abs(each).sum(axis=1)).max(initial=0))
    multiplier, shift = requantize_inputs(program, node, 3)
    least, bits = int(shift.min(initial=33)), _packed_bits(program, node) if pack else 8
    if bits < 8 and (least + 8 - bits < 33 or reach << (8 - bits) >= 2**31):
        bits = 8
    lift = 8 - bits if bits < 8 else max(0, 33 - least)
    if bits == 8 and int(np.abs(wide).max(initial=0)) << lift > 127 or reach << lift >= 2**31:
        lift = 0
    if reach >= 2**31:
        return None
    requantize, scales = replace(requantize_of(node), zero_point=0), [multiplier, shift]
    if least + lift >= 33:
        requantize, scales = replace(requantize, high=True), [multiplier, (shift + (lift - 33)).astype(np.int8)]
    else:
        lift = 0
    stored = wide if bits < 8 else wide << lift
    return Paired(stored.astype(np.int8), (folded << lift).astype(np.int32), requantize, scales, bits)
