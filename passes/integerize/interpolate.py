"""Resize with weights (linear, cubic) and GridSample with a constant grid: Interpolate along one axis after another."""

from __future__ import annotations

from math import prod

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qcompiler.errors import UnsupportedError
from qcompiler.formats import Int, QuantParams
from qcompiler.graph.model import Graph, attributes
from qcompiler.ops.movement import coordinates, resize_axes
from qcompiler.ops.taps import Taps, grid_taps, resize_taps
from qcompiler.passes.integerize.rule import Rule, one_input, reach
from qcompiler.passes.integerize.writer import Codes, Writer
from qcompiler.quantizer import quantize

BETWEEN = Int(16, narrow=True)
"""Codes between two axes: 16 bits, zero point 0."""
MAX_SHIFT = 30


def beyond(graph: Graph, node: ir.Node) -> NDArray[np.bool_] | None:
    """Outputs of a Resize that lie beyond the input, where ONNX puts `extrapolation_value`; None if there are none."""
    values = attributes(node)
    if values.get("coordinate_transformation_mode") != "tf_crop_and_resize":
        return None
    shape = graph.shape(node.inputs[0])  # type: ignore[arg-type]
    hidden: NDArray[np.bool_] = np.zeros([1] * len(shape), bool)
    for axis, size, factor, region in _axes(graph, node):
        at = coordinates(shape[axis], size, factor, region, values, np.float32)  # as models compute it: edges are ties
        outside = (at < 0) | (at > shape[axis] - 1)
        hidden = hidden | outside.reshape([-1 if d == axis else 1 for d in range(len(shape))])
    return hidden if hidden.any() else None


def extrapolate(writer: Writer, node: ir.Node, inside: ir.Value, params: QuantParams, name: str) -> ir.Value:
    """`inside` with `extrapolation_value` beyond the input."""
    graph, hidden = writer.source, beyond(writer.source, node)
    if hidden is None:
        return inside
    code = quantize(np.asarray(attributes(node).get("extrapolation_value", 0.0), np.float32), params)
    sides = [writer.const(f"{name}_inside", (~hidden).astype(np.uint8)), inside, writer.const(f"{name}_beyond", code)]
    attrs = {"format": params.format.token}
    return writer.emit("Select", sides, attrs, params, graph.shape(node.outputs[0]), f"{name}_whole")


def _axes(graph: Graph, node: ir.Node) -> list[tuple[int, int, float, tuple[float, float]]]:
    inputs = [None, *(graph.const(value) for value in node.inputs[1:])]
    return resize_axes(graph.shape(node.inputs[0]), inputs, attributes(node))  # type: ignore[arg-type]


def refuses_resize(graph: Graph, node: ir.Node) -> str:
    """Of any mode: arguments that are computed."""
    for value in node.inputs[1:]:
        if value is not None and graph.const(value) is None:
            return f"has an argument (`{value.name}`) that is not constant"
    return ""


def write_resize(writer: Writer, node: ir.Node, params: QuantParams, name: str) -> ir.Value:
    """Linear and cubic."""
    graph, values = writer.source, attributes(node)
    shape = list(graph.shape(node.inputs[0]))  # type: ignore[arg-type]
    passes: list[tuple[int, Taps]] = []
    for axis, size, factor, region in _axes(graph, node):
        at = coordinates(shape[axis], size, factor, region, values, np.float64)
        taps = resize_taps(shape[axis], at, factor, values)
        if taps[0].shape != (shape[axis], 1) or (taps[0][:, 0] != np.arange(size)).any() or (taps[1] != 1).any():
            passes.append((axis, taps))
    passes.sort(key=lambda item: len(item[1][0]) / shape[item[0]])  # what shrinks goes first
    x = writer.codes(node.inputs[0])  # type: ignore[arg-type]
    return extrapolate(writer, node, _interpolated(writer, x, shape, passes, params, name), params, name)


def _interpolated(
    writer: Writer, x: Codes, shape: list[int], passes: list[tuple[int, Taps]], params: QuantParams, name: str
) -> ir.Value:
    if not passes:
        return writer.requantize(x.value, x.params, params, name)
    for i, (axis, taps) in enumerate(passes):
        want, own = params, name
        if i < len(passes) - 1:
            gain = float(np.abs(taps[1]).sum(axis=1).max())
            scale = np.float32(float(x.params.scale) * reach(x.params) * gain / BETWEEN.max)
            want, own = QuantParams(BETWEEN, scale), f"{name}_axis{axis}"
        shape[axis] = len(taps[0])
        x = Codes(emit(writer, x, axis, taps, shape, want, own), want)
    return x.value


def emit(writer: Writer, x: Codes, axis: int, taps: Taps, shape: list[int], params: QuantParams, name: str) -> ir.Value:
    """One Interpolate. Raises UnsupportedError where no shift holds the weights."""
    index, real = taps
    weights = real * (float(x.params.scale) / float(params.scale))
    largest = float(np.abs(weights).max())
    # Sums of raw codes and the bias of the zero points: int32 where inputs and outputs have at most 8 bits, and for
    # 16-bit codes between two axes, whose steps are so fine that 15 bits of weight do.
    raw = max(x.params.format.max, -x.params.format.min) + abs(int(x.params.zero_point))
    total = float(np.abs(weights).sum(axis=1).max()) * raw
    narrow = params.format.bits <= 8 or x.params.format.bits <= 8
    limit = 2.0**30 if narrow else 2.0**61
    shift = next((s for s in range(MAX_SHIFT, 0, -1) if largest * 2.0**s < 2**31 - 1 and total * 2.0**s < limit), 0)
    if not shift:
        raise UnsupportedError(
            f"the range of `{name}` is far too small for what is interpolated.",
            where=writer.source.path,
            hint="Calibrate again: the range of the output does not fit its input.",
        )
    attributes = {
        "axis": axis,
        "shift": shift,
        "x_zero_point": int(x.params.zero_point),
        "zero_point": int(params.zero_point),
        "format": params.format.token,
    }
    inputs = [
        x.value,
        writer.const(f"{name}_index", index.astype(np.int32)),
        writer.const(f"{name}_weight", rounded(weights * 2.0**shift)),
    ]
    return writer.emit("Interpolate", inputs, attributes, params, shape, name)


def rounded(weights: NDArray[np.float64]) -> NDArray[np.int32]:
    """Integers whose sum in every row is the rounded sum, so that a constant image stays one: the largest takes up
    what the others lose."""
    whole = np.rint(weights)
    rows, most = np.arange(len(whole)), np.abs(weights).argmax(axis=1)
    whole[rows, most] += np.rint(weights.sum(axis=1)) - whole.sum(axis=1)
    return whole.astype(np.int32)


def _refuses_grid(graph: Graph, node: ir.Node) -> str:
    grid = graph.const(node.inputs[1])
    if grid is None:
        return "has a grid that is not constant"
    if (grid != grid[:1]).any():
        return "has another grid for each image of the batch"
    return one_input(graph, node)


def _write_grid(writer: Writer, node: ir.Node, params: QuantParams, name: str) -> ir.Value:
    graph, x, grid = writer.source, writer.codes(node.inputs[0]), writer.source.const(node.inputs[1])  # type: ignore[arg-type]
    assert grid is not None
    n, c, *extents = graph.shape(node.inputs[0])  # type: ignore[arg-type]
    taps = grid_taps(extents, grid[0], attributes(node))
    flat = writer.reshape(x.value, x.params, (n, c, prod(extents)), f"{name}_flat")
    out = graph.shape(node.outputs[0])
    line = [n, c, prod(out[2:])]
    codes = emit(writer, Codes(flat, x.params), 2, taps, line, params, f"{name}_line")
    return writer.reshape(codes, params, out, name)


RULES = {"GridSample": Rule(_write_grid, _refuses_grid)}
