"""Pools, means and sums over axes."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qcompiler.errors import UnsupportedError
from qcompiler.formats import QuantParams
from qcompiler.graph.model import Graph, attribute
from qcompiler.passes.integerize.rule import Rule, Window, one_input, reach, window_of
from qcompiler.passes.integerize.writer import Writer


def _pool_window(graph: Graph, node: ir.Node) -> tuple[Window, Window]:
    """The window as declared, and with pads that end exactly where the last window does (ceil_mode)."""
    x, y = graph.shape(node.inputs[0]), graph.shape(node.outputs[0])  # type: ignore[arg-type]
    declared = window_of(graph, node, attribute(node, "kernel_shape") or list(x[2:]))
    count = len(declared.kernel)
    end = [
        max(0, (y[d + 2] - 1) * s + (k - 1) * step + 1 - x[d + 2] - declared.pads[d])
        for d, (k, s, step) in enumerate(zip(declared.kernel, declared.strides, declared.dilations, strict=True))
    ]
    return declared, Window(declared.kernel, declared.strides, declared.dilations, [*declared.pads[:count], *end])


def _attributes(window: Window) -> dict[str, list[int]]:
    return {
        "kernel_shape": window.kernel,
        "strides": window.strides,
        "dilations": window.dilations,
        "pads": window.pads,
    }


def _refuses_pool(graph: Graph, node: ir.Node) -> str:
    if len(node.outputs) > 1 and node.outputs[1].uses():
        return "returns indices"
    if len(graph.shape(node.inputs[0])) not in (3, 4):  # type: ignore[arg-type]
        return "has not one or two spatial dimensions"
    return one_input(graph, node)


def _write_max_pool(writer: Writer, node: ir.Node, params: QuantParams, name: str) -> ir.Value:
    x = writer.codes(node.inputs[0])  # type: ignore[arg-type]
    graph = writer.source
    _, window = _pool_window(graph, node)
    pooled_name = name if x.params == params else f"{name}_pooled"
    shape = graph.shape(node.outputs[0])
    pooled = writer.emit("MaxPool", [x.value], _attributes(window), x.params, shape, pooled_name)
    return writer.requantize(pooled, x.params, params, name)


def _write_average_pool(writer: Writer, node: ir.Node, params: QuantParams, name: str) -> ir.Value:
    x = writer.codes(node.inputs[0])  # type: ignore[arg-type]
    graph = writer.source
    declared, window = _pool_window(graph, node)
    counts = _divisors(graph, node, declared, window)
    scale: Any = np.float64(x.params.scale) / np.float64(params.scale) / counts
    if (counts == counts.flat[0]).all():
        scale = scale.flat[0]
    attributes = {
        **_attributes(window),
        "x_zero_point": int(x.params.zero_point),
        **writer.output_attributes(params),
    }
    inputs = [x.value, *writer.scale_inputs(scale, name, _sum_bits(writer, node, x.params, prod(window.kernel)))]
    return writer.emit("AveragePool", inputs, attributes, params, graph.shape(node.outputs[0]), name)


def _divisors(graph: Graph, node: ir.Node, declared: Window, window: Window) -> NDArray[np.float64]:
    """Divisor of every output position, [*out]: in-bounds cells, and declared padding if that counts."""
    x, y = graph.shape(node.inputs[0]), graph.shape(node.outputs[0])  # type: ignore[arg-type]
    counted = bool(attribute(node, "count_include_pad", 0))
    total: NDArray[np.float64] = np.ones((), np.float64)
    for d, size in enumerate(window.kernel):
        low = -declared.pads[d] if counted else 0
        high = x[d + 2] + (declared.pads[d + len(window.kernel)] if counted else 0)
        starts = np.arange(y[d + 2])[:, None] * window.strides[d] - window.pads[d]
        cells = starts + np.arange(size) * window.dilations[d]
        along = ((cells >= low) & (cells < high)).sum(axis=1).astype(np.float64)
        total = np.multiply.outer(total, along)
    return total


def _sum_bits(writer: Writer, node: ir.Node, x: QuantParams, cells: int) -> int:
    """Bits of a sum of so many codes, at least 31. Raises UnsupportedError if int32 does not hold it."""
    # Targets may sum raw codes and subtract the zero points after.
    worst = cells * max(reach(x), x.format.max, -x.format.min)
    if x.format.bits <= 8 and worst >= 2**31:
        raise UnsupportedError(
            f"the accumulator of {node.op_type} `{node.name}` can reach {worst:.3g}, which overflows 32 bits.",
            where=writer.source.path,
            hint="Give its input 16 bits (64-bit accumulators).",
        )
    return max(31, worst.bit_length())


def reduced_axes(graph: Graph, node: ir.Node) -> list[int] | None:
    rank = len(graph.shape(node.inputs[0]))  # type: ignore[arg-type]
    if node.op_type == "GlobalAveragePool":
        return list(range(2, rank))
    axes = attribute(node, "axes")
    if axes is None and len(node.inputs) > 1 and node.inputs[1] is not None:
        array = graph.const(node.inputs[1])
        if array is None:
            return None
        axes = [int(a) for a in array]
    if not axes:
        axes = [] if attribute(node, "noop_with_empty_axes", 0) else list(range(rank))
    return sorted(a % rank for a in axes)


def _refuses_mean(graph: Graph, node: ir.Node) -> str:
    return "has axes that are not constant" if reduced_axes(graph, node) is None else one_input(graph, node)


def _write_mean(writer: Writer, node: ir.Node, params: QuantParams, name: str) -> ir.Value:
    x = writer.codes(node.inputs[0])  # type: ignore[arg-type]
    graph = writer.source
    shape = graph.shape(node.inputs[0])  # type: ignore[arg-type]
    axes = reduced_axes(graph, node) or []
    cells = prod(shape[a] for a in axes)
    attributes = {
        "axes": axes,
        "keepdims": 1 if node.op_type == "GlobalAveragePool" else attribute(node, "keepdims", 1),
        "x_zero_point": int(x.params.zero_point),
        **writer.output_attributes(params),
    }
    divisor = 1 if node.op_type == "ReduceSum" else cells
    scale = np.float64(x.params.scale) / np.float64(params.scale) / divisor
    inputs = [x.value, *writer.scale_inputs(scale, name, _sum_bits(writer, node, x.params, cells))]
    return writer.emit("ReduceMean", inputs, attributes, params, graph.shape(node.outputs[0]), name)


RULES = {
    "AveragePool": Rule(_write_average_pool, _refuses_pool),
    "GlobalAveragePool": Rule(_write_mean, _refuses_mean),
    "GlobalMaxPool": Rule(_write_max_pool, _refuses_pool),
    "MaxPool": Rule(_write_max_pool, _refuses_pool),
    "ReduceMean": Rule(_write_mean, _refuses_mean),
    "ReduceSum": Rule(_write_mean, _refuses_mean),
}
