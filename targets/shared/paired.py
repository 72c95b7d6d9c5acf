"""Convolutions as paired multiplies take them (tir/columns.py): int8 weights, zero points folded, scales lifted."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qcompiler.formats import parse_format
from qcompiler.graph.model import attribute
from qcompiler.graph.qdq import FORMAT_KEY, MINIFLOAT_KEY
from qcompiler.ops.requantize import MAX_SHIFT
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
    packing: str = ""
    """Of PACKINGS: weights are to be packed, and sums are larger by what unpacking lifts them."""


def packing_of(weights: ir.Value | None) -> str:
    """The packing that weights of their format have, or ''."""
    told = weights.metadata_props if weights is not None else {}
    if told.get(MINIFLOAT_KEY) in PACKINGS:
        return told[MINIFLOAT_KEY]
    bits = str(parse_format(told[FORMAT_KEY]).bits) if FORMAT_KEY in told else ""
    return bits if bits in PACKINGS else ""


def paired_form(
    program: Program, node: ir.Node, value: ir.Value, weights: NDArray, *, pack: bool = False
) -> Paired | None:
    """None where the machine has no such schedules, or types or sums do not fit them.

    Narrow weights are multiplied by a power of two where that makes all shifts 33 or more: the same product, shifted
    further. Packed ones always are, since they are used as the upper bits of a byte.
    """
    if not program.machine.helpers or format_of(value).bits > 8:
        return None
    requantize = replace(requantize_of(node), zero_point=0)
    bias = program.graph.const(node.inputs[2])
    assert bias is not None
    wide = weights.astype(np.int64)
    if wide.min(initial=0) < -128 or wide.max(initial=0) > 127:
        return None
    each = wide.reshape(len(wide), -1)
    folded = bias.astype(np.int64) - attribute(node, "x_zero_point", 0) * each.sum(axis=1)
    reach = int((np.abs(folded) + 255 * np.abs(each).sum(axis=1)).max(initial=0))
    multiplier, shift = requantize_inputs(program, node, 3)
    least, most = int(shift.min(initial=33)), int(shift.max(initial=33))
    packing = packing_of(node.inputs[1]) if pack and program.machine.packed else ""
    lift = PACKINGS[packing].lift if packing else 0
    if reach << lift >= 2**31 or (most + lift > MAX_SHIFT if requantize.minifloat is not None else least + lift < 33):
        packing = ""
    if not packing:
        lift = max(0, 33 - least) if requantize.minifloat is None else 0
    if not packing and int(np.abs(wide).max(initial=0)) << lift > 127 or reach << lift >= 2**31:
        lift = 0
    if reach >= 2**31:
        return None
    scales = [multiplier, shift]
    if requantize.minifloat is not None:
        scales = [multiplier, shift + lift]
    elif least + lift >= 33:
        requantize, scales = replace(requantize, high=True), [multiplier, (shift + (lift - 33)).astype(np.int8)]
    else:
        lift = 0
    stored = wide if packing else wide << lift
    return Paired(stored.astype(np.int8), (folded << lift).astype(np.int32), requantize, scales, packing)
