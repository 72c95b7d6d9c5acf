"""How rules read their inputs and write their outputs: formats, requantization, contiguous channels, borders."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qcompiler.formats import Int, Minifloat, parse_format, parse_integers
from qcompiler.graph.model import attribute
from qcompiler.targets.shared.program import Program, as_int32
from qcompiler.targets.shared.tir.requantize import Requantize
from qcompiler.targets.shared.views import View, channels_last


def requantize_of(node: ir.Node, *, scalar: bool = False) -> Requantize:
    """The requantization that a node's attributes name."""
    fmt, arithmetic = parse_format(attribute(node, "format")), attribute(node, "arithmetic", "float")
    if isinstance(fmt, Minifloat):
        return Requantize(arithmetic, fmt.integers, 0, scalar, minifloat=fmt)
    assert isinstance(fmt, Int)
    return Requantize(arithmetic, fmt, attribute(node, "zero_point", 0), scalar)


def requantize_inputs(program: Program, node: ir.Node, first: int) -> list[NDArray]:
    """The constant arrays of `*r`."""
    arrays = [program.graph.const(value) for value in node.inputs[first:]]
    return [np.asarray(a) if a.dtype == np.float32 else as_int32(a) for a in arrays if a is not None]


def format_of(value: ir.Value) -> Int:
    """Format of an integer value."""
    return parse_integers(value.metadata_props["qcompiler.format"])


def sums_fit(program: Program, node: ir.Node, fmt: Int, zero: int, weights: NDArray) -> bool:
    """Whether codes less their zero point are int16 and no sum of a weighted product, bias included, can leave int32.

    weights: [M, ...].
    """
    bias = program.graph.const(node.inputs[2])
    reach = max(fmt.max - zero, zero - fmt.min)
    if bias is None or reach > 2**15 or fmt.max - zero == 2**15:
        return False
    sums = np.abs(weights.astype(np.int64)).reshape(len(weights), -1).sum(axis=1)
    return int((sums * reach + np.abs(bias.astype(np.int64))).max(initial=0)) < 2**31


def feed(
    program: Program, value: ir.Value, storage: str, shift: int, border: tuple[tuple[int, int], ...], code: int
) -> View:
    """`value` - shift in another storage, channels contiguous, with a border that holds `code`.

    The value's own memory if it is all that already, else a copy that lives as long as the reader.
    """
    view = program.view(value)
    contiguous = view.strides[1] == 1 or view.shape[1] == 1
    if view.dtype == storage and shift == 0 and contiguous and covers(view, border, code):
        return view
    fed = program.scratch(f"{value.name}/fed", storage, view.shape, channels_last(len(view.shape)), border, code)
    program.fill_border(fed)
    program.copy(view, fed, shift)
    return fed


def covers(view: View, border: tuple[tuple[int, int], ...], code: int) -> bool:
    """Whether a view has at least this border, holding this code."""
    if not any(before or after for before, after in border):
        return True
    if not view.border or view.border_code != code:
        return False
    return all(have[0] >= want[0] and have[1] >= want[1] for have, want in zip(view.border, border, strict=True))


def target_of(program: Program, value: ir.Value, channel: int) -> View:
    """Where a product writes: the value's own view if its channels are contiguous there, else scratch."""
    view = program.view(value)
    if view.strides[channel] == 1 or view.shape[channel] == 1:
        program.fill_border(view)
        return view
    order = channels_last(len(view.shape)) if len(view.shape) > 2 else (0, 1)
    return program.scratch(f"{value.name}/dense", view.dtype, view.shape, order)


def settle(program: Program, value: ir.Value, written: View) -> None:
    """Copy from scratch if `target_of` had to take some."""
    view = program.view(value)
    if view is not written:
        program.fill_border(view)
        program.copy(written, view)
